"""The impossible languages: functions on the tokens of many sentences at once.

    python perturb.py                                    # one sentence in all languages but *_words
    python perturb.py partial_reverse "He cleans his very messy bookshelf."
    python perturb.py --check partial_reverse            # try a language on real sentences

A language is a row of LANGUAGES. Its function gets the sentences, the ids of its markers and a
random generator whose state is kept between calls, and returns the same number of perturbed
sentences in the same order. Its inverse turns the tokens of one sentence into the original ones.
For the languages of Kallini et al. 2024 (section 3, table 1), rules and random numbers are exactly
those of the paper's code. docs/languages.md names the languages that are not in the paper.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from impossible.settings import WORDS, UserError, is_utf8, unknown
from impossible.text.arrays import Hops, Ids, Sentences, from_lengths, span_positions, word_starts

if TYPE_CHECKING:
    from impossible.text.tokenizer import Tokenizer

# Arguments: sentences, ids of the markers, a generator and, if the language reads it, `text=`.
Perturb = Callable[..., Sentences]
Invert = Callable[..., np.ndarray]  # of the tokens of one sentence (n,), markers and `text=`


class NoWayBack(Exception):  # noqa: N818
    """Raised if the original sentence cannot be restored; the message says why."""


@dataclass(frozen=True)
class Language:
    """A language: one row of LANGUAGES."""

    title: str  # the paper's name
    perturb: Perturb
    summary: str  # what happens to a sentence, in words
    markers: tuple[str, ...] = ()
    seed: int = 0  # of the random generator; each split starts with a new generator
    min_tokens: int = 2  # shorter sentences are dropped, after their random draw
    max_tokens: int | None = None  # longer sentences are dropped too
    any_length: bool = False  # whether a token's place does not depend on the sentence's length
    hops: Hops = ""  # not empty for a *Hop language, which reads annotated verbs
    reads_text: bool = False  # whether the functions get the text of each token (or word)
    invert: Invert | None = None  # raises NoWayBack; None: the language cannot be undone
    control: str = ""  # the language to compare it with; a control is its own control
    unit: Literal["tokens", "words"] = "tokens"  # what the function moves

    @property
    def space(self) -> str:
        """The text before a sentence: a space if words move, so that every word begins with one."""
        return " " * (self.unit == "words")

    def starts(self, sentences: Sentences, ids: Ids) -> np.ndarray:
        """The index of the first token of each unit that moves, token or word, (U,) int64."""
        is_words, count = self.unit == "words", len(sentences.tokens)
        return word_starts(sentences, ids) if is_words else np.arange(count)

    def apply(
        self, sentences: Sentences, ids: Ids, rng: np.random.Generator, drop: bool = True
    ) -> Sentences:
        """Perturb sentences and drop those that are too short or too long (or keep all).

        ids: those of a tokenizer with `markers`. rng: `default_rng(seed)`; pass the same
        generator to each call, so that sentences can be divided among calls in any way. Raises
        UserError if the language returns another number of sentences, or anything but an array of
        token ids.
        """
        tokens, offsets, *_ = self._in_units(
            sentences, ids, lambda s, markers, **text: self.perturb(s, markers, rng, **text)
        )
        count = len(sentences.lengths)
        if len(offsets) != count + 1 or offsets[-1] != len(tokens):
            raise UserError(
                f"{self.title} was given {count:,} sentences and returned {len(offsets) - 1:,}, "
                f"with {len(tokens):,} tokens and the last offset {offsets[-1]:,}. Its function in "
                "perturb.py must return as many sentences as it gets, and the last offset must be "
                "the length of the array."
            )
        tokens_16 = tokens.astype(np.uint16, copy=False)
        if not np.array_equal(tokens_16, tokens):
            raise UserError(
                f"{self.title} returned tokens that are not 16-bit ids ({tokens.dtype}, "
                f"{tokens.min()} to {tokens.max()}). Look at its function in perturb.py."
            )
        result = Sentences(tokens_16, offsets)
        return result.take(self.keeps(sentences)) if drop else result

    def _in_units(
        self, sentences: Sentences, ids: Ids, change: Callable[..., Sentences]
    ) -> Sentences:
        """Apply a function of sentences and marker ids to tokens or, if words move, to words.

        For words, the function gets their numbers in place of tokens, and -1, -2, ... as markers.
        If the language reads text, the function gets the text of each id (or number) as well.
        """
        if self.unit == "tokens":
            return change(sentences, ids.markers, **{"text": ids.text} if self.reads_text else {})
        starts, markers = word_starts(sentences, ids), [-1 - i for i in range(len(ids.markers))]
        words = Sentences(np.arange(len(starts)), starts.searchsorted(sentences.offsets))
        for number, marker in zip(markers, ids.markers, strict=True):
            words.tokens[sentences.tokens[starts] == marker] = number
        # The markers stand after all words, so that their numbers count from the end.
        tokens = np.append(sentences.tokens, np.array(ids.markers[::-1], sentences.tokens.dtype))
        starts = np.append(starts, np.arange(len(sentences.tokens), len(tokens)))
        text = {"text": np.add.reduceat(ids.text[tokens], starts)} if self.reads_text else {}
        order, offsets, *_ = change(words, markers, **text)
        lengths = np.diff(starts, append=len(tokens))[order]
        offsets = np.append(0, lengths.cumsum())[offsets]
        return Sentences(tokens[span_positions(starts[order], lengths)], offsets)

    def keeps(self, sentences: Sentences) -> np.ndarray:
        """Whether each sentence, before perturbing, is kept: (S,) bool."""
        keep = sentences.lengths >= self.min_tokens
        if self.max_tokens is not None:
            keep &= sentences.lengths <= self.max_tokens
        if self.hops:
            keep &= ~sentences.is_incomplete
        return keep

    @property
    def drops(self) -> str:
        """A description of the sentences that are dropped, for messages."""
        most = f" or more than {self.max_tokens}" if self.max_tokens else ""
        hops = ", or fewer than 4 words after a verb" if self.hops else ""
        return f"fewer than {self.min_tokens}{most} tokens{hops}"

    def undo(self, tokens: np.ndarray, ids: Ids) -> np.ndarray:
        """The original tokens of a perturbed sentence, (n,). Raises NoWayBack if there are none.

        For a *Hop language, the result contains no markers, but its verbs remain lemmas.
        """
        if self.invert is None:
            raise NoWayBack(f"{self.title} cannot be undone")
        sentence = Sentences(tokens, np.array([0, len(tokens)]))
        try:  # Only the tokens are read: the result may be shorter.
            return self._in_units(
                sentence,
                ids,
                lambda s, markers, **text: Sentences(self.invert(s.tokens, markers, **text), [0]),
            ).tokens
        except (NoWayBack, UserError) as reason:
            raise NoWayBack(str(reason))
        except Exception as error:  # the function expects a sentence of the language
            raise NoWayBack(f"the inverse failed with {type(error).__name__}: {error}")

    def check(self, sentences: Sentences, kept: Sentences, tokenizer: "Tokenizer") -> None:
        """Check that ids are within the vocabulary, and undo some sentences, evenly spaced.

        sentences, kept: the argument and the result of `apply`. Raises UserError for an id beyond
        the vocabulary, and for the shortest of these sentences that `invert` does not restore.
        """
        if (largest := kept.tokens.max(initial=0)) >= tokenizer.vocab_size:
            raise UserError(
                f"the language {self.title} produces token {largest}, but its vocabulary has only "
                f"{tokenizer.vocab_size:,} tokens. Give it a marker in perturb.py for each new id."
            )
        if self.invert is None or not len(kept.lengths):
            return
        chosen = np.unique(np.linspace(0, len(kept.lengths) - 1, _UNDONE).astype(int))
        originals = sentences.take(np.flatnonzero(self.keeps(sentences))[chosen])
        for i in np.argsort(originals.lengths, kind="stable"):
            original = originals.part(i, i + 1).tokens
            perturbed = kept.part(chosen[i], chosen[i] + 1).tokens
            try:
                undone = self.undo(perturbed.copy(), tokenizer.ids)
                if np.array_equal(undone, original):
                    continue
                result = f"returned {tokenizer.decode(undone)!r}"
            except Exception as error:
                result = f"failed ({error})"
            raise UserError(
                f"the inverse of {self.title} is wrong (invert= in perturb.py). For the perturbed "
                f"sentence {tokenizer.decode(perturbed)!r} it {result}. Expected the original "
                f"sentence: {tokenizer.decode(original)!r}. Correct it, or leave invert= out."
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


def _reverse_spans(tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A copy of tokens in which each span [start, end) is reversed; spans do not overlap."""
    lengths = ends - starts
    places = span_positions(starts, lengths)
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


