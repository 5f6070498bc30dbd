"""The impossible languages: pure functions on the tokens of many sentences at once.

    python perturb.py                                    # one sentence in every language
    python perturb.py partial_reverse "He cleans his very messy bookshelf."

A language is a row of LANGUAGES. Its function gets the sentences, their markers' ids and a random
generator whose state is kept between calls, and returns the same number of perturbed sentences in
the same order. Definitions and random numbers are exactly those of Kallini et al. 2024 (section 3,
table 1) and its code.
"""

import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from impossible.errors import UserError, unknown


class Sentences(NamedTuple):
    """Sentences as one flat array: sentence s is tokens[offsets[s]:offsets[s + 1]].

    If a language needs more than tokens (such as word annotations), add a field for it.
    """

    tokens: np.ndarray  # (N,) uint16
    offsets: np.ndarray  # (S + 1,) int64, from 0 to N

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, (S,) int64."""
        return np.diff(self.offsets)

    def take(self, indices: np.ndarray) -> "Sentences":
        """The sentences of these indices (or of a mask), in that order."""
        if indices.dtype == bool:
            if indices.all():
                return self
            indices = np.flatnonzero(indices)
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        return from_lengths(self.tokens[_positions(starts, lengths)], lengths)


def from_lengths(tokens: np.ndarray, lengths: np.ndarray) -> Sentences:
    """Sentences from their tokens (N,) and lengths (S,)."""
    return Sentences(tokens, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


Perturb = Callable[[Sentences, list[int], np.random.Generator], Sentences]


@dataclass(frozen=True)
class Language:
    """One row of the table of languages."""

    title: str  # the paper's name
    perturb: Perturb
    summary: str  # what happens to a sentence, for people
    markers: tuple[str, ...] = ()
    seed: int = 0  # of the generator; train, val and test each start one afresh
    min_tokens: int = 2  # sentences with fewer are dropped, after their random draw
    max_tokens: int | None = None  # and those with more

    def apply(
        self, sentences: Sentences, marker_ids: list[int], rng: np.random.Generator
    ) -> Sentences:
        """Perturb sentences and drop those that are too short or too long.

        marker_ids: the ids of `markers`, in the same order. rng: `default_rng(seed)`; pass the same
        generator to each call, so that sentences can be divided among calls in any way. Raises
        UserError if the language returns another number of sentences, or anything but an array of
        token ids.
        """
        perturbed = self.perturb(sentences, marker_ids, rng)
        self._check(perturbed, len(sentences.lengths))
        tokens = perturbed.tokens.astype(np.uint16, copy=False)
        return Sentences(tokens, perturbed.offsets).take(self.keeps(sentences.lengths))

    def keeps(self, lengths: np.ndarray) -> np.ndarray:
        """Whether sentences of these lengths (S,), before perturbing, are kept: (S,) bool."""
        keep = lengths >= self.min_tokens
        if self.max_tokens is not None:
            keep &= lengths <= self.max_tokens
        return keep

    def _check(self, perturbed: Sentences, count: int) -> None:
        tokens = perturbed.tokens
        if len(perturbed.lengths) != count or perturbed.offsets[-1] != len(tokens):
            raise UserError(
                f"{self.title} returned {len(perturbed.lengths):,} sentences of "
                f"{perturbed.offsets[-1]:,} tokens in an array of {len(tokens):,}, for {count:,} "
                "sentences. Its function in perturb.py must return as many as it gets."
            )
        is_whole = np.issubdtype(tokens.dtype, np.integer)
        if not is_whole or (len(tokens) and not 0 <= tokens.min() <= tokens.max() < 1 << 16):
            raise UserError(
                f"{self.title} returned tokens that are not 16-bit ids ({tokens.dtype}, "
                f"{tokens.min()} to {tokens.max()}). Look at its function in perturb.py."
            )


def _insert_marker(
    sentences: Sentences, marker: int, rng: np.random.Generator
) -> tuple[Sentences, np.ndarray]:
    """Put the marker at a uniformly random place of each sentence, its end included.

    Returns the sentences, each one token longer, and the markers' places in them, (S,) int64.
    """
    lengths = sentences.lengths
    # numpy draws the same stream here as in one rng.choice(n + 1) per sentence.
    draws = rng.integers(0, lengths + 1)
    offsets = sentences.offsets + np.arange(len(lengths) + 1)
    places = offsets[:-1] + draws
    is_marker = np.zeros(offsets[-1], bool)
    is_marker[places] = True
    tokens = np.empty(offsets[-1], sentences.tokens.dtype)
    tokens[is_marker] = marker
    tokens[~is_marker] = sentences.tokens
    return Sentences(tokens, offsets), places


def _positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + length - 1 of each span, one span after another."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - ends + lengths, lengths)
    return shift + np.arange(len(shift))


def _reverse_spans(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A copy of tokens in which each span [start, end) is reversed; spans do not overlap."""
    lengths = ends - starts
    places = _positions(starts, lengths)
    reversed_tokens = tokens.copy()
    reversed_tokens[places] = tokens[np.repeat(starts + ends - 1, lengths) - places]
    return reversed_tokens


