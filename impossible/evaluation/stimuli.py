"""Users' sentences in an impossible language: surprisal by token, word and critical region.

A stimulus is a row of a csv or jsonl file: item, condition and text, and optionally the place of
the marker (in words), the exact perturbed string, and critical regions. The first token is
predicted from <|endoftext|>. In all conditions of an item, the marker has the same place and the
tokens of sentences of one length are shuffled alike.
"""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import regex

import perturb
from impossible.evaluation import rows
from impossible.evaluation.models import Series
from impossible.evaluation.rows import Region, Row, Stimulus, read
from impossible.evaluation.scores import Source, language_of
from impossible.evaluation.scoring import Sequences, sentences_of
from impossible.settings import Settings, UserError
from impossible.text import annotate
from impossible.text.arrays import Sentences
from impossible.text.natural import OF_WORD
from impossible.text.tokenizer import Tokenizer
from impossible.text.verbs import Word, annotated, encoded
from perturb import PLURAL, REVERSE, SINGULAR, Language

# The ends of a whole word: `can` is no word of `can't`, nor `well` of `well-known`.
_WORD_BEFORE, _WORD_AFTER = rf"(?<!{OF_WORD})(?<!{OF_WORD}['’-])", rf"(?!{OF_WORD}|['’-]{OF_WORD})"


