"""95% intervals of means and shares, and the correction of p-values for multiple tests."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

CONFIDENCE = 0.95
_RESAMPLES = 2000

# Maps the values of several runs, (runs, n), to both ends of the interval of their mean, (n,).
Interval = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def t_interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of Student's 95% interval of the mean of several runs, (runs, n) -> (n,) each."""
    mean, half = runs.mean(axis=0), _half_width(runs)
    return mean - half, mean + half


def share_interval(runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the 95% interval of the mean of several runs' shares, (runs, n) -> (n,) each.

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
    """Both ends of the 95% percentile interval of each row's mean, (steps, n) -> (steps,) each.

    All rows share the same resamples. The ends are NaN for fewer than two values.
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
    """A row for each step: the mean over sentences, as `difference`, with its 95% interval.

    runs: the values of each seed, (steps, sentences). With one seed, the interval is a percentile
    bootstrap over sentences; with several, it is Student's interval over the means of the seeds.
    """
    means = np.array([values.mean(axis=1) for values in runs])  # (seeds, steps)
    count = min(values.shape[1] for values in runs)
    low, high = t_interval(means) if len(runs) > 1 else bootstrap_interval(runs[0])
    how = "t, over seeds" if len(runs) > 1 else "bootstrap, over sentences"
    table = pd.DataFrame({"difference": means.mean(axis=0), "low": low, "high": high})
    return table.assign(interval=how, n=len(runs), sentences=count)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Both ends of the 95% Wilson interval of the share right / count; NaN if the count is 0."""
    from scipy.stats import binomtest

    if not count:
        return np.nan, np.nan
    interval = binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return interval.low, interval.high


def holm(p: np.ndarray) -> np.ndarray:
    """The p-values, (n,), corrected by Holm's method (1979); NaN does not count as a test."""
    order = np.argsort(p)  # NaN last
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected
