"""Text -> sentences -> GPT-2 tokens -> an impossible language -> token files.

    python prepare.py                                   # BabyLM as PartialReverse
    python prepare.py config/full_reverse.py
    python prepare.py --corpus=path/to/babylm_data      # the same text from a folder
    python prepare.py config/demo_partial_reverse.py    # small, and needs no network

Writes train.bin, val.bin, test.bin and meta.json to data_dir. Sentences of train and val are
permuted by data_seed; test keeps its order, for evaluation by genre.
"""

import importlib.metadata
import os
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import configurator
import corpus
import files
import perturb
import tokens
from configurator import Settings
from corpus import Document
from errors import UserError
from perturb import Language, Sentences
from tokenizer import END_OF_TEXT_ID, Tokenizer

_WRITE_CHUNK = 1 << 16  # sentences put in order and written in one go


def main(settings: Settings) -> None:
    """Prepare the token files of one language, unless they are there already."""
    language = perturb.get(settings.language)
    tokenizer = Tokenizer(language.markers)
    _require_uint16(settings.language, tokenizer.vocab_size)
    data_dir = Path(settings.data_dir)
    identity = _identity(settings, tokenizer)
    if not _is_done(data_dir, identity):
        documents = corpus.open_corpus(
            identity["corpus"],
            settings.sotu_years,
            settings.text_column,
            may_replace=settings.invalid_utf8 == "replace",
        )
        data_dir.mkdir(parents=True, exist_ok=True)
        with files.locked(data_dir):
            if not _is_done(data_dir, identity):  # another process may just have prepared it
                _prepare(settings, language, tokenizer, identity, documents)
                return
    print(f"{data_dir} is prepared already: {language.title} from {identity['corpus_version']}")


def _prepare(
    settings: Settings,
    language: Language,
    tokenizer: Tokenizer,
    identity: dict[str, Any],
    documents: corpus.Splits,
) -> None:
    """Write the token files, and then the meta.json that vouches for them."""
    start, data_dir = time.perf_counter(), Path(settings.data_dir)
    (data_dir / tokens.META).unlink(missing_ok=True)
    splits = {}
    try:
        for split in tokens.SPLITS:
            splits[split] = write_split(split, documents[split], settings, language, tokenizer)
            _report(split, splits[split])
    finally:  # a text that changed may also be the reason of an error
        _require_unchanged(settings, identity["corpus_version"])
    tokens.write_meta(data_dir, tokens.Meta(**identity, splits=splits))
    print(f"{language.title} is ready in {data_dir} ({time.perf_counter() - start:.0f} s)")


def _require_unchanged(settings: Settings, corpus_version: str) -> None:
    """Raise UserError if the corpus is not what it was when it was opened."""
    try:
        changed = _corpus_version(settings) != corpus_version
    except UserError:  # a file that is gone
        changed = True
    if changed:
        raise UserError(
            f"the text in {settings.corpus} changed while it was read. Wait until nothing writes "
            "to it, and type the same command again."
        )


