"""The published rules of the *Hop languages, word by word, with transformers' own tokenizer.

PhraseHop is this project's own.

Nothing here is vectorised or shared with the code under test: this is what it must equal.
"""

import string
from collections.abc import Callable
from typing import NamedTuple

CLITICS = ["n't", "'ll", "'s", "'re", "'ve", "'m"]
MARKERS = {"Sing": 50257, "Plur": 50258}
HOP = 4


class Word(NamedTuple):
    text: str
    lemma: str | None = None
    number: str | None = None  # of a verb that is marked
    head: int = 0  # as in CoNLL-U
    relation: str = "root"


Encode = Callable[[str], list[int]]


def joined(items: list[str]) -> str:
    """Items with spaces between them, but not before a clitic."""
    text = ""
    for item in items:
        text += item if not text or item in CLITICS else f" {item}"
    return text


def hop_over_tokens(words: list[Word], hop: int, encode: Encode) -> list[int]:
    """From the end of the sentence: what follows a verb is encoded, and gets its marker."""
    following: list[int] = []
    items: list[str] = []
    for word in reversed(words):
        if not word.number:
            items = [word.text, *items]
            continue
        verb = word.lemma or word.text
        if items and items[0] in CLITICS:
            verb, items = verb + items[0], items[1:]
        if items:
            following = encode(" " + joined(items)) + following
        following.insert(hop, MARKERS[word.number])
        items = [verb]
    return encode(joined(items)) + following


def counts(item: str) -> bool:
    return item not in CLITICS and any(c not in string.punctuation for c in item)


def has_letters(items: list[str]) -> bool:
    return any(c.isalnum() for item in items for c in item)


def hop_of(items: list[str], verb: int) -> tuple[int, bool]:
    """The place of a verb's marker among the items, and whether four words came before it."""
    place, seen = verb, 0
    while seen < HOP and place + 1 < len(items) and has_letters(items[place + 1 :]):
        seen += counts(items[place])
        place += 1
    if has_letters(items[place + 1 :]):
        while place + 1 < len(items) and not counts(items[place]):
            place += 1
    if place + 1 < len(items) and items[place + 1] in CLITICS:
        place += 1
    return place + 1, seen == HOP


def after_phrase(words: list[Word], items: list[str], verb: int) -> int:
    """The place after the phrase that follows a verb, or after the verb."""
    start = after_clitics(items, verb + 1)
    for i in range(start, len(words)):
        kind = words[i].relation.split(":")[0]
        if words[i].head == verb + 1 and kind not in ("punct", "cc", "conj"):
            phrase = [j for j in range(len(words)) if is_under(words, j, i)]
            return after_clitics(items, phrase[-1] + 1)
    return start


def is_under(words: list[Word], place: int, top: int) -> bool:
    """Whether a word is `top` or depends on it, by way of words that are no punctuation."""
    while place != top:
        if words[place].relation == "punct" or words[place].head == 0:
            return False
        place = words[place].head - 1
    return True


def after_clitics(items: list[str], place: int) -> int:
    while place < len(items) and items[place] in CLITICS:
        place += 1
    return place


def hop_over_words(words: list[Word], encode: Encode, phrases: bool) -> list[int]:
    """Each stretch of text between two markers is encoded on its own."""
    items = [(w.lemma or w.text) if w.number else w.text for w in words]
    verbs = [i for i, w in enumerate(words) if w.number]
    if phrases:
        places = sorted((after_phrase(words, items, i), i) for i in verbs)
    else:
        places = sorted((hop_of(items, i)[0], i) for i in verbs)
    tokens: list[int] = []
    done = 0
    for place, verb in places:
        tokens += stretch(items, done, place, encode)
        tokens.append(MARKERS[words[verb].number])
        done = place
    return tokens + stretch(items, done, len(items), encode)


def stretch(items: list[str], start: int, end: int, encode: Encode) -> list[int]:
    if start == end:
        return []
    is_apart = start > 0 and items[start] not in CLITICS
    return encode(" " * is_apart + joined(items[start:end]))


def perturb(name: str, words: list[Word], encode: Encode) -> list[int] | None:
    """A sentence in a language; None if it is dropped."""
    items = [(w.lemma or w.text) if w.number else w.text for w in words]
    if not all(hop_of(items, i)[1] for i, w in enumerate(words) if w.number):
        return None
    if name in ("word_hop", "phrase_hop"):
        tokens = hop_over_words(words, encode, name == "phrase_hop")
    else:
        tokens = hop_over_tokens(words, {"no_hop": 0, "token_hop": HOP}[name], encode)
    return tokens if len([t for t in tokens if t < 50257]) > 1 else None
