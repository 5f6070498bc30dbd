"""Each language beside its control: differences of log-perplexity on the same sentences.

Perplexities of languages with and without markers cannot be compared, as a marker is easy or hard
to predict by itself. The control has the same markers and the same sentences, in a natural order.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation import pictures, scoring
from impossible.evaluation.curves import groups_of
from impossible.evaluation.pictures import Curve
from impossible.evaluation.results import Evaluation

# Measure -> whether the losses of markers count.
_MEASURES = {"perplexity": True, "perplexity_without_markers": False}
_RESAMPLES = 2000


class Pair(NamedTuple):
    """A run and the run of its control with the same seeds, on their common sentences."""

    language: Evaluation
    control: Evaluation
    places: np.ndarray  # (n,) int64, of the sentences in the test set of the language
    control_places: np.ndarray  # (n,) int64, of the same sentences in that of the control


def pairs_of(evaluations: list[Evaluation]) -> list[tuple[str, list[Pair]]]:
    """A label and the pairs of each curve; several pairs are those of runs that differ in seeds.

    Runs whose control is evaluated too, but not with the same seeds, settings and test sentences,
    are named and left out.
    """
    own = [e for e in evaluations if e.series.language == e.test.language]
    controls: dict[tuple[str, ...], list[Evaluation]] = {}
    for e in own:
        if _control(e) == e.test.language:
            controls.setdefault(_partner(e), []).append(e)
    others = [e for e in own if _control(e) != e.test.language]
    found = []
    for label, group in groups_of(others):
        pairs = []
        for e in group:
            partners = controls.get(_partner(e), [])
            if len(partners) == 1:
                pairs.append(Pair(e, partners[0], *_common(e, partners[0])))
            elif _control(e) in {key[0] for key in controls}:
                title = perturb.get(_control(e)).title
                print(
                    f"{e.title} ({e.series.seed}) is left out of differences.csv: {len(partners)} "
                    f"runs of {title} have the same seeds, settings and test data (expected: 1)"
                )
        if pairs:
            control = perturb.get(_control(group[0])).title
            found.append((f"{label} - {control}", pairs))
    return found


def _control(e: Evaluation) -> str:
    return perturb.get(e.test.language).control


def _partner(e: Evaluation) -> tuple[str, ...]:
    """What a run shares with that of its control."""
    drawn = (e.corpus, str(e.test.seed), str(e.test.drop_duplicates))
    return (_control(e), e.series.seed, e.series.recipe, *drawn)


def _common(e: Evaluation, control: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """The places of the sentences that both drew and that are equal before the perturbation."""
    places = {key: i for i, key in enumerate(control.test.keys)}
    drawn = [(i, places[key]) for i, key in enumerate(e.test.keys) if key in places]
    ours, theirs = np.array(drawn, np.int64).reshape(-1, 2).T
    in_order = all(perturb.get(x.test.language).invert for x in (e, control))
    of_both = (
        scoring.originals(x.test.language, x.test.tokens_of(which), x.test.markers, in_order)
        for x, which in ((e, ours), (control, theirs))
    )
    are_equal = np.array([a == b for a, b in zip(*of_both, strict=True)], bool)
    return ours[are_equal], theirs[are_equal]


def table(found: list[tuple[str, list[Pair]]]) -> pd.DataFrame:
    """A row for each curve, measure and step that all its runs and their controls have."""
    rows = []
    for label, pairs in found:
        for measure, with_markers in _MEASURES.items():
            by_pair = [_differences(pair, with_markers) for pair in pairs]
            steps = sorted(set.intersection(*(set(found) for found in by_pair)))
            if missing := sorted(set().union(*by_pair) - set(steps)):
                print(f"{label}: left out the steps {', '.join(map(str, missing))}")
            values = [np.array([found[step] for step in steps]) for found in by_pair]
            for step, summary in zip(steps, summaries(values) if steps else (), strict=True):
                rows.append(
                    {
                        "label": label,
                        "language": pairs[0].language.test.language,
                        "control": _control(pairs[0].language),
                        "measure": measure,
                        "step": step,
                        **summary,
                        "seeds": "; ".join(pair.language.series.seed for pair in pairs),
                        "unequal_sentences": max(
                            len(pair.language.test.ids) - len(pair.places) for pair in pairs
                        ),
                    }
                )
    return pd.DataFrame(rows)


def _differences(pair: Pair, with_markers: bool) -> dict[int, np.ndarray]:
    """For each step that both have, the differences of the log-perplexity of each sentence.

    A sentence that is too long, or of which nothing is scored, is left out.
    """
    others = {m.step: m for m in pair.control.series.members if m.step is not None}
    found = {}
    for member in pair.language.series.members:
        if member.step in others:
            ours = pair.language.sentence_losses(member, with_markers)[pair.places]
            other = others[member.step]
            theirs = pair.control.sentence_losses(other, with_markers)[pair.control_places]
            found[member.step] = (ours - theirs)[~np.isnan(ours - theirs)]
    return found


def summaries(runs: list[np.ndarray]) -> list[dict[str, float | int | str]]:
    """For each step, the mean of values of sentences and its 95% interval.

    runs: for each seed (steps, sentences). With one seed, the interval is a percentile bootstrap
    over sentences, the same resamples for all steps; with several, Student's t over their means.
    """
    from scipy.stats import ttest_1samp

    means = np.array([found.mean(axis=1) for found in runs])  # (seeds, steps)
    count = min(found.shape[1] for found in runs)
    if len(runs) > 1:
        low, high = pictures.t_interval(means)
        how, p = "t, over seeds", ttest_1samp(means, 0).pvalue
    else:
        low, high = _bootstrap(runs[0])
        how, p = "bootstrap, over sentences", np.full(len(low), np.nan)
    columns = {"difference": means.mean(axis=0), "low": low, "high": high, "p": p}
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
