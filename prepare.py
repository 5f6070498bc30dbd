"""Text -> sentences -> GPT-2 tokens -> an impossible language -> token files.

    python prepare.py                                   # BabyLM as PartialReverse
    python prepare.py config/full_reverse.py
    python prepare.py --corpus=path/to/babylm_data      # the same text from a folder
    python prepare.py config/demo_partial_reverse.py    # small, and needs no network

Writes train.bin, val.bin, test.bin, test_ids.bin and meta.json to data_dir. Sentences of train and
val are permuted by data_seed; test keeps its order, for evaluation by genre. See docs/data.md.
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import perturb
from impossible import command, files
from impossible.errors import UserError
from impossible.settings import Prepare
from impossible.text import corpus, prepared, token_files
from impossible.text.documents import Document
from impossible.text.encoding import encoded
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer
from perturb import Language, Sentences

_WRITE_CHUNK = 1 << 16  # sentences put in order and written in one go


def main(settings: Prepare) -> None:
    """Prepare the token files of one language, unless they are there already."""
    language = perturb.get(settings.language)
    tokenizer = Tokenizer(language.markers)
    data_dir = Path(settings.data_dir)
    identity = prepared.identity_of(settings, tokenizer)
    if not prepared.is_done(data_dir, identity):
        documents = corpus.open_corpus(
            identity["corpus"],
            settings.sotu_years,
            settings.text_column,
            may_replace=settings.invalid_utf8 == "replace",
        )
        data_dir.mkdir(parents=True, exist_ok=True)
        with files.locked(data_dir):
            if not prepared.is_done(data_dir, identity):  # another process may just have done it
                prepare(settings, language, tokenizer, identity, documents)
                return
    print(f"{data_dir} is prepared already: {language.title} from {identity['corpus_version']}")


def prepare(
    settings: Prepare,
    language: Language,
    tokenizer: Tokenizer,
    identity: dict[str, Any],
    documents: dict[str, list[Document]],
) -> None:
    """Write the token files, and then meta.json with their hashes."""
    start, data_dir = time.perf_counter(), Path(settings.data_dir)
    (data_dir / token_files.META).unlink(missing_ok=True)
    splits = {}
    try:
        for split in token_files.SPLITS:
            counts = write_split(split, documents[split], settings, language, tokenizer)
            splits[split] = counts
            print(
                f"{split}: {counts['tokens']:,} tokens, {counts['sentences']:,} sentences "
                f"({counts['dropped']:,} too short or too long, dropped)"
                f"{_replaced(counts.get('replaced', 0))}",
                flush=True,
            )
    finally:  # a text that changed may also be the reason of an error
        prepared.require_unchanged(settings, identity["corpus_version"])
    token_files.write_meta(data_dir, token_files.Meta(**identity, splits=splits))
    print(f"{language.title} is ready in {data_dir} ({time.perf_counter() - start:.0f} s)")


def _replaced(count: int) -> str:
    return f"; bytes that are not UTF-8 were replaced by U+FFFD {count:,} times" if count else ""


def write_split(
    split: str,
    documents: list[Document],
    settings: Prepare,
    language: Language,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Write the token file of a split to data_dir. Returns its entry for meta.json.

    Raises UserError if no sentence is left.
    """
    data_dir = Path(settings.data_dir)
    replaced = Counter() if settings.invalid_utf8 == "replace" else None
    sentences, ids, counts = perturbed(documents, settings, language, tokenizer, replaced)
    if replaced is not None:
        counts["replaced"] = replaced.total()
    if not counts["sentences"]:
        raise _none_left(split, settings, language, counts["dropped"])
    order = None
    if split != "test":
        order = np.random.default_rng(settings.data_seed).permutation(counts["sentences"])
        del counts["genres"]  # they are no stretches of the file any more
    else:
        counts["ids_sha256"] = token_files.write_test_ids(data_dir, ids)
    path = token_files.path_of(data_dir, split)
    return counts | token_files.write_split(path, closed_sentences(sentences, order))


def perturbed(
    documents: list[Document],
    settings: Prepare,
    language: Language,
    tokenizer: Tokenizer,
    replaced: Counter[str] | None,
) -> tuple[Sentences, np.ndarray, dict[str, Any]]:
    """The perturbed sentences of a split, in order, with their ids and their counts by genre.

    The id of a sentence is its number in its genre, from 0, counted before any sentence is dropped.
    replaced: as in sentences.lines. Raises UserError if a language produces unknown token ids.
    """
    rng = np.random.default_rng(language.seed)  # runs on through all documents
    marker_ids = list(tokenizer.markers.values())
    genres = {document.genre: {"sentences": 0, "tokens": 0} for document in documents}
    all_tokens, all_lengths = [np.empty(0, np.uint16)], [np.empty(0, np.int64)]
    all_ids, read = [np.empty(0, np.int64)], Counter()
    size = sum(document.size for document in documents)
    parts = encoded(documents, tokenizer, settings.segmenter, settings.workers, replaced)
    with tqdm(total=size, unit="B", unit_scale=True, disable=None) as progress:
        for document, part_size, sentences in parts:
            kept = language.apply(sentences, marker_ids, rng)
            _require_known(kept, settings.language, tokenizer.vocab_size)
            all_tokens.append(kept.tokens)
            all_lengths.append(kept.lengths)
            all_ids.append(read[document.genre] + np.flatnonzero(language.keeps(sentences.lengths)))
            read[document.genre] += len(sentences.lengths)
            genres[document.genre]["sentences"] += len(kept.lengths)
            genres[document.genre]["tokens"] += len(kept.tokens) + len(kept.lengths)
            progress.update(part_size)
    lengths = np.concatenate(all_lengths)
    dropped = read.total() - len(lengths)
    counts = {"sentences": len(lengths), "dropped": dropped, "genres": genres}
    sentences = perturb.from_lengths(np.concatenate(all_tokens), lengths)
    return sentences, np.concatenate(all_ids), counts


def closed_sentences(sentences: Sentences, order: np.ndarray | None) -> Iterator[np.ndarray]:
    """The tokens of all sentences in that order, each followed by the end-of-text token."""
    count = len(sentences.offsets) - 1
    for start in range(0, count, _WRITE_CHUNK):
        stop = min(start + _WRITE_CHUNK, count)
        chosen = np.arange(start, stop) if order is None else order[start:stop]
        chunk = sentences.take(chosen)
        yield np.insert(chunk.tokens, chunk.offsets[1:], END_OF_TEXT_ID)


def _require_known(sentences: Sentences, language: str, vocab_size: int) -> None:
    if (largest := sentences.tokens.max(initial=0)) >= vocab_size:
        raise UserError(
            f"the language {language!r} produces token {largest}, but its vocabulary has only "
            f"{vocab_size:,} tokens. Give it a marker in perturb.py for each new id."
        )


def _none_left(split: str, settings: Prepare, language: Language, dropped: int) -> UserError:
    most = f" or more than {language.max_tokens}" if language.max_tokens else ""
    reason = f"all {dropped:,} were dropped, for fewer than {language.min_tokens}{most} tokens"
    return UserError(
        f"{settings.corpus}: the {split} split has no sentence left "
        f"({reason if dropped else 'it has no text'}). Expected plain text, one or more sentences "
        "a line. (In a corpus without splits, every twentieth line is held out: it needs more "
        "lines.)"
    )


if __name__ == "__main__":
    command.run(Prepare, main, __doc__)
