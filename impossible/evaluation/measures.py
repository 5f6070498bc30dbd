"""The table of measures: for each, its sequences, and the tables and pictures of their losses."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from impossible import files, records
from impossible.evaluation import (
    differences,
    interventions,
    markers,
    ngrams,
    pairs,
    perplexity,
    plots,
    stimuli,
)
from impossible.evaluation.differences import Values
from impossible.evaluation.intervals import Interval, share_interval, t_interval
from impossible.evaluation.models import Series
from impossible.evaluation.scores import Scores, Source
from impossible.evaluation.scoring import Sequences, sentence_losses
from impossible.settings import Settings

# Maps the losses of a model on sequences to a long table.
Table = Callable[[Sequences, np.ndarray], pd.DataFrame]
Draw = Callable[..., str]  # draws curves with a label to a path, and returns a note to print


class Results:
    """Tables and pictures that are written to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.contents: dict[str, str] = {}  # name of a file -> a note to print

    def table(self, name: str, parts: Iterable[pd.DataFrame]) -> None:
        """Write tables with the same columns, one below the other, as NAME.csv."""
        rows = 0
        with files.atomic_write(self._folder / f"{name}.csv") as file:
            for number, part in enumerate(parts):
                part.to_csv(file, index=False, header=number == 0)
                rows += len(part)
        self.contents[f"{name}.csv"] = f"{rows:,} rows"

    def picture(
        self, name: str, curves: pd.DataFrame, label: str, draw: Draw | None = None, **options: Any
    ) -> None:
        """Write a picture of curves as NAME.png and NAME.pdf. options: of `draw` (plots.draw)."""
        path = self._folder / f"{name}.png"
        self.contents[path.name] = (draw or plots.draw)(curves, label, path, **options)


class Measure(NamedTuple):
    """One way to evaluate models."""

    source: Callable[[Settings], Source]
    sequences: Callable[[Settings, Series], Sequences]
    result: Callable[[Sequences, np.ndarray], str]  # a line to print about a model
    table: Table
    more: Callable[[Results, list[Scores]], None] = lambda *_: None  # writes further tables
    together: Callable[[list[Scores]], list[Scores]] = list  # adds values that need all series
    # The row that is drawn for a model: a `value`, and the `low` and `high` of its interval.
    point: Table | None = None
    label: str = ""  # of the picture
    picture: Mapping[str, Any] = {}  # options of plots.draw
    across: Mapping[str, Any] = {}  # the fields to replace if tokenizers differ
    over_seeds: Interval = t_interval  # the interval of the mean of several runs
    has_means: bool = True  # whether there is a table of these means
    compared: Mapping[str, Values] = {}  # values of sentences, compared with those of a control
    differences: str = ""  # the name of the table of these comparisons
    difference: str = ""  # the label of their picture, if they have one


def _with_entropies(scores: list[Scores]) -> list[Scores]:
    """The scores, with the entropies of their languages as totals if the settings ask for them."""
    if not scores[0].settings.entropies:
        return scores
    eval_dir = Path(scores[0].settings.eval_dir)
    return [
        s.with_sequences(totals=ngrams.columns(perplexity.data_dir_of(s.settings), eval_dir))
        for s in scores
    ]


def _more_perplexities(results: Results, scores: list[Scores]) -> None:
    """Write losses, and the tables of sentences, tokens and entropies that the settings ask for."""
    settings = scores[0].settings
    wanted = {perplexity.sentences: settings.sentences, perplexity.surprisals: settings.surprisals}
    for table, is_wanted in wanted.items():
        if is_wanted:
            results.table(table.__name__, (part for s in scores for part in s.tables(table)))
    if settings.entropies:
        folders = {perplexity.data_dir_of(s.settings): None for s in scores}
        results.table("entropies", [ngrams.table(list(folders), Path(settings.eval_dir))])
    losses = plots.losses_of(plots.groups_of(scores))
    if len(losses):
        results.picture("losses", losses, "loss (nats per token)")


def _pair_items(results: Results, scores: list[Scores]) -> None:
    if len(scores) == 1:
        results.table("pair_items", [pairs.items(scores[0])])


