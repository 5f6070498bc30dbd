"""The curves of evaluations: grouping runs into curves and computing their values."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from impossible.evaluation import pictures
from impossible.evaluation.pictures import Curve
from impossible.evaluation.results import OfSeries
from impossible.evaluation.series import Member
from impossible.training import log

E = TypeVar("E", bound=OfSeries)
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
        are_seeds = len({e.series.seed for e in same}) == len(same)
        is_only = [other for other, _, _ in alike].count(label) == 1 and len(corpora) == 1
        for group in [same] if are_seeds else [[e] for e in same]:
            places = ", ".join(e.series.place for e in group)
            if are_shared:
                places += f", on {group[0].test_place}"
            groups.append((label if are_seeds and is_only else f"{label} ({places})", group))
    return groups


def curves_of(
    groups: Groups[E],
    value: Callable[[E, Member], float],
    interval: Callable[[E, Member], tuple[float, float]] | None = None,
) -> list[Curve]:
    """A curve for each group; for several seeds, their mean and its interval.

    value: what is drawn of a model, such as its perplexity. interval: its ends, drawn for a single
    seed. A model without a step is shown as a horizontal line.
    """
    curves = []
    for style, (label, same) in enumerate(groups):
        runs = [{m.step: value(e, m) for m in e.series.members if m.step is not None} for e in same]
        drawn = _mean(label, runs, style)
        if drawn and interval and len(same) == 1:
            (e,) = same
            ends = [interval(e, m) for m in e.series.members if m.step is not None]
            drawn = [dataclasses.replace(drawn[0], band=tuple(np.array(ends).T))]
        curves += drawn
        for e in same:
            for m in (m for m in e.series.members if m.step is None):
                name = label if Path(e.series.place).name == m.name else f"{label}, {m.name}"
                curves.append(Curve(name, [], np.array([value(e, m)]), style))
    return curves


def loss_curves(groups: Groups[E]) -> list[Curve]:
    """The training and the validation loss of the runs, from their logs."""
    curves = []
    for style, (label, same) in enumerate(groups):
        if not same[0].series.language:  # no run: it has no log
            continue
        logs = [log.read(Path(e.series.place)) for e in same]
        for key, name in (("loss", "training"), ("val_loss", "validation")):
            runs = [{r["step"]: r[key] for r in records if r.get(key)} for records in logs]
            curves += _mean(f"{label}, {name}", runs, style, is_faint=key == "loss")
    return curves


def _mean(
    label: str, runs: list[dict[int, float]], style: int, is_faint: bool = False
) -> list[Curve]:
    """The mean over runs at the steps that all runs have; empty if there are no such steps."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if left_out := sorted(set().union(*runs) - set(steps)):
        print(f"{label}: left out the steps {', '.join(map(str, left_out))}, which some seeds lack")
    if not steps:
        return []
    values = np.array([[run[step] for step in steps] for run in runs])
    return [pictures.mean_curve(label, steps, values, style, is_faint)]
