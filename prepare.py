"""Text -> sentences -> GPT-2 tokens -> an impossible language -> token files.

    python prepare.py                                   # BabyLM as PartialReverse
    python prepare.py config/full_reverse.py
    python prepare.py --corpus=path/to/babylm_data      # the same text from a folder
    python prepare.py config/demo_partial_reverse.py    # small, and needs no network

Writes train.bin, val.bin, test.bin and meta.json to data_dir. Sentences of train and val are
permuted by data_seed; test keeps its order, for evaluation by genre.
"""

import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import configurator
import corpus
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
    if _is_done(data_dir, identity):
        print(f"{data_dir} is prepared already: {language.title} from {identity['corpus_version']}")
        return

    start = time.perf_counter()
    data_dir.mkdir(parents=True, exist_ok=True)
    documents = corpus.open_corpus(identity["corpus"], settings.sotu_years, settings.text_column)
    (data_dir / tokens.META).unlink(missing_ok=True)
    splits = {}
    for split in tokens.SPLITS:
        sentences, counts = _perturbed(documents[split], settings.segmenter, language, tokenizer)
        if not counts["sentences"]:
            raise UserError(
                f"{settings.corpus}: the {split} split has no sentence of two tokens or more. "
                "Expected plain text, one or more sentences a line."
            )
        order = None
        if split != "test":
            order = np.random.default_rng(settings.data_seed).permutation(counts["sentences"])
            del counts["genres"]  # they are no stretches of the file any more
        chunks = _closed_sentences(sentences, order)
        splits[split] = counts | tokens.write_split(tokens.path_of(data_dir, split), chunks)
        _report(split, splits[split])
    tokens.write_meta(data_dir, tokens.Meta(**identity, splits=splits))
    print(f"{language.title} is ready in {data_dir} ({time.perf_counter() - start:.0f} s)")


def _identity(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """All of meta.json that decides on the tokens, known before any text is read."""
    name = corpus.normal_name(settings.corpus)
    packages = ("numpy", "sentencex", "tiktoken")
    return {
        "language": settings.language,
        "markers": tokenizer.markers,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": END_OF_TEXT_ID,
        "corpus": name,
        "corpus_version": corpus.version(name, settings.sotu_years, settings.text_column),
        "segmenter": settings.segmenter,
        "data_seed": settings.data_seed,
        "made_with": {name: importlib.metadata.version(name) for name in packages},
    }


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
    documents: list[Document], segmenter: str, language: Language, tokenizer: Tokenizer
) -> tuple[Sentences, dict[str, Any]]:
    """The sentences of a split in its language, in order, and their counts by genre."""
    rng = np.random.default_rng(language.seed)  # runs on through all documents
    marker_ids = list(tokenizer.markers.values())
    genres: dict[str, dict[str, int]] = {}
    all_tokens, all_lengths = [np.empty(0, np.uint16)], [np.empty(0, np.int64)]
    read = 0
    size = sum(document.size for document in documents)
    progress = tqdm(total=size or None, unit="B", unit_scale=True, disable=None)
    for document in documents:
        genre = genres.setdefault(document.genre, {"sentences": 0, "tokens": 0})
        for texts in corpus.sentences(document, segmenter):
            sentences = perturb.from_lengths(*tokenizer.encode(texts))
            kept = language.apply(sentences, marker_ids, rng)
            all_tokens.append(kept.tokens)
            all_lengths.append(kept.lengths)
            genre["sentences"] += len(kept.lengths)
            genre["tokens"] += len(kept.tokens) + len(kept.lengths)
            read += len(texts)
            progress.update(sum(map(len, texts)) + len(texts))
    progress.close()
    lengths = np.concatenate(all_lengths)
    counts = {"sentences": len(lengths), "dropped": read - len(lengths), "genres": genres}
    return perturb.from_lengths(np.concatenate(all_tokens), lengths), counts


def _closed_sentences(sentences: Sentences, order: np.ndarray | None) -> Iterator[np.ndarray]:
    """The tokens of all sentences in that order, each followed by the end-of-text token."""
    count = len(sentences.offsets) - 1
    for start in range(0, count, _WRITE_CHUNK):
        stop = min(start + _WRITE_CHUNK, count)
        chosen = np.arange(start, stop) if order is None else order[start:stop]
        chunk = sentences.take(chosen)
        yield np.insert(chunk.tokens, chunk.offsets[1:], END_OF_TEXT_ID)


def _report(split: str, counts: dict[str, Any]) -> None:
    print(
        f"{split}: {counts['tokens']:,} tokens, {counts['sentences']:,} sentences "
        f"({counts['dropped']:,} too short, dropped)",
        flush=True,
    )


if __name__ == "__main__":
    configurator.run("prepare", main, __doc__)
