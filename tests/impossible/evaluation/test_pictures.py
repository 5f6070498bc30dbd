"""Pictures of curves over the steps of a training."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from impossible.evaluation import pictures

BABYLM = [*range(3, 28, 3), *range(27, 271, 27), *range(540, 2701, 270)]


@pytest.mark.parametrize(
    ("steps", "scale"),
    [
        ([0, 1, 2, 4, 8, *range(100, 3001, 100)], "symlog"),
        ([0, 1, 2, 4, 8, 16, 32, 64, *range(100, 3001, 100)], "symlog"),
        (sorted({*BABYLM, *range(100, 3001, 100)}), "symlog"),
        (list(range(100, 3001, 100)), "linear"),
        ([50, 100, 150, 200, 250], "linear"),
    ],
)
def test_labels_of_steps_are_apart_and_early_steps_have_room(steps: list[int], scale: str) -> None:
    curve = pictures.mean_curve("x", steps, torch.rand(1, len(steps)).numpy() + 1)
    every = np.arange(1, steps[-1] + 1)
    faint = pictures.mean_curve("training", every, np.ones((1, len(every))), is_faint=True)
    figure = pictures.figure_of([curve, faint], "y", logarithmic=True)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    shown = [(step, label.get_window_extent()) for step, label in ticks if low <= step <= high]
    assert 3 <= len(shown) <= 12
    assert all(a.x1 < b.x0 for (_, a), (_, b) in itertools.pairwise(shown))
    if scale == "symlog":
        assert {step for step, _ in shown} <= set(steps)
        assert shown[0][0] == steps[0] and shown[-1][0] == steps[-1]
