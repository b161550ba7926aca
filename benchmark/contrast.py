"""How far two systems lie apart, and how sure that is: pure functions of outcomes per clip.

Two things were drawn at random: the test clips, and the seeds that the systems were pre-trained with. The error of the
first is that of a bootstrap over clusters of clips, all clips of a speaker being one; the error of the second is that
of a jackknife over seeds, which for a plain difference is the spread of its values by seed. Their squares are added.
Luck of one seed with one clip is in both, so that intervals are rather too wide than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000  # of the bootstrap

Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], Floats]


class Paired(NamedTuple):
    """What two systems made of the same test clips of one task.

    clusters: N names; clips of one cluster are drawn together, also across tasks. right: (2, K, N) shares in [0, 1] of
    a clip's answers that are right, by system and pre-training seed.
    """

    clusters: Sequence[str]
    right: Floats


class Interval(NamedTuple):
    """A value with its 95 % confidence interval, and the standard errors by clips and by seeds (NaN with one seed)."""

    value: float
    low: float
    high: float
    clips: float
    seeds: float

    @property
    def verdict(self) -> str:
        """Whether the first system is shown to be above the second, or the opposite is, or neither."""
        word = "shown" if self.low > 0 else "opposite" if self.high < 0 else "not resolved"
        return f"{word} for one seed" if math.isnan(self.seeds) and word != "not resolved" else word


class Drawn(NamedTuple):
    """Accuracies (2, K, T) by system, seed and task, those of each draw (R, 2, K, T), and the clusters of each task."""

    points: Floats
    draws: Floats
    clusters: tuple[frozenset[str], ...]

    def only(self, task: int) -> Drawn:
        """Those of one task."""
        return Drawn(self.points[..., [task]], self.draws[..., [task]], (self.clusters[task],))


def difference(first: Floats, second: Floats) -> Floats:
    """Mean over tasks of the difference in percentage points; first, second: accuracies (..., T)."""
    return np.asarray(100 * (first - second).mean(-1))


def gain(first: Floats, second: Floats) -> Floats:
    """Mean over tasks of the relative gain in percent, as Gong et al. (2022) count it; first, second: (..., T)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100 * (first / second - 1).mean(-1))


def draw(tasks: Sequence[Paired], draws: int = DRAWS, seed: int = 0) -> Drawn:
    """Accuracies of both systems on the clips as they are, and on so many bootstrap samples of their clusters."""
    names = sorted({name for task in tasks for name in task.clusters})
    place = {name: number for number, name in enumerate(names)}
    weights = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    points = np.stack([task.right.mean(-1) for task in tasks], -1)
    drawn = [_accuracies([place[name] for name in task.clusters], task.right, weights) for task in tasks]
    return Drawn(points, np.stack(drawn, -1), tuple(frozenset(task.clusters) for task in tasks))


def interval(drawn: Drawn, statistic: Statistic) -> Interval:
    """The statistic of accuracies averaged over seeds, with a t interval by Welch (1947) and Satterthwaite (1946)."""
    seeds = drawn.points.shape[1]
    value = float(statistic(*drawn.points.mean(1)))
    clusters = len(frozenset().union(*drawn.clusters))
    clips = _clip_variance(statistic(*np.moveaxis(drawn.draws.mean(2), 1, 0)), clusters)
    spread = _seed_variance(drawn.points, statistic) if seeds > 1 else 0.0
    half = _quantile([(clips, clusters - 1), (spread, seeds - 1)]) * math.sqrt(clips + spread)
    return Interval(value, value - half, value + half, math.sqrt(clips), math.sqrt(spread) if seeds > 1 else math.nan)


def _accuracies(places: list[int], right: Floats, weights: NDArray[np.int64]) -> Floats:
    """Accuracies (R, 2, K) of clusters weighted by (R, J); NaN for a draw without a clip of this task."""
    systems, seeds, clips = right.shape
    sums = np.zeros((weights.shape[1], systems * seeds + 1))
    np.add.at(sums, places, np.concatenate([right.reshape(-1, clips), np.ones((1, clips))]).T)
    totals = weights @ sums
    with np.errstate(invalid="ignore"):
        return np.asarray(totals[:, :-1] / totals[:, -1:]).reshape(-1, systems, seeds)


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
