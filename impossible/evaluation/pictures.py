"""Curves over training steps, drawn for a paper: readable without colour, units on the axes."""

import itertools
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from impossible import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind too; each with a line and a mark.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
CONFIDENCE = 0.95
_MOST_TICKS = 9  # of a logarithmic axis
_WIDE = 100  # the last step is so many times the first: the axis of steps is logarithmic


# Of the values of several runs, (runs, n): both ends of the interval of their mean, each (n,).
Interval = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Curve:
    """One line of a picture, with a band if it has a width."""

    label: str
    steps: Sequence[int]  # none for a level without a step, which has one value
    values: np.ndarray  # (n,)
    style: int = 0  # which colour, kind of line and mark
    band: tuple[np.ndarray, np.ndarray] | None = None  # its lower and its upper edge, each (n,)
    is_faint: bool = False  # thin and pale, without marks: what wavers from step to step


def t_interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95% interval of the mean of several runs, (runs, n): both ends, each (n,)."""
    mean, half = runs.mean(axis=0), _half_width(runs)
    return mean - half, mean + half


def share_interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% interval of the mean of shares of several runs, (runs, n): both ends, each (n,).

    Student's interval on the scale of log-odds: with the mean m, logit(m) plus and minus its half
    width divided by m (1 - m), by the delta method. So it contains the mean and stays between 0
    and 1. This is the logit interval of survey statistics (SAS, PROC SURVEYFREQ, "logit confidence
    limits"). If all runs have the share 0, or all 1, there is no interval (NaN): their log-odds
    are infinite, and no variation is seen.
    """
    from scipy.special import expit, logit

    mean = runs.mean(axis=0)
    inside = np.where((mean > 0) & (mean < 1), mean, np.nan)
    half = _half_width(runs) / (inside * (1 - inside))
    return expit(logit(inside) - half), expit(logit(inside) + half)


def _half_width(runs: np.ndarray) -> np.ndarray:
    """Half of Student's 95% interval of the mean of several runs, (runs, n) -> (n,)."""
    from scipy.stats import t

    error = runs.std(axis=0, ddof=1) / math.sqrt(len(runs))
    return t.ppf((1 + CONFIDENCE) / 2, len(runs) - 1) * error


def mean_curve(
    label: str,
    steps: Sequence[int],
    runs: np.ndarray,
    style: int = 0,
    is_faint: bool = False,
    interval: Interval = t_interval,
) -> Curve:
    """The mean of the values of several runs and its 95% interval.

    runs: (runs, n). For a single run, there are no interval and no faint lines.
    """
    if len(runs) == 1:
        return Curve(label, steps, runs[0], style, is_faint=is_faint)
    label = f"{label} (n = {len(runs)})"
    if is_faint:
        return Curve(label, steps, runs.mean(axis=0), style, is_faint=True)
    return Curve(label, steps, runs.mean(axis=0), style, interval(runs))


def draw(
    curves: list[Curve],
    y_label: str,
    path: Path,
    logarithmic: bool = False,
    level: float | None = None,
) -> None:
    """Write a picture (PNG) of the curves over the training step.

    level: where a thin line is drawn for comparison (no difference, chance).
    """
    figure = figure_of(curves, y_label, logarithmic, level)
    with files.atomic_write(path) as file:
        figure.canvas.print_png(file)


def figure_of(
    curves: list[Curve], y_label: str, logarithmic: bool = False, level: float | None = None
) -> "Figure":
    """The figure of `draw`, not yet written, with a canvas of Agg."""
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook may not exist here
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [textwrap.fill(curve.label, 70) for curve in curves]
    is_long = len(curves) > 4 or any(len(label) > 40 for label in labels)
    lines = sum(label.count("\n") + 1 for label in labels)
    height = 3.8 + (0.2 * lines if is_long else 0)
    figure = Figure(figsize=(6.0, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if logarithmic:
        axes.set_yscale("log")
    for curve, label in zip(curves, labels, strict=True):
        _draw_curve(axes, curve, label)
    # What wavers from step to step has a value for every one.
    marked = [curve for curve in curves if not curve.is_faint] or curves
    _set_steps(axes, sorted({step for curve in marked for step in curve.steps}))
    if logarithmic:
        _set_logarithmic(axes)
    if level is not None:
        axes.axhline(level, color="black", linewidth=0.8, zorder=0)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if is_long:
        legend = figure.legend(loc="outside lower center", frameon=False)  # it would hide curves
    else:
        legend = axes.legend(framealpha=0.8, edgecolor="none") if curves else None
    for text in legend.get_texts() if legend else ():
        text.set_parse_math(False)  # a $ in the name of a folder is a $
    return figure


def _set_steps(axes: "Axes", steps: list[int]) -> None:
    """Ticks at the steps themselves if there is room; none if there are only levels."""
    from matplotlib.ticker import MaxNLocator, NullLocator, ScalarFormatter

    gaps = [after - before for before, after in itertools.pairwise(steps)]
    if gaps and min(gaps) < (steps[-1] - steps[0]) / 8:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.set_xticks(steps)
    positive = [step for step in steps if step > 0]
    if positive and positive[-1] / positive[0] > _WIDE:  # checkpoints between the first ones
        axes.set_xscale("symlog", base=2, linthresh=positive[0])  # which has a place for step 0
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        apart = (positive[-1] / positive[0]) ** (1 / _MOST_TICKS)
        shown = [positive[-1]]
        for step in reversed(positive):
            if shown[-1] / step >= apart:
                shown.append(step)
        axes.set_xticks([step for step in (0, *reversed(shown)) if step in steps])
    if steps:
        axes.set_xlabel("training step")


def _set_logarithmic(axes: "Axes") -> None:
    """Three to eight labels of a logarithmic axis, whatever its range."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    ticks = [tick for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for digits in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if digits == (1,):
            found = found[:: math.ceil(len(found) / 8) or 1]
        if 3 <= len(found) <= 8:
            ticks = found
            break
    axes.set_yticks(ticks, [f"{tick:,.9g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_curve(axes: "Axes", curve: Curve, label: str) -> None:
    colour, line = _COLOURS[curve.style % len(_COLOURS)], _LINES[curve.style % len(_LINES)]
    style = {"color": colour, "linestyle": line, "label": label}
    if len(curve.steps) == 0:
        axes.axhline(curve.values[0], **style)
        return
    if curve.is_faint:
        axes.plot(curve.steps, curve.values, **style, linewidth=0.6, alpha=0.5)
    else:
        every = max(1, len(curve.steps) // 10)
        marks = {"marker": _MARKS[curve.style % len(_MARKS)], "markersize": 4}
        marks["markevery"] = (curve.style % every, every)
        axes.plot(curve.steps, curve.values, **style, **marks)
    if curve.band is not None:
        low, high = curve.band
        if axes.get_yscale() == "log":  # which has no place for zero
            low = np.maximum(low, curve.values / 100)
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.2, linewidth=0)