def no_reverse(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Insert a marker at a random position."""
    return _insert_marker(s, markers[0], rng)[0]


def partial_reverse(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Insert a marker at a random position and reverse the tokens after it."""
    marked, places = _insert_marker(s, markers[0], rng)
    tokens = _reverse_spans(marked.tokens, places + 1, marked.offsets[1:])
    return Sentences(tokens, marked.offsets)


def full_reverse(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Insert a marker at a random position, then reverse the sentence including the marker."""
    marked, _ = _insert_marker(s, markers[0], rng)
    tokens = _reverse_spans(marked.tokens, marked.offsets[:-1], marked.offsets[1:])
    return Sentences(tokens, marked.offsets)


def no_shuffle(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """The sentence as it is."""
    return s


def nondeterministic_shuffle(
    s: Sentences, markers: list[int], rng: np.random.Generator
) -> Sentences:
    """Shuffle each sentence in a new random order."""
    tokens, places = s.tokens.copy(), s.offsets.tolist()
    # No call of numpy's draws this stream for many sentences: shuffle rejects draws by a mask.
    for start, end in itertools.pairwise(places):
        rng.shuffle(tokens[start:end])
    return Sentences(tokens, s.offsets)


def deterministic_shuffle(
    s: Sentences, markers: list[int], rng: np.random.Generator, *, seed: int
) -> Sentences:
    """Shuffle all sentences of the same length in the same order."""
    return _rearranged(s, lambda n: np.random.default_rng(seed).permutation(n))


def local_shuffle(
    s: Sentences, markers: list[int], rng: np.random.Generator, *, window: int
) -> Sentences:
    """Shuffle each window of `window` tokens in the same order; the last one may be shorter."""

    def order(n: int) -> np.ndarray:
        whole, rest = divmod(n, window)
        starts = np.arange(whole)[:, None] * window
        within, last = (np.random.default_rng(0).permutation(size) for size in (window, rest))
        return np.concatenate([(starts + within).ravel(), n - rest + last])

    return _rearranged(s, order)


def even_odd_shuffle(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Put the tokens at even positions (from 0) before those at odd positions."""
    return _rearranged(s, lambda n: np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)]))


def _rearranged(s: Sentences, order: Callable[[int], np.ndarray]) -> Sentences:
    """Reorder sentences in an order that depends only on their length.

    order: for a length n, the old position of each new token, (n,) int64.
    """
    lengths, which = np.unique(s.lengths, return_inverse=True)
    orders = np.concatenate([np.empty(0, np.int64), *(order(int(n)) for n in lengths)])
    # The order of each sentence begins where that of its length does in `orders`.
    starts = (np.cumsum(lengths) - lengths)[which]
    old = orders[_positions(starts, s.lengths)] + np.repeat(s.offsets[:-1], s.lengths)
    return Sentences(s.tokens[old], s.offsets)


