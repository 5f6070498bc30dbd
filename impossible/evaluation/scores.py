"""The scores of a series of models on sequences: losses, their tables, and folders for results."""

import contextlib
import dataclasses
import errno
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import perturb
from impossible import files
from impossible.distributed import World
from impossible.evaluation import models, scoring
from impossible.evaluation.models import Model, Seeds, Series
from impossible.evaluation.scoring import Sequences
from impossible.settings import Settings, UserError


class Source(NamedTuple):
    """The source of the sequences of an evaluation."""

    language: str  # a name from the table in perturb.py
    place: str  # the name of a file or folder, and some digits of a hash of its content
    split_sha256: str = ""  # of a test split
    name: str = ""  # for pairs or stimuli: of the folder of results


def language_of(settings: Settings) -> str:
    """The language of the sentences that models are evaluated on."""
    return settings.test_language or settings.language


@dataclass(frozen=True)
class Scores:
    """A series of models on sequences, with the losses of their tokens once they are scored."""

    settings: Settings
    series: Series
    source: Source
    sequences: Sequences | None = None
    losses: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # by name of the model

    @property
    def is_own(self) -> bool:
        """Whether the sequences are the models' own: of their test split, or in their language."""
        if self.source.split_sha256:
            return self.source.split_sha256 == self.series.test_sha256
        return self.source.language == self.series.language

    @property
    def on(self) -> str:
        """The words " on ..." for sequences that are not the models' own; empty for others."""
        if self.is_own:
            return ""
        if self.source.language == self.series.language:
            return f" on {self.source.place}"
        return f" on {perturb.get(self.source.language).title}"

    @property
    def label(self) -> str:
        """The label of the series, and the sequences if they are not its own."""
        return self.series.label + self.on

    @property
    def title(self) -> str:
        """The label, and the place of the models."""
        return self.series.title + self.on

    @property
    def folder(self) -> Path:
        """The folder for the results.

        It is within the folder of the run if that is writable, and otherwise within eval_dir.
        """
        series, source, eval_dir = self.series, self.source, Path(self.settings.eval_dir)
        base = eval_dir / series.folder
        if series.language:  # a run
            base = Path(series.place) / series.folder
            base = base if _is_writable(base) else eval_dir / models.name_of(Path(series.place))
        if self.is_own:
            return base / source.name
        digits = "" if source.name else f"-{source.split_sha256[:8]}"
        return base / f"{source.name}_on_{source.language}{digits}".removeprefix("_")

    def with_sequences(self, **changes: Any) -> "Scores":
        """A copy of the scores whose sequences have other values in some fields."""
        return dataclasses.replace(self, sequences=dataclasses.replace(self.sequences, **changes))

    def columns(self, model: Model) -> dict[str, str | int | bool | None]:
        """The columns that begin every table; seeds are None for models that are not of a run."""
        seeds = self.series.seeds or (None,) * len(Seeds._fields)
        named = dict(zip(Seeds._fields, seeds, strict=True))
        about = {"model": self.series.label, "run": self.series.name, **named}
        return about | self.sequences.about | {"checkpoint": model.name, "step": model.step}

    def tables(self, of: Callable[[Sequences, np.ndarray], pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Yield a table for each model: its columns, and those that `of` computes from its losses.

        Truth values become 1 and 0, so that every program reads the table.
        """
        for model in self.series.models:
            table, columns = of(self.sequences, self.losses[model.name]), self.columns(model)
            table = table.assign(**columns)[[*columns, *table.columns]]
            kinds = dict.fromkeys(table.select_dtypes("bool").columns, "int64")
            yield table.astype(kinds | dict.fromkeys(("step", *Seeds._fields), "Int64"))

    def by_step(self, of: Callable[[Sequences, np.ndarray], np.ndarray]) -> dict[int, np.ndarray]:
        """The array that `of` computes from the losses of each model with a step, by step."""
        known = [model for model in self.series.models if model.step is not None]
        return {model.step: of(self.sequences, self.losses[model.name]) for model in known}


def score(
    scores: Scores,
    sequences: Sequences,
    result: Callable[[Sequences, np.ndarray], str],
    world: World,
    device: torch.device,
) -> Scores:
    """The scores with the losses of all models, saved and reused. All processes must call this.

    result: makes a line to print. Raises UserError for a damaged model or unreadable sequences.
    """
    series, title, losses = scores.series, scores.title, {}
    kept = scores.folder / "scores" / sequences.sha256[:16]
    if world.is_first:
        kept.mkdir(parents=True, exist_ok=True)
        if series.language and not _is_writable(Path(series.place) / series.folder):
            print(f"{series.place} cannot be written to: its results go to {scores.folder}")
        for note in sequences.notes:
            print(f"{title}: {note}", flush=True)
    with files.locked(scores.folder) if world.is_first else contextlib.nullcontext():
        for number, model in enumerate(series.models, 1):
            start = time.perf_counter()
            path = kept / f"{model.name.replace('/', '--')}.npz"
            identity, values = world.gather(_kept(model, path) if world.is_first else None)[0]
            how = "as computed before"
            if values is None:
                values = _computed(model, sequences, f"{title}, {model.name}", world, device)
                if world.is_first:
                    with files.atomic_write(path) as file:
                        np.savez(file, losses=values, identity=np.array(identity))
                how = f"{time.perf_counter() - start:.1f} s"
            losses[model.name] = values
            if world.is_first:
                place = f"{model.name} ({number} of {len(series.models)})"
                print(f"{title}, {place}: {result(sequences, values)} ({how})", flush=True)
    return dataclasses.replace(scores, sequences=sequences, losses=losses)


def _kept(model: Model, path: Path) -> tuple[str, np.ndarray | None]:
    """The identity of a model, and its saved losses, or None if they have another identity."""
    identity = f"{scoring.VERSION} {model.identity()}"
    try:
        with np.load(path) as stored:
            is_same = str(stored["identity"]) == identity
            return identity, stored["losses"] if is_same else None
    except FileNotFoundError:
        return identity, None
    except Exception as error:  # of many kinds, from numpy and zipfile, for a damaged file
        print(f"{path} is damaged ({error!r}); computing it again", flush=True)
        return identity, None


def _computed(
    model: Model, sequences: Sequences, name: str, world: World, device: torch.device
) -> np.ndarray:
    """The losses of a model. Raises UserError if it cannot read the sequences, or is damaged."""
    scorer, lengths = model.load(device), sequences.lengths
    if (largest := sequences.sentences.tokens.max()) >= len(scorer.head):
        raise UserError(
            f"{name} has a vocabulary of {len(scorer.head):,} tokens, and the sentences of "
            f"{sequences.language} contain a marker (id {largest}) that this model never learned. "
            "Choose a language without that marker: --test_language="
        )
    if lengths.min() > scorer.context:
        raise UserError(
            f"{name} reads at most {scorer.context} tokens, and the shortest sentence of "
            f"{sequences.language} has {lengths.min()}. Shorten the sentences (those of a corpus: "
            "prepare it with --segmenter=sentencex)."
        )
    losses = scoring.losses(scorer, sequences, world)
    with np.errstate(over="ignore"):
        perplexities = np.exp(scoring.sentence_losses(sequences, losses))
    wrong = ~np.isfinite(perplexities) & (lengths <= scorer.context)
    if wrong.any():
        raise UserError(
            f"{name}: the perplexity of {wrong.sum():,} sentences is not a number, so its "
            "weights are damaged or training had diverged. Leave it out with --revisions="
        )
    return losses


@functools.cache
def _is_writable(folder: Path) -> bool:
    """Whether this user may write to a folder, or create it. Nothing is left behind."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS)
