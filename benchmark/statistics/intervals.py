"""Confidence intervals and tests of scores and their differences.

Two things are random: which clips are in the test set, in clusters that depend on each other, and the seeds of the
runs. The covariance over test clips comes from a bootstrap over clusters, or from a closed form where there is one.
The variance over seeds is the variance of the scores beyond what the test clips alone explain. Both are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from benchmark.statistics.resampling import Floats, Resampler, RunScores, excess_of, residuals_of

DRAWS = 10_000  # resamples of a bootstrap
FEWEST = 1.05  # effective clusters below which no variance can be estimated
NOTHING = 1e-18  # a variance this small is rounding
TOGETHER = 250  # resamples that are computed at once, so that they fit into the processor's cache


class ScoreDistribution(NamedTuple):
    """Scores of M runs on one test set and how they vary with its clips.

    values: (M,). covariance: (M, M) over test clips, NaN where it cannot be estimated. excess: (M, M) the part of it
    that a bootstrap over speakers adds wrongly, see `TrialErrors.excess`. clusters: how many were resampled. effective:
    how many clusters of equal size would carry as much information. bias: (M,) estimated bias of the values, 0 where
    none is corrected.
    """

    values: Floats
    covariance: Floats
    excess: Floats
    clusters: int
    effective: float
    bias: Floats

    def variance(self, weights: Floats) -> float:
        """The variance over test clips of a weighted sum (M,) of the values; NaN with fewer than two clusters."""
        whole = float(weights @ self.covariance @ weights)
        # The excess is at most two thirds: if only pairs of clusters varied, they would be counted three times.
        corrected = max(whole - float(weights @ self.excess @ weights), whole / 3)
        return 0.0 if corrected <= NOTHING else corrected

    def seed_variance(self, by_seed: Floats) -> tuple[float, float]:
        """The variance over seeds of a mean over K >= 2 seeds, without and with the part that test clips explain.

        by_seed: (K, M) weights; row k gives what is averaged as a weighted sum of the values, for seed k.
        """
        count, values = len(by_seed), by_seed @ self.values
        by_clips = by_seed @ self.covariance @ by_seed.T
        luck = (np.trace(by_clips) - by_clips.sum() / count) / (count - 1)  # variance of equally good runs
        spread = float(values.var(ddof=1))
        left = spread - luck
        return left / count if left > NOTHING else 0.0, spread / count


class Interval(NamedTuple):
    """A value with its 95 % interval, and its standard errors over clips and over seeds (NaN with a single seed)."""

    value: float
    low: float
    high: float
    clips: float
    seeds: float

    def scaled(self, factor: float) -> Interval:
        """The same in another unit, such as percent; a negative factor swaps the bounds."""
        bounds = (self.low, self.high) if factor >= 0 else (self.high, self.low)
        low, high = (factor * bound for bound in bounds)
        return Interval(factor * self.value, low, high, abs(factor) * self.clips, abs(factor) * self.seeds)


class Difference(NamedTuple):
    """The difference of two means with its interval, the p-value of its t test, and the degrees of freedom of both."""

    interval: Interval
    p: float
    freedom: float


def score_distribution(scores: RunScores, draws: int = DRAWS, seed: int = 0) -> ScoreDistribution:
    """Estimate how scores vary with the test clips, in closed form where there is one, else by a bootstrap.

    Both estimates are too small by a factor of (n - 1) / n with n clusters of equal size, which is corrected. Where
    sizes differ, n is the number of clusters of equal size that would carry as much information (Kish, 1965).
    """
    values, clusters, counts = scores.values(), scores.size, scores.counts()
    effective = float(counts.sum() ** 2 / (counts**2).sum()) if counts.any() else 0.0
    none, nothing = np.zeros((len(values), len(values))), np.zeros(len(values))
    unknown = ScoreDistribution(values, none * math.nan, none, clusters, effective, nothing)
    if effective < FEWEST:
        return unknown
    residuals = residuals_of(scores)
    if residuals is not None:
        covariance = np.asarray(residuals @ residuals.T) * effective / (effective - 1)
        return ScoreDistribution(values, covariance, none, clusters, effective, nothing)
    resamples = bootstrap(scores.resampler(), clusters, draws, seed)
    resamples = resamples[np.isfinite(resamples).all(1)]
    if len(resamples) < draws / 2:  # for instance target trials of two speakers only
        return unknown
    covariance = np.atleast_2d(np.cov(resamples, rowvar=False)) * effective / (effective - 1)
    bias = (resamples.mean(0) - values) * scores.optimistic
    excess = excess_of(scores, resamples.std(0))
    return ScoreDistribution(values, covariance + np.outer(bias, bias), excess, clusters, effective, bias)


def bootstrap(resample: Resampler, clusters: int, draws: int, seed: int = 0) -> Floats:
    """Scores (draws, M) of bootstrap resamples; the same for the same seed, with any number of threads."""

    def batch_of(batch: int) -> Floats:
        count = min(TOGETHER, draws - batch * TOGETHER)
        drawn = np.random.default_rng([seed, batch]).integers(0, clusters, (count, clusters))
        flat = (drawn + clusters * np.arange(count)[:, None]).ravel()
        return resample(np.bincount(flat, minlength=count * clusters).reshape(count, clusters))

    with ThreadPoolExecutor(2) as threads:
        return np.concatenate(list(threads.map(batch_of, range(-(-draws // TOGETHER)))))


def mean_interval(scores: ScoreDistribution, columns: Sequence[int], bounded: bool = True) -> Interval:
    """The mean of some columns, the seeds of one upstream, with an interval by the score method of Wilson (1927).

    bounded: the value cannot exceed 1; otherwise, as for word error rates, its variance grows with it. At 0 and 1,
    where nothing varies, each cluster counts as one clip.
    """
    value = float(scores.values[columns].mean())
    clips, seeds, freedom = _variances(scores, [one_hot(scores, columns)])
    total = clips + (0.0 if math.isnan(seeds) else seeds)
    if math.isnan(total):
        return Interval(value, math.nan, math.nan, math.nan, math.nan)
    middle = value - float(scores.bias[columns].mean())
    low, high = _wilson(min(1.0, middle) if bounded else middle, total, t_quantile(freedom), scores.clusters, bounded)
    return Interval(value, low, high, math.sqrt(clips), math.sqrt(seeds))


def _wilson(value: float, variance: float, quantile: float, clusters: int, bounded: bool) -> tuple[float, float]:
    """The two solutions x of (value - x)^2 = quantile^2 * variance at x."""
    reach = quantile**2
    spread = value * (1 - value) if bounded else value
    if variance > NOTHING and spread > 0:
        size = spread / variance  # number of independent clips with the same variance
    else:
        size, spread, bounded = float(clusters), max(0.0, value * (1 - value)), True
    shrink = 1 + reach / size if bounded else 1.0
    middle = (value + reach / (2 * size)) / shrink
    half = math.sqrt(reach * spread / size + (reach / (2 * size)) ** 2) / shrink
    return float(max(0.0, middle - half)), float(middle + half)


def paired_difference(
    scores: ScoreDistribution, first: Sequence[int], second: Sequence[int], bounded: bool = True
) -> Difference:
    """The mean of the first columns minus that of the second ones, each over the seeds of one upstream, with a t test.

    bounded: scores lie between 0 and 1, and the interval therefore within -1 and 1. Where every run of one upstream
    equals a run of the other, the two are the same and the interval has no width.
    """
    difference = linear_difference(scores, [one_hot(scores, first), -one_hot(scores, second)])
    interval, p = difference.interval, difference.p
    if _identical(scores, first, second):
        interval, p = interval._replace(low=0.0, high=0.0), 1.0
    if bounded and not math.isnan(interval.low):
        interval = interval._replace(low=max(interval.low, -1.0), high=min(interval.high, 1.0))
    return Difference(interval, p, difference.freedom)


def linear_difference(scores: ScoreDistribution, groups: Sequence[Floats], value: float | None = None) -> Difference:
    """The sum over groups of a mean over seeds, with a t test of whether it is 0.

    groups: matrices (K, M); each of the K rows gives what is averaged, for one seed, as a weighted sum of the values.
    value: of a statistic that these weights linearise (delta method); None: the sum itself. Where all clusters agree so
    that nothing varies, the test is a sign test over clusters.
    """
    if value is None:
        value = float(sum((rows @ scores.values).mean() for rows in groups))
    clips, seeds, freedom = _variances(scores, groups)
    total = clips + (0.0 if math.isnan(seeds) else seeds)
    if total <= NOTHING and abs(value) > 1e-12:
        opposite = 1 - 0.025 ** (1 / scores.clusters)  # at most this share of clusters may have the opposite sign
        half, p = 2 * opposite * abs(value), 2.0 ** (1 - scores.clusters)
    else:
        half, p = t_quantile(freedom) * math.sqrt(total), p_value(value, total, freedom)
    return Difference(Interval(value, value - half, value + half, math.sqrt(clips), math.sqrt(seeds)), p, freedom)


def one_hot(scores: ScoreDistribution, columns: Sequence[int]) -> Floats:
    """Weights (K, M) that select one column for each of K seeds."""
    return np.asarray(np.eye(len(scores.values))[list(columns)])


def _identical(scores: ScoreDistribution, first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether each run of one upstream has an equal run of the other; then their seeds cannot make a difference."""
    if sorted(scores.values[first]) != sorted(scores.values[second]):
        return False
    identity = np.eye(len(scores.values))
    return all(scores.variance(identity[one] - identity[other]) == 0 for one, other in zip(first, second, strict=False))


