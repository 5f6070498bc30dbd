"""Tables of an evaluation, with one row per checkpoint and genre, sentence or token."""

import contextlib
import hashlib
import json
import os
import tempfile
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
from impossible.settings import Settings, UserError
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
    """Tables and pictures that are about to be written to a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.contents: dict[str, str] = {}  # the name of each file, and what is printed of it

    def table(self, name: str, parts: Iterable[pd.DataFrame]) -> None:
        """Write tables with the same columns, one below the other, as NAME.csv."""
        rows = 0
        with files.atomic_write(self._path / f"{name}.csv") as file:
            for number, part in enumerate(map(_plain, parts)):
                part.to_csv(file, index=False, header=number == 0)
                rows += len(part)
        self.contents[f"{name}.csv"] = f"{rows:,} rows"

    def picture(self, name: str, found: list[pictures.Curve], label: str, **options: Any) -> None:
        """Write a picture of curves as NAME.png. options: of pictures.draw."""
        pictures.draw(found, label, self._path / f"{name}.png", **options)
        self.contents[f"{name}.png"] = "; ".join(curve.label for curve in found)


@contextlib.contextmanager
def results_in(path: Path, measure: str, evaluations: list[OfSeries]) -> Iterator[Folder]:
    """Put the tables and pictures of a measure that the block writes into a folder, when it ends.

    A hidden file there records the SHA-256 of each, and of the models and sentences. If these were
    others before, all recorded files are removed, so that results of different models never stand
    side by side. Raises UserError as `require_own`, before anything is changed.
    """
    path.mkdir(parents=True, exist_ok=True)
    with files.locked(path), tempfile.TemporaryDirectory(files.TEMPORARY, "results-", path) as made:
        folder = Folder(Path(made))
        yield folder
        require_own(path, measure, folder.contents)
        source, (source_before, recorded) = _source(evaluations), _recorded(path, measure)
        hashes = {name: files.sha256(Path(made) / name) for name in folder.contents}
        kept = {} if source != source_before else recorded
        for name in recorded if source != source_before else hashes:
            (path / name).unlink(missing_ok=True)
        record = {"source": source, "files": kept | hashes}
        files.write_json(_record_of(path, measure), record)
        for name, content in folder.contents.items():
            os.replace(Path(made) / name, path / name)
            print(f"{path / name}: {content}")


def require_own(folder: Path, measure: str, names: Iterable[str] = ()) -> None:
    """Raise UserError if a file of the results was changed, or was not written by an evaluation.

    names: of files that will be written, besides the table of the measure and the recorded files.
    """
    _, recorded = _recorded(folder, measure)
    for name in sorted({f"{measure}.csv", *names, *recorded}):
        path = folder / name
        if path.is_file() and files.sha256(path) != recorded.get(name):
            raise UserError(
                f"{path} was not written by an evaluation, or was changed since. The evaluation "
                "has results of that name. Move that file elsewhere, and run the same command "
                "again."
            )


def _record_of(folder: Path, measure: str) -> Path:
    return folder / f".{measure}.json"


def _recorded(folder: Path, measure: str) -> tuple[str, dict[str, str]]:
    """A hash of what the results in a folder are of, and the SHA-256 of each of its files.

    Nothing is recorded if there are no results, or if the record is damaged.
    """
    try:
        record = json.loads(_record_of(folder, measure).read_text(encoding="utf-8"))
        return record["source"], dict(record["files"])
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return "", {}


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
