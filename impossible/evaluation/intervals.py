"""95% intervals of means and shares, and the correction of p-values for their number."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

CONFIDENCE = 0.95
_RESAMPLES = 2000

# Of the values of several runs, (runs, n): both ends of the interval of their mean, each (n,).
Interval = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


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


def bootstrap_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile interval of the means of rows (steps, n): both ends, each (steps,).

    All rows have the same resamples. NaN for less than two values.
    """
    steps, count = values.shape
    if count < 2:
        return np.full(steps, np.nan), np.full(steps, np.nan)
    rng = np.random.default_rng(0)
    means = [
        values @ np.bincount(rng.integers(count, size=count), minlength=count) / count
        for _ in range(_RESAMPLES)
    ]
    outside = (1 - CONFIDENCE) / 2 * 100
    low, high = np.percentile(means, [outside, 100 - outside], axis=0)
    return low, high


def summaries(runs: list[np.ndarray]) -> pd.DataFrame:
    """A row for each step: the mean of values of sentences and its 95% interval (pointwise).

    runs: for each seed (steps, sentences). With one seed, the interval is a percentile bootstrap
    over sentences, the same resamples for all steps; with several, Student's t over their means.
    """
    means = np.array([values.mean(axis=1) for values in runs])  # (seeds, steps)
    count = min(values.shape[1] for values in runs)
    low, high = t_interval(means) if len(runs) > 1 else bootstrap_interval(runs[0])
    how = "t, over seeds" if len(runs) > 1 else "bootstrap, over sentences"
    table = pd.DataFrame({"difference": means.mean(axis=0), "low": low, "high": high})
    return table.assign(interval=how, n=len(runs), sentences=count)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95% Wilson interval of a share, `right` of `count`: both ends; NaN for a count of 0."""
    from scipy.stats import binomtest

    if not count:
        return np.nan, np.nan
    interval = binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return interval.low, interval.high


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number by Holm's method (1979), (n,); NaN is no test."""
    order = np.argsort(p)  # NaN last
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected
