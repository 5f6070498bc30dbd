"""Annotated sentences as tokens: joined by the published rules, with the places of markers.

The rules are those of the published code (Kallini et al. 2024), which takes sentences apart into
words, puts lemmas in place of marked verbs, and joins them anew. So every sentence of a *Hop corpus
is encoded from "Hello , world ." and not from the original text.
"""

import string
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from impossible.text.tokenizer import Tokenizer
from impossible.text.words.verbs import Annotated
from perturb import Sentences, Verbs, from_lengths

_CLITICS = frozenset(("n't", "'ll", "'s", "'re", "'ve", "'m"))
_PUNCTUATION = frozenset(string.punctuation)
_HOP = 4  # words, and the verb itself is the first that counts


def encoded(
    sentences: Iterable[Annotated], tokenizer: Tokenizer, hops: Literal["tokens", "words"]
) -> Sentences:
    """The tokens of annotated sentences, with their verbs.

    hops: what the language counts. A clitic is joined to the word before it; but with "tokens", a
    verb takes only one ("do" + "n't" + "'ve": "don't 've").
    """
    texts: list[str] = []
    verbs: list[tuple[int, int, int, bool, bool]] = []  # with places in bytes of the text
    for number, sentence in enumerate(sentences):
        items = list(sentence.words)
        for at, lemma in zip(sentence.verb_at, sentence.verb_lemma, strict=True):
            items[at] = lemma
        if not sentence.verb_at and _CLITICS.isdisjoint(items):
            texts.append(" ".join(items))
            continue
        absorbing = _absorbing(items, sentence.verb_at)
        pieces = _pieces(items, sentence.verb_at if hops == "tokens" else [], absorbing)
        texts.append("".join(pieces))
        last = max((i for i, item in enumerate(items) if _is_readable(item)), default=-1)
        for at, is_plural in zip(sentence.verb_at, sentence.verb_plural, strict=True):
            place, is_complete = _hop(items, at, last)
            end = at + (at in absorbing)
            ends = (len("".join(pieces[: i + 1]).encode()) for i in (end, place))
            verbs.append((number, *ends, is_plural, is_complete))
    tokens, lengths = tokenizer.encode(texts)
    columns = np.array(verbs, np.int64).reshape(-1, 5).T
    return _with_verbs(from_lengths(tokens, lengths), columns, tokenizer)


def _with_verbs(sentences: Sentences, columns: np.ndarray, tokenizer: Tokenizer) -> Sentences:
    """Sentences with verbs (5, K) whose places count bytes of the text: they count tokens then."""
    sentence, end, hop, is_plural, is_complete = columns
    offsets = sentences.offsets
    # Bytes before each token, all sentences together. A word's end is a token's end.
    before = np.concatenate([[0], np.cumsum(tokenizer.token_bytes[sentences.tokens])])
    first = before[offsets[sentence]]
    end, hop = (np.searchsorted(before, first + n) - offsets[sentence] for n in (end, hop))
    verbs = Verbs(sentence, end, hop, is_plural.astype(bool), is_complete.astype(bool))
    return sentences._replace(verbs=verbs)


def _absorbing(items: Sequence[str], verbs: Sequence[int]) -> set[int]:
    """The verbs that take the clitic after them; one that has taken one is a clitic no more."""
    found: set[int] = set()
    for at in reversed(verbs):
        if at + 1 < len(items) and items[at + 1] in _CLITICS and at + 1 not in found:
            found.add(at)
    return found


def _pieces(items: Sequence[str], verbs: Sequence[int], absorbing: set[int]) -> list[str]:
    """Words with the space before each that has one.

    verbs: those after which (and after the clitic that they absorb) a word has a space always.
    """
    is_glued = [i > 0 and item in _CLITICS for i, item in enumerate(items)]
    for at in verbs:
        after = at + 1
        if at in absorbing:
            is_glued[at], after = False, at + 2
        if after < len(items):
            is_glued[after] = False
    for at in absorbing.intersection(verbs):
        is_glued[at + 1] = True
    return [
        item if glued or not i else f" {item}"
        for i, (item, glued) in enumerate(zip(items, is_glued, strict=True))
    ]


def _hop(items: Sequence[str], verb: int, last: int) -> tuple[int, bool]:
    """The item that a marker four words on follows, and whether four words were there.

    last: the last item with a letter or digit. The hop does not go beyond it, so that a sentence
    ends with its punctuation.
    """
    place, counted, end = verb, 0, len(items) - 1
    while counted < _HOP and place < end and place < last:
        counted += not _is_uncounted(items[place])
        place += 1
    if place < last:
        while place < end and _is_uncounted(items[place]):
            place += 1
    if place < end and items[place + 1] in _CLITICS:
        place += 1
    return place, counted == _HOP


def _is_uncounted(item: str) -> bool:
    """Whether a hop takes no account of an item: a clitic, or ASCII punctuation."""
    return item in _CLITICS or _PUNCTUATION.issuperset(item)


def _is_readable(item: str) -> bool:
    return any(map(str.isalnum, item))
