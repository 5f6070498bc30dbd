"""Corpora in folders of text files, plain or packed by gzip, in UTF-8."""

import codecs
import gzip
import hashlib
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from impossible import files
from impossible.settings import UserError
from impossible.text.documents import (
    CHUNK,
    PERIOD,
    Document,
    Part,
    Source,
    Splits,
    hold_out,
    text_lines,
)
from impossible.text.token_files import SPLITS

# The folders of a split, the first found: the Hub copy's names and the task's own.
_FOLDERS = {
    "train": ("100M", "babylm_100M", "train_100M", "10M", "babylm_10M", "train_10M", "train"),
    "val": ("dev", "babylm_dev", "val", "valid", "validation"),
    "test": ("test", "babylm_test"),
}
# What a file is called that is a split as a whole, before its ending.
_SPLIT_FILES = {"train": "train", "test": "test"} | dict.fromkeys(_FOLDERS["val"], "val")
_ENDINGS = (".txt", ".train", ".dev", ".test")
_GZIP = ".gz"
_ROOTS = (".", "original", "babylm_data")


def version(folder: Path) -> str:
    """A hash of all text files of a folder, with a label."""
    return f"text files, sha256 {content_hash(_folder_files(folder).found)}"


def content_hash(found: dict[str, list[Path]], root: Path | None = None) -> str:
    """A SHA-256 of the names and the bytes of all files, by split.

    root: the folder to which names are relative; without it, only base names are hashed.
    """
    digest = hashlib.sha256()
    for split, paths in found.items():
        for path in paths:
            name = path.relative_to(root).as_posix() if root else path.name
            digest.update(f"{split}/{name} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        raise _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read ({error.strerror}). Expected a text file of the corpus there."
    )


class _Folder(NamedTuple):
    """The files of a folder."""

    found: dict[str, list[Path]]  # split -> its text files, by name
    left_out: list[str]  # the names of the others, and why they are not read


def _folder_files(folder: Path, train: Sequence[str] = _FOLDERS["train"]) -> _Folder:
    """The text files of each split of a folder; of train alone, if it has no splits.

    train: the names that the folder to train on may have. Raises UserError for a split without
    text.
    """
    if not folder.is_dir():
        advice = f"It is a file: name its folder, or --corpus=hf:{folder}"
        if not folder.exists():
            advice = "Expected babylm, babylm_10M, sotu, hf:NAME or a folder of text files."
        raise UserError(f"there is no corpus {str(folder)!r}. {advice}")
    places = places_of(folder, train)
    left_out: list[str] = []
    if any(places.values()):
        found = {s: _text_files(p, _ENDINGS, left_out) if p else [] for s, p in places.items()}
        root = next(place.parent for place in places.values() if place)
        others = sorted(p for p in root.iterdir() if p not in places.values())
        left_out += [f"{p.name} (beside the folders of the splits)" for p in others]
    else:
        found = _split_files(_text_files(folder, _ENDINGS[:1], left_out), left_out)
    for split, paths in found.items():
        if not paths:
            seen = f" (not read: {_listed(left_out)})" if left_out else ""
            raise UserError(
                f"{places[split] or folder} holds no {split} text{seen}. Expected in {folder}: "
                "*.txt (or *.txt.gz) files, which may be called train.txt, valid.txt and test.txt; "
                "or the folders of BabyLM (docs/data.md). For other formats, try "
                "--corpus=hf:FOLDER."
            )
    return _Folder(found, left_out)


def places_of(folder: Path, train: Sequence[str] = _FOLDERS["train"]) -> dict[str, Path | None]:
    """The subfolder of each split, if there is one.

    train: the names that the folder to train on may have.
    """
    wanted = _FOLDERS | {"train": train}
    return {
        split: next(
            (p for r in _ROOTS for name in names if (p := folder / r / name).is_dir()), None
        )
        for split, names in wanted.items()
    }


def _split_files(paths: list[Path], left_out: list[str]) -> dict[str, list[Path]]:
    """Text files by split: those that are named after one, and the rest to train on.

    With a file called train, the rest is left out.
    """
    splits = [_SPLIT_FILES.get(_stem(path).rpartition(".")[2].lower(), "") for path in paths]
    if "train" in splits:
        rest = [path for path, split in zip(paths, splits, strict=True) if not split]
        left_out += [f"{path.name} (beside a file called train)" for path in rest]
    found = {"train": [p for p, s in zip(paths, splits, strict=True) if s == "train"]}
    found["train"] = found["train"] or [p for p, s in zip(paths, splits, strict=True) if not s]
    for split in ("val", "test"):
        if split in splits:
            found[split] = [p for p, s in zip(paths, splits, strict=True) if s == split]
    return found