def write_split(
    split: str,
    documents: list[Document],
    settings: Settings,
    language: Language,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Write the token file of a split to data_dir; what meta.json is to say of it.

    Raises UserError if no sentence is left.
    """
    replaced = Counter() if settings.invalid_utf8 == "replace" else None
    sentences, ids, counts = _perturbed(documents, settings, language, tokenizer, replaced)
    if replaced is not None:
        counts["replaced"] = replaced.total()
    if not counts["sentences"]:
        most = f" or more than {language.max_tokens}" if language.max_tokens else ""
        dropped = f"all {counts['dropped']:,} were dropped, for fewer than {language.min_tokens}"
        raise UserError(
            f"{settings.corpus}: the {split} split has no sentence left "
            f"({dropped + most + ' tokens' if counts['dropped'] else 'it has no text'}). Expected "
            "plain text, one or more sentences a line. (Of a corpus without splits, every "
            "twentieth line is held out: it needs more of them.)"
        )
    order = None
    if split != "test":
        order = np.random.default_rng(settings.data_seed).permutation(counts["sentences"])
        del counts["genres"]  # they are no stretches of the file any more
    else:
        counts["ids_sha256"] = tokens.write_test_ids(Path(settings.data_dir), ids)
    path = tokens.path_of(Path(settings.data_dir), split)
    return counts | tokens.write_split(path, _closed_sentences(sentences, order))


def _identity(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """All of meta.json that decides on the tokens, known before any text is read."""
    packages = ("numpy", "sentencex", "tiktoken")
    return {
        "language": settings.language,
        "markers": tokenizer.markers,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": END_OF_TEXT_ID,
        "corpus": corpus.normal_name(settings.corpus),
        "corpus_version": _corpus_version(settings),
        "segmenter": settings.segmenter,
        "data_seed": settings.data_seed,
        "made_with": {name: importlib.metadata.version(name) for name in packages},
    }


def _corpus_version(settings: Settings) -> str:
    name = corpus.normal_name(settings.corpus)
    version = corpus.version(name, settings.sotu_years, settings.text_column)
    replaced = ", what is not UTF-8 replaced" if settings.invalid_utf8 == "replace" else ""
    return version + replaced


def _is_done(data_dir: Path, identity: dict[str, Any]) -> bool:
    """Whether data_dir holds these very token files. Raises UserError if it holds others."""
    if not (data_dir / tokens.META).exists():
        return False
    meta = tokens.read_meta(data_dir)
    differences = [
        f"{key}: {getattr(meta, key)!r} there, {value!r} now"
        for key, value in identity.items()
        if key != "corpus" and getattr(meta, key) != value  # what was read is corpus_version
    ]
    if differences:
        raise UserError(
            f"{data_dir} holds data prepared otherwise ({'; '.join(differences)}). Choose another "
            "folder with --data_dir=, or delete that one."
        )
    try:
        for split in tokens.SPLITS:
            tokens.check_file(data_dir, meta, split)
        tokens.read_test_ids(data_dir, meta)
    except UserError as error:
        print(f"{error} Doing so now.")
        return False
    return True


def _require_uint16(name: str, vocab_size: int) -> None:
    limit = np.iinfo(tokens.DTYPE).max + 1
    if vocab_size > limit:
        raise UserError(
            f"language {name!r} has a vocabulary of {vocab_size:,}; token files hold uint16, so "
            f"at most {limit:,}. Give it fewer markers in perturb.py."
        )


def _perturbed(
    documents: list[Document],
    settings: Settings,
    language: Language,
    tokenizer: Tokenizer,
    replaced: Counter[str] | None,
) -> tuple[Sentences, np.ndarray, dict[str, Any]]:
    """The sentences of a split in its language, in order, their ids, and their counts by genre.

    A sentence's id is its place in its genre, from 0, before any sentence is dropped. replaced: as
    in corpus.lines. Raises UserError for a language that makes tokens of its own.
    """
    rng = np.random.default_rng(language.seed)  # runs on through all documents
    marker_ids = list(tokenizer.markers.values())
    genres = {document.genre: {"sentences": 0, "tokens": 0} for document in documents}
    all_tokens, all_lengths = [np.empty(0, np.uint16)], [np.empty(0, np.int64)]
    all_ids, read = [np.empty(0, np.int64)], Counter()
    size = sum(document.size for document in documents)
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
        for document, part_size, sentences in _encoded(documents, settings, tokenizer, replaced):
            kept = language.apply(sentences, marker_ids, rng)
            if (largest := kept.tokens.max(initial=0)) >= tokenizer.vocab_size:
                raise UserError(
                    f"language {settings.language!r} makes the id {largest}, and has a vocabulary "
                    f"of {tokenizer.vocab_size:,}. Give it a marker in perturb.py for each new id."
                )
            all_tokens.append(kept.tokens)
            all_lengths.append(kept.lengths)
            genre = genres[document.genre]
            genre["sentences"] += len(kept.lengths)
            genre["tokens"] += len(kept.tokens) + len(kept.lengths)
            all_ids.append(read[document.genre] + np.flatnonzero(language.keeps(sentences.lengths)))
            read[document.genre] += len(sentences.lengths)
            progress.update(part_size)
    lengths = np.concatenate(all_lengths)
    dropped = read.total() - len(lengths)
    counts = {"sentences": len(lengths), "dropped": dropped, "genres": genres}
    sentences = perturb.from_lengths(np.concatenate(all_tokens), lengths)
    return sentences, np.concatenate(all_ids), counts


def _encoded(
    documents: list[Document],
    settings: Settings,
    tokenizer: Tokenizer,
    replaced: Counter[str] | None,
) -> Iterator[tuple[Document, int, Sentences]]:
    """The tokens of all sentences, a part of a document at a time, in order.

    Yields the document, the size of the part in bytes, and its sentences. Some parts are worked on
    at once, by threads: the order is that of the text whatever their number.
    """

    def encode(lines: list[str]) -> Sentences:
        texts = corpus.sentences(lines, settings.segmenter)
        return perturb.from_lengths(*tokenizer.encode(texts))

    workers = settings.workers or _cores()
    begun: deque[tuple[Document, int, Future[Sentences]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for document, part in corpus.lines(documents, settings.segmenter, replaced):
            begun.append((document, part.size, pool.submit(encode, part.lines)))
            if len(begun) > workers:
                of, size, sentences = begun.popleft()
                yield of, size, sentences.result()
        for of, size, sentences in begun:
            yield of, size, sentences.result()


def _cores() -> int:
    """The cores that this process may use: in a container or a job, not all of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _closed_sentences(sentences: Sentences, order: np.ndarray | None) -> Iterator[np.ndarray]:
    """The tokens of all sentences in that order, each followed by the end-of-text token."""
    count = len(sentences.offsets) - 1
    for start in range(0, count, _WRITE_CHUNK):
        stop = min(start + _WRITE_CHUNK, count)
        chosen = np.arange(start, stop) if order is None else order[start:stop]
        chunk = sentences.take(chosen)
        yield np.insert(chunk.tokens, chunk.offsets[1:], END_OF_TEXT_ID)


def _report(split: str, counts: dict[str, Any]) -> None:
    replaced = counts.get("replaced", 0)
    print(
        f"{split}: {counts['tokens']:,} tokens, {counts['sentences']:,} sentences "
        f"({counts['dropped']:,} too short or too long, dropped)"
        + (f"; U+FFFD for what is not UTF-8, {replaced:,} times" if replaced else ""),
        flush=True,
    )


if __name__ == "__main__":
    configurator.run("prepare", main, __doc__)
