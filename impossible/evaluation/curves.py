"""The curves of evaluations: grouping runs into curves and computing their values."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from impossible import log
from impossible.evaluation import pictures
from impossible.evaluation.pictures import Curve, Interval
from impossible.evaluation.results import OfSeries
from impossible.evaluation.series import Member, Seeds

E, V = TypeVar("E", bound=OfSeries), TypeVar("V")
Groups = list[tuple[str, list[E]]]


def groups_of(evaluations: list[E]) -> Groups[E]:
    """A label and the evaluations of each curve: those of runs that differ only in their seeds."""
    alike: dict[tuple[str, str, str], list[E]] = {}
    for e in evaluations:
        alike.setdefault((e.label, e.series.recipe, e.test_id), []).append(e)
    named = {e.series.place for e in evaluations}
    corpora = {e.corpus for e in evaluations}
    are_shared = len({e.test_place for e in evaluations}) > len(named) or len(corpora) > 1
    groups = []
    for (label, _, _), same in alike.items():
        are_seeds = len({e.series.seeds for e in same}) == len(same)
        is_only = [other for other, _, _ in alike].count(label) == 1 and len(corpora) == 1
        for group in [same] if are_seeds else [[e] for e in same]:
            places = ", ".join(e.series.name for e in group)
            if are_shared:
                places += f", on {group[0].test_place}"
            groups.append((label if are_seeds and is_only else f"{label} ({places})", group))
    return groups


def curves_of(
    groups: Groups[E],
    value: Callable[[E, Member], float],
    interval: Callable[[E, Member], tuple[float, float]] | None = None,
    over_seeds: Interval = pictures.t_interval,
) -> list[Curve]:
    """A curve for each group; for several seeds, their mean and its interval.

    value: what is drawn of a model, such as its perplexity. interval: its ends, drawn for a single
    seed. over_seeds: the interval of the mean. A model without a step is shown as a horizontal
    line.
    """
    curves = []
    for style, (label, same) in enumerate(groups):
        steps, runs = _on_common_steps(label, [_by_step(e, value) for e in same])
        if steps:
            drawn = pictures.mean_curve(label, steps, runs, style, interval=over_seeds)
            if interval and len(same) == 1:
                ends = np.array(list(_by_step(same[0], interval).values()))
                drawn = dataclasses.replace(drawn, band=tuple(ends.T))
            curves.append(drawn)
        for e in same:
            for m in (m for m in e.series.members if m.step is None):
                name = label if Path(e.series.place).name == m.name else f"{label}, {m.name}"
                curves.append(Curve(name, [], np.array([value(e, m)]), style))
    return curves


def means(groups: Groups[E], curves: list[Curve]) -> pd.DataFrame:
    """A row for each step of each curve: the mean over n runs and its 95% interval, as drawn.

    curves: of `curves_of` for these groups, with intervals.
    """
    rows = []
    for curve in (curve for curve in curves if curve.steps):
        label, same = groups[curve.style]
        how = "over seeds" if len(same) > 1 else "within one run"
        for step, mean, low, high in zip(curve.steps, curve.values, *curve.band, strict=True):
            shown = {"step": step, "mean": mean, "low": low, "high": high, "interval": how}
            rows.append({"label": label, **shown, "n": len(same), **seeds_of(same)})
    return pd.DataFrame(rows)


def seeds_of(same: list[E]) -> dict[str, str]:
    """The columns seeds, init_seeds, ... of several runs: numbers with spaces between them."""
    known = [e.series.seeds._asdict() for e in same if e.series.seeds]
    return {f"{name}s": " ".join(str(seeds[name]) for seeds in known) for name in Seeds._fields}


def _by_step(e: E, value: Callable[[E, Member], V]) -> dict[int, V]:
    return {m.step: value(e, m) for m in e.series.members if m.step is not None}


def loss_curves(groups: Groups[E]) -> list[Curve]:
    """The training and the validation loss of the runs that have a log."""
    curves = []
    for style, (label, same) in enumerate(groups):
        if not same[0].series.language:  # no run: it has no log
            continue
        logs = [found for e in same if (found := log.read(Path(e.series.place)))]
        if not logs:
            continue
        for key, name in (("loss", "training"), ("val_loss", "validation")):
            runs = [{r["step"]: r[key] for r in records if r.get(key)} for records in logs]
            is_faint, name = key == "loss", f"{label}, {name}"
            steps, values = _on_common_steps(name, runs)
            if steps:
                curves.append(pictures.mean_curve(name, steps, values, style, is_faint))
    return curves


def _on_common_steps(label: str, runs: list[dict[int, float]]) -> tuple[list[int], np.ndarray]:
    """The steps that all runs have, n of them, and the values of each run there, (runs, n)."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if left_out := sorted(set().union(*runs) - set(steps)):
        print(f"{label}: left out the steps {', '.join(map(str, left_out))}, which some seeds lack")
    return steps, np.array([[run[step] for step in steps] for run in runs])
