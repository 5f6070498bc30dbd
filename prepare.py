"""Text -> sentences -> GPT-2 tokens -> an impossible language -> token files.

    python prepare.py                                   # BabyLM as PartialReverse
    python prepare.py config/full_reverse.py
    python prepare.py config/*_reverse.py               # several languages; the text is read once
    python prepare.py --corpus=path/to/babylm_data      # the same text from a folder
    python prepare.py config/demo_partial_reverse.py    # small, and needs no network

Writes train.bin, val.bin, test.bin, test_ids.bin and meta.json to data_dir. Sentences of train and
val are permuted by data_seed; test keeps its order, for evaluation by genre. See docs/data.md.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # also where PYTHONSAFEPATH is set

import numpy as np

import perturb
from impossible import files
from impossible.settings import Settings, UserError, guarded, load
from impossible.text import prepared, token_files
from impossible.text.documents import Splits
from impossible.text.reading import Text, merged, read, read_annotated
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer
from perturb import Language, Sentences

_CHUNK = 1 << 16  # sentences perturbed or written in one go
_TOGETHER = 2  # languages written at a time
_FEW = 1000  # sentences of a genre; evaluate.py samples as many


@dataclass(frozen=True)
class Job:
    """One language to prepare."""

    settings: Settings
    language: Language
    tokenizer: Tokenizer
    identity: dict[str, Any]  # the fields of meta.json that determine the tokens

    @property
    def data_dir(self) -> Path:
        """The folder of its token files."""
        return Path(self.settings.data_dir)

    @property
    def is_done(self) -> bool:
        """Whether its token files exist. Raises UserError if there are others in their place."""
        return prepared.is_done(self.data_dir, self.identity)


def main(runs: list[Settings]) -> None:
    """Prepare the token files of each language, unless they exist already."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in unfinished(jobs_of(runs)):
        groups.setdefault(prepared.source_of(job.identity), []).append(job)
    for jobs in groups.values():
        prepare(jobs)


def unfinished(jobs: list[Job]) -> list[Job]:
    """The jobs that are not done; says which are."""
    left = [job for job in jobs if not job.is_done]
    for job in jobs:
        if job not in left:
            version = job.identity["corpus_version"]
            print(f"{job.data_dir} is prepared already: {job.language.title} from {version}")
    return left


def jobs_of(runs: list[Settings]) -> list[Job]:
    """The languages to prepare. Raises UserError for two in one folder."""
    versions: dict[tuple[str, ...], str] = {}  # each corpus is hashed once
    jobs: dict[Path, Job] = {}
    for settings in runs:
        language = perturb.get(settings.language)
        if not language.hops:
            settings = dataclasses.replace(settings, annotations="")
        tokenizer = Tokenizer(language.markers)
        identity = prepared.identity_of(settings, language, tokenizer, versions)
        job = Job(settings, language, tokenizer, identity)
        if job.data_dir.absolute() in jobs:
            raise UserError(
                f"two languages would be prepared in {job.data_dir}. Give each a data_dir of its "
                "own in its config file, and leave --data_dir= out."
            )
        jobs[job.data_dir.absolute()] = job
    return list(jobs.values())


def prepare(jobs: list[Job]) -> None:
    """Write the token files of languages from one corpus, and then each meta.json."""
    start, settings, identity = time.perf_counter(), jobs[0].settings, jobs[0].identity
    documents = prepared.open_documents(settings, bool(jobs[0].language.hops))
    with contextlib.ExitStack() as locks:
        for job in jobs:
            job.data_dir.mkdir(parents=True, exist_ok=True)
            locks.enter_context(files.locked(job.data_dir))
        jobs = unfinished(jobs)  # another process may have just done some
        for job in jobs:
            (job.data_dir / token_files.META).unlink(missing_ok=True)
        found: list[dict[str, Any]] = [{} for _ in jobs]
        try:
            for split in token_files.SPLITS:
                for counted in sorted({job.language.hops for job in jobs}):
                    of_text = [i for i, job in enumerate(jobs) if job.language.hops == counted]
                    text = read_text(split, jobs[of_text[0]], documents)
                    written = write_all(split, text, [jobs[i] for i in of_text])
                    for i, counts in zip(of_text, written, strict=True):
                        found[i][split] = counts
                        tell(split, counts, jobs[i])
        finally:  # the cause of an error may be that the text changed
            prepared.require_unchanged(settings, identity["corpus_version"])
        for job, splits in zip(jobs, found, strict=True):
            token_files.write_meta(job.data_dir, token_files.Meta(**job.identity, splits=splits))
            seconds = time.perf_counter() - start
            print(f"{job.language.title} is ready in {job.data_dir} ({seconds:.0f} s)")


