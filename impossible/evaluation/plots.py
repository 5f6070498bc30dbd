"""Curves over training steps, drawn for a paper: readable without colour, units on the axes.

Curves are a long table: a row for each `label` and `step`, with the `mean` over `n` runs and both
ends of its interval (`low` and `high`, NaN without one), the number of a `style`, and `is_faint`,
whether the line is thin and without marks. A horizontal line (of one model) has no step.
"""

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from impossible import files, log
from impossible.evaluation.intervals import Interval, t_interval
from impossible.evaluation.models import Seeds
from impossible.evaluation.scores import Scores
from impossible.evaluation.scoring import Sequences

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A label, and the scores of runs that differ only in their seeds.
Group = tuple[str, list[Scores]]

# Okabe and Ito's colours, which the colour-blind can tell apart; a line and a mark go with each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SHOWN = (300, 600, 900, 1200, 1500, 3000)  # steps of the published heat maps
_WIDTH = 4.3  # inches; printed in a 3-inch column, text of 10 points has 7
_WIDE = 100  # ratio of the last step to the first above which their axis is logarithmic


def groups_of(scores: list[Scores]) -> list[Group]:
    """The label and the scores of each curve; runs that differ only in their seeds share one."""
    alike: dict[tuple[object, ...], list[Scores]] = {}
    for s in scores:
        alike.setdefault((s.label, s.series.recipe, s.source._replace(place="")), []).append(s)
    named = {s.series.place for s in scores}
    corpora = {_corpus(s) for s in scores}
    is_shared = len({s.source.place for s in scores}) > len(named) or len(corpora) > 1
    groups = []
    for (label, *_), same in alike.items():
        are_seeds = len({s.series.seeds for s in same}) == len(same)
        is_only = [other for other, *_ in alike].count(label) == 1 and len(corpora) == 1
        for group in [same] if are_seeds else [[s] for s in same]:
            places = ", ".join(s.series.name for s in group)
            if is_shared:
                places += f", on {group[0].source.place}"
            groups.append((label if are_seeds and is_only else f"{label} ({places})", group))
    return groups


def _corpus(s: Scores) -> tuple[object, ...]:
    return tuple(s.sequences.about.get(name) for name in ("test_corpus", "test_segmenter"))


def seeds_of(group: list[Scores]) -> dict[str, str]:
    """The columns seeds, init_seeds, ... of several runs: numbers separated by spaces."""
    known = [s.series.seeds._asdict() for s in group if s.series.seeds]
    return {f"{name}s": " ".join(str(seeds[name]) for seeds in known) for name in Seeds._fields}


def curves_of(
    groups: list[Group],
    point: Callable[[Sequences, np.ndarray], pd.DataFrame],
    interval: Interval = t_interval,
    keys: Sequence[str] = ("step",),
) -> pd.DataFrame:
    """A curve for each group: the mean of its runs, with an interval over runs or within one run.

    point: maps the losses of a model to a row with its `value`, and the `low` and `high` of its
    interval, if it has one. interval: of the mean of several runs. A model without a step becomes a
    horizontal line. keys: the columns that identify a row of a run, if `point` returns several rows
    for a model.
    """
    curves = []
    for style, (label, group) in enumerate(groups):
        tables = [pd.concat(s.tables(point)) for s in group]
        stepped = [table.dropna(subset="step").set_index([*keys]) for table in tables]
        curve = _curve(label, [table["value"] for table in stepped], interval)
        if len(group) == 1 and "low" in stepped[0]:
            within = stepped[0].sort_index()  # like the curve
            curve[["low", "high"]] = within[["low", "high"]].to_numpy()
        how = "over seeds" if len(group) > 1 else "within one run"
        curve = curve.assign(interval=how, n=len(group), **seeds_of(group))
        curves.append(curve.assign(style=style, is_faint=False))
        for s, table in zip(group, tables, strict=True):
            level = table[table["step"].isna()].rename(columns={"value": "mean"})
            place = Path(s.series.place).name
            names = [label if x == place else f"{label}, {x}" for x in level["checkpoint"]]
            curves.append(level[["mean"]].assign(label=names, n=1, style=style, is_faint=False))
    return pd.concat(curves, ignore_index=True).astype({"step": "Int64"})


