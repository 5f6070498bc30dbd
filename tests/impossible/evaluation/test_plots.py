"""Pictures can be read: axis labels are few and do not overlap, and names are shown as they are."""

import itertools
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from impossible.evaluation import plots

BABYLM = [*range(3, 28, 3), *range(27, 271, 27), *range(540, 2701, 270)]


def curve(steps: list[int], values: object = 1.5, label: str = "x") -> pd.DataFrame:
    columns = {"label": label, "step": steps, "mean": values, "low": np.nan, "high": np.nan}
    return pd.DataFrame(columns).assign(n=1, style=0, is_faint=False)


@pytest.mark.parametrize(
    ("low", "high"),
    [(833, 992), (22, 25), (440, 30_000), (1, 2), (95, 105), (3.1, 1e7), (2, 9e8), (5, 5)],
)
def test_a_logarithmic_axis_has_a_few_labels_whatever_its_range(low: float, high: float) -> None:
    figure = plots.figure_of(curve([1, 2], [low, high]), "y", logarithmic=True)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    bottom, top = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    shown = [label for tick, label in ticks if bottom <= tick <= top and label.get_text()]
    assert 2 <= len({label.get_text() for label in shown}) == len(shown) <= 12
    extents = [label.get_window_extent() for label in shown]
    assert all(a.y1 <= b.y0 for a, b in itertools.pairwise(extents))


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
    every = list(range(1, steps[-1] + 1))
    curves = [curve(steps), curve(every, label="training").assign(is_faint=True)]
    figure = plots.figure_of(pd.concat(curves), "y", logarithmic=True)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    shown = [label.get_window_extent() for step, label in ticks if low <= step <= high]
    assert 3 <= len(shown) <= 15
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(shown))


@pytest.mark.parametrize("count", [1, 5])
def test_a_dollar_in_the_name_of_a_folder_is_a_dollar(count: int) -> None:
    label = r"PartialReverse (a$b_{\x$)"
    curves = pd.concat([curve([1, 2], label=label + "!" * i) for i in range(count)])
    figure = plots.figure_of(curves, "y")
    (legend,) = figure.legends
    assert legend.get_texts()[0].get_text() == label
    figure.canvas.draw()  # as mathtext, this raises an error


def test_the_number_of_seeds_stays_in_one_line() -> None:
    label = "PartialReverse(words) - NoReverse(words)"
    figure = plots.figure_of(curve([1, 2], label=label).assign(n=5), "y")
    (text,) = figure.legends[0].get_texts()
    assert text.get_text().replace("\xa0", " ") == f"{label}\n(n = 5 seeds)"


def test_the_backend_of_a_notebook_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = "module://no_such_package.backend_inline"
    monkeypatch.setitem(matplotlib.rcParams, "backend", backend)
    plots.draw(curve([1, 2]), "y", tmp_path / "x.png")
    assert matplotlib.image.imread(tmp_path / "x.png").shape[2] == 4
    pdf = (tmp_path / "x.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/CIDFontType2" in pdf, "TrueType"


def test_the_legend_covers_nothing_and_a_picture_is_written_twice_the_same(tmp_path: Path) -> None:
    curves = pd.concat([curve([1, 2], label=f"Language {i}") for i in range(3)])
    figure = plots.figure_of(curves, "share of minimal pairs right (thin line: chance)")
    figure.canvas.draw()
    extent = figure.axes[0].yaxis.label.get_window_extent()
    assert extent.y0 >= 0 and extent.y1 <= figure.bbox.height, "nothing is cut off"
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 < figure.axes[0].get_window_extent().y0
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    smallest = min(text.get_fontsize() for text in texts)
    assert smallest * 3.03 / figure.get_figwidth() > 7, "points in a column of ACL"
    for name in ("a", "b"):
        plots.draw(curves, "y", tmp_path / f"{name}.png")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
