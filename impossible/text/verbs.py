"""Annotated sentences: which words are verbs that the *Hop languages mark, and their tokens.

The rules are those of the published code (Kallini et al. 2024), which takes sentences apart into
words, puts lemmas in place of marked verbs, and joins them anew. So every sentence of a *Hop corpus
is encoded from "Hello , world ." and not from the original text.
"""

import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from impossible.settings import UserError
from impossible.text.arrays import Sentences, Verbs, from_lengths
from impossible.text.corpus import Part
from impossible.text.sentences import EncodedPart
from impossible.text.tokenizer import Tokenizer

# Features of Universal Dependencies: a finite verb of the third person present. As published, a
# part of speech is not asked for, so that auxiliaries (is, have, does) count.
_MARKED = ("Person=3", "Tense=Pres", "VerbForm=Fin")
SINGULAR = "|".join(("Number=Sing", *_MARKED))
PLURAL = "|".join(("Number=Plur", *_MARKED))
_CLITICS = frozenset(("n't", "'ll", "'s", "'re", "'ve", "'m"))
_PUNCTUATION = frozenset(string.punctuation)
_HOP = 4  # words, and the verb itself is the first that counts


class Word(NamedTuple):
    """A word as an annotator gives it."""

    text: str
    lemma: str | None = None
    feats: str | None = None  # as in CoNLL-U: Name=Value|Name=Value


# The paper's sentence (table 1), which needs no annotator.
EXAMPLE = [Word("He"), Word("cleans", "clean", SINGULAR)]
EXAMPLE += map(Word, ("his", "very", "messy", "bookshelf", "."))


class Annotated(NamedTuple):
    """A sentence as annotations store it: its words, and for each marked verb three facts."""

    words: list[str]
    verb_at: list[int]  # which word it is, from 0
    verb_plural: list[bool]
    verb_lemma: list[str]
    text_words: int  # words of the text, separated by white space

    @property
    def items(self) -> list[str]:
        """The words, with lemmas in place of marked verbs."""
        lemmas = dict(zip(self.verb_at, self.verb_lemma, strict=True))
        return [lemmas.get(i, word) for i, word in enumerate(self.words)]


def annotated(words: Sequence[Word], text: str | None, where: str) -> Annotated:
    """The words of a sentence and its marked verbs.

    text: the sentence, if it is known. Raises UserError, beginning with `where`, if the words do
    not add up to it, or if a verb that would be marked has no number or no lemma.
    """
    texts = [word.text for word in words]
    if text is not None and _without_space(texts) != _without_space([text]):
        raise UserError(
            f"{where}: the words {' '.join(texts)!r} do not add up to the sentence {text!r}. "
            "Annotate it again: each part of a contraction must be a word."
        )
    verbs = [i for i, w in enumerate(words) if w.feats and all(f in w.feats for f in _MARKED)]
    for word in (words[i] for i in verbs):
        if not word.lemma or not ("Number=Sing" in word.feats or "Number=Plur" in word.feats):
            raise UserError(
                f"{where}: the verb {word.text!r} has the lemma {word.lemma!r} and the features "
                f"{word.feats!r}. A finite verb of the third person present needs a lemma, after "
                "which its marker is put, and Number=Sing or Number=Plur."
            )
    is_plural = ["Number=Sing" not in words[i].feats for i in verbs]
    text_words = len((" ".join(texts) if text is None else text).split())
    return Annotated(texts, verbs, is_plural, [words[i].lemma for i in verbs], text_words)


def _without_space(texts: Sequence[str]) -> str:
    return "".join("".join(texts).split())


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
        items = sentence.items if sentence.verb_at else sentence.words
        if not sentence.verb_at and _CLITICS.isdisjoint(items):
            texts.append(" ".join(items))
            continue
        absorbing = _absorbing(items, sentence.verb_at)
        pieces = _pieces(items, sentence.verb_at if hops == "tokens" else [], absorbing)
        texts.append("".join(pieces))
        last = max((i for i, item in enumerate(items) if any(map(str.isalnum, item))), default=-1)
        for verb, is_plural in zip(sentence.verb_at, sentence.verb_plural, strict=True):
            marked, is_complete = _hop(items, verb, last)
            ends = (verb + (verb in absorbing), marked)
            ends = (len("".join(pieces[: end + 1]).encode()) for end in ends)
            verbs.append((number, *ends, is_plural, is_complete))
    columns = np.array(verbs, np.int64).reshape(-1, 5).T
    return _with_verbs(from_lengths(*tokenizer.encode(texts)), columns, tokenizer)


def encoded_parts(
    parts: Iterable[Part], tokenizer: Tokenizer, hops: Literal["tokens", "words"]
) -> Iterator[EncodedPart]:
    """The tokens of parts of a text, whose lines are annotated sentences."""
    for part in parts:
        words = np.array([sentence.text_words for sentence in part.lines], np.int32)
        yield part, encoded(part.lines, tokenizer, hops), words


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
    absorbing: set[int] = set()
    for verb in reversed(verbs):
        if items[verb + 1 : verb + 2] and items[verb + 1] in _CLITICS and verb + 1 not in absorbing:
            absorbing.add(verb)
    return absorbing


def _pieces(items: Sequence[str], verbs: Sequence[int], absorbing: set[int]) -> list[str]:
    """Words with the space before each that has one.

    verbs: those after which (and after the clitic that they absorb) a word has a space always.
    """
    is_glued = [i == 0 or item in _CLITICS for i, item in enumerate(items)]
    for verb in verbs:
        following = verb + 1
        if verb in absorbing:
            is_glued[verb], following = verb == 0, verb + 2
        if following < len(items):
            is_glued[following] = False
    for verb in absorbing.intersection(verbs):
        is_glued[verb + 1] = True
    return [item if glued else f" {item}" for item, glued in zip(items, is_glued, strict=True)]


def _hop(items: Sequence[str], verb: int, last: int) -> tuple[int, bool]:
    """The item that a marker four words on follows, and whether there are four words.

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


def require_verbs(verbs: Verbs | None, split: str, source: str) -> None:
    """Raise UserError if no verb of a split is marked; warn if no plural one is."""
    if verbs is None or not len(verbs.sentence):
        raise UserError(
            f"no verb of the {split} split is in the third person present ({source}). Expected "
            "English text, annotated with Person, Tense, VerbForm and Number."
        )
    if not verbs.is_plural.any():
        print(
            f"warning: no plural verb is marked in the {split} split. (Models trained on Universal "
            "Dependencies before release 2.10 give no number to plural verbs.)"
        )
