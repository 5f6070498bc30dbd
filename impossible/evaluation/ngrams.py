"""How predictable a language is by itself: the entropies of n-gram models of its tokens.

The m-local entropy (Someya et al. 2025) is the uncertainty, in bits, about a token when only the
m - 1 tokens before it are known. Here an m-gram model of the train split is evaluated on the
test split, which gives an upper bound. The authors evaluate a model on the text that it was
estimated on, so their figures are lower.

The models have interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), as in KenLM
without pruning. No model is stored: the n-grams of train and test are ranked together, so that the
rank of an n-gram of test is also the place of its count in train.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from impossible import files
from impossible.settings import UserError
from impossible.text import token_files

_VERSION = 1  # to be increased when the same tokens give other numbers
ORDERS = range(1, 6)
_CHUNK = 1 << 20  # tokens handled in one go
_NONE = np.uint64(2**64 - 1)  # the key of a place with too few tokens before it
# Discounts of the counts 0, 1, 2, and 3 or more if too few n-grams are rare (KenLM's fallback).
_FALLBACK = np.array([0, 0.5, 1, 1.5])


class Entropy(NamedTuple):
    """The mean of -log2 p(token), in bits, over some tokens of the test split."""

    all: float  # over all tokens, with the first of each sentence and <|endoftext|>
    local: float  # over those that have n - 1 tokens of their sentence before them


class _Grams(NamedTuple):
    """The n-grams of one order in train and test together, numbered by context, then by token."""

    ids: np.ndarray  # (N,) uint32: of the n-gram that ends at each place
    counts: np.ndarray  # (G,) uint32: in train, by id
    contexts: np.ndarray  # (G,) uint32: the id of the (n-1)-gram that each begins with, plus 1


def entropies(train: np.ndarray, test: np.ndarray, vocab_size: int, end: int) -> dict[int, Entropy]:
    """The entropies on `test` of the n-gram models of `train`, by n.

    train: (N,) and test: (M,) uint16, sentences that each end with the token `end`. vocab_size: the
    number of tokens of the uniform distribution with which unigrams are smoothed.
    """
    tokens, first = np.concatenate([train, test]), len(train)
    depth = _depth(tokens, end, max(ORDERS), [0, first])
    lower = np.full(len(test), 1 / vocab_size)  # p(token) by the order below
    grams, _ = _grams(1, tokens, depth, first, None)
    of_order = {}
    for n in ORDERS:
        is_full, sums = depth[first:] + 2 >= n, np.zeros((2, 2))
        p = _probabilities(grams, grams.counts, is_full, lower, first)
        for chunk in _chunks(len(p)):
            bits, is_local = -np.log2(p[chunk]), depth[first:][chunk] >= n - 1
            sums += [[bits.sum(), len(bits)], [bits[is_local].sum(), is_local.sum()]]
        with np.errstate(invalid="ignore"):
            of_order[n] = Entropy(*(sums[:, 0] / sums[:, 1]).tolist())
        if n < max(ORDERS):
            longer, before = _grams(n + 1, tokens, depth, first, grams.ids)
            # Below the highest order, an n-gram counts once for each different token before it;
            # those that begin a sentence keep their counts.
            counts = np.where(before > 0, before, grams.counts)
            lower, grams = _probabilities(grams, counts, is_full, lower, first), longer
    return of_order


def _depth(tokens: np.ndarray, end: int, most: int, starts: list[int]) -> np.ndarray:
    """The number of tokens before each token in its sentence, at most `most`: (N,) uint8."""
    inside = np.empty(len(tokens), bool)
    np.not_equal(tokens[:-1], end, out=inside[1:])
    inside[starts] = False
    depth, reaches = inside.astype(np.uint8), inside.copy()
    for _ in range(most - 1):
        reaches[1:] = reaches[:-1] & inside[1:]
        depth += reaches
    return depth


def _grams(
    n: int, tokens: np.ndarray, depth: np.ndarray, first: int, shorter: np.ndarray | None
) -> tuple[_Grams, np.ndarray]:
    """The n-grams, and how many different tokens precede each (n-1)-gram in train, by its id.

    shorter: the ids of the (n-1)-grams. The beginning of a sentence counts as a token, so an n-gram
    that includes it has n - 1 real tokens.
    """
    keys = np.zeros(len(tokens), np.uint64)  # id of the context, plus 1; then the token
    if shorter is not None:
        keys[1:] = shorter[:-1]
        keys += np.uint64(1)
        keys[depth == 0] = 0
    keys <<= np.uint64(16)
    keys |= tokens
    keys[depth + 2 < n] = _NONE
    order = keys.argsort().astype(np.uint32)
    keys.sort()
    is_new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:])
    ids = np.empty(len(keys), np.uint32)
    ids[order] = np.cumsum(is_new, dtype=np.uint32) - np.uint32(1)
    starts, keys = np.flatnonzero(is_new), keys[is_new]
    counts = np.add.reduceat(order < first, starts, dtype=np.uint32)
    if keys[-1] == _NONE:
        counts[-1], keys[-1] = 0, keys[-2] if len(keys) > 1 else 0
    contexts = (keys >> np.uint64(16)).astype(np.uint32)
    before = np.zeros(0, np.uint32)
    if shorter is not None:
        # Each n-gram in train counts once, by its first place, for the (n-1)-gram that ends it.
        one_of_each, before = order[starts[counts > 0]], np.zeros(shorter.max() + 1, np.uint32)
        for chunk in _chunks(len(one_of_each)):
            np.add.at(before, shorter[one_of_each[chunk]], np.uint32(1))
    return _Grams(ids, counts, contexts), before


def _chunks(length: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, length, _CHUNK))


def _probabilities(
    grams: _Grams, counts: np.ndarray, is_full: np.ndarray, lower: np.ndarray, first: int
) -> np.ndarray:
    """The probability of each token of test by the models of one order, (M,).

    counts: of the n-grams. is_full: whether n - 1 tokens (or the beginning of the sentence) stand
    before each token, (M,). lower: the probabilities by the order below, kept if not is_full, (M,).
    """
    contexts, discounts = grams.contexts, _discounts(counts)
    totals, freed = np.zeros((2, int(contexts[-1]) + 1))  # by context
    for chunk in _chunks(len(counts)):
        count, start = counts[chunk], contexts[chunk][0]
        for sums, values in ((totals, count), (freed, discounts[np.minimum(count, 3)])):
            part = np.bincount(contexts[chunk] - start, values)
            sums[start : start + len(part)] += part
    ids, p = grams.ids[first:][is_full], lower.copy()
    count, context, below = counts[ids], contexts[ids], lower[is_full]
    mass = count - discounts[np.minimum(count, 3)] + freed[context] * below
    p[is_full] = np.divide(mass, totals[context], out=below, where=totals[context] > 0)
    return p


def _discounts(counts: np.ndarray) -> np.ndarray:
    """The discounts for counts of 0, 1, 2, and 3 or more (Chen and Goodman 1998, eq. 26)."""
    rare = np.array([np.count_nonzero(counts == count) for count in range(1, 5)])
    if rare.all():
        number = np.arange(1, 4)
        kept = (number + 1) * rare[0] / (rare[0] + 2 * rare[1]) * rare[1:] / rare[:-1]
        discounts = number - kept
        if np.all((discounts >= 0) & (discounts <= number)):
            return np.array([0, *discounts])
    return _FALLBACK


# Of prepared data


def table(data_dirs: list[Path], eval_dir: Path) -> pd.DataFrame:
    """A row for each data folder and each n: the entropies in bits."""
    rows = []
    for data_dir in data_dirs:
        meta = token_files.read_meta(data_dir)
        hashes = {f"{split}_hash": meta.splits[split]["sha256"][:8] for split in ("train", "test")}
        about = {"language": meta.language, "corpus": meta.corpus_version, **hashes}
        for n, entropy in of_data(data_dir, eval_dir).items():
            rows.append({**about, "n": n, "all_bits": entropy.all, "local_bits": entropy.local})
    return pd.DataFrame(rows)


def columns(data_dir: Path, eval_dir: Path) -> dict[str, float]:
    """The entropies of prepared data in bits, as columns for the table of perplexities."""
    of_order = of_data(data_dir, eval_dir)
    local = {f"local_{n}_bits": of_order[n].local for n in ORDERS if n > 1}
    return {"unigram_bits": of_order[1].all, "bigram_bits": of_order[2].all} | local


@functools.lru_cache
def of_data(data_dir: Path, eval_dir: Path) -> dict[int, Entropy]:
    """The entropies of prepared data by n, kept in eval_dir. Raises UserError without test data."""
    meta = token_files.read_meta(data_dir)
    key = "-".join(meta.splits[split]["sha256"][:8] for split in ("train", "test"))
    path = eval_dir / "scores" / f"entropies-{key}-{_VERSION}.json"
    with contextlib.suppress(FileNotFoundError, ValueError):  # a damaged one is computed again
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {int(n): Entropy(*values) for n, values in kept.items()}
    train, test = (
        token_files.open_blocks(data_dir, meta, split, 1)[:, 0] for split in ("train", "test")
    )
    if not len(test):
        raise UserError(f"the test split in {data_dir} is empty: prepare a larger corpus.")
    count = f"{len(train):,} tokens (100M tokens take minutes)"
    print(f"{meta.language}: estimating n-gram models from {count}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    of_order = entropies(train, test, meta.vocab_size, meta.eot_token)
    files.write_json(path, {str(n): list(entropy) for n, entropy in of_order.items()})
    return of_order