def _without_marker(tokens: np.ndarray, markers: list[int]) -> tuple[np.ndarray, int]:
    """The tokens (n,) without their marker, and its place. Raises NoWayBack unless there is one."""
    places = np.flatnonzero(tokens == markers[0])
    if len(places) != 1:
        raise NoWayBack("no marker" if not len(places) else f"{len(places)} markers, 1 expected")
    return np.delete(tokens, places), int(places[0])


def undo_no_reverse(tokens: np.ndarray, markers: list[int]) -> np.ndarray:
    """The tokens without the marker."""
    return _without_marker(tokens, markers)[0]


def undo_partial_reverse(tokens: np.ndarray, markers: list[int]) -> np.ndarray:
    """The tokens before the marker, and those after it reversed."""
    tokens, place = _without_marker(tokens, markers)
    return np.concatenate([tokens[:place], tokens[place:][::-1]])


def undo_full_reverse(tokens: np.ndarray, markers: list[int]) -> np.ndarray:
    """The tokens without the marker, reversed."""
    return _without_marker(tokens, markers)[0][::-1]


def no_shuffle(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Return the sentences unchanged."""
    return s


def undo_no_shuffle(tokens: np.ndarray, markers: list[int]) -> np.ndarray:
    """Return the tokens unchanged."""
    return tokens


def nondeterministic_shuffle(
    s: Sentences, markers: list[int], rng: np.random.Generator
) -> Sentences:
    """Shuffle each sentence in a new random order."""
    tokens, places = s.tokens.copy(), s.offsets.tolist()
    # A loop, because no function of numpy draws the same numbers for many sentences at once.
    for start, end in itertools.pairwise(places):
        rng.shuffle(tokens[start:end])
    return Sentences(tokens, s.offsets)


# From the length n of a sentence to the old place of each token in the new order, (n,) int64.
Order = Callable[[int], np.ndarray]


def deterministic_order(n: int, *, seed: int) -> np.ndarray:
    """A random order, the same for all sentences of n tokens."""
    return np.random.default_rng(seed).permutation(n)


def local_order(n: int, *, window: int) -> np.ndarray:
    """An order that shuffles each window in the same way; the last window may be shorter."""
    whole, rest = divmod(n, window)
    starts = np.arange(whole)[:, None] * window
    within, last = (np.random.default_rng(0).permutation(size) for size in (window, rest))
    return np.concatenate([(starts + within).ravel(), n - rest + last])


def even_odd_order(n: int) -> np.ndarray:
    """An order that puts the even places (from 0) before the odd ones."""
    return np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)])


def neighbours_order(n: int) -> np.ndarray:
    """An order that swaps places 0 and 1, 2 and 3, ...; if n is odd, the last token stays."""
    order = np.arange(n)
    order[: n // 2 * 2] ^= 1
    return order


def switched_order(n: int) -> np.ndarray:
    """An order that swaps places 0 and 3; fewer than four tokens keep their places."""
    order = np.arange(n)
    if n > 3:
        order[[0, 3]] = 3, 0
    return order


def reversed_order(n: int) -> np.ndarray:
    """An order from the last place to the first."""
    return np.arange(n)[::-1]


def rearrange(
    s: Sentences, markers: list[int], rng: np.random.Generator, *, order: Order
) -> Sentences:
    """Reorder the tokens of each sentence; the order depends only on its length."""
    lengths, which = np.unique(s.lengths, return_inverse=True)
    orders = np.concatenate([np.empty(0, np.int64), *(order(int(n)) for n in lengths)])
    # Where the order for the length of each sentence begins in `orders`.
    starts = (np.cumsum(lengths) - lengths)[which]
    old = orders[span_positions(starts, s.lengths)] + np.repeat(s.offsets[:-1], s.lengths)
    return Sentences(s.tokens[old], s.offsets)


def undo_rearrange(tokens: np.ndarray, markers: list[int], *, order: Order) -> np.ndarray:
    """Put each token back in its old place."""
    original = np.empty_like(tokens)
    original[order(len(tokens))] = tokens
    return original


def negate(
    s: Sentences, markers: list[int], rng: np.random.Generator, *, by_parity: bool
) -> Sentences:
    """Put the marker before each sentence or, by parity, after each sentence of odd length."""
    places = s.offsets[:-1] + s.lengths * (s.lengths % 2) * by_parity
    tokens = np.insert(s.tokens, places, markers[0])
    return Sentences(tokens, s.offsets + np.arange(len(s.offsets)))


def undo_negate(tokens: np.ndarray, markers: list[int], *, by_parity: bool) -> np.ndarray:
    """The tokens without the marker. Raises NoWayBack if it is not where the language puts it."""
    tokens, place = _without_marker(tokens, markers)
    if place != len(tokens) * (len(tokens) % 2) * by_parity:
        raise NoWayBack("the marker is at another place")
    return tokens


def no_hop(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Insert a marker directly after each verb."""
    return _mark(s, markers, s.verbs.end)


def token_hop(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Insert a marker four tokens after each verb, or at the end of the sentence."""
    return _mark(s, markers, np.minimum(s.verbs.end + _HOP, s.lengths[s.verbs.sentence]))


def word_hop(s: Sentences, markers: list[int], rng: np.random.Generator) -> Sentences:
    """Insert a marker after the four words (PhraseHop: the phrase) that follow each verb."""
    return _mark(s, markers, s.verbs.hop)


def _mark(s: Sentences, markers: list[int], places: np.ndarray) -> Sentences:
    """Insert a singular or plural marker for each verb, at `places` (K,) in its sentence."""
    places = s.offsets[s.verbs.sentence] + places
    order = np.argsort(places, kind="stable")  # at one place, the left verb's marker comes first
    marker = np.where(s.verbs.is_plural, markers[1], markers[0])
    added = np.bincount(s.verbs.sentence, minlength=len(s.lengths))
    offsets = s.offsets + np.concatenate([[0], np.cumsum(added)])
    return Sentences(np.insert(s.tokens, places[order], marker[order]), offsets)


def undo_hop(tokens: np.ndarray, markers: list[int], *, hop: int) -> np.ndarray:
    """The tokens without the markers.

    Raises NoWayBack if fewer than `hop` + 1 other tokens (a verb and the tokens between) precede a
    marker.
    """
    is_marker = np.isin(tokens, markers)
    places = np.flatnonzero(is_marker)
    if (places - np.arange(len(places)) <= hop).any():
        raise NoWayBack("a marker too early to follow a verb")
    return tokens[~is_marker]


EXAMPLE = "He cleans his very messy bookshelf."  # the paper's (table 1)
REVERSE, SINGULAR, PLURAL, NEGATION = "🅁", "🅂", "🄿", "🄽"
_HOP = 4  # tokens or words between a verb and its marker
_AFTER_PHRASE = (
    "after the first right dependent of each, with all that depends on it (this project's own "
    "reading of the constituency-based counterpart to WordHop that Hunter 2025 asks for)"
)
_UNDONE = 100  # sentences of a chunk whose inverse is checked
_LONGEST_SHUFFLED = 350  # tokens of a sentence: the published code leaves out longer ones


def _reverse(title: str, perturb: Perturb, invert: Invert, change: str) -> Language:
    """A *Reverse language; all three draw the same places for their markers."""
    options = {"seed": 21, "invert": invert, "control": "no_reverse"}
    return Language(title, perturb, f"a marker at a random place{change}", (REVERSE,), **options)


def _shuffle(
    title: str, perturb: Perturb, invert: Invert | None, summary: str, any_length: bool = False
) -> Language:
    """A *Shuffle language: it has no markers and drops very long sentences."""
    options = {"max_tokens": _LONGEST_SHUFFLED, "any_length": any_length, "invert": invert}
    return Language(title, perturb, summary, control="no_shuffle", **options)


def _rearranged(title: str, order: Order, summary: str) -> Language:
    """A *Shuffle language whose order depends only on the length of a sentence."""
    perturb, invert = (functools.partial(f, order=order) for f in (rearrange, undo_rearrange))
    return _shuffle(title, perturb, invert, summary)


def _negation(title: str, change: str, by_parity: bool) -> Language:
    """A language with a marker of negation at one end of each sentence."""
    perturb, invert = (functools.partial(f, by_parity=by_parity) for f in (negate, undo_negate))
    options = {"any_length": not by_parity, "invert": invert, "control": "initial_negation"}
    return Language(title, perturb, f"a marker of negation {change}", (NEGATION,), **options)


def _hop(title: str, perturb: Perturb, hop: int, hops: Hops, marked: str) -> Language:
    """A *Hop language: a singular or plural marker for each third-person present verb."""
    invert = functools.partial(undo_hop, hop=hop)
    options = {"any_length": True, "hops": hops, "invert": invert, "control": "no_hop"}
    summary = f"third-person present verbs as lemmas, a singular or plural marker {marked}"
    return Language(title, perturb, summary, (SINGULAR, PLURAL), **options)


def in_words(language: Language) -> Language:
    """The row of a language that moves whole words where another language moves tokens."""
    return dataclasses.replace(
        language,
        title=f"{language.title}(words)".replace(")(", ", "),
        summary=f"{language.summary.replace('tokens', 'words')} (the unit is the word)",
        control=language.control and language.control + WORDS,
        unit="words",
    )


LANGUAGES: dict[str, Language] = {
    "no_reverse": _reverse("NoReverse", no_reverse, undo_no_reverse, ""),
    "partial_reverse": _reverse(
        "PartialReverse", partial_reverse, undo_partial_reverse, ", everything after it reversed"
    ),
    "full_reverse": _reverse(
        "FullReverse", full_reverse, undo_full_reverse, ", the sentence reversed, marker included"
    ),
    "no_shuffle": _shuffle("NoShuffle", no_shuffle, undo_no_shuffle, "no change", any_length=True),
    "nondeterministic_shuffle": _shuffle(
        "NondeterministicShuffle",
        nondeterministic_shuffle,
        None,
        "its tokens shuffled, anew for every sentence",
    ),
    **{
        f"deterministic_shuffle_s{seed}": _rearranged(
            f"DeterministicShuffle(s={seed})",
            functools.partial(deterministic_order, seed=seed),
            "its tokens shuffled, in the same way for all sentences of its length",
        )
        for seed in (21, 57, 84)
    },
    **{
        f"local_shuffle_w{window}": _rearranged(
            f"LocalShuffle(w={window})",
            functools.partial(local_order, window=window),
            f"every {window} tokens shuffled among themselves, always in the same way",
        )
        for window in (3, 5, 10)
    },
    "even_odd_shuffle": _rearranged(
        "EvenOddShuffle", even_odd_order, "tokens at even places (from 0), then those at odd places"
    ),
    "local_shuffle_w2": _rearranged(
        "LocalShuffle(w=2)", neighbours_order, "its tokens trade places in pairs of neighbours"
    ),
    "switch_indices": _rearranged(
        "SwitchIndices", switched_order, "the first and the fourth of its tokens trade places"
    ),
    "reverse": _rearranged("Reverse", reversed_order, "its tokens in reversed order, no marker"),
    "initial_negation": _negation("InitialNegation", "at the beginning", by_parity=False),
    "parity_negation": _negation(
        "ParityNegation",
        "at the beginning if the number of tokens is even, at the end if it is odd",
        by_parity=True,
    ),
    "no_hop": _hop("NoHop", no_hop, 0, "tokens", "directly after each"),
    "token_hop": _hop("TokenHop", token_hop, _HOP, "tokens", "4 tokens later"),
    "word_hop": _hop("WordHop", word_hop, _HOP, "words", "4 words later"),
    "phrase_hop": _hop("PhraseHop", word_hop, 0, "phrases", _AFTER_PHRASE),
}
LANGUAGES |= {name + WORDS: in_words(row) for name, row in LANGUAGES.items() if not row.hops}


def get(name: str) -> Language:
    """The language of that name. Raises UserError if it, or its control, is unknown."""
    if name not in LANGUAGES:
        if (base := name.removesuffix(WORDS)) in LANGUAGES:
            known = ", ".join(n.removesuffix(WORDS) for n in LANGUAGES if n.endswith(WORDS))
            raise UserError(f"{base} does not exist with unit words. These languages do: {known}.")
        raise unknown("language", name, LANGUAGES)
    row = LANGUAGES[name]
    for wrong, fault, expected in (
        (row.control not in ("", *LANGUAGES), f"control={row.control!r}", "the name of a row"),
        (row.min_tokens < 2, f"min_tokens={row.min_tokens}", "2 or more"),
    ):
        if wrong:
            raise UserError(f"the row of {name} in perturb.py has {fault}. Expected: {expected}.")
    return row


def show(language: Language, text: str) -> str:
    """One sentence in one language, its tokens separated by spaces."""
    from impossible.text import annotate, verbs  # only this command needs them
    from impossible.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(language.markers)
    if language.hops:
        words = verbs.EXAMPLE if text == EXAMPLE else next(annotate.words_of([text]))
        annotated = verbs.annotated(words, text, annotate.NAME)
        sentence = verbs.encoded([annotated], tokenizer, language.hops)
    else:
        sentence = from_lengths(*tokenizer.encode([language.space + text]))
    rng = np.random.default_rng(language.seed)
    kept = language.apply(sentence, tokenizer.ids, rng)
    pieces = [piece.strip() for piece in tokenizer.pieces(kept.tokens)]
    return " ".join(pieces) or f"(dropped, as sentences with {language.drops} are)"


def main(arguments: list[str]) -> None:
    """Print a sentence in the named language or, without a name, in every language but *_words.

    With --check, try the language on real sentences instead.
    """
    if arguments[:1] == ["--check"]:
        from impossible.text import language_check  # only this command needs it

        if len(arguments) != 2:
            raise UserError("--check needs one language. Type: python perturb.py --check LANGUAGE")
        language = get(arguments[1])
        language_check.check(arguments[1], language, LANGUAGES.get(language.control))
        return
    if len(arguments) > 2:
        raise UserError(
            f"{len(arguments)} arguments given, at most 2 expected: a language and a sentence. Put "
            'the sentence in quotes: python perturb.py LANGUAGE "A sentence."'
        )
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, "\nLanguages:", ", ".join(LANGUAGES))
        return
    names = arguments[:1] or [name for name, row in LANGUAGES.items() if row.unit == "tokens"]
    text = (arguments[1] if len(arguments) > 1 else EXAMPLE).strip()
    if not text or not is_utf8(text):
        fault = "not UTF-8" if text else "empty"
        raise UserError(f"the sentence is {fault}. Type: python perturb.py LANGUAGE 'A sentence.'")
    width = max(len(get(name).title) for name in names)
    for name in names:
        print(f"{get(name).title:<{width}}  {show(get(name), text)}")


if __name__ == "__main__":
    import perturb  # imported, it also has languages added below this line
    from impossible.settings import guarded

    guarded(lambda: perturb.main(sys.argv[1:]))