def p_value(value: float, variance: float, freedom: float) -> float:
    """The two-sided p-value of a t test of whether a value is 0.

    It is NaN where the variance is not known, and 1 where nothing varies, in which case the value is 0 itself.
    """
    from scipy.special import stdtr

    if math.isnan(variance):
        return math.nan
    if variance <= NOTHING:
        return 1.0
    return float(2 * stdtr(freedom, -abs(value) / math.sqrt(variance)))


def _variances(scores: ScoreDistribution, groups: Sequence[Floats]) -> tuple[float, float, float]:
    """Variances over clips and over seeds (NaN if every group has one), and degrees of freedom (Satterthwaite, 1946).

    groups: as for `linear_difference`.
    """
    weights = np.sum([rows.mean(0) for rows in groups], 0)
    clips = scores.variance(weights)
    several = [rows for rows in groups if len(rows) > 1]
    single = len(groups) - len(several)
    parts, seeds = [(clips, scores.effective - 1)], 0.0
    for rows in several:
        left, whole = scores.seed_variance(rows)
        if single:  # a group with one seed is assumed to vary over seeds as the others do, test clips included
            left = whole = whole * (1 + len(rows) * single / len(several))
        seeds += left
        # A variance over few seeds is itself uncertain, so all of it counts here, whatever the test clips explain.
        parts.append((whole, len(rows) - 1))
    weighed = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
    least = max(1.0, min(freedom for _, freedom in parts))
    freedom = max(least, (clips + seeds) ** 2 / weighed) if weighed > 0 else max(1.0, scores.effective - 1)
    return clips, seeds if several else math.nan, freedom


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975)) if math.isfinite(freedom) else math.nan


def mcnemar(one: int, other: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947) from the numbers of the two kinds of discordant pairs."""
    from scipy.special import bdtr

    few, both = min(one, other), one + other
    return min(1.0, 2 * float(bdtr(few, both, 0.5))) if both else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple tests by Holm's method (1979), in the order given; NaN is no test and stays."""
    known = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, highest = list(p_values), 0.0
    for rank, place in enumerate(sorted(known, key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
