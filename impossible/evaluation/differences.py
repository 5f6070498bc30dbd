"""Each language beside its control: differences of log-perplexity on the same sentences.

Perplexities of languages with and without markers cannot be compared, as a marker is easy or hard
to predict by itself. The control has the same markers and the same sentences, in a natural order.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

import perturb
from impossible.evaluation import pictures, scoring
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


def pairs_of(evaluations: list[Evaluation]) -> dict[str, list[Pair]]:
    """The pairs of each language whose control is evaluated too, one for each seed.

    Runs without a partner are named: the two must share seeds, settings and test sentences.
    """
    own = [e for e in evaluations if e.series.language and e.test.language == e.series.language]
    controls = {_partner(e): e for e in own if _control(e) == e.test.language}
    found: dict[str, list[Pair]] = {}
    for e in own:
        if _control(e) == e.test.language or _control(e) not in {key[0] for key in controls}:
            continue
        if control := controls.get(_partner(e)):
            places = _common(e, control)
            found.setdefault(e.test.language, []).append(Pair(e, control, *places))
        else:
            print(
                f"{e.title} ({e.series.seed}) is in no difference: no run of its control, "
                f"{_control(e)}, has the same seeds, settings and test sentences"
            )
    return found


def _control(e: Evaluation) -> str:
    return perturb.get(e.test.language).control


def _partner(e: Evaluation) -> tuple[str, ...]:
    """What a run shares with that of its control."""
    drawn = (e.test.corpus, e.test.segmenter, str(e.test.seed), str(e.test.drop_duplicates))
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


def table(pairs: dict[str, list[Pair]]) -> pd.DataFrame:
    """A row for each language, measure and step that all its seeds and controls have."""
    rows = []
    for language, runs in pairs.items():
        unequal = sum(len(run.language.test.keys) - len(run.places) for run in runs)
        for measure, with_markers in _MEASURES.items():
            by_run = [_by_step(run, with_markers) for run in runs]
            for step in sorted(set.intersection(*map(set, by_run))):
                rows.append(
                    {
                        "language": language,
                        "control": perturb.get(language).control,
                        "measure": measure,
                        "step": step,
                        **summary([found[step] for found in by_run]),
                        "seeds": "; ".join(run.language.series.seed for run in runs),
                        "unequal_sentences": unequal,
                    }
                )
    return pd.DataFrame(rows)


def _by_step(pair: Pair, with_markers: bool) -> dict[int, np.ndarray]:
    """For each step that both have, the differences of the log-perplexity of each sentence."""
    others = {m.step: m for m in pair.control.series.members if m.step is not None}
    found = {}
    for member in pair.language.series.members:
        if member.step in others:
            ours = pair.language.sentence_losses(member, with_markers)[pair.places]
            other = others[member.step]
            theirs = pair.control.sentence_losses(other, with_markers)[pair.control_places]
            found[member.step] = (ours - theirs)[~np.isnan(ours - theirs)]
    return found


def summary(differences: list[np.ndarray]) -> dict[str, float | int | str]:
    """The mean difference of one seed over sentences, or of several seeds; its 95% interval."""
    from scipy.stats import bootstrap, ttest_1samp

    sentences = min(map(len, differences))
    if len(differences) > 1:
        means = np.array([found.mean() for found in differences])
        (low,), (high,) = pictures.t_interval(means[:, None])
        p = float(ttest_1samp(means, 0).pvalue)
        return _columns(means.mean(), low, high, "t, over seeds", len(means), p, sentences)
    (found,) = differences
    interval = bootstrap(
        (found,),
        np.mean,
        confidence_level=pictures.CONFIDENCE,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    how = "bootstrap, over sentences"
    return _columns(found.mean(), interval.low, interval.high, how, 1, np.nan, sentences)


def _columns(
    mean: float, low: float, high: float, interval: str, n: int, p: float, sentences: int
) -> dict[str, float | int | str]:
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "interval": interval,
        "n": n,
        "p": p,
        "sentences": sentences,
    }


def curves(found: pd.DataFrame) -> list[Curve]:
    """The differences of log-perplexity with markers, a curve for each language."""
    shown = found[found["measure"] == "perplexity"]
    drawn = []
    for style, (language, rows) in enumerate(shown.groupby("language", sort=False)):
        n = rows["n"].iloc[0]
        label = f"{perturb.get(language).title} - {perturb.get(rows['control'].iloc[0]).title}"
        label += f" (n = {n})" if n > 1 else ""
        band = (rows["low"].to_numpy(), rows["high"].to_numpy())
        values = rows["difference"].to_numpy()
        drawn.append(Curve(label, rows["step"].tolist(), values, style, band))
    return drawn
