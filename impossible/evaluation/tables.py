"""Tables of an evaluation, with one row per checkpoint and genre, sentence or token."""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import perturb
from impossible import files
from impossible.evaluation import entropies, pictures
from impossible.evaluation.results import Evaluation, OfSeries
from impossible.evaluation.scoring import TestSet
from impossible.evaluation.series import Seeds
from impossible.settings import Settings
from impossible.text import token_files
from impossible.text.tokenizer import Tokenizer

_ALL = token_files.ALL_GENRES


def perplexities(evaluation: Evaluation) -> pd.DataFrame:
    """A row for each checkpoint and genre, and for each checkpoint on all sentences.

    Entropies are of the whole test split, so they stand in the row of all sentences alone.
    """
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
                    **{name: beside[name] if genre == _ALL else np.nan for name in beside},
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


def sentences(evaluation: Evaluation) -> Iterator[pd.DataFrame]:
    """For each checkpoint, a row for each sentence with its perplexity."""
    test = evaluation.test
    decode = Tokenizer(perturb.get(test.language).markers).decode
    parts = np.split(test.sentences.tokens, test.sentences.offsets[1:-1])
    of_sentence = {
        "sentence_id": _sentence_ids(test),
        "genre": pd.Categorical.from_codes(test.genre, test.genres),
        "tokens": test.sentences.lengths,
        "token_ids": [" ".join(map(str, part)) for part in parts],
        "sentence": [decode(part) for part in parts],
    }
    values = (np.exp(evaluation.sentence_losses(m)) for m in evaluation.series.members)
    return _by_checkpoint(evaluation, of_sentence, "perplexity", values)


def surprisals(evaluation: Evaluation) -> Iterator[pd.DataFrame]:
    """For each checkpoint, a row for each token but the first of a sentence, with its surprisal."""
    test = evaluation.test
    lengths = test.sentences.lengths
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(sentence)) - test.sentences.offsets[sentence]
    scored = position > 0
    ids, which = np.unique(test.sentences.tokens[scored], return_inverse=True)
    pieces = Tokenizer(perturb.get(test.language).markers).pieces(ids)
    of_token = {
        "sentence_id": _sentence_ids(test)[sentence[scored]],
        "genre": pd.Categorical.from_codes(test.genre, test.genres)[sentence[scored]],
        "position": position[scored] + 1,
        "token_id": ids[which],
        "token": np.array(pieces, object)[which],
    }
    losses = (evaluation.losses[member.name] for member in evaluation.series.members)
    bits = (found / np.log(2).astype(np.float32) for found in losses)
    return _by_checkpoint(evaluation, of_token, "surprisal", bits)


def _by_checkpoint(
    e: Evaluation, columns: dict[str, Any], name: str, values: Iterable[np.ndarray]
) -> Iterator[pd.DataFrame]:
    """For each checkpoint, a table of some columns (n,) and its values (n,), under a name."""
    about = {**e.columns, **e.test.columns}
    for member, found in zip(e.series.members, values, strict=True):
        models = about | {"checkpoint": member.name, "step": member.step}
        table = pd.DataFrame({**columns, name: found}).assign(**models)
        yield table[[*models, *columns, name]].astype({"step": "Int64"})


class Folder:
    """A folder for the tables and pictures of one measure.

    A hidden file there records what was written, and from which models and sentences. If these are
    others now, the recorded files are removed first, so that no table of an earlier command stays
    beside newer ones. Files that were not written by an evaluation, or changed later, are never
    removed.
    """

    def __init__(self, path: Path, measure: str, evaluations: list[OfSeries]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.measure, self._record = path, measure, path / f".{measure}.json"
        self._source, self._files = _source(evaluations), {}
        with contextlib.suppress(FileNotFoundError, ValueError):  # none, or a damaged one
            stored = json.loads(self._record.read_text(encoding="utf-8"))
            self._files = stored["files"]
            if stored["source"] != self._source:
                self._remove()

    def _remove(self) -> None:
        """Remove the files of an earlier evaluation."""
        for path, sha256 in ((self.path / name, found) for name, found in self._files.items()):
            if path.is_file() and sha256 in ("", files.sha256(path)):
                path.unlink()
            elif path.is_file():
                print(f"{path}: of an earlier evaluation, but changed since: left as it is")
        self._files = {}

    def _add(self, name: str, sha256: str = "") -> None:
        self._files[name] = sha256
        files.write_json(self._record, {"source": self._source, "files": self._files})

    def table(self, name: str, parts: Iterable[pd.DataFrame]) -> None:
        """Write tables with the same columns, one below the other, as NAME.csv."""
        path, rows = self.path / f"{name}.csv", 0
        self._add(path.name)
        with files.atomic_write(path) as file:
            for number, part in enumerate(map(_plain, parts)):
                part.to_csv(file, index=False, header=number == 0)
                rows += len(part)
        self._add(path.name, files.sha256(path))
        print(f"{path}: {rows:,} rows")

    def picture(self, name: str, found: list[pictures.Curve], label: str, **options: Any) -> None:
        """Write a picture of curves as NAME.png, and print their labels. options: of draw."""
        path = self.path / f"{name}.png"
        self._add(path.name)
        pictures.draw(found, label, path, **options)
        self._add(path.name, files.sha256(path))
        print(f"{path}: {'; '.join(curve.label for curve in found)}")


def _source(evaluations: list[OfSeries]) -> str:
    """A hash of the models and of their losses, on which all results depend."""
    digest = hashlib.sha256()
    for e in evaluations:
        digest.update(repr(e.columns).encode())
        for member in e.series.members:
            digest.update(member.name.encode() + e.losses[member.name].tobytes())
    return digest.hexdigest()


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """A table as every program reads it: 1 and 0 for truth values, seeds as whole numbers."""
    kinds = dict.fromkeys(table.select_dtypes("bool").columns, "int64")
    return table.astype(kinds | {name: "Int64" for name in Seeds._fields if name in table})


def together(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of several series, one below the other."""
    return pd.concat([_plain(part) for part in parts], ignore_index=True)


def tell_of_revisions(settings: Settings) -> None:
    """Print that tables are not complete, if only some revisions are evaluated."""
    if settings.revisions:
        print("the tables contain only these revisions; without --revisions= they contain all")
