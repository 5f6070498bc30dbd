"""Sentences as flat arrays of tokens, with the verbs that the *Hop languages mark, and words."""

from typing import Literal, NamedTuple

import numpy as np

from impossible.settings import UserError

# What a *Hop language counts from verb to marker; "" for other languages.
Hops = Literal["", "tokens", "words", "phrases"]


class Ids(NamedTuple):
    """Facts about a tokenizer's V ids that a language needs."""

    markers: list[int]  # those of the language's markers, in the same order
    begins_word: np.ndarray  # (V,) bool: whether a token begins with a space, or is a marker
    text: np.ndarray  # (V,) str, with U+FFFD for a part of a character


class Verbs(NamedTuple):
    """The K verbs that a *Hop language marks in some sentences, in the order of the text.

    Places count tokens from the beginning of the sentence.
    """

    sentence: np.ndarray  # (K,) int64: the number of the verb's sentence
    end: np.ndarray  # (K,) int64: the place after the verb
    hop: np.ndarray  # (K,) int64: the place after the fourth word, or the phrase, that follows
    is_plural: np.ndarray  # (K,) bool
    is_complete: np.ndarray  # (K,) bool: whether four words follow


class Sentences(NamedTuple):
    """Sentences as one flat array: sentence s is tokens[offsets[s]:offsets[s + 1]]."""

    tokens: np.ndarray  # (N,) uint16
    offsets: np.ndarray  # (S + 1,) int64, from 0 to N
    verbs: Verbs | None = None  # None unless the sentences are annotated

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens in each sentence, (S,) int64."""
        return np.diff(self.offsets)

    @property
    def is_affected(self) -> np.ndarray:
        """Whether a *Hop language marks a verb in each sentence, (S,) bool."""
        return self._has(self.verbs.sentence)

    @property
    def is_incomplete(self) -> np.ndarray:
        """Whether fewer than four words follow a verb of each sentence, (S,) bool."""
        return self._has(self.verbs.sentence[~self.verbs.is_complete])

    def _has(self, sentences: np.ndarray) -> np.ndarray:
        return np.bincount(sentences, minlength=len(self.lengths)) > 0

    def part(self, start: int, stop: int) -> "Sentences":
        """The sentences with indices `start` to `stop` - 1, with their verbs."""
        offsets = self.offsets[start : stop + 1]
        tokens, verbs = self.tokens[offsets[0] : offsets[-1]], self.verbs
        if verbs is not None:
            first, last = np.searchsorted(verbs.sentence, [start, stop])
            verbs = Verbs(*(field[first:last] for field in verbs))
            verbs = verbs._replace(sentence=verbs.sentence - start)
        return Sentences(tokens, offsets - offsets[0], verbs)

    def take(self, indices: np.ndarray) -> "Sentences":
        """The sentences at these indices, in that order, or where a mask is true; without verbs."""
        if indices.dtype == bool:
            if indices.all():
                return self._replace(verbs=None)
            indices = np.flatnonzero(indices)
        starts = self.offsets[indices]
        lengths = self.offsets[indices + 1] - starts
        return from_lengths(self.tokens[span_positions(starts, lengths)], lengths)


def word_starts(sentences: Sentences, ids: Ids) -> np.ndarray:
    """The index of the first token of each word, (W,) int64.

    A word begins at each token that begins with a space. A marker is a word by itself. Raises
    UserError if the first token of a sentence, or one after a marker, does not begin with a space.
    """
    begins = ids.begins_word[sentences.tokens]
    after_marker = np.flatnonzero(np.isin(sentences.tokens[:-1], ids.markers)) + 1
    if not begins[np.append(sentences.offsets[:-1][sentences.lengths > 0], after_marker)].all():
        raise UserError("no space at the beginning of a sentence, or after a marker")
    return np.flatnonzero(begins)


def from_lengths(tokens: np.ndarray, lengths: np.ndarray) -> Sentences:
    """Sentences from their tokens (N,) and lengths (S,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Sentences(tokens, offsets)


def joined(parts: list[Sentences]) -> Sentences:
    """The sentences of all parts, in order. Empties the list, so memory never holds two copies.

    The tokens become uint16. Either all parts have verbs or none has.
    """
    tokens = np.empty(sum(len(part.tokens) for part in parts), np.uint16)
    lengths, verbs = [np.empty(0, np.int64)], []
    token = sentence = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        tokens[token : token + len(part.tokens)] = part.tokens
        lengths.append(part.lengths)
        if part.verbs is not None:
            verbs.append(part.verbs._replace(sentence=part.verbs.sentence + sentence))
        token, sentence = token + len(part.tokens), sentence + len(part.lengths)
    whole = from_lengths(tokens, np.concatenate(lengths))
    if verbs:
        whole = whole._replace(verbs=Verbs(*map(np.concatenate, zip(*verbs, strict=True))))
    return whole


def span_positions(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All positions in K spans, span by span: start, start + 1, ...; (sum of lengths,) int64."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - ends + lengths, lengths)
    return shift + np.arange(len(shift))
