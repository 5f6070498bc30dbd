"""Each language beside its control: differences on the same sentences, as of log-perplexity.

Perplexities of languages with and without markers cannot be compared, as a marker is easy or hard
to predict by itself. The control has the same markers and the same sentences, in a natural order.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation import pictures
from impossible.evaluation.curves import groups_of, seeds_of
from impossible.evaluation.pictures import Curve
from impossible.evaluation.results import Evaluation, OnTestSet
from impossible.evaluation.series import Member

Values = Callable[[OnTestSet, Member], np.ndarray]
LOG_PERPLEXITIES: dict[str, Values] = {
    "perplexity": Evaluation.sentence_losses,
    "perplexity_without_markers": lambda e, m: e.sentence_losses(m, with_markers=False),
}
_RESAMPLES = 2000
_ENOUGH = 0.9  # of the drawn sentences, to be compared without a warning


class Pair(NamedTuple):
    """A run and the run of its control with the same seeds, on their common sentences."""

    language: OnTestSet
    control: OnTestSet
    places: np.ndarray  # (n,) int64, of the sentences in the test set of the language
    control_places: np.ndarray  # (n,) int64, of the same sentences in that of the control


def pairs_of(evaluations: list[OnTestSet]) -> list[tuple[str, list[Pair]]]:
    """A label and the pairs of each curve; several pairs are those of runs that differ in seeds.

    Runs whose language has no control, and runs whose control is evaluated too, but not with the
    same seeds, settings and test sentences, are named and left out.
    """
    own = [e for e in evaluations if e.series.language == e.test.language]
    controls: dict[tuple[Any, ...], list[OnTestSet]] = {}
    for e in own:
        if _control(e) == e.test.language:
            controls.setdefault(_partner(e), []).append(e)
    others = [e for e in own if _control(e) != e.test.language]
    found = []
    for label, group in groups_of(others):
        if not _control(group[0]) and len(own) > 1:
            print(f"{label} is not compared: its row in perturb.py names no control=")
        pairs = []
        for e in group:
            partners = controls.get(_partner(e), [])
            if len(partners) == 1:
                pairs.append(Pair(e, partners[0], *_common(e, partners[0])))
            elif _control(e) in {key[0] for key in controls}:
                title = perturb.get(_control(e)).title
                print(
                    f"{e.title} ({e.series.seeds}) is not compared with its control: "
                    f"{len(partners)} runs of {title} have the same seeds, settings and test data "
                    "(expected: 1)"
                )
        if pairs:
            control = perturb.get(_control(group[0])).title
            found.append((f"{label} - {control}", pairs))
    return found


def _control(e: OnTestSet) -> str:
    return perturb.get(e.test.language).control


def _partner(e: OnTestSet) -> tuple[Any, ...]:
    """What a run shares with that of its control."""
    drawn = (e.corpus, e.test.seed, e.test.drop_duplicates)
    return (_control(e), e.series.seeds, e.series.recipe, *drawn)


def _common(e: OnTestSet, control: OnTestSet) -> tuple[np.ndarray, np.ndarray]:
    """The places of the sentences that both drew: those with the same id."""
    places = {key: i for i, key in enumerate(control.test.keys)}
    drawn = [(i, places[key]) for i, key in enumerate(e.test.keys) if key in places]
    ours, theirs = np.array(drawn, np.int64).reshape(-1, 2).T
    return ours, theirs


def table(found: list[tuple[str, list[Pair]]], measures: dict[str, Values]) -> pd.DataFrame:
    """A row for each curve, measure and step that all its runs and their controls have.

    measures: name -> the values of the sentences of a test set, (S,), for a model. p is that of a
    t-test at the last step alone; p_holm is corrected for the number of curves.
    """
    rows = [
        row
        for label, pairs in found
        for measure, values in measures.items()
        for row in _rows(label, pairs, measure, values)
    ]
    if not rows:
        return pd.DataFrame()
    made = pd.DataFrame(rows)
    made.insert(made.columns.get_loc("p") + 1, "p_holm", np.nan)
    for _, of_measure in made.groupby("measure"):
        made.loc[of_measure.index, "p_holm"] = holm(of_measure["p"].to_numpy())
    for _, row in made.drop_duplicates("label").iterrows():
        if warning := lacking(row):
            print(f"warning: {warning}")
    return made


def _rows(label: str, pairs: list[Pair], measure: str, of: Values) -> Iterator[dict[str, Any]]:
    """The rows of a curve and a measure."""
    by_pair = [_differences(pair, of) for pair in pairs]
    steps = sorted(set.intersection(*(set(found) for found in by_pair)))
    if missing := sorted(set().union(*by_pair) - set(steps)):
        print(f"{label}, {measure}: left out the steps {', '.join(map(str, missing))}")
    values = [np.array([found[step] for step in steps]) for found in by_pair]
    for step, summary in zip(steps, summaries(values) if steps else (), strict=True):
        yield {
            "label": label,
            "language": pairs[0].language.test.language,
            "control": _control(pairs[0].language),
            "measure": measure,
            "step": step,
            **summary,
            "p": _p([found[-1].mean() for found in values]) if step == steps[-1] else np.nan,
            "sentences_drawn": max(len(pair.language.test.ids) for pair in pairs),
            **seeds_of([pair.language for pair in pairs]),
        }


def _p(means: list[float]) -> float:
    """The p-value of a t-test of the hypothesis that the mean of differences is zero."""
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(means, 0).pvalue) if len(means) > 1 else np.nan


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number by Holm's method (1979), (n,); NaN is no test."""
    order = np.argsort(p)  # NaN last
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected


