"""Turn a text into token files: text -> sentences -> tokens -> impossible language -> files.

    python prepare.py                                   # BabyLM as PartialReverse
    python prepare.py config/full_reverse.py
    python prepare.py config/*_reverse.py               # several languages; the text is read once
    python prepare.py --corpus=path/to/babylm_data      # the same text from a folder
    python prepare.py --tokenizer=train --vocab_size=8192 --data_dir=data/own_tokenizer
    python prepare.py config/demo_partial_reverse.py    # small, and needs no network

Writes train.bin, val.bin, test.bin, test_ids.bin and meta.json to data_dir. The sentences of train
and val are shuffled with data_seed; those of test stay in order, by genre. See docs/data.md.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import perturb
from impossible import files
from impossible.settings import Settings, UserError, guarded, load
from impossible.text import (
    annotate,
    annotated_files,
    corpus,
    natural,
    sentences,
    token_files,
    tokenizer_training,
    verbs,
)
from impossible.text.arrays import Sentences, joined
from impossible.text.sentences import Text
from impossible.text.tokenizer import Tokenizer, open_tokenizer
from perturb import Language

CHUNK = 1 << 16  # sentences perturbed or written in one go
_TOGETHER = 2  # languages written at a time
_FEW = 1000  # sentences of a genre; eval.py samples as many
# The settings that determine the text.
_OF_TEXT = ("corpus", "annotations", "sotu_years", "text_column", "genre_column", "corpus_limit")
_OF_TEXT += ("invalid_utf8",)
_PACKAGES = ("numpy", "sentencex", "tiktoken")  # their versions may change the tokens


@dataclass(frozen=True)
class Job:
    """One language to prepare."""

    settings: Settings
    language: Language
    tokenizer: Tokenizer
    identity: dict[str, Any]  # the fields of meta.json that determine the tokens

    @property
    def data_dir(self) -> Path:
        """The folder for the token files."""
        return Path(self.settings.data_dir)


def main(runs: list[Settings]) -> None:
    """Prepare the token files of each language, unless they exist already."""
    common = ("corpus", "corpus_version", "text_language", "segmenter", "annotator", "tokenizer")
    open_corpus = functools.cache(corpus.open_corpus)  # training a tokenizer opens it, too
    groups: dict[str, list[Job]] = {}
    for job in unfinished(jobs_of(runs, open_corpus)):
        key = str([job.language.hops, job.language.unit, *(job.identity[name] for name in common)])
        groups.setdefault(key, []).append(job)
    for jobs in groups.values():
        prepare(jobs, open_corpus)


def unfinished(jobs: list[Job]) -> list[Job]:
    """The jobs that are not done yet. Prints the others."""
    done = [job for job in jobs if is_done(job)]
    for job in done:
        version = job.identity["corpus_version"]
        print(f"{job.data_dir} is prepared already: {job.language.title} from {version}")
    return [job for job in jobs if job not in done]


def is_done(job: Job) -> bool:
    """Whether data_dir holds the token files of the job. Raises UserError if it holds others."""
    if not (job.data_dir / token_files.META).exists():
        return False
    meta = token_files.read_meta(job.data_dir)
    differences = [
        f"{key}: {getattr(meta, key)!r}, not {value!r}"
        for key, value in job.identity.items()
        if key != "corpus" and getattr(meta, key) != value  # corpus_version says what was read
    ]
    if differences:
        raise UserError(
            f"{job.data_dir} contains data that were prepared with other settings "
            f"({'; '.join(differences)}). Choose another folder with --data_dir=, or delete this "
            "one."
        )
    try:
        for split in token_files.SPLITS:
            token_files.require_undamaged(job.data_dir, meta, split)
        token_files.read_test_ids(job.data_dir, meta)
        open_tokenizer(job.data_dir, meta.tokenizer)
    except UserError as error:
        print(f"{error} The data are prepared again now.")
        return False
    return True


def jobs_of(runs: list[Settings], open_corpus: corpus.Open) -> list[Job]:
    """A job for each language. Raises UserError if two of them have the same data_dir."""
    version = functools.cache(version_of)  # each corpus is hashed once
    jobs: dict[Path, Job] = {}
    for settings in runs:
        language = perturb.get(settings.language)
        settings = with_corpus(settings, language)
        text = Settings(**{name: getattr(settings, name) for name in _OF_TEXT})
        folder = tokenizer_training.folder_of(settings, version(text), open_corpus)
        tokenizer = Tokenizer(language.markers, folder)
        identity = identity_of(settings, language, tokenizer, version(text))
        identity["tokenizer"] = tokenizer_training.record_of(tokenizer, folder)
        job = Job(settings, language, tokenizer, identity)
        if job.data_dir.absolute() in jobs:
            raise UserError(
                f"two languages would be prepared in {job.data_dir}. Give each a data_dir of its "
                "own in its config file, and leave --data_dir= out."
            )
        jobs[job.data_dir.absolute()] = job
    return list(jobs.values())


def with_corpus(settings: Settings, language: Language) -> Settings:
    """The settings with the full name of the corpus (or annotations) and its language code.

    Raises UserError for a natural language that does not fit the impossible one.
    """
    annotations = settings.annotations if language.hops else ""
    source = str(Path(annotations).expanduser().absolute()) if annotations else settings.corpus
    settings = dataclasses.replace(settings, corpus=source, annotations=annotations)
    settings = corpus.normal(settings)
    code, expected = settings.text_language, f"en, as {language.title} needs English text"
    settings.require(code == "en" or not language.hops, "text_language", expected)
    expected = f"tokens, as {natural.name_of(code)} has no spaces between words"
    settings.require(language.unit == "tokens" or natural.has_spaces(code), "unit", expected)
    return settings


def version_of(settings: Settings) -> str:
    """A line that identifies the current text of the corpus, or of the annotated files."""
    if settings.annotations:
        return annotated_files.version(Path(settings.corpus))
    return corpus.version(settings)


def identity_of(
    settings: Settings, language: Language, tokenizer: Tokenizer, version: str
) -> dict[str, Any]:
    """The fields of meta.json that determine the tokens and are known before reading text."""
    limit = np.iinfo(token_files.DTYPE).max + 1
    if tokenizer.vocab_size > limit:
        raise UserError(
            f"language {settings.language!r} has a vocabulary of {tokenizer.vocab_size:,}; token "
            f"files hold uint16, so at most {limit:,}. Give it fewer markers in perturb.py, or set "
            "a smaller --vocab_size="
        )
    annotator = {}
    if language.hops:
        annotator = {"annotator": "files"}
        if not settings.annotations:
            annotator = annotate.identity_of(annotate.folder_of(settings, version))
    return {
        "language": settings.language,
        "markers": tokenizer.markers,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": tokenizer.end_of_text,
        "corpus": settings.corpus,
        "corpus_version": version,
        "segmenter": "annotations" if settings.annotations else settings.segmenter,
        "text_language": settings.text_language,
        "data_seed": settings.data_seed,
        "made_with": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "annotator": annotator,
    }


def prepare(jobs: list[Job], open_corpus: corpus.Open) -> None:
    """Write the token files of languages that read the same sentences, and then each meta.json."""
    start = time.perf_counter()
    settings = jobs[0].settings
    splits = {} if settings.annotations else open_corpus(settings)
    if settings.segmenter == "sentencex" and (rules := natural.about_rules(settings.text_language)):
        print(rules)
    with contextlib.ExitStack() as stack:
        for job in jobs:
            job.data_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(files.locked(job.data_dir))
        if not (jobs := unfinished(jobs)):  # another process may have just done some
            return
        for job in jobs:
            (job.data_dir / token_files.META).unlink(missing_ok=True)
        entries: dict[Path, dict[str, Any]] = {job.data_dir: {} for job in jobs}
        pool = stack.enter_context(ThreadPoolExecutor(_TOGETHER))
        try:
            read = stack.enter_context(reader(jobs[0], splits))
            for split in token_files.SPLITS:
                write = functools.partial(write_split, split, read(split))
                for job, counts in zip(jobs, pool.map(write, jobs), strict=True):
                    entries[job.data_dir][split] = counts
                    report(split, counts, job)
        finally:  # the cause of an error may be that the text changed
            require_unchanged(jobs[0])
        for job in jobs:
            if job.identity["tokenizer"]:
                tokenizer_training.copy(job.tokenizer, job.data_dir)
            meta = token_files.Meta(**job.identity, splits=entries[job.data_dir])
            token_files.write_meta(job.data_dir, meta)
            seconds = time.perf_counter() - start
            print(f"{job.language.title} is ready in {job.data_dir} ({seconds:.0f} s)")


@contextlib.contextmanager
def reader(job: Job, splits: dict[str, corpus.Split]) -> Iterator[Callable[[str], Text]]:
    """Yield a function that returns the original sentences of a split, given its name."""
    settings, tokenizer, hops = job.settings, job.tokenizer, job.language.hops
    if not hops:
        yield lambda split: sentences.read(splits[split], settings, tokenizer, job.language.space)
        return
    read_files = functools.partial(annotated_files.read, Path(settings.corpus))
    opened = contextlib.nullcontext(functools.partial(read_files, heads=hops == "phrases"))
    if not settings.annotations:
        folder = annotate.folder_of(settings, job.identity["corpus_version"])
        opened = annotate.opened(folder, job.identity["annotator"], splits, settings.workers)

    def read(split: str) -> Text:
        parts = verbs.encoded_parts(parts_of(split), tokenizer, hops)
        text = sentences.collected(parts, splits[split].size if splits else 0)
        verbs.require_verbs(text.sentences.verbs, split, settings.corpus)
        return text

    with opened as parts_of:
        yield read


def require_unchanged(job: Job) -> None:
    """Raise UserError if the text has changed since it was opened."""
    try:
        is_same = version_of(job.settings) == job.identity["corpus_version"]
    except UserError:  # a file that is gone
        is_same = False
    if not is_same:
        raise UserError(
            f"the text in {job.settings.corpus} changed while it was being read. Wait until no "
            "other program writes to it, and run the same command again."
        )


def report(split: str, counts: dict[str, Any], job: Job) -> None:
    """Print the counts of a split."""
    print(
        f"{job.language.title}, {split}: {counts['tokens']:,} tokens, {counts['sentences']:,} "
        f"sentences ({counts['dropped']:,} dropped: {job.language.drops})",
        flush=True,
    )
    if replaced := counts.get("replaced"):
        print(f"bytes that are not UTF-8 were replaced by U+FFFD {replaced:,} times")
    few = [name for name, genre in counts.get("genres", {}).items() if genre["sentences"] < _FEW]
    if few and job.language.hops:
        print(f"test: fewer than the usual {_FEW:,} sentences to evaluate in {', '.join(few)}")


def write_split(split: str, text: Text, job: Job) -> dict[str, Any]:
    """Write the token file of a split to data_dir. Returns its entry in meta.json.

    Raises UserError if no sentence remains.
    """
    is_kept = job.language.keeps(text.sentences)
    perturbed = perturb_all(text.sentences, job)
    counts: dict[str, Any] = {
        "dropped": int((~is_kept).sum()),
        "dropped_words": int(text.words[~is_kept].sum()),
    }
    if text.replaced:
        counts["replaced"] = text.replaced
    words, genre = text.words[is_kept], text.genre[is_kept]
    order = np.arange(len(words))
    if job.language.hops:  # as published: within a genre, those without a marker come first
        is_marked = text.sentences.is_affected[is_kept]
        order = np.lexsort((is_marked, genre))
        if split == "test":
            counts["unmarked"] = int((~is_marked).sum())
            order = order[is_marked[order]]
    if not len(order):
        raise _none_remain(split, job, counts["dropped"])
    if split == "test":
        counts["genres"] = text.by_genre(genre[order], perturbed.lengths[order])
        ids = text.ids[is_kept][order]
        counts["ids_sha256"] = token_files.write_test_ids(job.data_dir, ids)
    else:
        np.random.default_rng(job.settings.data_seed).shuffle(order)
    counts |= {"sentences": len(order), "words": int(words[order].sum())}
    path = token_files.path_of(job.data_dir, split)
    chunks = closed(perturbed, order, job.tokenizer.end_of_text)
    return counts | token_files.write_split(path, chunks)


def perturb_all(sentences: Sentences, job: Job) -> Sentences:
    """The sentences that a language keeps, perturbed, in order.

    Raises UserError if the language produces ids beyond its vocabulary or has a wrong inverse.
    """
    rng = np.random.default_rng(job.language.seed)  # runs on from chunk to chunk
    count = len(sentences.lengths)
    parts = []
    for start in range(0, count, CHUNK):
        part = sentences.part(start, min(start + CHUNK, count))
        kept = job.language.apply(part, job.tokenizer.ids, rng)
        job.language.check(part, kept, job.tokenizer)
        parts.append(kept)
    return joined(parts)


def closed(sentences: Sentences, order: np.ndarray, end_of_text: int) -> Iterator[np.ndarray]:
    """Yield the sentences in `order` as tokens, each ended by the end-of-text token."""
    for start in range(0, len(order), CHUNK):
        chunk = sentences.take(order[start : start + CHUNK])
        yield np.insert(chunk.tokens, chunk.offsets[1:], end_of_text)


def _none_remain(split: str, job: Job, dropped: int) -> UserError:
    reason = f"all {dropped:,} were dropped: {job.language.drops}" if dropped else "it has no text"
    if job.language.hops:
        reason = f"{dropped:,} were dropped, and no other has a marked verb"
    return UserError(
        f"{job.settings.corpus}: the {split} split has no sentence left ({reason}). Expected plain "
        "text, one or more sentences a line. (In a corpus without splits, every twentieth line is "
        "held out: it needs more lines.)"
    )


if __name__ == "__main__":
    guarded(lambda: main(load("prepare.py", sys.argv[1:], usage=__doc__)))
