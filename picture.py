"""Curves over training steps, drawn for a paper: readable without colour, units on the axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by the colour-blind too; each with a line and a mark.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Curve:
    """One line of a picture, with a band if it has a width."""

    label: str
    steps: Sequence[int]  # none for a level without a step, which has one value
    values: np.ndarray  # (n,)
    style: int = 0  # which colour, kind of line and mark
    half_widths: np.ndarray | None = None  # (n,): the band is value - half to value + half
    is_faint: bool = False  # thin and pale, without marks: what wavers from step to step


def mean_curve(
    label: str, steps: Sequence[int], runs: np.ndarray, style: int = 0, is_faint: bool = False
) -> Curve:
    """The mean of several runs' values and its 95% t-interval.

    runs: (runs, n). With one run there is no interval.
    """
    from scipy.stats import t

    if len(runs) == 1:
        return Curve(label, steps, runs[0], style, is_faint=is_faint)
    error = runs.std(axis=0, ddof=1) / math.sqrt(len(runs))
    quantile = t.ppf((1 + _CONFIDENCE) / 2, len(runs) - 1)
    label = f"{label} (n = {len(runs)})"
    return Curve(label, steps, runs.mean(axis=0), style, quantile * error, is_faint)


def draw(curves: list[Curve], y_label: str, path: Path, logarithmic: bool) -> None:
    """Write a picture (PNG) of the curves over the training step."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(6.0, 3.8), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        _draw_curve(axes, curve)
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        axes.legend(frameon=False)
    with files.atomic_write(path) as file:
        figure.savefig(file, format="png")


def _draw_curve(axes: "Axes", curve: Curve) -> None:
    colour, line = _COLOURS[curve.style % len(_COLOURS)], _LINES[curve.style % len(_LINES)]
    style = {"color": colour, "linestyle": line, "label": curve.label}
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
    if curve.half_widths is not None:
        # A logarithm has no place for zero.
        low = np.maximum(curve.values - curve.half_widths, curve.values / 100)
        high = curve.values + curve.half_widths
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.2, linewidth=0)
