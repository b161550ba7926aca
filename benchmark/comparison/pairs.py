"""Two upstreams, task by task: is the difference real? From records and their outcomes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmark.comparison.disagreements import Disagreements, disagreements_of
from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.intervals import DRAWS, Interval, difference, holm, mcnemar
from benchmark.statistics.outcomes import UNBOUNDED, Outcomes, evidence, scale_of
from benchmark.statistics.resampling import Floats, Shares
from benchmark.tables.leaderboard import leaderboard
from benchmark.tables.ranking import Judged, by_task, chosen, judge

LEVEL = 0.05  # of all tests together
SINGLE = ("accuracy", "micro_f1")


class Side(NamedTuple):
    """What one upstream scored on a task: mean over its seeds, with its interval; 0 seeds where nothing is trained."""

    score: Interval
    seeds: int


class TaskComparison(NamedTuple):
    """Two upstreams on one task.

    difference: of the first to the second, in points. test: how p was found. adjusted: p by Holm's method over all
    tests of the comparison. unit, clusters: what was resampled.
    """

    task: str
    metric: str
    higher: bool
    first: Side
    second: Side
    difference: Interval
    test: str
    p: float
    adjusted: float
    flips: Disagreements
    unit: str
    clusters: int

    @property
    def verdict(self) -> str:
        """Of the first: "better" or "worse" where the adjusted test says so, be it of one seed, else "not resolved"."""
        if not self.adjusted < LEVEL or self.difference.value == 0:
            return "not resolved"
        word = "better" if (self.difference.value > 0) == self.higher else "worse"
        return f"{word}, for one seed" if self.one_seed else word

    @property
    def one_seed(self) -> bool:
        """Whether neither was run with several, so that nothing tells how much another would change."""
        return self.first.seeds == self.second.seeds == 1


class Pair(NamedTuple):
    """Two upstreams on all tasks that both were run on. alone: tasks that only one of them was."""

    first: str
    second: str
    tasks: list[TaskComparison]
    alone: list[str]


def compare(records: Mapping[str, Sequence[Record]], outcomes: Outcomes, draws: int = DRAWS) -> list[Pair]:
    """The first upstream against each other one; records: of each, those of one run on each task.

    Raises UserError where they were tested by different protocols or on different clips, saying which.
    """
    first, *others = records
    sides = {name: by_task(chosen(some, leaderboard(some))) for name, some in records.items()}
    pairs = [_pair(first, other, sides, outcomes, draws) for other in others]
    adjusted = iter(holm([each.p for pair in pairs for each in pair.tasks]))
    return [pair._replace(tasks=[each._replace(adjusted=next(adjusted)) for each in pair.tasks]) for pair in pairs]


def _pair(
    first: str, second: str, sides: Mapping[str, dict[str, list[Record]]], outcomes: Outcomes, draws: int
) -> Pair:
    one, other = sides[first], sides[second]
    shared = [task for task in one if task in other]
    if not shared:
        told = f"{first} on {', '.join(one) or 'none'}; {second} on {', '.join(other) or 'none'}"
        raise UserError(f"{first} and {second} have no task in common ({told}); run both on the same tasks")
    for task in shared:
        refuse_unlike(one[task], other[task], outcomes)
    compared = [_compared(first, second, [*one[task], *other[task]], outcomes, draws) for task in shared]
    return Pair(first, second, compared, sorted(set(one) ^ set(other)))


def refuse_unlike(first: Sequence[Record], second: Sequence[Record], outcomes: Outcomes) -> None:
    """Raise UserError where two upstreams were not asked the same thing on a task."""
    one, other = first[0], second[0]
    where = f"{one.upstream['name']} and {other.upstream['name']} cannot be compared on {one.task['name']}"
    pairs: list[tuple[str, object, object]] = [
        ("protocol", one.protocol, other.protocol),
        ("metric", one.metric, other.metric),
        *((key, one.task.get(key), other.task.get(key)) for key in sorted({*one.task, *other.task})),
        ("fine-tuning", one.features == "finetune", other.features == "finetune"),
        ("--limit", one.limit, other.limit),
        ("folds", sorted({each.fold or "" for each in first}), sorted({each.fold or "" for each in second})),
    ]
    for what, mine, theirs in pairs:
        if mine != theirs:
            raise UserError(f"{where}: their protocols differ in {what}, {mine} and {theirs}; run both in the same way")
    for name, side in ((one.upstream["name"], first), (other.upstream["name"], second)):
        if any(record.test.get(record.metric) is None for record in side):
            raise UserError(
                f"{where}: {name} has no score there: it diverged, or nothing could be scored; leave the task out"
            )
    if {(each.fold, each.selection) for each in first} != {(each.fold, each.selection) for each in second}:
        evidence([*first, *second], outcomes)  # names a clip, where the clips tested are not the same
        raise UserError(
            f"{where}: the test set is the same, but their data differ in audio, labels or training clips (selections"
            f" {one.selection[:12]} and {other.selection[:12]}); run both on the same corpus"
        )


def _compared(first: str, second: str, records: Sequence[Record], outcomes: Outcomes, draws: int) -> TaskComparison:
    judged = judge(records, outcomes, draws)
    columns = [judged.evidence.columns(name) for name in (first, second)]
    for name, some in zip((first, second), columns, strict=True):
        if not some:
            task = records[0].task["name"]
            raise UserError(f"no seed of {name} was run on every fold of {task}; finish it by the same bench run")
    flips = disagreements_of(first, second, records, outcomes)
    found = difference(judged.found, columns[0], columns[1])
    exact = judged.metric in SINGLE and _exact(judged, columns)
    told = found.interval.scaled(scale_of(judged.metric))
    if _same(judged, columns):
        told, found = told._replace(low=0.0, high=0.0), found._replace(p=1.0)
    p = mcnemar(round(flips.gained), round(flips.lost)) if exact else found.p
    trained = records[0].lr is not None
    sides = [Side(judged.interval(some), len(some) if trained else 0) for some in columns]
    return TaskComparison(
        task=records[0].task["name"], metric=judged.metric, higher=judged.higher, first=sides[0], second=sides[1],
        difference=_possible(told, judged.metric), test=_test(judged, exact), p=p,
        adjusted=math.nan, flips=flips, unit=judged.evidence.unit, clusters=judged.found.clusters,
    )  # fmt: skip


def _same(judged: Judged, columns: Sequence[Sequence[int]]) -> bool:
    """Whether each run of one has its equal in the other: then the two are one, whatever their seeds differ by."""
    values = [sorted(judged.found.values[some]) for some in columns]
    alike = all(judged.found.variance(_contrast(judged, pair)) == 0 for pair in zip(*columns, strict=False))
    return values[0] == values[1] and alike


def _contrast(judged: Judged, pair: tuple[int, int]) -> Floats:
    weights = np.zeros(len(judged.found.values))
    weights[list(pair)] = 1.0, -1.0
    return weights


def _possible(told: Interval, metric: str) -> Interval:
    """No more than all there is between nothing and everything right."""
    whole = math.inf if metric in UNBOUNDED else scale_of(metric)
    if math.isnan(told.low):
        return told
    return told._replace(low=max(told.low, -whole), high=min(told.high, whole))


def _exact(judged: Judged, columns: Sequence[Sequence[int]]) -> bool:
    """Whether the pairs are independent clips, each answered once by both."""
    sample = judged.evidence.sample
    single = isinstance(sample, Shares) and bool((sample.sizes == 1).all())
    return single and all(len(some) == 1 for some in columns)


def _test(judged: Judged, exact: bool) -> str:
    """Over clusters, McNemar's statistic is a t test of their sums of discordant pairs."""
    if exact:
        return "McNemar, exact"
    kind = "McNemar" if judged.metric in SINGLE else "paired bootstrap"
    return f"{kind} over {judged.evidence.unit}"