def write_all(split: str, text: Text, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Write the token files of a split, and yield their entries in meta.json, in order."""
    with ThreadPoolExecutor(_TOGETHER) as pool:
        yield from pool.map(lambda job: write_split(split, text, job), jobs)


def read_text(split: str, job: Job, documents: Splits) -> Text:
    """The sentences of a split as a language reads them, before it changes them."""
    if not job.language.hops:
        return read(documents[split], job.settings, job.tokenizer)
    folder = prepared.annotate(job.settings, job.identity, documents)
    return read_annotated(folder, split, job.tokenizer, job.language.hops)


def tell(split: str, counts: dict[str, Any], job: Job) -> None:
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

    Raises UserError if no sentence is left.
    """
    is_kept = job.language.keeps(text.sentences)
    sentences = perturbed(text.sentences, job)
    counts: dict[str, Any] = {
        "dropped": int((~is_kept).sum()),
        "dropped_words": int(text.words[~is_kept].sum()),
    }
    if text.replaced:
        counts["replaced"] = text.replaced
    words = text.words[is_kept]
    order = np.arange(len(words))
    if job.language.hops:  # as published: within a genre, those without a marker come first
        is_marked = text.sentences.is_affected[is_kept]
        order = np.lexsort((is_marked, text.genre[is_kept]))
        if split == "test":
            counts["unmarked"] = int((~is_marked).sum())
            order = order[is_marked[order]]
    if not len(order):
        raise _none_left(split, job, counts["dropped"])
    if split == "test":
        kept = text.genre[is_kept][order]
        counts["genres"] = _by_genre(text, kept, sentences.lengths[order])
        ids = text.ids[is_kept][order]
        counts["ids_sha256"] = token_files.write_test_ids(job.data_dir, ids)
    else:
        np.random.default_rng(job.settings.data_seed).shuffle(order)
    counts |= {"sentences": len(order), "words": int(words[order].sum())}
    path = token_files.path_of(job.data_dir, split)
    return counts | token_files.write_split(path, closed(sentences, order))


def perturbed(sentences: Sentences, job: Job) -> Sentences:
    """The sentences that a language keeps, perturbed, in order.

    Raises UserError if it produces token ids beyond its vocabulary, or if its inverse is wrong.
    """
    rng = np.random.default_rng(job.language.seed)  # runs on from chunk to chunk
    marker_ids = list(job.tokenizer.markers.values())
    tokens, lengths = [], []
    for start in range(0, len(sentences.offsets) - 1, _CHUNK):
        stop = min(start + _CHUNK, len(sentences.offsets) - 1)
        part = sentences.part(start, stop)
        kept = job.language.apply(part, marker_ids, rng)
        if (largest := kept.tokens.max(initial=0)) >= job.tokenizer.vocab_size:
            raise UserError(
                f"the language {job.settings.language!r} produces token {largest}, but its "
                f"vocabulary has only {job.tokenizer.vocab_size:,} tokens. Give it a marker in "
                "perturb.py for each new id."
            )
        job.language.check_inverse(part, kept, marker_ids, job.tokenizer.decode)
        tokens.append(kept.tokens)
        lengths.append(kept.lengths.astype(np.int32))
    return perturb.from_lengths(merged(tokens, np.uint16), merged(lengths, np.int32))


def _by_genre(text: Text, genre: np.ndarray, lengths: np.ndarray) -> dict[str, dict[str, int]]:
    """The sentences and tokens of each genre; genre and lengths: of each sentence, (S,)."""
    sentences = np.bincount(genre, minlength=len(text.genres)).tolist()
    tokens = np.bincount(genre, lengths + 1, minlength=len(text.genres)).astype(int).tolist()
    counts = zip(text.genres, sentences, tokens, strict=True)
    return {name: {"sentences": s, "tokens": t} for name, s, t in counts}


def closed(sentences: Sentences, order: np.ndarray) -> Iterator[np.ndarray]:
    """The tokens of all sentences in that order, each followed by the end-of-text token."""
    for start in range(0, len(order), _CHUNK):
        chunk = sentences.take(order[start : start + _CHUNK])
        yield np.insert(chunk.tokens, chunk.offsets[1:], END_OF_TEXT_ID)


def _none_left(split: str, job: Job, dropped: int) -> UserError:
    reason = f"all {dropped:,} were dropped: {job.language.drops}" if dropped else "it has no text"
    if job.language.hops:
        reason = f"{dropped:,} were dropped, and no other has a marked verb"
    return UserError(
        f"{job.identity['corpus']}: the {split} split has no sentence left ({reason}). Expected "
        "plain text, one or more sentences a line. (In a corpus without splits, every twentieth "
        "line is held out: it needs more lines.)"
    )


if __name__ == "__main__":
    guarded(lambda: main(load("prepare.py", sys.argv[1:], usage=__doc__)))
