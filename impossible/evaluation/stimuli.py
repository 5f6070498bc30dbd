"""Sentences of one's own in an impossible language: surprisal by token, word and critical region.

A stimulus is a row of a csv or jsonl file: item, condition and text, and if wanted the place of the
marker (in words), the exact perturbed string, and a critical region. The first token is predicted
from <|endoftext|>. In all conditions of an item, the marker has the same place and the tokens of
sentences of one length are shuffled alike.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import perturb
from impossible.errors import UserError
from impossible.evaluation import results
from impossible.evaluation.results import Material, OfSeries
from impossible.evaluation.series import Series
from impossible.settings import Evaluate
from impossible.text.tokenizer import END_OF_TEXT_ID, Tokenizer
from impossible.text.words import by_spacy, hops
from impossible.text.words.verbs import annotated
from impossible.training.processes import World
from perturb import Language, Sentences, from_lengths

_NEEDED, _OPTIONAL = ("item", "condition", "text"), ("place", "perturbed", "region")
_MARKER = 1 << 15  # where tokens are replaced by their places: more than any sentence has


class Stimulus(NamedTuple):
    """A row of the file; what is left out is empty."""

    item: str
    condition: str
    text: str
    place: str = ""  # words before the marker
    perturbed: str = ""
    region: str = ""
    where: str = ""  # for errors


class Prepared(NamedTuple):
    """A stimulus in one language."""

    stimulus: Stimulus
    tokens: np.ndarray  # (n,) as the model reads them
    words: np.ndarray  # (n,) int64: the word of each token, from 0; -1 for a marker
    spelled: list[str]  # the words
    in_region: np.ndarray  # (n,) bool


def read(path: Path) -> list[Stimulus]:
    """The stimuli of a csv or jsonl file. Raises UserError, with the row."""
    if not path.is_file():
        raise UserError(f"stimuli = {str(path)!r} does not exist. Expected a csv or jsonl file.")
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        else:
            table = pd.read_json(path, lines=True, dtype=False, convert_dates=False)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' errors are ValueErrors
        raise UserError(f"{path} cannot be read ({error}). Expected csv, or one object a line.")
    if missing := [name for name in _NEEDED if name not in table]:
        raise UserError(
            f"{path} has no column {', '.join(missing)}. Expected {', '.join(_NEEDED)}, and if "
            f"wanted {', '.join(_OPTIONAL)}; found {', '.join(map(str, table.columns))}."
        )
    if table.empty:
        raise UserError(f"{path} holds no stimulus.")
    names = [name for name in (*_NEEDED, *_OPTIONAL) if name in table]
    columns = table[names].astype(object).where(table[names].notna(), "")
    found = []
    for number, row in enumerate(columns.to_dict("records"), 1):
        values = {name: str(value).strip() for name, value in row.items()}
        stimulus = Stimulus(**values, where=f"{path}, stimulus {number}")
        if not stimulus.text:
            raise UserError(f"{stimulus.where}: the text is empty.")
        if stimulus.place and not stimulus.place.isdecimal():
            raise UserError(
                f"{stimulus.where}: place = {stimulus.place!r}. Expected how many words stand "
                "before the marker."
            )
        found.append(stimulus)
    return found


# Perturbing


def prepared(stimuli: list[Stimulus], language: str) -> list[Prepared]:
    """The stimuli in a language, in their order. Raises UserError for one that cannot be made."""
    rule = perturb.get(language)
    tokenizer = Tokenizer(rule.markers)
    bases = [_Base.of(stimulus, rule, tokenizer) for stimulus in stimuli]
    shortest: dict[str, int] = {}
    for base in bases:
        item, length = base.stimulus.item, len(base.tokens)
        shortest[item] = min(shortest.get(item, length), length)
    numbers = {item: number for number, item in enumerate(shortest)}
    found = []
    for base in bases:
        item = base.stimulus.item
        rng = np.random.default_rng([rule.seed, numbers[item]])
        order = base.order(rule, rng, shortest[item])
        # The markers come after the tokens in the arrays that are read by place.
        at = np.where(order < _MARKER, order, order - _MARKER + len(base.tokens))
        markers = list(tokenizer.markers.values())
        none = np.full(len(markers), -1)
        tokens = np.append(base.tokens, markers).astype(np.uint16)[at]
        words, region = np.append(base.words, none)[at], np.append(base.region, none > 0)[at]
        found.append(Prepared(base.stimulus, tokens, words, base.spelled, region))
    return found


@dataclass(frozen=True)
class _Base:
    """A stimulus before it is perturbed; one that was given perturbed stays as it is."""

    stimulus: Stimulus
    sentences: Sentences  # one; of a *Hop language with its verbs
    words: np.ndarray  # (n,) the word of each token, from 0
    spelled: list[str]
    region: np.ndarray  # (n,) bool

    @property
    def tokens(self) -> np.ndarray:
        """The tokens, (n,)."""
        return self.sentences.tokens

    @classmethod
    def of(cls, stimulus: Stimulus, rule: Language, tokenizer: Tokenizer) -> "_Base":
        """The tokens of a stimulus, and the words and the region that they belong to."""
        verbs = None
        if stimulus.perturbed:
            text = stimulus.perturbed
            tokens = np.array(tokenizer.encode_with_markers(text), np.uint16)
        elif rule.hops:
            annotator = by_spacy.Annotator()
            annotator.load()
            words = next(annotator.annotate([stimulus.text]))
            found = annotated(words, stimulus.text, annotator.name)
            tokens, _, verbs = hops.encoded([found], tokenizer, rule.hops)
            text = tokenizer.decode(tokens)
        else:
            text = stimulus.text
            tokens, _ = tokenizer.encode([text])
        ends = np.cumsum([len(tokenizer.bytes_of(token)) for token in tokens])
        spans = [match.span() for match in re.finditer(r"\S+", text)]
        starts = np.array([len(text[:start].encode()) for start, _ in spans])
        return cls(
            stimulus,
            from_lengths(tokens, np.array([len(tokens)]))._replace(verbs=verbs),
            np.searchsorted(starts, ends, side="left") - 1,
            [text[start:end] for start, end in spans],
            _in_region(stimulus, text, ends),
        )

    def order(self, rule: Language, rng: np.random.Generator, shortest: int) -> np.ndarray:
        """The place of each perturbed token in `tokens`; of markers _MARKER, _MARKER + 1.

        shortest: the fewest tokens of a condition of the item, within which the marker is placed.
        """
        count = len(self.tokens)
        places = Sentences(np.arange(count, dtype=np.uint16), *self.sentences[1:])
        if self.stimulus.perturbed:
            return np.arange(count)
        if not rule.keeps(self.sentences)[0]:
            raise UserError(
                f"{self.stimulus.where}: {rule.title} drops such sentences ({rule.drops}): "
                f"{self.stimulus.text!r}"
            )
        draws = _Draw(self._marker_place(rng, shortest)) if rule.markers else rng
        markers = [_MARKER + i for i in range(len(rule.markers))]
        return rule.perturb(places, markers, draws).tokens.astype(np.int64)

    def _marker_place(self, rng: np.random.Generator, shortest: int) -> int:
        """The number of tokens before the marker."""
        if not self.stimulus.place:
            return int(rng.integers(0, shortest + 1))
        place = int(self.stimulus.place)
        if place > len(self.spelled):
            raise UserError(
                f"{self.stimulus.where}: place = {place}, and the text has {len(self.spelled)} "
                "words."
            )
        return int((self.words < place).sum())


class _Draw(NamedTuple):
    """In place of a random generator: draws the same place for the marker every time."""

    place: int

    def integers(self, low: int, high: np.ndarray) -> np.ndarray:
        """The place, as many times as are asked for."""
        return np.full(len(high), self.place)


def _in_region(stimulus: Stimulus, text: str, ends: np.ndarray) -> np.ndarray:
    """Whether each token lies in the region, (n,) bool. ends: of the tokens, in bytes."""
    if not stimulus.region:
        return np.zeros(len(ends), bool)
    if text.count(stimulus.region) != 1:
        raise UserError(
            f"{stimulus.where}: the region {stimulus.region!r} occurs "
            f"{text.count(stimulus.region)} times in {text!r}. Expected once."
        )
    start = len(text[: text.index(stimulus.region)].encode())
    return (ends > start) & (ends <= start + len(stimulus.region.encode()))


# Scoring


@dataclass(frozen=True)
class StimulusEvaluation(OfSeries):
    """A series of models on stimuli."""

    language: str
    stimuli: list[Prepared]
    losses: dict[str, np.ndarray]  # member -> as scoring.losses returns them

    @property
    def folder(self) -> Path:
        """The folder for the table."""
        return folder_of(self.settings, self.series)


def folder_of(settings: Evaluate, series: Series) -> Path:
    """The folder for the results of a series on the stimuli."""
    return results.base_folder(settings, series) / f"stimuli_{Path(settings.stimuli).stem}"


def evaluate(
    settings: Evaluate, series: Series, world: World, device: torch.device
) -> StimulusEvaluation:
    """Score the stimuli with all models of a series; all processes must call it."""
    language = results.test_language(settings)
    made = prepared(read(Path(settings.stimuli)), language)
    rows = [np.append(END_OF_TEXT_ID, stimulus.tokens).astype(np.uint16) for stimulus in made]
    sentences = from_lengths(np.concatenate(rows), np.array([len(row) for row in rows]))
    evaluation = StimulusEvaluation(settings, series, language, made, {})
    found = results.score(
        series,
        Material(evaluation.title, language, sentences),
        evaluation.folder,
        lambda losses: f"{np.nanmean(losses) / np.log(2):.2f} bits per token",
        world,
        device,
    )
    return StimulusEvaluation(settings, series, language, made, found)


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
    """The tokens as the model reads them, the words in their original order, and the region."""
    for i, piece in enumerate(tokenizer.pieces(made.tokens)):
        yield {
            "unit": "token",
            "position": i + 1,
            "unit_text": piece,
            "word_index": int(made.words[i]) + 1 or None,
            "in_region": bool(made.in_region[i]),
            "surprisal": surprisals[i],
        }
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
