"""The words of a sentence, and which of them are verbs that the *Hop languages mark."""

from collections.abc import Sequence
from typing import NamedTuple

from impossible.settings import UserError

# Features of Universal Dependencies: a finite verb of the third person present. As published, a
# part of speech is not asked for, so that auxiliaries (is, have, does) count.
_MARKED = ("Person=3", "Tense=Pres", "VerbForm=Fin")
SINGULAR = "|".join(("Number=Sing", *_MARKED))
PLURAL = "|".join(("Number=Plur", *_MARKED))


class Word(NamedTuple):
    """A word as an annotator gives it."""

    text: str
    lemma: str | None = None
    feats: str | None = None  # as in CoNLL-U: Name=Value|Name=Value


class Annotated(NamedTuple):
    """A sentence as annotations store it: its words, and for each marked verb three facts."""

    words: list[str]
    verb_at: list[int]  # which word it is, from 0
    verb_plural: list[bool]
    verb_lemma: list[str]
    text_words: int  # words of the text, separated by white space


def annotated(words: Sequence[Word], text: str | None, where: str) -> Annotated:
    """The words of a sentence and its marked verbs.

    text: the sentence, if it is known. Raises UserError, beginning with `where`, if the words do
    not add up to it, or if a verb that would be marked has no number or no lemma.
    """
    texts = [word.text for word in words]
    if text is not None and _solid(texts) != _solid([text]):
        raise UserError(
            f"{where}: the words {' '.join(texts)!r} do not add up to the sentence {text!r}. "
            "Annotate it again: each part of a contraction must be a word."
        )
    at = [i for i, word in enumerate(words) if word.feats and all(f in word.feats for f in _MARKED)]
    for i in at:
        if not words[i].lemma:
            raise UserError(
                f"{where}: the verb {texts[i]!r} has no lemma. A marker is put after the lemma of "
                "a finite verb of the third person present. Annotate lemmas as well."
            )
        if not any(number in words[i].feats for number in ("Number=Sing", "Number=Plur")):
            raise UserError(
                f"{where}: the verb {texts[i]!r} has the features {words[i].feats!r}. A finite "
                "verb of the third person present needs Number=Sing or Number=Plur."
            )
    return Annotated(
        words=texts,
        verb_at=at,
        verb_plural=["Number=Sing" not in words[i].feats for i in at],
        verb_lemma=[words[i].lemma for i in at],
        text_words=len((" ".join(texts) if text is None else text).split()),
    )


def _solid(texts: Sequence[str]) -> str:
    """Texts one after another, without white space."""
    return "".join("".join(texts).split())
