"""Sentences of one's own in an impossible language: surprisal by token, word and critical region.

A stimulus is a row of a csv or jsonl file: item, condition and text, and optionally the place of
the marker (in words), the exact perturbed string, and critical regions. The first token is
predicted from <|endoftext|>. In all conditions of an item, the marker has the same place and the
tokens of sentences of one length are shuffled alike.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import perturb
from impossible.distributed import World
from impossible.evaluation import results
from impossible.evaluation.pair_files import folder_name
from impossible.evaluation.results import Material, OnMaterial
from impossible.evaluation.series import Series
from impossible.evaluation.stimulus_files import Region, Stimulus, read
from impossible.settings import Settings, UserError
from impossible.text import annotate
from impossible.text.arrays import Sentences, from_lengths
from impossible.text.tokenizer import END_OF_TEXT_ID, FIRST_MARKER_ID, Tokenizer, marker_ids
from impossible.text.verbs import Word, annotated, encoded
from perturb import PLURAL, REVERSE, SINGULAR, Language

# What precedes and follows whole words: `can` is no word of `can't`, nor `well` of `well-known`.
_WORD_BEFORE, _WORD_AFTER = r"(?<!\w)(?<!\w['’-])", r"(?!\w|['’-]\w)"


class Prepared(NamedTuple):
    """A stimulus in one language."""

    stimulus: Stimulus
    tokens: np.ndarray  # (n,) uint16, as the model reads them
    words: np.ndarray  # (n,) int64: the word of each token, from 0; -1 for one that was inserted
    spelled: list[str]  # the words of the text (or of the perturbed string)
    region: np.ndarray  # (n,) int64: the number of each token's region, from 0; -1 outside of all
    marker_place: int | None  # words before the (first) marker; None without a marker
    is_placed: bool = False  # whether the language put the marker where it was told to

    @property
    def is_marker(self) -> np.ndarray:
        """Whether each token is a marker, (n,) bool."""
        return self.tokens >= FIRST_MARKER_ID


def prepared(stimuli: list[Stimulus], language: str) -> list[Prepared]:
    """The stimuli in a language, in their order. Raises UserError for one that cannot be made."""
    rule = perturb.get(language)
    tokenizer = Tokenizer(rule.markers)
    bases = list(_bases(stimuli, rule, tokenizer))
    shortest: dict[str, int] = {}
    for base in bases:
        item, length = base.stimulus.item, len(base.tokens)
        shortest[item] = min(shortest.get(item, length), length)
    return [_prepared(base, rule, shortest[base.stimulus.item]) for base in bases]


def _prepared(base: "_Base", rule: Language, shortest: int) -> Prepared:
    """A stimulus in a language. shortest: as in `_Base.marker_place`."""
    draw = None
    tokens, origins = base.tokens, np.arange(len(base.tokens))
    if not base.stimulus.perturbed:
        seeds = [rule.seed, zlib.crc32(base.stimulus.item.encode())]
        place = base.marker_place(np.random.default_rng(seeds), shortest)
        draw = _Draw(seeds, len(tokens), place)
        tokens, origins = _perturbed(base, rule, draw)
    is_marker, in_place = tokens >= FIRST_MARKER_ID, np.arange(len(tokens))
    with_replaced = np.where((origins < 0) & ~is_marker, in_place, origins)
    if np.array_equal(np.sort(with_replaced), np.arange(len(base.tokens))):
        origins = with_replaced
    words = np.append(base.words, -1)[origins]
    before = base.words[: draw.place] if draw and draw.is_used else words[: is_marker.argmax()]
    return Prepared(
        stimulus=base.stimulus,
        tokens=tokens,
        words=words,
        spelled=base.spelled,
        region=np.append(base.region, -1)[origins],
        marker_place=len(set(before) - {-1}) if is_marker.any() else None,
        is_placed=bool(draw and draw.is_used),
    )


def _perturbed(base: "_Base", rule: Language, draw: "_Draw") -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a stimulus in a language, and the place that each had before.

    The place is -1 for a token that was inserted. The language gets the real tokens. To see which
    one goes where, it then gets random ones in their place: for all of them, or, if it does
    something else to those, for those that repeat an earlier one. In a sentence that stays as long,
    a new token may have replaced one. Raises UserError for a sentence that the language drops, and
    if the places remain unknown.
    """
    markers, where = list(marker_ids(rule.markers).values()), base.stimulus.where
    result = rule.apply(base.sentences, markers, draw.again())
    if not len(result.lengths):
        raise UserError(f"{where}: {rule.title} drops such sentences ({rule.drops}): {base.text!r}")
    original, tokens, count = base.tokens, result.tokens, len(base.tokens)
    repeats = np.setdiff1d(np.arange(count), np.unique(original, return_index=True)[1])
    others = np.setdiff1d(np.arange(END_OF_TEXT_ID), np.append(original, tokens))
    is_new = ~np.isin(tokens, original) & (len(tokens) == count)
    for hidden in (np.arange(count), repeats):
        stand_ins = original.copy()
        stand_ins[hidden] = np.random.default_rng(0).choice(others, len(hidden), replace=False)
        sentences = base.sentences._replace(tokens=stand_ins)
        try:
            moved = rule.apply(sentences, markers, draw.again()).tokens
        except Exception:  # such as a table of tokens that lacks these
            continue
        places = {token: place for place, token in enumerate(stand_ins.tolist())}
        origins = np.array([places.get(token, -1) for token in moved.tolist()], np.int64)
        is_old = origins >= 0
        is_clear = len(hidden) in (0, count) or len(set(origins[is_old])) == is_old.sum()
        if is_clear and len(moved) == len(tokens):
            is_same = np.where(is_old, original[origins], moved) == tokens
            if (is_same | is_new).all():
                return tokens, origins
    is_old = np.isin(tokens, original)
    if np.array_equal(tokens[is_old], original):  # it only inserted some
        return tokens, np.where(is_old, np.cumsum(is_old) - 1, -1)
    raise UserError(
        f"{where}: {rule.title} depends on the tokens, and some of {base.text!r} occur twice. So "
        "it is unknown which of them is which in the perturbed sentence. Give the column perturbed."
    )


