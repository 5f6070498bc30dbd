"""Does a model expect the marker of a *Hop language? (experiment 2 of Kallini et al. 2024)

For each test sentence with a marker: the surprisal of its first marker, and that of the token that
would come next without it, both after the same words. The larger the difference, the better the
model knows where the marker belongs.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

import perturb
from impossible.distributed import World
from impossible.evaluation import results, scoring
from impossible.evaluation.differences import summaries
from impossible.evaluation.results import Material, OnTestSet
from impossible.evaluation.scoring import TestSet
from impossible.evaluation.series import Member, Series
from impossible.settings import Settings, UserError
from impossible.text.arrays import Sentences, from_lengths
from impossible.text.tokenizer import END_OF_TEXT_ID


@dataclass(frozen=True)
class MarkerEvaluation(OnTestSet):
    """One series on the first markers of a test set: sentences with a marker.

    losses: of each model, those of the words up to the marker, and of the next token in its place.
    """

    @functools.cached_property
    def _until_marker(self) -> Sentences:
        return until_marker(self.test)[0]

    def differences(self, member: Member) -> np.ndarray:
        """That of the next token minus that of the marker in bits, (S,); NaN where too long."""
        marker, following = self.surprisals(member).T
        return following - marker

    def surprisals(self, member: Member) -> np.ndarray:
        """Those of the marker and of the next token in bits, (S, 2); NaN where too long."""
        return _surprisals(self.losses[member.name], self._until_marker)

    def difference(self, member: Member) -> float:
        """The mean difference between the two, in bits."""
        return self.summary(member)["difference"]

    def interval(self, member: Member) -> tuple[float, float]:
        """The ends of its 95% bootstrap interval over sentences."""
        found = self.summary(member)
        return found["low"], found["high"]

    def summary(self, member: Member) -> dict[str, Any]:
        """The mean difference and its interval."""
        found = self.differences(member)
        return summaries([found[~np.isnan(found)][None]])[0]


def evaluate(
    settings: Settings, series: Series, world: World, device: torch.device
) -> MarkerEvaluation:
    """Score the first markers with all models of a series; all processes must call it.

    Raises UserError for a language without hops.
    """
    meta = results.read_meta(settings)
    if not perturb.get(meta.language).hops:
        raise UserError(
            f"--markers works only for no_hop, token_hop and word_hop, not for {meta.language}."
        )
    test = scoring.draw(
        results.test_data_dir(settings),
        meta,
        settings.sentences_per_genre,
        settings.sample_seed,
        settings.drop_duplicates,
        marked_only=True,
    )
    evaluation = MarkerEvaluation(settings, series, test, {})
    sentences, following = until_marker(test)

    def result(losses: np.ndarray) -> str:
        marker, other = np.nanmean(_surprisals(losses, sentences), axis=0)
        return f"marker {marker:.2f} bits, next token {other:.2f} bits"

    lengths = test.sentences.lengths
    material = Material(evaluation.title, test.language, sentences, following, lengths)
    found = results.score(series, material, evaluation.folder, result, world, device)
    return dataclasses.replace(evaluation, losses=found)


def until_marker(test: TestSet) -> tuple[Sentences, np.ndarray]:
    """Each sentence up to its first marker, and the token after it, (S,); perhaps <|endoftext|>."""
    parts, following = [], []
    for tokens in test.tokens_of(np.arange(len(test.ids))):
        place = int(np.flatnonzero(np.isin(tokens, test.markers))[0])
        parts.append(tokens[: place + 1])
        following.append(tokens[place + 1] if place + 1 < len(tokens) else END_OF_TEXT_ID)
    lengths = np.array([len(part) for part in parts])
    return from_lengths(np.concatenate(parts), lengths), np.array(following, np.uint16)


def _surprisals(losses: np.ndarray, sentences: Sentences) -> np.ndarray:
    count = len(sentences.lengths)
    last = np.cumsum(sentences.lengths - 1) - 1
    return np.stack([losses[last], losses[-count:]], axis=1).astype(np.float64) / np.log(2)


def table(e: MarkerEvaluation) -> pd.DataFrame:
    """A row for each checkpoint: mean surprisals in bits, and their difference with interval.

    Sentences longer than the model's context do not count, as in the paper; too_long is how many.
    """
    rows = []
    for member in e.series.members:
        found = e.surprisals(member)
        scored = found[~np.isnan(found).any(axis=1)]
        marker, following = scored.T
        rows.append(
            {
                **e.columns,
                **e.test.columns,
                "checkpoint": member.name,
                "step": member.step,
                "surprisal_marker": marker.mean(),
                "surprisal_next": following.mean(),
                **e.summary(member),
                "too_long": len(found) - len(scored),
            }
        )
    return pd.DataFrame(rows).drop(columns="n").astype({"step": "Int64"})
