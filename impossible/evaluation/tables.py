"""Tables of an evaluation, with one row per checkpoint and genre, sentence or token."""

from pathlib import Path

import numpy as np
import pandas as pd

import perturb
from impossible import files
from impossible.evaluation import entropies
from impossible.evaluation.results import Evaluation
from impossible.evaluation.scoring import TestSet
from impossible.settings import Evaluate
from impossible.text.tokenizer import Tokenizer

_ALL = "all"  # in place of a genre: all sentences together


def perplexities(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each checkpoint and genre, and for each checkpoint on all sentences."""
    test, rows = evaluation.test, []
    beside = entropies.columns(evaluation) if evaluation.settings.entropies else {}
    duplicates = dict(zip(test.genres, test.duplicates, strict=True)) | {
        _ALL: test.duplicates.sum()
    }
    for member in evaluation.series.members:
        losses = evaluation.sentence_losses(member)
        unmarked = evaluation.sentence_losses(member, with_markers=False)
        for genre in (*test.genres, _ALL):
            chosen = np.full(len(losses), True)
            if genre != _ALL:
                chosen = test.genre == test.genres.index(genre)
            counted = chosen & ~np.isnan(losses)
            rows.append(
                {
                    **evaluation.columns,
                    **test.columns,
                    "checkpoint": member.name,
                    "step": member.step,
                    "genre": genre,
                    "perplexity": _perplexity(losses[counted]),
                    "perplexity_without_markers": _perplexity(unmarked[counted]),
                    "sentences": int(counted.sum()),
                    "scored_tokens": int((test.sentences.lengths[counted] - 1).sum()),
                    "too_long": int((chosen & np.isnan(losses)).sum()),
                    "duplicates": int(duplicates[genre]),
                    **beside,
                }
            )
    return pd.DataFrame(rows).astype({"step": "Int64"})


def _perplexity(losses: np.ndarray) -> float:
    """The geometric mean over sentences; those without a scored token do not count."""
    scored = losses[~np.isnan(losses)]
    return float(np.exp(scored.mean())) if len(scored) else np.nan


def _sentence_ids(test: TestSet) -> np.ndarray:
    """A name for each sentence, (S,) str: the same in all languages of one corpus."""
    genres = np.array(test.genres, object)[test.genre]
    return np.array([f"{genre}:{i}" for genre, i in zip(genres, test.ids, strict=True)], object)


def sentences(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each sentence, with a column of perplexities for each checkpoint."""
    test = evaluation.test
    decode = Tokenizer(perturb.get(test.language).markers).decode
    parts = np.split(test.sentences.tokens, test.sentences.offsets[1:-1])
    columns = {
        member.name: np.exp(evaluation.sentence_losses(member))
        for member in evaluation.series.members
    }
    return pd.DataFrame(
        {
            **test.columns,
            "sentence_id": _sentence_ids(test),
            "genre": pd.Categorical.from_codes(test.genre, test.genres),
            "tokens": test.sentences.lengths,
            "token_ids": [" ".join(map(str, part)) for part in parts],
            "sentence": [decode(part) for part in parts],
            **columns,
        }
    )


def surprisals(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each checkpoint and token (except the first of a sentence), with its surprisal."""
    test = evaluation.test
    lengths = test.sentences.lengths
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(sentence)) - test.sentences.offsets[sentence]
    scored = position > 0
    ids, which = np.unique(test.sentences.tokens[scored], return_inverse=True)
    pieces = Tokenizer(perturb.get(test.language).markers).pieces(ids)
    common = pd.DataFrame(
        {
            **test.columns,
            "sentence_id": _sentence_ids(test)[sentence[scored]],
            "genre": pd.Categorical.from_codes(test.genre, test.genres)[sentence[scored]],
            "position": position[scored] + 1,
            "token_id": ids[which],
            "token": np.array(pieces, object)[which],
        }
    )
    parts = [
        common.assign(surprisal=evaluation.losses[member.name] / np.log(2).astype(np.float32))
        for member in evaluation.series.members
    ]
    names = [member.name for member in evaluation.series.members]
    table = pd.concat(parts, keys=names, names=["checkpoint"])
    return table.reset_index("checkpoint").reset_index(drop=True)


def write_all(evaluation: Evaluation) -> None:
    """The tables of one series, to its own folder."""
    settings = evaluation.settings
    tell_of_revisions(settings)
    with files.locked(evaluation.folder):
        write(perplexities(evaluation), evaluation.folder / "perplexity.csv")
        for wanted, table in ((settings.sentences, sentences), (settings.surprisals, surprisals)):
            for kind in ("csv", "parquet"):
                path = evaluation.folder / f"{table.__name__}.{kind}"
                if wanted and kind == settings.table_format:
                    write(table(evaluation), path)
                elif path.exists():
                    print(f"{path}: written by an earlier command, left unchanged")


def tell_of_revisions(settings: Evaluate) -> None:
    """Print that tables are not complete, if only some revisions are evaluated."""
    if settings.revisions:
        print("the tables contain only these revisions; without --revisions= they contain all")


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as csv or parquet, by the ending of its path."""
    with files.atomic_write(path) as file:
        if path.suffix == ".parquet":
            table.to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False)
    print(f"{path}: {len(table):,} rows")
