"""How sure scores and their differences are: intervals and tests, from values of runs and their covariance.

Two things were drawn at random: the test clips, in clusters that depend on each other, and the seeds of the runs. The
covariance over test clips is that of a bootstrap over clusters, or its closed form where there is one. The variance
over seeds is what their values differ by beyond what the test clips alone would make them differ; both are added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from benchmark.statistics.resampling import Floats, Resampler, Sample, Shares, Trials

DRAWS = 10_000  # of the bootstrap
FEWEST = 1.05  # clusters of equal size, below which nothing can be told
NOTHING = 1e-18  # a variance that is rounding alone
TOGETHER = 250  # draws that are made at once, so that they stay near the processor


class Estimates(NamedTuple):
    """Values (M,) of runs; their covariance (M, M) over test data; what of it is too much, see `Trials.excess`.

    clusters: how many were resampled, and effective: how many of equal size would tell as much. bias: (M,) by how much
    draws lie beside the values, where that tells how much these lie beside what more data would give; else 0.
    """

    values: Floats
    covariance: Floats
    excess: Floats
    clusters: int
    effective: float
    bias: Floats

    def variance(self, weights: Floats) -> float:
        """Of a weighted sum (M,) of the values, over test data; NaN where there are fewer than two clusters."""
        whole = float(weights @ self.covariance @ weights)
        # What is too much is at most two thirds: were nothing but pairs of clusters to differ, they would count thrice.
        found = max(whole - float(weights @ self.excess @ weights), whole / 3)
        return 0.0 if found <= NOTHING else found

    def seed_variance(self, columns: Sequence[int]) -> tuple[float, float]:
        """Of the mean of two runs or more, over their seeds, and what it is with the luck of the test clips."""
        count = len(columns)
        by_clips = self.covariance[np.ix_(columns, columns)]
        luck = (np.trace(by_clips) - by_clips.sum() / count) / (count - 1)  # of runs that are equally good
        spread = float(self.values[columns].var(ddof=1))
        left = spread - luck
        return left / count if left > NOTHING else 0.0, spread / count


class Interval(NamedTuple):
    """A value with its 95 % interval, and its standard errors over clips and over seeds, NaN where there is one."""

    value: float
    low: float
    high: float
    clips: float
    seeds: float

    def scaled(self, factor: float) -> Interval:
        """In other units, such as percent."""
        return Interval(*(factor * part for part in self))


class Difference(NamedTuple):
    """What one upstream has more than another, with its interval and the probability of as much by chance.

    freedom: degrees of, of the t distribution that both rest on.
    """

    interval: Interval
    p: float
    freedom: float


def estimate(sample: Sample, draws: int = DRAWS, seed: int = 0) -> Estimates:
    """Values and covariance of the runs of a sample, by closed form for shares of clips, else by so many draws.

    Both fall short by a factor of (n - 1) / n with n clusters of equal size; where sizes differ, n is the number of
    equal ones that would tell as much (Kish, 1965).
    """
    values, clusters, counts = sample.values(), sample.size, sample.counts()
    effective = float(counts.sum() ** 2 / (counts**2).sum()) if counts.any() else 0.0
    none, nothing = np.zeros((len(values), len(values))), np.zeros(len(values))
    unknown = Estimates(values, none * math.nan, none, clusters, effective, nothing)
    if effective < FEWEST:
        return unknown
    if isinstance(sample, Shares) and sample.closed:
        covariance = sample.covariance() * effective / (effective - 1)
        return Estimates(values, covariance, none, clusters, effective, nothing)
    found = resampled(sample.resampler(), clusters, draws, seed)
    found = found[np.isfinite(found).all(1)]
    if len(found) < draws / 2:  # such as trials of both kinds by two speakers
        return unknown
    covariance = np.atleast_2d(np.cov(found, rowvar=False)) * effective / (effective - 1)
    excess = sample.excess(found.std(0)) if isinstance(sample, Trials) else none
    bias = (found.mean(0) - values) * sample.optimistic
    return Estimates(values, covariance + np.outer(bias, bias), excess, clusters, effective, bias)


def resampled(resample: Resampler, clusters: int, draws: int, seed: int = 0) -> Floats:
    """Values (draws, M) of bootstrap samples; the same for the same seed, however many threads make them."""

    def some(batch: int) -> Floats:
        count = min(TOGETHER, draws - batch * TOGETHER)
        drawn = np.random.default_rng([seed, batch]).integers(0, clusters, (count, clusters))
        flat = (drawn + clusters * np.arange(count)[:, None]).ravel()
        return resample(np.bincount(flat, minlength=count * clusters).reshape(count, clusters))

    with ThreadPoolExecutor(2) as threads:
        return np.concatenate(list(threads.map(some, range(-(-draws // TOGETHER)))))


def interval(found: Estimates, columns: Sequence[int], bounded: bool = True) -> Interval:
    """Of the mean over the seeds of one upstream, by the score method of Wilson (1927).

    bounded: the value cannot exceed 1; else, as for error rates of texts, its variance grows with it. At 0 and 1, where
    nothing varies, each cluster stands for one clip.
    """
    value = float(found.values[columns].mean())
    clips, seeds, freedom = _parts(found, [(columns, 1.0)])
    total = clips + (0.0 if math.isnan(seeds) else seeds)
    if math.isnan(total):
        return Interval(value, math.nan, math.nan, math.nan, math.nan)
    middle = value - float(found.bias[columns].mean())
    low, high = _bounds(min(1.0, middle) if bounded else middle, total, quantile(freedom) ** 2, found.clusters, bounded)
    return Interval(value, low, high, math.sqrt(clips), math.sqrt(seeds))


def _bounds(value: float, variance: float, reach: float, clusters: int, bounded: bool) -> tuple[float, float]:
    """Where (value - x)^2 = reach * variance at x. reach: squared quantile."""
    spread = value * (1 - value) if bounded else value
    if variance > NOTHING and spread > 0:
        size = spread / variance  # of clips that would tell as much
    else:
        size, spread, bounded = float(clusters), max(0.0, value * (1 - value)), True
    shrink = 1 + reach / size if bounded else 1.0
    middle = (value + reach / (2 * size)) / shrink
    half = math.sqrt(reach * spread / size + (reach / (2 * size)) ** 2) / shrink
    return float(max(0.0, middle - half)), float(middle + half)


def difference(found: Estimates, first: Sequence[int], second: Sequence[int]) -> Difference:
    """How much more the first has than the second, means over their seeds, with a t test.

    Where every cluster tells the same, it is a test of their signs.
    """
    clips, seeds, freedom = _parts(found, [(first, 1.0), (second, -1.0)])
    value = float(found.values[first].mean() - found.values[second].mean())
    total = clips + (0.0 if math.isnan(seeds) else seeds)
    if total <= NOTHING and abs(value) > 1e-12:
        other = 1 - 0.025 ** (1 / found.clusters)  # at most this share of clusters may tell the opposite
        half, p = 2 * other * abs(value), 2.0 ** (1 - found.clusters)
    else:
        half, p = quantile(freedom) * math.sqrt(total), chance(value, total, freedom)
    told = Interval(value, value - half, value + half, math.sqrt(clips), math.sqrt(seeds))
    return Difference(told, p, freedom)


def chance(value: float, variance: float, freedom: float) -> float:
    """Probability of a value as far from zero or farther, by a t distribution; NaN where the variance is not known.

    1 where nothing varies, which the value then does not either.
    """
    from scipy.special import stdtr

    if math.isnan(variance):
        return math.nan
    if variance <= NOTHING:
        return 1.0
    return float(2 * stdtr(freedom, -abs(value) / math.sqrt(variance)))


def _parts(found: Estimates, groups: Sequence[tuple[Sequence[int], float]]) -> tuple[float, float, float]:
    """Variances over clips and over seeds (NaN with one of each), and degrees of freedom (Satterthwaite, 1946)."""
    weights = np.zeros(len(found.values))
    for columns, sign in groups:
        weights[columns] = sign / len(columns)
    clips = found.variance(weights)
    several = [columns for columns, _ in groups if len(columns) > 1]
    single = len(groups) - len(several)
    parts, seeds = [(clips, found.effective - 1)], 0.0
    for columns in several:
        left, whole = found.seed_variance(columns)
        if single:  # its seed is taken to differ as those of the other one do, all luck included: there is no telling
            left = whole = whole * (1 + len(columns) * single / len(several))
        seeds += left
        # A spread over few seeds is known so badly that all of it counts here, also what is put down to the test clips.
        parts.append((whole, len(columns) - 1))
    weighed = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
    least = max(1.0, min(freedom for _, freedom in parts))
    freedom = max(least, (clips + seeds) ** 2 / weighed) if weighed > 0 else max(1.0, found.effective - 1)
    return clips, seeds if several else math.nan, freedom


def quantile(freedom: float) -> float:
    """97.5 % of a t distribution lies below it."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975)) if math.isfinite(freedom) else math.nan


def mcnemar(one: int, other: int) -> float:
    """Exact two-sided probability of so uneven discordant pairs if both systems are equally good (McNemar, 1947)."""
    from scipy.special import bdtr

    few, both = min(one, other), one + other
    return min(1.0, 2 * float(bdtr(few, both, 0.5))) if both else 1.0


def holm(chances: Sequence[float]) -> list[float]:
    """Adjusted for as many tests as there are, in their order (Holm, 1979); NaN counts as no test and stays."""
    known = [place for place, p in enumerate(chances) if not math.isnan(p)]
    adjusted, highest = list(chances), 0.0
    for rank, place in enumerate(sorted(known, key=lambda place: chances[place])):
        highest = max(highest, min(1.0, (len(known) - rank) * chances[place]))
        adjusted[place] = highest
    return adjusted