REVERSE = "🅁"
_LONGEST_SHUFFLED = 350  # tokens of a sentence: the published code leaves out longer ones


def _shuffle(title: str, perturb: Perturb, summary: str) -> Language:
    """A row of the *Shuffle family: without markers, and without very long sentences."""
    return Language(title, perturb, summary, max_tokens=_LONGEST_SHUFFLED)


LANGUAGES: dict[str, Language] = {
    "no_reverse": Language(
        "NoReverse", no_reverse, "a marker at a random place", (REVERSE,), seed=21
    ),
    "partial_reverse": Language(
        "PartialReverse",
        partial_reverse,
        "a marker at a random place, everything after it reversed",
        (REVERSE,),
        seed=21,
    ),
    "full_reverse": Language(
        "FullReverse",
        full_reverse,
        "a marker at a random place, the whole reversed, marker included",
        (REVERSE,),
        seed=21,
    ),
    "no_shuffle": _shuffle("NoShuffle", no_shuffle, "nothing"),
    "nondeterministic_shuffle": _shuffle(
        "NondeterministicShuffle",
        nondeterministic_shuffle,
        "its tokens shuffled, anew for every sentence",
    ),
    **{
        f"deterministic_shuffle_s{seed}": _shuffle(
            f"DeterministicShuffle(s={seed})",
            functools.partial(deterministic_shuffle, seed=seed),
            "its tokens shuffled, in one way for all sentences of its length",
        )
        for seed in (21, 57, 84)
    },
    **{
        f"local_shuffle_w{window}": _shuffle(
            f"LocalShuffle(w={window})",
            functools.partial(local_shuffle, window=window),
            f"every {window} tokens shuffled among themselves, always in one way",
        )
        for window in (3, 5, 10)
    },
    "even_odd_shuffle": _shuffle(
        "EvenOddShuffle", even_odd_shuffle, "its tokens at even places (from 0), then those at odd"
    ),
}


def get(name: str) -> Language:
    """The language of that name. Raises UserError, with the nearest known name."""
    if name not in LANGUAGES:
        raise unknown("language", name, LANGUAGES)
    return LANGUAGES[name]


def show(name: str, text: str) -> str:
    """One sentence in one language, as tokens set apart by spaces."""
    from impossible.text.tokenizer import Tokenizer  # only this command needs it

    language = get(name)
    tokenizer = Tokenizer(language.markers)
    sentence = from_lengths(*tokenizer.encode([text]))
    rng = np.random.default_rng(language.seed)
    kept = language.apply(sentence, list(tokenizer.markers.values()), rng)
    if not len(kept.lengths):
        count = len(sentence.tokens)
        return f"(dropped, as sentences of {count} token{'s' if count > 1 else ''} are)"
    return " ".join(piece.strip() for piece in tokenizer.pieces(kept.tokens))


def main(arguments: list[str]) -> None:
    """Print a sentence in the language named, or in all."""
    if len(arguments) > 2:
        raise UserError(
            f"{len(arguments)} arguments given, at most 2 expected: a language and a sentence. Put "
            'the sentence in quotes: python perturb.py LANGUAGE "A sentence."'
        )
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, "\nLanguages:", ", ".join(LANGUAGES))
        return
    names = arguments[:1] or list(LANGUAGES)
    text = arguments[1] if len(arguments) > 1 else "He cleans his very messy bookshelf."
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("the sentence is not UTF-8. Type it in a terminal whose encoding is UTF-8.")
    if not text.strip():
        raise UserError("the sentence is empty. Type: python perturb.py LANGUAGE 'A sentence.'")
    width = max(len(language.title) for language in LANGUAGES.values())
    for name in names:
        print(f"{get(name).title:<{width}}  {show(name, text.strip())}")


if __name__ == "__main__":
    from impossible import command

    command.guarded(lambda: main(sys.argv[1:]))