class Prepared(NamedTuple):
    """A stimulus before or after perturbation; one with the column `perturbed` is not changed."""

    stimulus: Stimulus
    tokenizer: Tokenizer
    sentences: Sentences  # one, of n tokens; with verbs until a *Hop language perturbs it
    text: str
    spelled: list[str]  # the words of the text, without markers
    words: np.ndarray  # (n,) int64: the word of each token, from 0; -1 for one that was inserted
    region: np.ndarray  # (n,) int64: the number of each token's region, from 0; -1 outside of all
    marker_place: int | None = None  # words before the (first) marker; None without a marker
    is_placed: bool = False  # whether the language put the marker where marker_place says

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, (n,) uint16."""
        return self.sentences.tokens

    @property
    def is_marker(self) -> np.ndarray:
        """Whether each token is a marker, (n,) bool."""
        return self.tokens > self.tokenizer.end_of_text


# Stimuli in a language


def prepared(stimuli: list[Stimulus], language: str, tokenizer: Tokenizer) -> list[Prepared]:
    """The stimuli in a language, in their order. Raises UserError for an invalid or dropped one."""
    rule = perturb.get(language)
    unperturbed = list(_unperturbed(stimuli, rule, tokenizer))
    lengths = pd.Series([len(rule.starts(x.sentences, tokenizer.ids)) for x in unperturbed])
    shortest = lengths.groupby([x.stimulus.item for x in unperturbed]).transform("min")
    return [_in_language(x, rule, most) for x, most in zip(unperturbed, shortest, strict=True)]


def _in_language(base: Prepared, rule: Language, most: int) -> Prepared:
    """A stimulus in a language. most: the most tokens (or words) that may precede a drawn marker.

    Raises UserError for a sentence that the language drops.
    """
    if base.stimulus.perturbed:
        return _with_marker_place(base, base.words[: base.is_marker.argmax()])
    ids = base.tokenizer.ids
    starts = rule.starts(base.sentences, ids)
    seeds = [rule.seed, zlib.crc32(base.stimulus.item.encode())]
    place = _marker_place(base, np.random.default_rng(seeds), most, starts)
    draw, again = (_Draw(seeds, len(starts), place) for _ in range(2))
    perturbed = rule.apply(base.sentences, ids, draw)
    if not len(perturbed.lengths):
        raise UserError(
            f"{base.stimulus.where}: {rule.title} drops sentences with {rule.drops}. Leave this "
            f"one out: {base.text!r}"
        )
    origins = _origins(base, rule, perturbed.tokens, again)
    made = base._replace(
        sentences=perturbed,
        words=np.append(base.words, -1)[origins],
        region=np.append(base.region, -1)[origins],
        is_placed=draw.is_used,
    )
    # If the marker was placed (as in the *Reverse languages), the words before it in the original.
    count = np.append(starts, len(base.tokens))[place] if draw.is_used else 0
    before = base.words[:count] if draw.is_used else made.words[: made.is_marker.argmax()]
    return _with_marker_place(made, before)


def _with_marker_place(made: Prepared, before: np.ndarray) -> Prepared:
    """A copy with marker_place set. before: the words of the tokens before the first marker."""
    return made._replace(marker_place=len({*before} - {-1}) if made.is_marker.any() else None)


def _origins(base: Prepared, rule: Language, tokens: np.ndarray, draw: "_Draw") -> np.ndarray:
    """The place in the original sentence of each token of the perturbed one, (n,) int64.

    It is -1 for a token that was inserted. To tell repeated tokens apart, the language is applied
    again, with `draw`, to the sentence with random tokens in place of the repetitions. If the
    sentence keeps its length, a new token has the place of the one that it replaces. Raises
    UserError if the places remain unknown.
    """
    original, ids = base.tokens, base.tokenizer.ids
    repeats = np.setdiff1d(np.arange(len(original)), np.unique(original, return_index=True)[1])
    others = np.setdiff1d(np.arange(base.tokenizer.end_of_text), np.append(original, tokens))
    unique = original.copy()
    rng, begins = np.random.default_rng(0), ids.begins_word & (rule.unit == "words")
    for kind in (False, True):  # if words move, replace word-initial tokens with such tokens
        of_kind, pool = repeats[begins[original[repeats]] == kind], others[begins[others] == kind]
        unique[of_kind] = rng.choice(pool, len(of_kind), replace=False)
    try:
        moved = rule.apply(base.sentences._replace(tokens=unique), ids, draw).tokens
    except Exception:  # a language may have no rule for these tokens
        moved = original[:0]
    places = {token: place for place, token in enumerate(unique.tolist())}
    origins = np.array([places.get(token, -1) for token in moved.tolist()], np.int64)
    is_old = origins >= 0
    is_clear = not len(repeats) or len(set(origins[is_old])) == is_old.sum()
    if is_clear and len(moved) == len(tokens):
        is_new = ~np.isin(tokens, original) & (len(tokens) == len(original))
        if ((np.where(is_old, original[origins], moved) == tokens) | is_new).all():
            is_replaced = ~is_old & ~np.isin(tokens, ids.markers)
            in_place = np.where(is_replaced, np.arange(len(tokens)), origins)
            is_whole = np.array_equal(np.sort(in_place), np.arange(len(original)))
            return in_place if is_whole else origins
    is_old = np.isin(tokens, original)
    if np.array_equal(tokens[is_old], original):  # the language only inserted tokens
        return np.where(is_old, np.cumsum(is_old) - 1, -1)
    raise UserError(
        f"{base.stimulus.where}: {rule.title} depends on the tokens, and some of {base.text!r} "
        "occur twice, so their places in the perturbed sentence are unknown. Write the perturbed "
        "sentence into the column perturbed."
    )


def _unperturbed(
    stimuli: list[Stimulus], rule: Language, tokenizer: Tokenizer
) -> Iterator[Prepared]:
    """Yield the stimuli as tokens, not yet perturbed. Raises UserError for an invalid one."""
    of_hops = [s.text for s in stimuli if rule.hops and not s.perturbed]
    words = annotate.words_of(of_hops) if of_hops else iter(())
    for stimulus in stimuli:
        if stimulus.perturbed:
            yield _read_as_it_is(stimulus, rule, tokenizer)
        elif rule.hops:
            yield _with_verbs(stimulus, next(words), rule, tokenizer)
        else:
            text = rule.space + stimulus.text
            tokens, _ = tokenizer.encode([text])
            spans = _spans(tokenizer, tokens)
            yield _located(stimulus, tokenizer, sentences_of([tokens]), text, spans)


def _located(
    stimulus: Stimulus,
    tokenizer: Tokenizer,
    sentences: Sentences,
    text: str,
    spans: np.ndarray,
    markers: Sequence[str] = (),
) -> Prepared:
    """A stimulus from its tokens. spans: of the tokens, by `_spans`. markers: those in `text`."""
    unmarked = text
    for marker in markers:  # as many spaces as it has bytes
        unmarked = unmarked.replace(marker, " " * len(marker.encode()))
    spelled = unmarked.split()
    words = np.searchsorted(_places(spelled, unmarked)[:, 0], spans[:, 0], side="right") - 1
    words[sentences.tokens > tokenizer.end_of_text] = -1
    numbers = np.full(len(spans), -1)
    for number, region in enumerate(stimulus.regions):
        inside = _inside(region, stimulus, text, spans, markers)
        if (numbers[inside] >= 0).any():
            raise UserError(f"{stimulus.where}: regions overlap at {region.text!r}. Shorten one.")
        numbers[inside] = number
    return Prepared(stimulus, tokenizer, sentences, text, spelled, words, numbers)


def _inside(
    region: Region, stimulus: Stimulus, text: str, spans: np.ndarray, markers: Sequence[str]
) -> np.ndarray:
    """Whether each token lies in a region, (n,) bool. Raises UserError if it cannot be located."""
    part = region.text
    for marker in markers:  # the space before a marker is dropped
        part = regex.sub(rf"\s+{marker}", marker, part)
    pattern, kind = regex.escape(part), ""
    if not stimulus.perturbed:  # in a perturbed one, there may be no space between words
        before = _WORD_BEFORE if regex.match(OF_WORD, part[0]) else ""
        after = _WORD_AFTER if regex.match(OF_WORD, part[-1]) else ""
        pattern, kind = before + pattern + after, " as whole words"
    starts = [match.start() for match in regex.finditer(f"(?={pattern})", text)]
    number = region.occurrence or int(len(starts) == 1)
    if not 1 <= number <= len(starts):
        known = f"{region.counted} = {region.occurrence}" if region.occurrence else "none"
        advice = f" Expected 1 to {len(starts)} in the column {region.counted}; found {known}."
        raise UserError(
            f"{stimulus.where}: the region {region.text!r} occurs {len(starts)} times{kind} in "
            f"{text!r}.{advice if starts else ''}"
        )
    start = len(text[: starts[number - 1]].encode())
    end = start + len(part.encode())
    inside = (spans[:, 0] >= start) & (spans[:, 1] <= end)
    crossing = (spans[:, 0] < end) & (spans[:, 1] > start) & ~inside
    if crossing.any() or not inside.any():
        raise UserError(
            f"{stimulus.where}: the region {region.text!r} begins or ends within a token of "
            f"{text!r}. Extend it to whole words."
        )
    return inside


def _marker_place(base: Prepared, rng: np.random.Generator, most: int, starts: np.ndarray) -> int:
    """The number of tokens (or words, if these move) before the marker, if a language draws it.

    most: the largest number that may be drawn, the length of the item's shortest condition. starts:
    where these tokens or words begin, (U,).
    """
    words = base.stimulus.marker_place
    if words is None:
        return int(rng.integers(0, most + 1))
    if words > len(base.spelled):
        raise UserError(
            f"{base.stimulus.where}: marker_place = {words}. Expected 0 to {len(base.spelled)}, "
            "the number of words."
        )
    return int(starts.searchsorted((base.words < words).sum()))


def _spans(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    """The start (after its space) and end of each token in the text, in bytes, (n, 2)."""
    pieces = [tokenizer.bytes_of(token) for token in tokens.tolist()]
    ends = np.cumsum([len(piece) for piece in pieces])
    return np.stack([ends - [len(piece.lstrip()) for piece in pieces], ends], axis=1)


def _read_as_it_is(stimulus: Stimulus, rule: Language, tokenizer: Tokenizer) -> Prepared:
    """A stimulus from its column `perturbed`. Raises UserError for wrong markers."""
    for marker in (REVERSE, SINGULAR, PLURAL):
        if marker in stimulus.perturbed and marker not in tokenizer.markers:
            raise UserError(f"{stimulus.where}: {marker} is not a marker of {rule.title}.")
    tokens = np.array(tokenizer.encode_with_markers(rule.space + stimulus.perturbed), np.uint16)
    is_marker = np.isin(tokens, list(tokenizer.markers.values()))
    if rule.markers and not rule.hops and is_marker.sum() != 1:
        raise UserError(
            f"{stimulus.where}: perturbed = {stimulus.perturbed!r} has {is_marker.sum()} markers "
            f"({rule.markers[0]}). Expected one. (A text with a comma needs quotation marks.)"
        )
    text = tokenizer.decode(tokens)
    spans, markers = _spans(tokenizer, tokens), tuple(rule.markers)
    return _located(stimulus, tokenizer, sentences_of([tokens]), text, spans, markers)


def _with_verbs(
    stimulus: Stimulus, words: list[Word], rule: Language, tokenizer: Tokenizer
) -> Prepared:
    """A stimulus of a *Hop language; each token has the place of its word in the text."""
    sentence = annotated(words, stimulus.text, annotate.NAME)
    tokens = encoded([sentence], tokenizer, rule.hops)
    joined = _places(sentence.items, tokenizer.decode(tokens.tokens))
    original = _places(sentence.words, stimulus.text)
    of_item = np.searchsorted(joined[:, 1], _spans(tokenizer, tokens.tokens)[:, 1], side="left")
    return _located(stimulus, tokenizer, tokens, stimulus.text, original[of_item])


def _places(parts: Sequence[str], text: str) -> np.ndarray:
    """The start and end of some parts of a text, in bytes, (n, 2). parts: in their order."""
    places, at = [], 0
    for part in parts:
        start = text.index(part, at)
        at = start + len(part)
        places.append([len(text[:start].encode()), len(text[:at].encode())])
    return np.array(places)


class _Draw(np.random.Generator):
    """A random generator that draws a given place for the marker, as often as it is asked for one.

    A language asks for one by `integers(0, count + 1)`; count is the number of tokens (or words).
    """

    def __init__(self, seeds: list[int], count: int, place: int) -> None:
        super().__init__(np.random.PCG64(seeds))  # as np.random.default_rng
        self._count, self._place = count, place
        self.is_used = False

    def integers(self, low: Any, high: Any = None, *args: Any, **options: Any) -> Any:
        """The place of the marker, if that is drawn, or else an ordinary draw."""
        if np.any(low) or high is None or np.any(np.asarray(high) != self._count + 1):
            return super().integers(low, high, *args, **options)
        self.is_used = True
        return np.full(np.shape(high), self._place)[()]


# Sequences and tables


def source(settings: Settings) -> Source:
    """The source of the stimuli. Raises UserError if the file does not exist."""
    if not Path(settings.stimuli).is_file():
        raise UserError(f"stimuli = {settings.stimuli!r} is not a file. Expected csv or jsonl.")
    place = rows.name_by_content(Path(settings.stimuli))
    return Source(language_of(settings), place, name=f"stimuli_{place}")


def sequences(settings: Settings, series: Series) -> Sequences:
    """The stimuli that the settings name, each after <|endoftext|>.

    The columns have a row for each token, marker, word and region; `places` are the indices of its
    losses. Raises UserError for an invalid stimulus.
    """
    language = language_of(settings)
    tokenizer = series.tokenizer(perturb.get(language).markers)
    made = prepared(read(Path(settings.stimuli), source(settings).place), language, tokenizer)
    parts = [np.append(tokenizer.end_of_text, stimulus.tokens) for stimulus in made]
    units, first = [], 0
    for stimulus in made:
        common = {
            "language": language,
            "item": stimulus.stimulus.item,
            "condition": stimulus.stimulus.condition,
            "text": stimulus.stimulus.text,
            "perturbed": tokenizer.decode(stimulus.tokens),
            "marker_place": stimulus.marker_place,
        }
        for unit in _units(stimulus):
            units.append(common | unit | {"places": first + unit["places"]})
        first += len(stimulus.tokens)
    whole = ("marker_place", "position", "word_index")
    return Sequences(
        language=language,
        tokenizer=tokenizer,
        sentences=sentences_of(parts),
        columns=pd.DataFrame(units).astype(dict.fromkeys(whole, "Int64")),
        notes=tuple(notes_on(made, perturb.get(language))),
    )


def _units(made: Prepared) -> Iterator[Row]:
    """Yield a row for each token, marker, word (in its original order) and region of a stimulus."""
    names = [region.name for region in made.stimulus.regions] + [""]

    def unit(kind: str, text: str, places: np.ndarray, number: int, word: int = -1) -> Row:
        return {
            "unit": kind,
            "position": int(places[0]) + 1 if kind != "region" else None,
            "unit_text": text,
            "word_index": word + 1 if word >= 0 else None,
            "region": names[number],
            "places": places,
        }

    for i, piece in enumerate(made.tokenizer.pieces(made.tokens)):
        for kind in ("token", "marker")[: 1 + made.is_marker[i]]:
            yield unit(kind, piece, np.array([i]), made.region[i], int(made.words[i]))
    for number, word in enumerate(made.spelled):
        places = np.flatnonzero(made.words == number)
        if len(places):
            yield unit("word", word, places, made.region[places].max(), number)
    for number, region in enumerate(made.stimulus.regions):
        places = np.flatnonzero(made.region == number)
        if len(places):  # a language may leave tokens out
            yield unit("region", region.text, places, number)


def notes_on(made: list[Prepared], rule: Language) -> Iterator[str]:
    """Yield notes on unexpected properties of the stimuli, such as words without a token."""
    unmarked = sum(not x.is_marker.any() for x in made)
    if rule.hops and unmarked:
        yield (f"no verb is marked in {unmarked} of {len(made)} stimuli; see the column perturbed")
    asked = [x for x in made if x.stimulus.marker_place is not None and not x.stimulus.perturbed]
    if any(not x.is_placed for x in asked):
        yield f"marker_place is not used in {rule.title}"
    words = sum(len(x.spelled) - len({*x.words} - {-1}) for x in made)
    regions = sum(len(x.stimulus.regions) - len({*x.region} - {-1}) for x in made)
    if words:
        yield (
            f"warning: {words} words and {regions} regions have no token in {rule.title}, and no "
            "row in the table. To keep them, give the column perturbed."
        )
    if items := on_different_sides(made):
        more = ", ..." if len(items) > 5 else ""
        yield (
            f"warning: in {len(items)} of {len({x.stimulus.item for x in made})} items "
            f"({', '.join(items[:5])}{more}), the marker stands before a region in one condition "
            "and after it in another, which changes surprisal by itself. Set marker_place, or "
            "leave these items out."
        )


def on_different_sides(made: list[Prepared]) -> list[str]:
    """The items with a region that markers precede in one condition and follow in another."""
    sides: dict[tuple[str, str], set[tuple[bool, bool]]] = {}
    for x in made:
        for number, region in enumerate(x.stimulus.regions):
            inside, markers = np.flatnonzero(x.region == number), np.flatnonzero(x.is_marker)
            if len(inside) and len(markers):
                side = (bool(markers[0] < inside[0]), bool(markers[-1] > inside[-1]))
                sides.setdefault((x.stimulus.item, region.name), set()).add(side)
    return list(dict.fromkeys(item for (item, _), seen in sides.items() if len(seen) > 1))


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """A line to print: the mean surprisal of a model."""
    return f"{np.nanmean(losses) / np.log(2):.2f} bits per token"


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each stimulus and token, marker, word (in its original order) and region."""
    bits = (losses / np.log(2)).astype(np.float64)
    surprisals = [bits[places].sum() for places in sequences.columns["places"]]
    return sequences.columns.drop(columns="places").assign(surprisal=surprisals)