def losses_of(groups: list[Group]) -> pd.DataFrame:
    """Curves of the training and the validation loss of the runs that have a log."""
    curves = []
    for style, (label, group) in enumerate(groups):
        # A model from elsewhere has no log.
        logs = [log.read(Path(s.series.place)) for s in group if s.series.language]
        logs = [records for records in logs if records]
        for key, name in (("loss", "training"), ("val_loss", "validation")) if logs else ():
            runs = [{r["step"]: r[key] for r in records if r.get(key)} for records in logs]
            values = [pd.Series(run, dtype=float).rename_axis("step") for run in runs]
            curve = _curve(f"{label}, {name}", values)
            curves.append(curve.assign(n=len(logs), style=style, is_faint=key == "loss"))
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def _curve(label: str, runs: list[pd.Series], interval: Interval = t_interval) -> pd.DataFrame:
    """The mean of the values of runs, at the steps (an index) that all of them have."""
    values = pd.concat(runs, axis=1, join="inner").sort_index()
    steps = [set(run.index.get_level_values("step")) for run in (*runs, values)]
    if left_out := sorted(set.union(*steps) - steps[-1]):
        print(f"{label}: left out the steps {', '.join(map(str, left_out))}, which some seeds lack")
    array = values.to_numpy(float).T  # (runs, n)
    low, high = interval(array) if len(runs) > 1 else np.full((2, len(values)), np.nan)
    curve = values.index.to_frame(index=False)
    curve = curve.assign(mean=array.mean(axis=0), low=low, high=high)
    curve.insert(0, "label", label)
    return curve


def draw(
    curves: pd.DataFrame,
    y_label: str,
    path: Path,
    logarithmic: bool = False,
    level: float | None = None,
) -> str:
    """Write a picture (PNG and PDF) of curves over the training step. Returns their labels.

    level: where a thin line is drawn for comparison (no difference, chance).
    """
    _write(figure_of(curves, y_label, logarithmic, level), path)
    return "; ".join(label for label, _ in _labelled(curves))


def draw_heat_maps(curves: pd.DataFrame, label: str, path: Path) -> str:
    """Write a picture (PNG and PDF) of shares by layer and position. Returns their labels.

    It shows up to six steps. curves: with `layer`, `position`, `role`. label: of the colour bar.
    """
    labelled = _labelled(curves)
    figure = _empty((2.1 * _WIDTH, 0.6 + 2.3 * len(labelled)))
    grid = figure.subplots(len(labelled), len(_SHOWN), squeeze=False)
    for row, (name, rows) in zip(grid, labelled, strict=True):
        row[0].set_ylabel(_wrapped(name, 26) + "\nlayer", parse_math=False)
        roles, steps = rows["role"].unique(), _shown(rows["step"].unique())
        for axes, step in zip(row, steps, strict=False):
            values = rows[rows["step"] == step].pivot(index="layer", columns="position")["mean"]
            extent = (0.5, values.shape[1] + 0.5, 0.5, values.shape[0] + 0.5)
            style = {"origin": "lower", "aspect": "auto", "cmap": "cividis"}
            image = axes.imshow(values, extent=extent, vmin=0, vmax=1, **style)
            axes.set_xticks(range(1, len(roles) + 1), roles, rotation=90)
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.set_title(f"step {step:,}", fontsize="medium")
        for axes in row[len(steps) :]:
            axes.set_visible(False)
    figure.colorbar(image, ax=grid, label=label)
    _write(figure, path)
    return "; ".join(name for name, _ in labelled)


