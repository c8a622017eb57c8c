"""Means with confidence intervals: over files, and over both raters and utterances."""

from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
_DRAWN_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """The mean of n values and its 95% interval, which is None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int


def bootstrap_mean(values: np.ndarray) -> Estimate:
    """`[N]`, N >= 1 -> mean with the percentile bootstrap interval over the N values (seed 0).

    Efron & Tibshirani 1993, chapter 13. Raises ValueError if there is no value or one is not
    finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{values.shape} values, all finite and at least one, are needed")
    if len(values) == 1:
        return Estimate(float(values[0]), None, None, 1)
    rng = np.random.default_rng(0)
    # Drawn in parts, because ten thousand resamples of ten thousand files take a gigabyte.
    at_once = max(1, _DRAWN_AT_ONCE // len(values))
    means = [
        values[rng.integers(len(values), size=(count, len(values)))].mean(axis=1)
        for count in [at_once] * (RESAMPLES // at_once) + [RESAMPLES % at_once]
    ]
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(np.concatenate(means), tails)
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def crossed_mean(values: np.ndarray, raters: np.ndarray, utterances: np.ndarray) -> Estimate:
    """The mean of ratings `[N]` with a 95% interval for new raters and new utterances.

    raters, utterances `[N]`: who gave each rating, and to which utterance.
    The errors of a strict rater's scores are correlated, and so are those of a hard utterance's, so
    intervals that treat all ratings as independent are too short. The variance used here is the sum
    of the two clustered variances, V_rater + V_utterance, where each is the sum over clusters of
    (sum of residuals)^2 * g / (g - 1) / N^2. Cameron, Gelbach & Miller (2011,
    doi:10.1198/jbes.2010.07136) subtract the part that both contain, which can leave too little
    with few clusters. Without that subtraction, the interval covers 95% or somewhat more. The
    interval uses Student's t; its degrees of freedom are the smaller number of clusters minus one.
    Raises ValueError for no ratings. low and high are None with a single rater or utterance.
    """
    import scipy.stats

    values = np.asarray(values, np.float64)
    if not values.size:
        raise ValueError("no ratings")
    mean, n = float(values.mean()), len(values)
    residuals = values - mean
    clusterings = [np.unique(each, return_inverse=True)[1] for each in (raters, utterances)]
    sizes = [int(each.max()) + 1 for each in clusterings]
    if min(sizes) < 2:
        return Estimate(mean, None, None, n)

    def variance(clusters: np.ndarray, count: int) -> float:
        sums = np.bincount(clusters, weights=residuals)
        return float(np.sum(sums**2)) * count / (count - 1) / n**2

    total = sum(variance(*each) for each in zip(clusterings, sizes, strict=True))
    half = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, min(sizes) - 1) * np.sqrt(total)
    return Estimate(mean, mean - float(half), mean + float(half), n)
