"""Sentences of one's own in an impossible language: surprisal by token, word and critical region.

A stimulus is a row of a csv or jsonl file: item, condition and text, and optionally the place of
the marker (in words), the exact perturbed string, and a critical region. The first token is
predicted from <|endoftext|>. In all conditions of an item, the marker has the same place and the
tokens of sentences of one length are shuffled alike.
"""

import dataclasses
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import perturb
from impossible.errors import UserError
from impossible.evaluation import results
from impossible.evaluation.results import Material, OnMaterial
from impossible.evaluation.series import Series
from impossible.evaluation.stimulus_files import Stimulus, read
from impossible.settings import Evaluate
from impossible.text.tokenizer import END_OF_TEXT_ID, FIRST_MARKER_ID, Tokenizer
from impossible.text.words import by_spacy, hops
from impossible.text.words.verbs import Word, annotated
from impossible.training.processes import World
from perturb import PLURAL, REVERSE, SINGULAR, Language, Sentences, from_lengths

_MARKER = 1 << 15  # where tokens are replaced by their places: more than any sentence has


class Prepared(NamedTuple):
    """A stimulus in one language."""

    stimulus: Stimulus
    tokens: np.ndarray  # (n,) as the model reads them
    words: np.ndarray  # (n,) int64: the word of each token, from 0; -1 for a marker
    spelled: list[str]  # the words of the text (or of the perturbed string)
    in_region: np.ndarray  # (n,) bool


def prepared(stimuli: list[Stimulus], language: str) -> list[Prepared]:
    """The stimuli in a language, in their order. Raises UserError for one that cannot be made."""
    rule = perturb.get(language)
    tokenizer = Tokenizer(rule.markers)
    bases = list(_bases(stimuli, rule, tokenizer))
    shortest: dict[str, int] = {}
    for base in bases:
        item, length = base.stimulus.item, len(base.tokens)
        shortest[item] = min(shortest.get(item, length), length)
    found = []
    for base in bases:
        item = base.stimulus.item
        rng = np.random.default_rng([rule.seed, zlib.crc32(item.encode())])
        order = base.order(rule, rng, shortest[item])
        # The markers come after the tokens in the arrays that are read by place.
        at = np.where(order < _MARKER, order, order - _MARKER + len(base.tokens))
        markers = list(tokenizer.markers.values())
        none = np.full(len(markers), -1)
        tokens = np.append(base.tokens, markers).astype(np.uint16)[at]
        words, region = np.append(base.words, none)[at], np.append(base.in_region, none > 0)[at]
        found.append(Prepared(base.stimulus, tokens, words, base.spelled, region))
    return found


def _bases(stimuli: list[Stimulus], rule: Language, tokenizer: Tokenizer) -> Iterator["_Base"]:
    """The tokens of the stimuli, before they are perturbed."""
    of_hops = [s.text for s in stimuli if rule.hops and not s.perturbed]
    found = iter(())
    if of_hops:
        annotator = by_spacy.Annotator()
        annotator.load()
        found = annotator.annotate(of_hops)
    for stimulus in stimuli:
        if stimulus.perturbed:
            yield _read_as_it_is(stimulus, rule, tokenizer)
        elif rule.hops:
            yield _with_verbs(stimulus, next(found), rule, tokenizer)
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
    found = annotated(words, stimulus.text, by_spacy.Annotator.name)
    sentences = hops.encoded([found], tokenizer, rule.hops)
    joined, items = tokenizer.decode(sentences.tokens), list(found.words)
    for at, lemma in zip(found.verb_at, found.verb_lemma, strict=True):
        items[at] = lemma
    there, here = _places(items, joined), _places(found.words, stimulus.text)
    of_item = np.searchsorted(there[:, 1], _spans(tokenizer, sentences.tokens)[:, 1], side="left")
    return _Base(stimulus, sentences, stimulus.text, here[of_item])


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
    def in_region(self) -> np.ndarray:
        """Whether each token lies in the region, (n,) bool. Raises UserError if it is not clear."""
        region = self.stimulus.region
        if not region:
            return np.zeros(len(self.tokens), bool)
        for marker in self.markers:  # which takes the space before it
            region = re.sub(rf"\s+{marker}", marker, region)
        if self.text.count(region) != 1:
            raise UserError(
                f"{self.stimulus.where}: the region {region!r} occurs {self.text.count(region)} "
                f"times in {self.text!r}. Expected once."
            )
        ((start, end),) = _places([region], self.text)
        inside = (self.spans[:, 0] >= start) & (self.spans[:, 1] <= end)
        crossing = (self.spans[:, 0] < end) & (self.spans[:, 1] > start) & ~inside
        if crossing.any() or not inside.any():
            raise UserError(
                f"{self.stimulus.where}: the region {region!r} begins or ends within a token of "
                f"{self.text!r}. Extend it to whole words."
            )
        return inside

    def order(self, rule: Language, rng: np.random.Generator, shortest: int) -> np.ndarray:
        """The place of each perturbed token in `tokens`; of markers _MARKER, _MARKER + 1.

        shortest: the fewest tokens of a condition of the item, within which the marker is placed.
        """
        count = len(self.tokens)
        if self.stimulus.perturbed:
            return np.arange(count)
        if not rule.keeps(self.sentences)[0]:
            raise UserError(
                f"{self.stimulus.where}: {rule.title} drops such sentences ({rule.drops}): "
                f"{self.text!r}"
            )
        places = self.sentences._replace(tokens=np.arange(count, dtype=np.uint16))
        draws = rng
        if rule.markers and not rule.hops:
            draws = _Draw(self._marker_place(rng, shortest))
        markers = [_MARKER + i for i in range(len(rule.markers))]
        return rule.perturb(places, markers, draws).tokens.astype(np.int64)

    def _marker_place(self, rng: np.random.Generator, shortest: int) -> int:
        """The number of tokens before the marker."""
        if not self.stimulus.place:
            return int(rng.integers(0, shortest + 1))
        place = int(self.stimulus.place)
        if place > len(self.spelled):
            raise UserError(
                f"{self.stimulus.where}: place = {place}. Expected 0 to {len(self.spelled)}, the "
                "number of words."
            )
        return int((self.words < place).sum())


