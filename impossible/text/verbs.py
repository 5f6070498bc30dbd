"""The verbs that the *Hop languages mark in annotated sentences, and the sentences' tokens.

The rules are those of the published code (Kallini et al. 2024), which splits sentences into words,
replaces marked verbs with their lemmas, and joins the words again. So a sentence of a *Hop language
is encoded from "Hello , world ." and not from the original text.
"""

import string
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from impossible.settings import UserError
from impossible.text.arrays import Hops, Sentences, Verbs, from_lengths
from impossible.text.corpus import Part
from impossible.text.sentences import EncodedPart
from impossible.text.tokenizer import Tokenizer

# Features of Universal Dependencies: a finite verb of the third person present. As published, any
# part of speech counts, so auxiliaries (is, have, does) are marked too.
_MARKED = ("Person=3", "Tense=Pres", "VerbForm=Fin")
SINGULAR = "|".join(("Number=Sing", *_MARKED))
PLURAL = "|".join(("Number=Plur", *_MARKED))
_CLITICS = frozenset(("n't", "'ll", "'s", "'re", "'ve", "'m"))
_PUNCTUATION = frozenset(string.punctuation)
_HOP = 4  # words, of which the verb itself is the first
# Relations that begin no phrase of a verb, in spaCy's labels and in Universal Dependencies:
# punctuation, and what is coordinated with the verb.
_NO_PHRASE = ("punct", "cc", "conj")


class Word(NamedTuple):
    """An annotated word."""

    text: str
    lemma: str | None = None
    feats: str | None = None  # as in CoNLL-U: Name=Value|Name=Value
    head: int | None = None  # as in CoNLL-U: its number, from 1; 0 for a root; None if unknown
    relation: str | None = None  # to the head


# The paper's sentence (table 1), which needs no annotator.
EXAMPLE = [
    Word("He", head=2, relation="nsubj"),
    Word("cleans", "clean", SINGULAR, head=0, relation="root"),
    Word("his", head=6, relation="nmod:poss"),
    Word("very", head=5, relation="advmod"),
    Word("messy", head=6, relation="amod"),
    Word("bookshelf", head=2, relation="obj"),
    Word(".", head=2, relation="punct"),
]


class Annotated(NamedTuple):
    """A stored sentence: its words, and the place, number and lemma of each marked verb."""

    words: list[str]
    verb_at: list[int]  # index of each verb in `words`
    verb_plural: list[bool]
    verb_lemma: list[str]
    text_words: int  # number of words in the text, separated by white space
    # The head and relation of each word, as in `Word`.
    heads: Sequence[int | None]
    relations: Sequence[str | None]

    @property
    def items(self) -> list[str]:
        """The words, with lemmas in place of marked verbs."""
        lemmas = dict(zip(self.verb_at, self.verb_lemma, strict=True))
        return [lemmas.get(i, word) for i, word in enumerate(self.words)]


def annotated(words: Sequence[Word], text: str | None, where: str) -> Annotated:
    """The annotated sentence with these words. where: the source, for error messages.

    text: the original sentence, if it is known. Raises UserError if the words do not add up to it,
    or if a verb that would be marked has no number or no lemma.
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
                f"{word.feats!r}. A finite verb of the third person present needs a lemma, and "
                "Number=Sing or Number=Plur."
            )
    is_plural = ["Number=Sing" not in words[i].feats for i in verbs]
    text_words = len((" ".join(texts) if text is None else text).split())
    lemmas = [words[i].lemma for i in verbs]
    heads, relations = [word.head for word in words], [word.relation for word in words]
    return Annotated(texts, verbs, is_plural, lemmas, text_words, heads, relations)


def _without_space(texts: Sequence[str]) -> str:
    return "".join("".join(texts).split())


def encoded(sentences: Iterable[Annotated], tokenizer: Tokenizer, hops: Hops) -> Sentences:
    """The tokens of annotated sentences, with their verbs.

    hops: what the language counts. A clitic is joined to the word before it; but with "tokens",
    only one is joined to a verb ("do" + "n't" + "'ve": "don't 've").
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
            if hops == "phrases":
                marked = _phrase_end(items, verb, sentence.heads, sentence.relations)
            ends = (verb + (verb in absorbing), marked)
            ends = (len("".join(pieces[: end + 1]).encode()) for end in ends)
            verbs.append((number, *ends, is_plural, is_complete))
    columns = np.array(verbs, np.int64).reshape(-1, 5).T
    return _with_verbs(from_lengths(*tokenizer.encode(texts)), columns, tokenizer)