def _bases(stimuli: list[Stimulus], rule: Language, tokenizer: Tokenizer) -> Iterator["_Base"]:
    """The tokens of the stimuli, before they are perturbed."""
    of_hops = [s.text for s in stimuli if rule.hops and not s.perturbed]
    words = annotate.words_of(of_hops) if of_hops else iter(())
    for stimulus in stimuli:
        if stimulus.perturbed:
            yield _read_as_it_is(stimulus, rule, tokenizer)
        elif rule.hops:
            yield _with_verbs(stimulus, next(words), rule, tokenizer)
        else:
            tokens, _ = tokenizer.encode([stimulus.text])
            spans = _spans(tokenizer, tokens)
            yield _Base(stimulus, _one(tokens), stimulus.text, spans)


def _one(tokens: np.ndarray) -> Sentences:
    return from_lengths(tokens, np.array([len(tokens)]))


def _spans(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    """Where each token, without the space before it, begins and ends in its text: bytes, (n, 2)."""
    pieces = [tokenizer.bytes_of(token) for token in tokens.tolist()]
    ends = np.cumsum([len(piece) for piece in pieces])
    return np.stack([ends - [len(piece.lstrip()) for piece in pieces], ends], axis=1)


def _read_as_it_is(stimulus: Stimulus, rule: Language, tokenizer: Tokenizer) -> "_Base":
    """A stimulus that was given perturbed."""
    unknown = {REVERSE, SINGULAR, PLURAL} - tokenizer.markers.keys()
    if strange := [marker for marker in unknown if marker in stimulus.perturbed]:
        raise UserError(f"{stimulus.where}: {', '.join(strange)} is no marker of {rule.title}.")
    tokens = np.array(tokenizer.encode_with_markers(stimulus.perturbed), np.uint16)
    is_marker = np.isin(tokens, list(tokenizer.markers.values()))
    if rule.markers and not rule.hops and is_marker.sum() != 1:
        raise UserError(
            f"{stimulus.where}: perturbed = {stimulus.perturbed!r} has {is_marker.sum()} markers "
            f"({rule.markers[0]}). Expected one. (A text with a comma needs quotation marks.)"
        )
    text = tokenizer.decode(tokens)
    return _Base(stimulus, _one(tokens), text, _spans(tokenizer, tokens), tuple(rule.markers))


def _with_verbs(
    stimulus: Stimulus, words: list[Word], rule: Language, tokenizer: Tokenizer
) -> "_Base":
    """A stimulus of a *Hop language, joined anew: each token is where its word is in the text."""
    sentence = annotated(words, stimulus.text, annotate.NAME)
    tokens = encoded([sentence], tokenizer, rule.hops)
    joined = _places(sentence.items, tokenizer.decode(tokens.tokens))
    original = _places(sentence.words, stimulus.text)
    of_item = np.searchsorted(joined[:, 1], _spans(tokenizer, tokens.tokens)[:, 1], side="left")
    return _Base(stimulus, tokens, stimulus.text, original[of_item])


def _places(parts: Sequence[str], text: str) -> np.ndarray:
    """Where some parts of a text begin and end in it, in bytes, (n, 2); they come in order."""
    found, at = [], 0
    for part in parts:
        start = text.index(part, at)
        at = start + len(part)
        found.append([len(text[:start].encode()), len(text[:at].encode())])
    return np.array(found)


@dataclass(frozen=True)
class _Base:
    """A stimulus before it is perturbed; one that was given perturbed stays as it is."""

    stimulus: Stimulus
    sentences: Sentences  # one; of a *Hop language with its verbs
    text: str
    spans: np.ndarray  # (n, 2): where each token begins and ends in the text, in bytes
    markers: tuple[str, ...] = ()  # in the text of one that was given perturbed

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, (n,)."""
        return self.sentences.tokens

    @property
    def spelled(self) -> list[str]:
        """The words of the text, without markers."""
        return self._unmarked.split()

    @property
    def _unmarked(self) -> str:
        """The text with as many spaces as a marker has bytes in place of each."""
        text = self.text
        for marker in self.markers:
            text = text.replace(marker, " " * len(marker.encode()))
        return text

    @property
    def words(self) -> np.ndarray:
        """The word of each token, from 0, (n,) int64; -1 for a marker."""
        starts = _places(self.spelled, self._unmarked)[:, 0]
        found = np.searchsorted(starts, self.spans[:, 0], side="right") - 1
        is_marker = self.tokens >= FIRST_MARKER_ID
        return np.where(is_marker, -1, found)

    @property
    def region(self) -> np.ndarray:
        """The region of each token, from 0, (n,) int64; -1 outside of all. Raises UserError."""
        numbers = np.full(len(self.tokens), -1)
        for number, region in enumerate(self.stimulus.regions):
            inside = self._inside(region)
            if (numbers[inside] >= 0).any():
                raise UserError(
                    f"{self.stimulus.where}: the region {region.text!r} overlaps with another one."
                )
            numbers[inside] = number
        return numbers

    def _inside(self, region: Region) -> np.ndarray:
        """Whether each token lies in a region, (n,) bool. Raises UserError if it is not clear."""
        text = region.text
        for marker in self.markers:  # which takes the space before it
            text = re.sub(rf"\s+{marker}", marker, text)
        pattern = re.escape(text)
        if not self.stimulus.perturbed:  # in which words may stand next to each other
            before = _WORD_BEFORE if re.match(r"\w", text[0]) else ""
            after = _WORD_AFTER if re.match(r"\w", text[-1]) else ""
            pattern = before + pattern + after
        starts = [match.start() for match in re.finditer(f"(?={pattern})", self.text)]
        number = region.occurrence or int(len(starts) == 1)
        if not 1 <= number <= len(starts):
            kind = "" if self.stimulus.perturbed else " as whole words"
            known = f"{region.counted} = {region.occurrence}" if region.occurrence else "none"
            advice = f" Expected 1 to {len(starts)} in the column {region.counted}; found {known}."
            raise UserError(
                f"{self.stimulus.where}: the region {region.text!r} occurs {len(starts)} times"
                f"{kind} in {self.text!r}.{advice if starts else ''}"
            )
        start = len(self.text[: starts[number - 1]].encode())
        end = start + len(text.encode())
        inside = (self.spans[:, 0] >= start) & (self.spans[:, 1] <= end)
        crossing = (self.spans[:, 0] < end) & (self.spans[:, 1] > start) & ~inside
        if crossing.any() or not inside.any():
            raise UserError(
                f"{self.stimulus.where}: the region {region.text!r} begins or ends within a token "
                f"of {self.text!r}. Extend it to whole words."
            )
        return inside

    def marker_place(self, rng: np.random.Generator, shortest: int) -> int:
        """The number of tokens before the marker, in a language that draws it.

        shortest: the fewest tokens of a condition of the item, within which it is drawn.
        """
        words = self.stimulus.marker_place
        if words is None:
            return int(rng.integers(0, shortest + 1))
        if words > len(self.spelled):
            raise UserError(
                f"{self.stimulus.where}: marker_place = {words}. Expected 0 to "
                f"{len(self.spelled)}, the number of words."
            )
        return int((self.words < words).sum())


class _Draw:
    """A random generator that draws a given place for the marker, as often as it is asked for one.

    A language asks for one by `integers(0, count + 1)`, where count is the number of tokens.
    """

    def __init__(self, seeds: list[int], count: int, place: int) -> None:
        self._seeds, self._count, self.place = seeds, count, place
        self.is_used = False
        self.again()

    def again(self) -> "_Draw":
        """The same generator at its beginning."""
        self._rng = np.random.default_rng(self._seeds)
        return self

    def integers(self, low: Any, high: Any = None, *args: Any, **options: Any) -> Any:
        """The place of the marker, or else what a generator draws."""
        if np.any(low) or high is None or np.any(np.asarray(high) != self._count + 1):
            return self._rng.integers(low, high, *args, **options)
        self.is_used = True
        return np.full(np.shape(high), self.place)[()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rng, name)


# Scoring


@dataclass(frozen=True)
class StimulusEvaluation(OnMaterial):
    """A series of models on stimuli."""

    language: str
    stimuli: list[Prepared]
    losses: dict[str, np.ndarray]  # member -> as scoring.losses returns them


def folder_of(settings: Settings, series: Series) -> Path:
    """The folder for the results of a series on the stimuli."""
    return results.material_folder(settings, series, name_of(settings))


def name_of(settings: Settings) -> str:
    """The name of the folders for the results on these sentences."""
    return folder_name("stimuli", settings.stimuli)


def evaluate(
    settings: Settings, series: Series, world: World, device: torch.device
) -> StimulusEvaluation:
    """Score the stimuli with all models of a series; all processes must call it."""
    language = results.test_language(settings)
    name = name_of(settings)
    made = prepared(read(Path(settings.stimuli), name), language)
    rows = [np.append(END_OF_TEXT_ID, stimulus.tokens).astype(np.uint16) for stimulus in made]
    sentences = from_lengths(np.concatenate(rows), np.array([len(row) for row in rows]))
    evaluation = StimulusEvaluation(settings, series, name, language, made, {})
    if world.is_first:
        _tell(evaluation.title, made, perturb.get(language))
    found = results.score(
        series,
        Material(evaluation.title, language, sentences),
        evaluation.folder,
        lambda losses: f"{np.nanmean(losses) / np.log(2):.2f} bits per token",
        world,
        device,
    )
    return dataclasses.replace(evaluation, losses=found)


def _tell(title: str, made: list[Prepared], rule: Language) -> None:
    """Print what may surprise about stimuli in a language."""
    unmarked = sum(not x.is_marker.any() for x in made)
    if rule.hops and unmarked:
        print(
            f"{title}: no verb is marked in {unmarked} of {len(made)} stimuli; see the column "
            "perturbed"
        )
    given = [x for x in made if x.stimulus.marker_place is not None and not x.stimulus.perturbed]
    if any(not x.is_placed for x in given):
        print(f"{title}: marker_place is not used in {rule.title}")
    words = sum(len(x.spelled) - len({*x.words} - {-1}) for x in made)
    regions = sum(len(x.stimulus.regions) - len({*x.region} - {-1}) for x in made)
    if words:
        print(
            f"warning: {title}: {words} words and {regions} regions have no token in {rule.title}, "
            "and no row in the table. To keep them, give the column perturbed."
        )
    if items := on_different_sides(made):
        more = ", ..." if len(items) > 5 else ""
        print(
            f"warning: {title}: in {len(items)} of {len({x.stimulus.item for x in made})} items "
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
    return list(dict.fromkeys(item for (item, _), found in sides.items() if len(found) > 1))


def table(e: StimulusEvaluation) -> pd.DataFrame:
    """A row for each checkpoint, stimulus and token, word (in its original order) and region."""
    tokenizer = Tokenizer(perturb.get(e.language).markers)
    rows = []
    for member in e.series.members:
        bits = iter(np.split(e.losses[member.name] / np.log(2), _ends(e.stimuli)[:-1]))
        for made, surprisals in zip(e.stimuli, bits, strict=True):
            common = {
                **e.columns,
                "checkpoint": member.name,
                "step": member.step,
                "language": e.language,
                "item": made.stimulus.item,
                "condition": made.stimulus.condition,
                "text": made.stimulus.text,
                "perturbed": tokenizer.decode(made.tokens),
                "marker_place": made.marker_place,
            }
            units = _units(made, surprisals.astype(np.float64), tokenizer)
            rows += [common | unit for unit in units]
    whole = ("step", "marker_place", "position", "word_index")
    return pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64"))


def _ends(stimuli: list[Prepared]) -> np.ndarray:
    return np.cumsum([len(stimulus.tokens) for stimulus in stimuli])


def _units(
    made: Prepared, surprisals: np.ndarray, tokenizer: Tokenizer
) -> Iterator[dict[str, str | int | float | None]]:
    """The tokens as the model reads them, markers, words in their original order, the regions."""
    names = [region.name for region in made.stimulus.regions] + [""]
    for i, piece in enumerate(tokenizer.pieces(made.tokens)):
        row = {
            "position": i + 1,
            "unit_text": piece,
            "word_index": int(made.words[i]) + 1 if made.words[i] >= 0 else None,
            "region": names[made.region[i]],
            "surprisal": surprisals[i],
        }
        yield {"unit": "token"} | row
        if made.is_marker[i]:
            yield {"unit": "marker"} | row
    for number, word in enumerate(made.spelled):
        places = np.flatnonzero(made.words == number)
        if len(places):
            yield {
                "unit": "word",
                "position": int(places[0]) + 1,
                "unit_text": word,
                "word_index": number + 1,
                "region": names[made.region[places].max()],
                "surprisal": surprisals[places].sum(),
            }
    for number, region in enumerate(made.stimulus.regions):
        is_inside = made.region == number
        if is_inside.any():  # a language may leave tokens out
            yield {
                "unit": "region",
                "position": None,
                "unit_text": region.text,
                "word_index": None,
                "region": region.name,
                "surprisal": surprisals[is_inside].sum(),
            }