def _text_files(folder: Path, endings: Sequence[str], left_out: list[str]) -> list[Path]:
    """The text files of a folder, by genre; adds to `left_out` the others, with the reason.

    Raises UserError if a file exists twice, plain and compressed.
    """
    paths = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            left_out.append(f"{path.name} (hidden)")
        elif path.is_dir():
            left_out.append(f"{path.name}/ (a subfolder)")
        elif plain_name(path).suffix.lower() not in endings:
            left_out.append(f"{path.name} (does not end in {' or '.join(endings)})")
        else:
            paths.append(files.require_utf8(path))
    for path in paths:
        if plain_name(path) != path and plain_name(path) in paths:
            raise UserError(
                f"{path} is in the same folder as {plain_name(path).name}. Keep "
                "only one of the two."
            )
    return paths


def splits(
    folder: Path, may_replace: bool = False, train: Sequence[str] = _FOLDERS["train"]
) -> Splits:
    """The documents of each split; prints which files are read, and which are not.

    train: the names that the folder to train on may have. Raises UserError.
    """
    found, left_out = _folder_files(folder, train)
    places = hold_out([split for split in SPLITS if split not in found])
    for split in SPLITS:
        names = [path.name for path in found.get(split, [])]
        held_out = f"every {PERIOD}th line of the files of train"
        print(f"{split}: {_listed(names) or held_out}")
    if left_out:
        print(f"not read: {_listed(left_out)}")
    return {
        split: [
            text_file(path, _genre(path), may_replace, places.get(split))
            for path in found.get(split, found["train"])
        ]
        for split in SPLITS
    }


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Names as a readable list."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _genre(path: Path) -> str:
    """The genre of a text file: its name, or its folder's if it is named after a split."""
    genre, _, split = _stem(path).rpartition(".")
    if split.lower() in _SPLIT_FILES and path.parent.name not in (
        *_SPLIT_FILES,
        *itertools.chain(*_FOLDERS.values()),
    ):
        return genre or path.parent.name
    return _stem(path)


def _stem(path: Path) -> str:
    return plain_name(path).stem


def text_file(
    path: Path,
    genre: str,
    may_replace: bool = False,
    places: frozenset[int] | None = None,
) -> Document:
    """A document of a text file. Raises UserError if there is none."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error)
    return Document(genre, size, lambda: _read_lines(path, may_replace), places)


def plain_name(path: Path) -> Path:
    """The path without .gz."""
    return path.with_suffix("") if _is_packed(path) else path


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == _GZIP


def _read_lines(path: Path, may_replace: bool = False) -> Iterator[Part]:
    """The lines of a UTF-8 file, stripped, in parts. Raises UserError for other bytes."""
    start = told = 0
    try:
        for chunk, place in _chunks(path):
            text = _decoded(chunk, path, start, may_replace)
            if start == 0:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            yield Part(text_lines(text), place - told)
            start, told = start + len(chunk), place
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Download or compress it again.")
    except OSError as error:
        raise _unreadable(path, error)


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Chunks of a file, cut at line ends of any kind, each with the size that was read so far."""
    with open(path, "rb") as stored:
        file = gzip.GzipFile(fileobj=stored) if _is_packed(path) else stored
        rest = b""
        while data := file.read(CHUNK):
            data = rest + data
            # A \r at the end may be the first half of \r\n.
            end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1)) + 1
            rest = data[end:]
            if end:
                yield data[:end], stored.tell()
        if rest:
            yield rest, stored.tell()


def _decoded(chunk: bytes, path: Path, start: int, may_replace: bool) -> str:
    try:
        return chunk.decode("utf-8", "surrogateescape" if may_replace else "strict")
    except UnicodeDecodeError as error:
        place = start + error.start
        is_utf16 = start == 0 and chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "UTF-16" if is_utf16 else "WINDOWS-1252"
        raise UserError(
            f"{path}, line {_line_number(path, place)}: byte {place:,} "
            f"(0x{chunk[error.start]:02x}) is not UTF-8. Settings the file, for example: iconv -f "
            f"{encoding} -t UTF-8 {path.name} > converted.txt; or have such bytes replaced: "
            "--invalid_utf8=replace"
        )


def _line_number(path: Path, offset: int) -> int:
    with gzip.open(path) if _is_packed(path) else open(path, "rb") as file:
        return len(re.findall(rb"\r\n?|\n", file.read(offset))) + 1


def about(version: str) -> Source:
    """The description for a model card, without claims about the text and without a path."""
    digest = re.search("sha256 ([0-9a-f]{64})", version)
    return Source(
        name="text from a local folder",
        description="Text from a folder"
        + (f" (SHA-256 over its files: `{digest[1]}`)." if digest else "."),
        rights="What the text is, and its licence, is not recorded.",
    )
