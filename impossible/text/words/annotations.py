"""Annotations: made once for a corpus and a segmenter, and read by every *Hop language.

A folder holds SPLIT/GENRE.parquet, a row for each sentence, and a meta.json that is written last.
Until then, finished parts lie in `parts`: an interrupted annotation continues after them.
"""

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from impossible import files
from impossible.settings import Settings, UserError
from impossible.text import sentences as finding
from impossible.text.documents import Part, Splits, recurring
from impossible.text.encoding import cores
from impossible.text.words import by_spacy, from_files
from impossible.text.words.verbs import Annotated, annotated

_META, _PARTS = "meta.json", "parts"
_PART = 4000  # sentences: some seconds of work
_ROWS = 1 << 13  # sentences read in one go
_SCHEMA = pa.schema(
    {
        "words": pa.list_(pa.string()),
        "verb_at": pa.list_(pa.int32()),
        "verb_plural": pa.list_(pa.bool_()),
        "verb_lemma": pa.list_(pa.string()),
        "text_words": pa.int32(),
    }
)


def folder_of(settings: Settings, corpus: str, corpus_version: str) -> Path:
    """The folder of the annotations of a corpus, beside the folders of prepared data."""
    annotator = "" if settings.annotations else by_spacy.Annotator.name
    which = [corpus_version, settings.segmenter, annotator]
    key = hashlib.sha256(json.dumps(which).encode()).hexdigest()[:8]
    name = Path(corpus.removeprefix("hf:").partition("@")[0]).stem
    return Path(settings.data_dir).parent / "annotations" / f"{name}-{key}"


def identity_of(settings: Settings, folder: Path) -> dict[str, Any]:
    """The annotator of the words in a folder or, if there are none yet, of those to be made.

    Raises UserError if spaCy is needed and is not installed.
    """
    if (folder / _META).exists():
        stored = _read_meta(folder)["annotator"]
        if stored.get("rule", by_spacy.RULE) != by_spacy.RULE:
            print(
                f"{folder} was annotated by an older rule ({stored['rule']}; now {by_spacy.RULE}). "
                "To annotate again, delete that folder and the data made from it."
            )
        return stored
    if settings.annotations:
        return {"annotator": "files"}
    return by_spacy.Annotator().identity


def make(
    settings: Settings,
    folder: Path,
    identity: dict[str, Any],
    documents: Splits,
    require_unchanged: Callable[[], None],
) -> None:
    """Annotate the sentences of a corpus, unless that is done; takes hours for 100M words.

    identity: the fields of meta.json that name the corpus and the annotator. require_unchanged:
    raises UserError if the corpus is not what it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {key: identity[key] for key in ("corpus", "corpus_version", "segmenter", "annotator")}
    with files.locked(folder):
        if (folder / _META).exists():
            return
        print(f"annotating words in {folder} (an interrupted annotation continues)", flush=True)
        if settings.annotations:
            found = from_files.files_of(Path(settings.annotations))
            splits = {s: _write_files(folder / s, genres) for s, genres in found.items()}
            replaced = {}
        else:
            splits, replaced = _annotate_all(settings, folder, about, documents)
        for split, genres in splits.items():
            _require_verbs(split, genres, folder)
        require_unchanged()
        files.write_json(folder / _META, about | {"splits": splits, "replaced": replaced})
        shutil.rmtree(folder / _PARTS, ignore_errors=True)


def _require_verbs(split: str, genres: dict[str, dict[str, Any]], folder: Path) -> None:
    """Raise UserError if no verb of a split is marked; warn if no plural one is."""
    singular, plural = (sum(g[name] for g in genres.values()) for name in ("singular", "plural"))
    if not singular + plural:
        raise UserError(
            f"no verb of the {split} split is in the third person present ({folder}). Expected "
            "English text, annotated with Person, Tense, VerbForm and Number."
        )
    if not plural:
        print(
            f"warning: no plural verb is marked in the {split} split. (Models trained on Universal "
            "Dependencies before release 2.10 give no number to plural verbs.)"
        )


def replaced(folder: Path, split: str) -> int:
    """How many bytes of a split were not UTF-8, and became U+FFFD."""
    return _read_meta(folder)["replaced"].get(split, 0)


def read(folder: Path, split: str) -> Iterator[tuple[str, list[Annotated]]]:
    """The sentences of a split in order, some at a time, each time with their genre.

    Raises UserError for a file that is not as meta.json says.
    """
    for genre, counts in _read_meta(folder)["splits"][split].items():
        path = folder / split / f"{genre}.parquet"
        if not path.is_file() or files.sha256(path) != counts["sha256"]:
            raise UserError(f"{path} is missing or damaged. Delete {folder}, and annotate again.")
        with open(path, "rb") as file, pq.ParquetFile(file) as stored:
            for batch in stored.iter_batches(_ROWS):
                yield genre, list(map(Annotated, *map(_rows, batch.columns)))


def _rows(column: pa.Array) -> list[Any]:
    """A column as Python values. (Row by row, pyarrow takes many times as long.)"""
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    values, offsets = column.values.to_numpy(zero_copy_only=False).tolist(), column.offsets
    return [values[start:end] for start, end in itertools.pairwise(offsets.to_pylist())]


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _META).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / _META} is damaged ({error}). Delete {folder}.")


def _table(sentences: Sequence[Annotated]) -> pa.Table:
    columns = zip(*sentences, strict=True)
    return pa.table(dict(zip(_SCHEMA.names, map(list, columns), strict=True)), schema=_SCHEMA)


def _write(path: Path, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write the sentences of a genre, whole or not at all. Returns their counts for meta.json."""
    counts = dict.fromkeys(("sentences", "words", "singular", "plural"), 0)
    path.parent.mkdir(exist_ok=True)
    with (
        files.atomic_write(path) as file,
        pq.ParquetWriter(file, _SCHEMA, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table)
            plural = table["verb_plural"].combine_chunks().flatten()
            counts["sentences"] += len(table)
            counts["words"] += len(table["words"].combine_chunks().flatten())
            counts["singular"] += len(plural) - plural.true_count
            counts["plural"] += plural.true_count
    return counts | {"sha256": files.sha256(path)}


def _write_files(folder: Path, genres: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Store the annotated sentences of files, by genre. Returns their counts."""
    counts = {}
    for genre, path in genres.items():
        sentences = from_files.sentences(path)
        tables = (_table(part) for part in _parts(sentences))
        counts[genre] = _write(folder / f"{genre}.parquet", tables)
        if not counts[genre]["sentences"]:
            raise UserError(f"{path} holds no sentence. Expected CoNLL-U.")
    return counts


def _parts(sentences: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(sentences)
    while part := list(itertools.islice(iterator, _PART)):
        yield part


def _sized_parts(read: Iterable[Part], segmenter: str) -> Iterator[tuple[list[str], int]]:
    """Sentences part by part, each time with the size of the text read for them."""
    sentences: list[str] = []
    size = 0
    for part in read:
        size += part.size
        sentences += finding.sentences(part.lines, segmenter)
        while len(sentences) >= _PART:
            yield sentences[:_PART], size
            sentences, size = sentences[_PART:], 0
    if sentences:
        yield sentences, size


def _annotate_all(
    settings: Settings, folder: Path, about: dict[str, Any], documents: Splits
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Annotate all splits by several processes.

    Returns the counts of each genre by split, and of the bytes that were replaced in each split.
    """
    parts = _begun_parts(folder, about)
    processes = settings.workers or cores()
    size = sum(document.size for split in documents.values() for document in split)
    counts: dict[str, dict[str, Any]] = {}
    replaced: dict[str, Counter[str]] = {}
    # spawn: a fork would share locks that another thread holds.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin)
    bar = tqdm(total=size, unit="B", unit_scale=True, mininterval=2)
    with _ended(pool), bar as progress:
        for split, found in documents.items():
            counts[split], replaced[split] = {}, Counter()
            lines = finding.lines(found, settings.segmenter, replaced[split])
            genres = itertools.groupby(lines, lambda line: line[0].genre)
            for genre, of_genre in genres:
                if genre in counts[split]:
                    raise recurring(genre)
                read = _sized_parts((part for _, part in of_genre), settings.segmenter)
                place = parts / split / genre
                tables = _annotated_tables(read, place, pool, processes, progress.update)
                counts[split][genre] = _write(folder / split / f"{genre}.parquet", tables)
    return counts, {split: found.total() for split, found in replaced.items()}


@contextlib.contextmanager
def _ended(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the processes of a pool after the block, and at once after an error."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "a process that finds the verbs has ended: its error is above, or else the memory ran "
            "out. Set a smaller --workers=, and run the same command again: what is done is kept."
        )
    except BaseException:  # parts are written whole or not at all
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begun_parts(folder: Path, about: dict[str, Any]) -> Path:
    """The folder of finished parts, emptied if another annotator or other versions made them."""
    parts = folder / _PARTS
    begun = parts / _META
    if parts.exists() and not (begun.exists() and json.loads(begun.read_text()) == about):
        print(f"the annotation in {folder} was begun with other versions: starting anew")
        shutil.rmtree(parts)
    parts.mkdir(exist_ok=True)
    files.write_json(begun, about)
    return parts


def _annotated_tables(
    parts: Iterable[tuple[list[str], int]],
    folder: Path,
    pool: ProcessPoolExecutor,
    processes: int,
    progress: Callable[[int], Any],
) -> Iterator[pa.Table]:
    """The annotations of sentences, part by part in order; those in `folder` are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    begun: deque[tuple[Path, int, Future[None] | None]] = deque()

    def first() -> pa.Table:
        path, size, future = begun.popleft()
        if future:
            future.result()
        progress(size)
        return _read_part(path)

    for number, (sentences, size) in enumerate(parts):
        path = folder / f"{number:06}.parquet"
        future = None if _is_of(path, sentences) else pool.submit(_annotate, sentences, path)
        begun.append((path, size, future))
        if len(begun) > 2 * processes:
            yield first()
    while begun:
        yield first()


def _read_part(path: Path) -> pa.Table:
    # pyarrow takes every path for UTF-8, whatever the encoding of the file system.
    with open(path, "rb") as file:
        return pq.ParquetFile(file).read()


def _is_of(path: Path, sentences: list[str]) -> bool:
    """Whether a finished part holds the words of these sentences."""
    if not path.exists():
        return False
    words = _read_part(path)["words"].combine_chunks()
    stored = "".join(words.flatten().to_pylist()).split()
    return len(words) == len(sentences) and stored == ["".join("".join(sentences).split())]


def _begin() -> None:
    """What a process does before its first part."""
    global _annotator
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _annotator = by_spacy.Annotator()
    _annotator.load()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _annotate(sentences: list[str], path: Path) -> None:
    """Annotate a part, in a process of its own, and write it."""
    words = zip(_annotator.annotate(sentences), sentences, strict=True)
    table = _table([annotated(found, text, _annotator.name) for found, text in words])
    with files.atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")
