"""Contrasts of two systems over several tasks and pre-training seeds, by the statistics that all tables share.

A system is one variant of a pre-training. Each of its checkpoints, one for each pre-training seed, is an upstream that
was run on every task with one or more probe seeds. A contrast with one pre-training seed is the paired difference of
two upstreams, as `bench compare` has it. With several, the checkpoints of the same seed form pairs, the scores of a
checkpoint are averaged over probe seeds, and the variance over pairs is that over pre-training seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from benchmark.statistics.intervals import (
    DRAWS,
    Interval,
    ScoreDistribution,
    linear_difference,
    one_hot,
    paired_difference,
    score_distribution,
)
from benchmark.statistics.outcomes import TaskOutcomes
from benchmark.statistics.resampling import Floats, RunScores, SeveralTasks


class Statistic(NamedTuple):
    """A statistic of two systems' scores: its value, and its derivatives by the scores (T,) of both on each task."""

    value: float
    by_first: Floats
    by_second: Floats


# Maps the mean scores (T,) of both systems, as fractions, to a statistic.
StatisticFunction = Callable[[Floats, Floats], Statistic]


def point_gain(first: Floats, second: Floats) -> Statistic:
    """By how many percentage points the first system's accuracies are higher, on average over tasks."""
    weights = np.full(len(first), 100 / len(first))
    return Statistic(float(100 * (first - second).mean()), weights, -weights)


def relative_gain(first: Floats, second: Floats) -> Statistic:
    """The relative gain of accuracies in percent, averaged over tasks as by Gong et al. (2022)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = 100 / len(first) / second
        return Statistic(float(100 * (first / second - 1).mean()), weights, -weights * first / second)


def point_reduction(first: Floats, second: Floats) -> Statistic:
    """By how many percentage points the first system's error rates are lower, on average over tasks."""
    value, by_first, by_second = point_gain(first, second)
    return Statistic(-value, -by_first, -by_second)


def relative_reduction(first: Floats, second: Floats) -> Statistic:
    """The relative reduction of error rates in percent, averaged over tasks."""
    value, by_first, by_second = relative_gain(first, second)
    return Statistic(-value, -by_first, -by_second)


class Contrast(NamedTuple):
    """Two systems on one or more tasks.

    tasks: the outcomes of both systems on each. first, second: the upstreams of each, one for each pre-training seed; a
    system without pre-training is the same upstream for every seed. distribution: the scores of all tasks.
    """

    tasks: Sequence[TaskOutcomes]
    first: Sequence[str]
    second: Sequence[str]
    distribution: ScoreDistribution

    def means(self) -> Floats:
        """Mean scores (2, T) of both systems, over pre-training seeds and probe seeds, as fractions."""
        values = self.distribution.values
        sides = (self.first, self.second)
        return np.array(
            [
                [np.mean([values[self.columns(task, name)].mean() for name in side]) for task in range(len(self.tasks))]
                for side in sides
            ]
        )

    def columns(self, task: int, upstream: str) -> list[int]:
        """The columns of the distribution that an upstream has for a task, one for each probe seed."""
        start = [0, *accumulate(len(outcomes.runs) for outcomes in self.tasks)][task]
        return [start + column for column in self.tasks[task].columns(upstream)]


def make_contrast(
    tasks: Sequence[TaskOutcomes], first: Sequence[str], second: Sequence[str], draws: int = DRAWS
) -> Contrast:
    """A contrast whose scores are resampled together, because tasks share clusters such as speakers."""
    scores: RunScores = tasks[0].scores
    if len(tasks) > 1:
        names = sorted({name for task in tasks for name in task.clusters})
        numbers = {name: number for number, name in enumerate(names)}
        clusters = [np.array([numbers[name] for name in task.clusters]) for task in tasks]
        scores = SeveralTasks([task.scores for task in tasks], clusters, len(names))
    return Contrast(tasks, first, second, score_distribution(scores, draws))


def contrast_interval(contrast: Contrast, function: StatisticFunction, bounded: bool = True) -> Interval:
    """A statistic of a contrast with its 95 % interval; a relative one is linearised (delta method).

    bounded: whether all scores lie between 0 and 1; word error rates do not.
    """
    statistic, distribution = function(*contrast.means()), contrast.distribution
    if not np.isfinite([*statistic.by_first, *statistic.by_second]).all():  # a gain over nothing right is infinite
        return Interval(statistic.value, math.nan, math.nan, math.nan, math.nan)
    if len(set(contrast.first)) > 1 or len(set(contrast.second)) > 1:
        return linear_difference(distribution, [_by_pretraining_seed(contrast, statistic)], statistic.value).interval
    first, second = contrast.first[0], contrast.second[0]
    if len(contrast.tasks) == 1 and function in (point_gain, point_reduction):
        sign = 100.0 if function is point_gain else -100.0
        columns = contrast.columns(0, first), contrast.columns(0, second)
        return paired_difference(distribution, *columns, bounded=bounded).interval.scaled(sign)
    groups = [
        weight * one_hot(distribution, contrast.columns(task, name))
        for name, weights in ((first, statistic.by_first), (second, statistic.by_second))
        for task, weight in enumerate(weights)
    ]
    return linear_difference(distribution, groups, statistic.value).interval


def _by_pretraining_seed(contrast: Contrast, statistic: Statistic) -> Floats:
    """Weights (K, M) of all scores, one row for each pre-training seed."""
    rows = np.zeros((len(contrast.first), len(contrast.distribution.values)))
    for row, *pair in zip(rows, contrast.first, contrast.second, strict=True):
        for name, weights in zip(pair, (statistic.by_first, statistic.by_second), strict=True):
            for task, weight in enumerate(weights):
                columns = contrast.columns(task, name)
                row[columns] += weight / len(columns)
    return rows


def verdict_word(interval: Interval, seeds: int) -> str:
    """Whether the interval shows that the first system is better, or the opposite, or neither.

    seeds: of pre-training; with a single one the interval leaves out how much another would differ.
    """
    if not (interval.low > 0 or interval.high < 0):
        return "not resolved"
    word = "shown" if interval.low > 0 else "opposite"
    return word if seeds > 1 else f"{word} for one seed"
