"""How far two systems lie apart, and how sure that is: pure functions of outcomes per clip or trial.

Two things were drawn at random: the test clips, and the seeds that the systems were pre-trained with. The error of the
first is that of a bootstrap over clusters of clips, all clips of a speaker being one; the error of the second is that
of a jackknife over seeds, which for a plain difference is the spread of its values by seed. Their squares are added.
Luck of one seed with one clip is in both, so that intervals are rather too wide than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.statistics.intervals import Interval
from benchmark.statistics.resampling import ranking

DRAWS = 10_000  # of the bootstrap
TOGETHER = 256  # draws whose trials are weighted at once, so that they stay near the processor
PACKED = 32  # bits that hold a sum of weights of non-target trials

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Statistic = Callable[[Floats, Floats], Floats]


class Sample(Protocol):
    """What systems made of the same test data of one task."""

    @property
    def names(self) -> frozenset[str]:
        """Clusters that are drawn as wholes, also across tasks."""

    def points(self) -> Floats:
        """Values (A, K) by system and pre-training seed, of the data as they are; rates as fractions."""

    def drawn(self, places: Mapping[str, int], weights: Integers) -> Floats:
        """Values (R, A, K) with clusters weighted by (R, J), each in its column; NaN where there is none."""


class Clips(NamedTuple):
    """Sums of marks over sums of sizes: the share of clips that are right, or errors by words.

    clusters: N names. marks: (A, K, N) by system and pre-training seed, such as the share in [0, 1] of a clip's answers
    that are right, or its word errors. sizes: (A, K, N) or (N,), such as its words; None: 1 each.
    """

    clusters: Sequence[str]
    marks: Floats
    sizes: Floats | None = None

    @property
    def names(self) -> frozenset[str]:
        """See `Sample`."""
        return frozenset(self.clusters)

    def points(self) -> Floats:
        """See `Sample`."""
        if self.sizes is None:
            return np.asarray(self.marks.mean(-1))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.marks.sum(-1) / self.sizes.sum(-1))

    def drawn(self, places: Mapping[str, int], weights: Integers) -> Floats:
        """See `Sample`."""
        own = [places[name] for name in self.clusters]
        sizes = np.array(np.ones(len(own)) if self.sizes is None else self.sizes, ndmin=3)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(_totals(self.marks, own, weights) / _totals(sizes, own, weights))


class Trials(NamedTuple):
    """Equal error rates, as `downstreams.metrics.eer` defines them.

    Speakers are drawn, on both sides: a trial of speakers drawn v and w times counts v w times, one of a single speaker
    v times, since a speaker who is drawn twice is not compared with himself as if he were two. What two speakers have
    by themselves, such as the noise of their trial, is so counted thrice (Owen, 2007), which widens intervals a little.

    enroll, test: N names of the clusters of the two clips. targets: (N,) true for one speaker. scores: (A, K, P, N) by
    system, pre-training seed and head; rates are means over the P heads.
    """

    enroll: Sequence[str]
    test: Sequence[str]
    targets: NDArray[np.bool_]
    scores: Floats

    @property
    def names(self) -> frozenset[str]:
        """See `Sample`."""
        return frozenset(self.enroll) | frozenset(self.test)

    def points(self) -> Floats:
        """See `Sample`."""
        return self.drawn(dict.fromkeys(self.names, 0), np.ones((1, 1), np.int64))[0]

    def drawn(self, places: Mapping[str, int], weights: Integers) -> Floats:
        """See `Sample`."""
        sides = [np.array([places[name] for name in side]) for side in (self.enroll, self.test)]
        alone = np.array([one == other for one, other in zip(self.enroll, self.test, strict=True)])
        rows = self.scores.reshape(-1, len(alone))
        rankings = [ranking(row) for row in rows]
        parts = []
        for start in range(0, len(weights), TOGETHER):
            first, second = (np.ascontiguousarray(weights[start : start + TOGETHER].T)[side] for side in sides)
            packed = np.where(alone[:, None], first, first * second) << (PACKED * self.targets)[:, None]
            parts.append(np.stack([_equal_error_rates(packed, *each) for each in rankings], -1))
        return np.concatenate(parts).reshape(-1, *self.scores.shape[:3]).mean(-1)


class Drawn(NamedTuple):
    """Values (2, K, T) by system, seed and task, those of each draw (R, 2, K, T), and the clusters of each task."""

    points: Floats
    draws: Floats
    clusters: tuple[frozenset[str], ...]

    def only(self, *tasks: int) -> Drawn:
        """Those of some tasks."""
        some = list(tasks)
        return Drawn(self.points[..., some], self.draws[..., some], tuple(self.clusters[task] for task in some))


def word_of(found: Interval) -> str:
    """Whether the first system is shown to be better than the second, or the opposite is, or neither."""
    word = "shown" if found.low > 0 else "opposite" if found.high < 0 else "not resolved"
    return f"{word} for one seed" if math.isnan(found.seeds) and word != "not resolved" else word


def difference(first: Floats, second: Floats) -> Floats:
    """Mean over tasks of what the first has more, in percentage points; first, second: accuracies (..., T)."""
    return np.asarray(100 * (first - second).mean(-1))


def gain(first: Floats, second: Floats) -> Floats:
    """Mean over tasks of the relative gain in percent, as Gong et al. (2022) count it; first, second: (..., T)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100 * (first / second - 1).mean(-1))


def fewer(first: Floats, second: Floats) -> Floats:
    """Mean over tasks of what the first has less, in percentage points; first, second: error rates (..., T)."""
    return difference(second, first)


def reduction(first: Floats, second: Floats) -> Floats:
    """Mean over tasks of the relative reduction in percent; first, second: error rates (..., T)."""
    return -gain(first, second)


def draw(tasks: Sequence[Sample], draws: int = DRAWS, seed: int = 0) -> Drawn:
    """Values of both systems on the data as they are, and on so many bootstrap samples of their clusters."""
    names = sorted(frozenset().union(*(task.names for task in tasks)))
    places = {name: number for number, name in enumerate(names)}
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    points = np.stack([task.points() for task in tasks], -1)
    drawn = np.stack([task.drawn(places, weights) for task in tasks], -1)
    return Drawn(points, drawn, tuple(task.names for task in tasks))


def interval(drawn: Drawn, statistic: Statistic) -> Interval:
    """The statistic of values averaged over seeds, with a t interval by Welch (1947) and Satterthwaite (1946)."""
    seeds = drawn.points.shape[1]
    value = float(statistic(*drawn.points.mean(1)))
    clusters = len(frozenset().union(*drawn.clusters))
    clips = _clip_variance(statistic(*np.moveaxis(drawn.draws.mean(2), 1, 0)), clusters)
    spread = _seed_variance(drawn.points, statistic) if seeds > 1 else 0.0
    half = _quantile([(clips, clusters - 1), (spread, seeds - 1)]) * math.sqrt(clips + spread)
    return Interval(value, value - half, value + half, math.sqrt(clips), math.sqrt(spread) if seeds > 1 else math.nan)


def _totals(values: Floats, places: Sequence[int], weights: Integers) -> Floats:
    """Sums (R, A, K) of values (A, K, N) over clips, each weighted by its cluster's column of (R, J)."""
    sums = np.zeros((weights.shape[1], values[..., 0].size))
    np.add.at(sums, places, values.reshape(-1, values.shape[-1]).T)
    return np.asarray((weights @ sums).reshape(-1, *values.shape[:2]))


def _equal_error_rates(packed: Integers, order: Integers, accepted: Integers) -> Floats:
    """Rates (R,) of trials with weights (N, R), those of targets shifted by PACKED; NaN where one kind is missing."""
    sums = np.concatenate([np.zeros((1, packed.shape[1]), np.int64), packed[order].cumsum(0)])
    targets, others = _unpacked(sums[-1])
    draws = np.arange(packed.shape[1])
    low, high = np.zeros_like(draws), np.full_like(draws, len(accepted) - 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        hits, alarms = _unpacked(sums[accepted[middle], draws])
        crossed = (targets - hits) * others <= alarms * targets  # misses are as rare as false alarms, or rarer
        low, high = np.where(crossed, low, middle), np.where(crossed, middle, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        (missed, alarmed), (rarer, more) = (
            (1 - hits / targets, alarms / others)
            for hits, alarms in (_unpacked(sums[accepted[place], draws]) for place in (low, high))
        )
        share = (missed - alarmed) / (missed - alarmed + more - rarer)
        return np.asarray(alarmed + share * (more - alarmed))


def _unpacked(sums: Integers) -> tuple[Integers, Integers]:
    return sums >> PACKED, sums & ((1 << PACKED) - 1)


def _clip_variance(values: Floats, clusters: int) -> float:
    """Of the draws that a statistic could be had of; NaN where there are fewer than two clusters."""
    finite = values[np.isfinite(values)]
    if clusters < 2 or len(finite) < 2:
        return math.nan
    return float(finite.var(ddof=1)) * clusters / (clusters - 1)  # a resample is as much too narrow as its spread


def _seed_variance(points: Floats, statistic: Statistic) -> float:
    """Squared standard error over the K seeds of (2, K, T), from the pseudo-values of a jackknife (Tukey, 1958)."""
    seeds = points.shape[1]
    whole = statistic(*points.mean(1))
    without = np.stack([statistic(*np.delete(points, seed, 1).mean(1)) for seed in range(seeds)])
    with np.errstate(invalid="ignore"):  # a gain over nothing right is infinite
        return float((seeds * whole - (seeds - 1) * without).var(ddof=1)) / seeds


def _quantile(parts: Sequence[tuple[float, int]]) -> float:
    """97.5 % quantile of t, with the degrees of freedom of a sum of variances that have some each."""
    from scipy.special import stdtrit

    total = sum(variance for variance, _ in parts)
    weights = sum(variance**2 / freedom for variance, freedom in parts if freedom > 0)
    return float(stdtrit(total**2 / weights, 0.975)) if weights > 0 else math.nan if math.isnan(total) else 0.0