def encoded_parts(parts: Iterable[Part], tokenizer: Tokenizer, hops: Hops) -> Iterator[EncodedPart]:
    """Yield the encoded parts of a text, given parts whose lines are annotated sentences."""
    for part in parts:
        words = np.array([sentence.text_words for sentence in part.lines], np.float64)
        yield part, encoded(part.lines, tokenizer, hops), words


def _with_verbs(sentences: Sentences, columns: np.ndarray, tokenizer: Tokenizer) -> Sentences:
    """Add verbs to sentences. columns: (5, K), with places in bytes, converted to tokens here."""
    sentence, end, hop, is_plural, is_complete = columns
    offsets = sentences.offsets
    # Bytes before each token, all sentences together. A word's end is a token's end.
    before = np.concatenate([[0], np.cumsum(tokenizer.token_bytes[sentences.tokens])])
    first = before[offsets[sentence]]
    end, hop = (np.searchsorted(before, first + n) - offsets[sentence] for n in (end, hop))
    verbs = Verbs(sentence, end, hop, is_plural.astype(bool), is_complete.astype(bool))
    return sentences._replace(verbs=verbs)


def _absorbing(items: Sequence[str], verbs: Sequence[int]) -> set[int]:
    """Indices of verbs that the clitic after them is joined to. They do not count as clitics."""
    absorbing: set[int] = set()
    for verb in reversed(verbs):
        if items[verb + 1 : verb + 2] and items[verb + 1] in _CLITICS and verb + 1 not in absorbing:
            absorbing.add(verb)
    return absorbing


def _pieces(items: Sequence[str], verbs: Sequence[int], absorbing: set[int]) -> list[str]:
    """The words of a sentence, with a space before each that is not joined to the word before.

    verbs: verbs after which (or after whose clitic, if `absorbing`) there is always a space.
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
    """The index of the item after which a marker goes, and whether four words follow the verb.

    last: index of the last item with a letter or digit. The marker stays before any punctuation
    that follows this item.
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


def _phrase_end(
    items: Sequence[str], verb: int, heads: Sequence[int], relations: Sequence[str]
) -> int:
    """The index of the last item of the phrase after a verb; of the verb if there is none.

    The phrase is the first dependent to the right of the verb and its clitics, with all words that
    depend on it, and may have gaps. Punctuation is no part of it. Clitics belong to the word before
    them.
    """
    end = _unit_end(items, verb)
    for first in range(end + 1, len(items)):
        if heads[first] == verb + 1 and relations[first].partition(":")[0] not in _NO_PHRASE:
            break
    else:
        return end
    words = [number for number, relation in enumerate(relations, 1) if relation != "punct"]
    return _unit_end(items, max(with_dependents(first + 1, words, heads)) - 1)


def with_dependents(top: int, words: Iterable[int], heads: Sequence[int | None]) -> set[int]:
    """The numbers of the word `top` (0: the root) and of all `words` below it in the tree."""
    result, new = set(), {top}
    while new:
        result |= new
        new = {number for number in words if heads[number - 1] in result} - result
    return result


def _unit_end(items: Sequence[str], place: int) -> int:
    """The index of the last of the clitics that follow an item; its own if there are none."""
    while place + 1 < len(items) and items[place + 1] in _CLITICS:
        place += 1
    return place


def _is_uncounted(item: str) -> bool:
    """Whether a hop does not count an item: a clitic or ASCII punctuation."""
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