def _write(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG and, for print, beside it as PDF."""
    with files.atomic_write(path) as file:
        figure.canvas.print_png(file)
    from matplotlib import rc_context

    # TrueType: publishers refuse Type 3 fonts, matplotlib's default.
    with files.atomic_write(path.with_suffix(".pdf")) as file, rc_context({"pdf.fonttype": 42}):
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})


def _shown(steps: np.ndarray) -> list[int]:
    """The published steps or, if some of them are missing, six or fewer of all steps."""
    if set(_SHOWN) <= set(steps):
        return list(_SHOWN)
    places = np.linspace(0, len(steps) - 1, min(len(steps), len(_SHOWN)))
    return [int(steps[round(place)]) for place in places]


def _labelled(curves: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The label and the rows of each curve."""
    labels = curves["label"].where(
        curves["n"] == 1, curves["label"] + " (n = " + curves["n"].astype(str) + " seeds)"
    )
    return list(curves.groupby(labels, sort=False))


def _wrapped(label: str, width: int) -> str:
    """A label in lines of up to `width` characters, in which the number of seeds is not split."""
    head, number, tail = label.partition("(n = ")
    return textwrap.fill(head + (number + tail).replace(" ", "\xa0"), width)


def figure_of(
    curves: pd.DataFrame, y_label: str, logarithmic: bool = False, level: float | None = None
) -> "Figure":
    """The figure of `draw`, not yet written, with an Agg canvas."""
    labelled = [(_wrapped(label, 50), rows) for label, rows in _labelled(curves)]
    lines = sum(label.count("\n") + 1 for label, _ in labelled)
    figure = _empty((_WIDTH, 3.0 + 0.2 * lines))
    axes = figure.add_subplot()
    if logarithmic:
        axes.set_yscale("log")
    _set_steps(axes, curves)
    for label, rows in labelled:
        _draw_curve(axes, rows, label)
    if logarithmic:
        _set_logarithmic(axes)
    if level is not None:
        axes.axhline(level, color="black", linewidth=0.8, zorder=0)
    axes.set_ylabel(textwrap.fill(y_label, 36))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    legend = figure.legend(loc="outside lower center", frameon=False)  # where it hides no curve
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in the name of a folder is not TeX
    return figure


def _empty(size: tuple[float, float]) -> "Figure":
    """A figure without axes, with an Agg canvas. size: width and height in inches."""
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook may not exist here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=280, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _set_logarithmic(axes: "Axes") -> None:
    """Label a few values of a logarithmic y-axis, whatever their range."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    locator = LogLocator(subs=(1, 2, 5)) if high < 500 * low else LogLocator()
    axes.yaxis.set_major_locator(locator if high > 5 * low else MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:,.9g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _set_steps(axes: "Axes", curves: pd.DataFrame) -> None:
    """Set up the axis of steps: logarithmic if the last one is over _WIDE times the first."""
    from matplotlib.ticker import MaxNLocator

    # Checkpoints alone decide: a training loss has a value at every step.
    steps = curves["step"][~curves["is_faint"]].dropna()
    steps = steps[steps > 0]
    if steps.empty:
        axes.set_xticks([])
        return
    axes.set_xlabel("training step")
    if steps.max() / steps.min() > _WIDE:
        axes.set_xscale("symlog", base=4, linthresh=int(steps.min()))  # it has a place for step 0
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter("{x:,.9g}")


def _draw_curve(axes: "Axes", rows: pd.DataFrame, label: str) -> None:
    number, is_faint = int(rows["style"].iloc[0]), rows["is_faint"].iloc[0]
    colour, line = _COLOURS[number % len(_COLOURS)], _LINES[number % len(_LINES)]
    style = {"color": colour, "linestyle": line, "label": label}
    steps, values = rows["step"].to_numpy(float, na_value=np.nan), rows["mean"].to_numpy()
    if np.isnan(steps[0]):
        axes.axhline(values[0], **style)
    elif is_faint:
        axes.plot(steps, values, **style, linewidth=0.6, alpha=0.5)
    else:
        every = max(1, len(steps) // 10)
        marks = {"marker": _MARKS[number % len(_MARKS)], "markersize": 4}
        axes.plot(steps, values, **style, **marks, markevery=(number % every, every))
        low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
        if axes.get_yscale() == "log":  # which has no place for zero
            low = np.maximum(low, values / 100)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