class _Draw(NamedTuple):
    """In place of a random generator: draws the same place for the marker every time."""

    place: int

    def integers(self, low: int, high: np.ndarray) -> np.ndarray:
        """The place, as many times as are asked for."""
        return np.full(len(high), self.place)


# Scoring


@dataclass(frozen=True)
class StimulusEvaluation(OnMaterial):
    """A series of models on stimuli."""

    language: str
    stimuli: list[Prepared]
    losses: dict[str, np.ndarray]  # member -> as scoring.losses returns them


def folder_of(settings: Evaluate, series: Series) -> Path:
    """The folder for the results of a series on the stimuli."""
    return results.material_folder(settings, series, _name_of(settings))


def _name_of(settings: Evaluate) -> str:
    return f"stimuli_{Path(settings.stimuli).stem}"


def evaluate(
    settings: Evaluate, series: Series, world: World, device: torch.device
) -> StimulusEvaluation:
    """Score the stimuli with all models of a series; all processes must call it."""
    language = results.test_language(settings)
    made = prepared(read(Path(settings.stimuli)), language)
    rows = [np.append(END_OF_TEXT_ID, stimulus.tokens).astype(np.uint16) for stimulus in made]
    sentences = from_lengths(np.concatenate(rows), np.array([len(row) for row in rows]))
    evaluation = StimulusEvaluation(settings, series, _name_of(settings), language, made, {})
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
    unmarked = sum(bool((x.words >= 0).all()) for x in made)
    if rule.hops and unmarked:
        print(
            f"{title}: no verb is marked in {unmarked} of {len(made)} stimuli; see the column "
            "perturbed"
        )
    if any(x.stimulus.place for x in made) and (rule.hops or not rule.markers):
        print(f"{title}: place is not used in {rule.title}")


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
            }
            units = _units(made, surprisals.astype(np.float64), tokenizer)
            rows += [common | unit for unit in units]
    return pd.DataFrame(rows).astype({"step": "Int64", "word_index": "Int64", "position": "Int64"})


def _ends(stimuli: list[Prepared]) -> np.ndarray:
    return np.cumsum([len(stimulus.tokens) for stimulus in stimuli])


def _units(
    made: Prepared, surprisals: np.ndarray, tokenizer: Tokenizer
) -> Iterator[dict[str, str | int | float | None]]:
    """The tokens as the model reads them, markers, words in their original order, the region."""
    for i, piece in enumerate(tokenizer.pieces(made.tokens)):
        is_marker = made.words[i] < 0
        row = {
            "position": i + 1,
            "unit_text": piece,
            "word_index": None if is_marker else int(made.words[i]) + 1,
            "in_region": bool(made.in_region[i]),
            "surprisal": surprisals[i],
        }
        yield {"unit": "token"} | row
        if is_marker:
            yield {"unit": "marker"} | row
    for number, word in enumerate(made.spelled):
        is_of_word = made.words == number
        if is_of_word.any():
            yield {
                "unit": "word",
                "position": int(np.flatnonzero(is_of_word)[0]) + 1,
                "unit_text": word,
                "word_index": number + 1,
                "in_region": bool(made.in_region[is_of_word].any()),
                "surprisal": surprisals[is_of_word].sum(),
            }
    if made.stimulus.region:
        yield {
            "unit": "region",
            "position": None,
            "unit_text": made.stimulus.region,
            "word_index": None,
            "in_region": True,
            "surprisal": surprisals[made.in_region].sum(),
        }