def _more_interventions(results: Results, scores: list[Scores]) -> None:
    """Write the pairs of one series or the means of several over seeds, and heat maps."""
    if len(scores) == 1:
        results.table("interventions_pairs", [scores[0].sequences.columns])
    groups = plots.groups_of(scores)
    means = plots.curves_of(groups, interventions.cells, keys=interventions.CELL)
    means = means.dropna(subset="step").astype({"layer": int, "position": int})
    if len(means) and len(scores) > 1:
        results.table("interventions_means", [means.drop(columns=["style", "is_faint"])])
    if len(means):
        label, draw = "IIA (share of pairs)", plots.draw_heat_maps
        results.picture("interventions_heat_maps", means, label, draw)


MEASURES = {
    "perplexity": Measure(
        perplexity.source,
        perplexity.sequences,
        perplexity.result,
        perplexity.table,
        _more_perplexities,
        _with_entropies,
        point=perplexity.point,
        label="test perplexity (geometric mean)",
        picture={"logarithmic": True},
        across={
            "point": perplexity.point_in_bits,
            "label": "test bits per byte",
            "picture": {},
            "has_means": False,  # these perplexities cannot be compared
        },
        compared={
            "perplexity": sentence_losses,
            "perplexity_without_markers": partial(sentence_losses, with_markers=False),
            "bits_per_byte": perplexity.bits_per_byte,
        },
        differences="differences",
        difference="difference in log-perplexity (nats)",
    ),
    "markers": Measure(
        perplexity.source,
        markers.sequences,
        markers.result,
        markers.table,
        point=markers.point,
        label="surprisal of the next token minus that of the marker (bits)",
        picture={"level": 0.0},
        compared={"surprisal_difference": markers.differences},
        differences="markers_differences",
    ),
    "interventions": Measure(
        perplexity.source,
        interventions.sequences,
        interventions.result,
        interventions.table,
        _more_interventions,
        point=interventions.point,
        label="IIA at the best position (mean over layers)",
        has_means=False,  # interventions_means has all layers and positions instead
    ),
    "pairs": Measure(
        pairs.source,
        pairs.sequences,
        pairs.result,
        pairs.table,
        _pair_items,
        together=pairs.on_common,
        point=pairs.point,
        label="share of minimal pairs right (thin line: chance)",
        picture={"level": 0.5},
        over_seeds=share_interval,
    ),
    "stimuli": Measure(stimuli.source, stimuli.sequences, stimuli.result, stimuli.table),
}


def name_of(settings: Settings) -> str:
    """The name of the measure that the settings ask for."""
    chosen = [name for name in MEASURES if getattr(settings, name, False)]
    return chosen[0] if chosen else "perplexity"


def record_of(folder: Path, name: str) -> Path:
    """The file that records the results of a measure in a folder."""
    return folder / f".{name}.json"


def write(folder: Path, name: str, scores: list[Scores]) -> None:
    """Write the tables and pictures of a measure to a folder, when all of them are complete.

    Raises UserError for a file that no evaluation wrote, before anything is changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        files.locked(folder),
        tempfile.TemporaryDirectory(files.TEMPORARY, "results-", folder) as made,
    ):
        results = Results(Path(made))
        _write(results, name, MEASURES[name], scores)
        records.replace_results(folder, Path(made), record_of(folder, name), _source_of(scores))
    for file, content in results.contents.items():
        print(f"{folder / file}: {content}")


def _source_of(scores: list[Scores]) -> str:
    """A hash of the models and their losses, on which all results depend."""
    digest = hashlib.sha256()
    for s in scores:
        for model in s.series.models:
            digest.update(repr(s.columns(model)).encode())
            digest.update(s.losses[model.name].tobytes())
    return digest.hexdigest()


def _write(results: Results, name: str, measure: Measure, scores: list[Scores]) -> None:
    results.table(name, (part for s in scores for part in s.tables(measure.table)))
    if measure.across and len({s.sequences.tokenizer.sha256 for s in scores}) > 1:
        measure = measure._replace(**measure.across)
    if measure.point:
        groups = plots.groups_of(scores)
        curves = plots.curves_of(groups, measure.point, measure.over_seeds)
        results.picture(name, curves, measure.label, **measure.picture)
        means = curves.dropna(subset="step")
        if measure.has_means and len(scores) > 1 and len(means):
            results.table(f"{name}_means", [means.drop(columns=["style", "is_faint"])])
    measure.more(results, scores)
    if not measure.compared:
        return
    table = differences.table(scores, measure.compared)
    if len(table):
        results.table(measure.differences, [table])
        if measure.difference:
            styles = {label: style for style, (label, _) in enumerate(groups)}
            curves = differences.curves(table, next(iter(measure.compared)), styles)
            results.picture(measure.differences, curves, measure.difference, level=0.0)
