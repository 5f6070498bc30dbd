"""Whether a model expects the marker of a *Hop language (experiment 2 of Kallini et al. 2024).

For each test sentence with a marker, the surprisal of its first marker is compared with that of the
token that would come next without it, both after the same words. The larger the difference, the
better the model knows where the marker belongs.
"""

import dataclasses

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation import perplexity
from impossible.evaluation.intervals import summaries
from impossible.evaluation.models import Series
from impossible.evaluation.scores import language_of
from impossible.evaluation.scoring import Sequences, sentences_of
from impossible.settings import Settings, UserError


def sequences(settings: Settings, series: Series) -> Sequences:
    """Two sequences for each test sentence with a marker, both cut after the marker's place.

    The first ends in the first marker; the second has the next token (or <|endoftext|>) instead.
    Raises UserError for a language that is not a *Hop language.
    """
    language = language_of(settings)
    if not perturb.get(language).hops:
        raise UserError(
            f"--markers works only for the *Hop languages (such as no_hop), not for {language}."
        )
    sampled = perplexity.sequences(settings, series, marked_only=True)
    parts, end_of_text = [], sampled.tokenizer.end_of_text
    for tokens in sampled.parts:
        place = int(np.argmax(tokens > end_of_text))
        following = np.append(tokens, end_of_text)[place + 1]
        parts += [tokens[: place + 1], np.append(tokens[:place], following)]
    return dataclasses.replace(
        sampled,
        sentences=sentences_of(parts),
        whole_lengths=np.repeat(sampled.sentences.lengths, 2),
    )


def _surprisals(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """Surprisals of marker and next token in bits, (S, 2); NaN for sentences that are too long."""
    last = np.cumsum(sequences.sentences.lengths - 1) - 1
    return losses[last].astype(np.float64).reshape(-1, 2) / np.log(2)


def differences(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """The surprisal of the next token minus that of the marker in bits, (S,)."""
    marker, following = _surprisals(sequences, losses).T
    return following - marker


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """A line to print: the mean surprisals of a model."""
    marker, following = np.nanmean(_surprisals(sequences, losses), axis=0)
    return f"marker {marker:.2f} bits, next token {following:.2f} bits"


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """One row: mean surprisals in bits, and their difference with its bootstrap interval.

    Sentences longer than the model's context are counted as `too_long` only, as in the paper.
    """
    surprisals = _surprisals(sequences, losses)
    scored = surprisals[~np.isnan(surprisals).any(axis=1)]
    marker, following = scored.T
    row = summaries([(following - marker)[np.newaxis]]).drop(columns="n")
    row.insert(0, "surprisal_marker", marker.mean())
    row.insert(1, "surprisal_next", following.mean())
    return row.assign(too_long=len(surprisals) - len(scored))


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The row to draw: the mean difference in bits, with its interval."""
    return table(sequences, losses).rename(columns={"difference": "value"})
