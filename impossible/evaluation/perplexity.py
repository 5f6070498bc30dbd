"""Perplexities of test sentences, by genre, by sentence and by token.

The perplexity of a sentence is exp(mean loss of its tokens 2 to n, given the tokens before them).
"""

import functools

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation.sampling import sentence_ids
from impossible.evaluation.scoring import Sequences, sentence_losses
from impossible.text.token_files import ALL_GENRES
from impossible.text.tokenizer import Tokenizer


def result(sequences: Sequences, losses: np.ndarray) -> str:
    """The perplexity of a model, for people."""
    return f"perplexity {_mean(sentence_losses(losses, sequences.sentences)):,.2f}"


def table(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each genre, and one for all sentences."""
    genre, counts = sequences.columns["genre"], sequences.counts
    values = log_perplexities(sequences, losses)
    unmarked = log_perplexities_without_markers(sequences, losses)
    rows = []
    for name, duplicates in [*counts.items(), (ALL_GENRES, sum(counts.values()))]:
        chosen = np.array((genre == name) | (name == ALL_GENRES))
        counted = chosen & ~np.isnan(values)
        rows.append(
            {
                "genre": name,
                "perplexity": _mean(values[counted]),
                "perplexity_without_markers": _mean(unmarked[counted]),
                "sentences": int(counted.sum()),
                "scored_tokens": int((sequences.sentences.lengths[counted] - 1).sum()),
                "too_long": int((chosen & np.isnan(values)).sum()),
                "duplicates": duplicates,
            }
        )
    rows[-1] |= sequences.totals
    return pd.DataFrame(rows)


def point(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """The perplexity as it is drawn, without an interval."""
    value = _mean(log_perplexities(sequences, losses))
    return pd.DataFrame({"value": [value], "low": [np.nan], "high": [np.nan]})


def log_perplexities(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """The log-perplexity of each sentence, (S,); NaN where one is too long for the model."""
    return sentence_losses(losses, sequences.sentences)


def log_perplexities_without_markers(sequences: Sequences, losses: np.ndarray) -> np.ndarray:
    """As `log_perplexities`, without the losses of the markers themselves, (S,)."""
    return sentence_losses(losses, sequences.sentences, with_markers=False)


def _mean(values: np.ndarray) -> float:
    """The geometric mean of perplexities, from their logarithms; NaN does not count."""
    scored = values[~np.isnan(values)]
    return float(np.exp(scored.mean())) if len(scored) else np.nan


def sentences(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each sentence with its perplexity."""
    return _sentences(sequences).assign(perplexity=np.exp(log_perplexities(sequences, losses)))


@functools.lru_cache(1)
def _sentences(sequences: Sequences) -> pd.DataFrame:
    decode = Tokenizer(perturb.get(sequences.language).markers).decode
    columns = {
        "sentence_id": sentence_ids(sequences),
        "genre": sequences.columns["genre"],
        "tokens": sequences.sentences.lengths,
        "token_ids": [" ".join(map(str, part)) for part in sequences.parts],
        "sentence": [decode(part) for part in sequences.parts],
    }
    return pd.DataFrame(columns)


def surprisals(sequences: Sequences, losses: np.ndarray) -> pd.DataFrame:
    """A row for each token but the first of a sentence, with its surprisal in bits."""
    return _tokens(sequences).assign(surprisal=losses / np.log(2).astype(np.float32))


@functools.lru_cache(1)
def _tokens(sequences: Sequences) -> pd.DataFrame:
    tokens, offsets = sequences.sentences.tokens, sequences.sentences.offsets
    sentence = np.repeat(np.arange(len(offsets) - 1), sequences.sentences.lengths)
    position = np.arange(len(sentence)) - offsets[sentence]
    scored = position > 0
    ids, which = np.unique(tokens[scored], return_inverse=True)
    pieces = Tokenizer(perturb.get(sequences.language).markers).pieces(ids)
    columns = {
        "sentence_id": sentence_ids(sequences)[sentence[scored]],
        "genre": sequences.columns["genre"].array[sentence[scored]],
        "position": position[scored] + 1,
        "token_id": ids[which],
        "token": np.array(pieces, object)[which],
    }
    return pd.DataFrame(columns)