def lacking(row: Mapping[str, Any]) -> str:
    """A warning if many of the drawn sentences are not compared. row: of the table."""
    if row["sentences"] >= _ENOUGH * row["sentences_drawn"]:
        return ""
    return (
        f"{row['label']}: only {row['sentences']:,} of {row['sentences_drawn']:,} test sentences "
        "are compared. The others are not among those of the control, or too long for the models."
    )


def _differences(pair: Pair, of: Values) -> dict[int, np.ndarray]:
    """For each step that both have, the differences of the values of each sentence.

    A sentence that is too long, or of which nothing is scored, is left out.
    """
    others = {m.step: m for m in pair.control.series.members if m.step is not None}
    found = {}
    for member in pair.language.series.members:
        if member.step in others:
            ours = of(pair.language, member)[pair.places]
            theirs = of(pair.control, others[member.step])[pair.control_places]
            found[member.step] = (ours - theirs)[~np.isnan(ours - theirs)]
    return found


def summaries(runs: list[np.ndarray]) -> list[dict[str, float | int | str]]:
    """For each step, the mean of values of sentences and its 95% interval (pointwise).

    runs: for each seed (steps, sentences). With one seed, the interval is a percentile bootstrap
    over sentences, the same resamples for all steps; with several, Student's t over their means.
    """
    means = np.array([found.mean(axis=1) for found in runs])  # (seeds, steps)
    count = min(found.shape[1] for found in runs)
    several = len(runs) > 1
    low, high = pictures.t_interval(means) if several else _bootstrap(runs[0])
    how = "t, over seeds" if several else "bootstrap, over sentences"
    columns = {"difference": means.mean(axis=0), "low": low, "high": high}
    return [
        {name: float(values[i]) for name, values in columns.items()}
        | {"interval": how, "n": len(runs), "sentences": count}
        for i in range(means.shape[1])
    ]


def _bootstrap(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile interval of the means of rows (steps, n); NaN for less than two values."""
    steps, count = values.shape
    if count < 2:
        return np.full(steps, np.nan), np.full(steps, np.nan)
    rng = np.random.default_rng(0)
    means = [
        values @ np.bincount(rng.integers(count, size=count), minlength=count) / count
        for _ in range(_RESAMPLES)
    ]
    outside = (1 - pictures.CONFIDENCE) / 2 * 100
    low, high = np.percentile(means, [outside, 100 - outside], axis=0)
    return low, high


def curves(found: pd.DataFrame, styles: dict[str, int]) -> list[Curve]:
    """The differences of log-perplexity with markers, a curve for each label.

    styles: those of the languages in the picture of perplexities, by label.
    """
    drawn = []
    shown = found[found["measure"] == "perplexity"]
    for number, (label, rows) in enumerate(shown.groupby("label", sort=False)):
        style = styles.get(label.rpartition(" - ")[0], number)
        n = rows["n"].iloc[0]
        band = (rows["low"].to_numpy(), rows["high"].to_numpy())
        values, name = rows["difference"].to_numpy(), f"{label} (n = {n})" if n > 1 else label
        drawn.append(Curve(name, rows["step"].tolist(), values, style, band))
    return drawn
