"""Compare two upstreams task by task with paired tests, from records and their outcomes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmark.comparison.disagreements import Disagreements, disagreements_of
from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.intervals import DRAWS, Interval, holm, mcnemar
from benchmark.statistics.outcomes import Outcomes, ScoredTask, collect_outcomes, score_task
from benchmark.statistics.resampling import Ratios
from benchmark.tables.leaderboard import leaderboard
from benchmark.tables.ranking import group_by_task, leaderboard_records

SIGNIFICANCE = 0.05  # significance level of all tests together
ONE_LABEL_METRICS = ("accuracy", "micro_f1")


class UpstreamScore(NamedTuple):
    """An upstream's score on a task: the mean over its seeds with its interval. seeds: 0 if the head is not trained."""

    score: Interval
    seeds: int


class TaskComparison(NamedTuple):
    """Two upstreams on one task.

    difference: score of the first minus score of the second, in points. test: the name of the test that gave p.
    adjusted: p adjusted by Holm's method for all tests of the comparison. unit, clusters: what was resampled, such as
    "speakers", and how many there are.
    """

    task: str
    metric: str
    higher: bool
    first: UpstreamScore
    second: UpstreamScore
    difference: Interval
    test: str
    p: float
    adjusted: float
    disagreements: Disagreements
    unit: str
    clusters: int

    @property
    def verdict(self) -> str:
        """Whether the first upstream is "better" or "worse" (", for one seed" may follow), or "not resolved".

        It is "not resolved" unless the adjusted p is below SIGNIFICANCE.
        """
        if not self.adjusted < SIGNIFICANCE or self.difference.value == 0:
            return "not resolved"
        word = "better" if (self.difference.value > 0) == self.higher else "worse"
        return f"{word}, for one seed" if self.one_seed else word

    @property
    def one_seed(self) -> bool:
        """Whether both were run with a single seed, so that the variation between seeds is unknown."""
        return self.first.seeds == self.second.seeds == 1


class Pair(NamedTuple):
    """Two upstreams on all tasks that both were run on. alone: tasks that only one of them was run on."""

    first: str
    second: str
    tasks: list[TaskComparison]
    alone: list[str]


def compare_upstreams(records: Mapping[str, Sequence[Record]], outcomes: Outcomes, draws: int = DRAWS) -> list[Pair]:
    """Compare the first upstream with each of the others.

    records: the records of each upstream, from one run on each task. Raises UserError if the upstreams were tested with
    different protocols or on different clips; the message names the difference.
    """
    first, *others = records
    sides = {
        name: group_by_task(leaderboard_records(upstream_records, leaderboard(upstream_records)))
        for name, upstream_records in records.items()
    }
    pairs = [_pair(first, other, sides, outcomes, draws) for other in others]
    adjusted = iter(holm([task.p for pair in pairs for task in pair.tasks]))
    return [pair._replace(tasks=[task._replace(adjusted=next(adjusted)) for task in pair.tasks]) for pair in pairs]


def _pair(
    first: str, second: str, sides: Mapping[str, dict[str, list[Record]]], outcomes: Outcomes, draws: int
) -> Pair:
    one, other = sides[first], sides[second]
    shared = [task for task in one if task in other]
    if not shared:
        tasks = f"{first} on {', '.join(one) or 'none'}; {second} on {', '.join(other) or 'none'}"
        raise UserError(f"{first} and {second} have no task in common ({tasks}); run both on the same tasks")
    for task in shared:
        check_comparable(one[task], other[task], outcomes)
    compared = [_compared(first, second, [*one[task], *other[task]], outcomes, draws) for task in shared]
    return Pair(first, second, compared, sorted(set(one) ^ set(other)))


def check_comparable(first: Sequence[Record], second: Sequence[Record], outcomes: Outcomes) -> None:
    """Raise UserError if two upstreams were not tested in the same way and on the same data on a task."""
    one, other = first[0], second[0]
    where = f"{one.upstream['name']} and {other.upstream['name']} cannot be compared on {one.task['name']}"
    pairs: list[tuple[str, object, object]] = [
        ("protocol", one.protocol, other.protocol),
        ("metric", one.metric, other.metric),
        *((key, one.task.get(key), other.task.get(key)) for key in sorted({*one.task, *other.task})),
        ("fine-tuning", one.features == "finetune", other.features == "finetune"),
        ("--limit", one.limit, other.limit),
        ("folds", sorted({record.fold or "" for record in first}), sorted({record.fold or "" for record in second})),
    ]
    for setting, mine, theirs in pairs:
        if mine != theirs:
            raise UserError(
                f"{where}: their protocols differ in {setting}, {mine} and {theirs}; run both in the same way"
            )
    for name, side in ((one.upstream["name"], first), (other.upstream["name"], second)):
        if any(record.test.get(record.metric) is None for record in side):
            raise UserError(
                f"{where}: {name} has no score there: it diverged, or nothing could be scored; leave the task out"
            )
    if {(record.fold, record.selection) for record in first} != {(record.fold, record.selection) for record in second}:
        collect_outcomes([*first, *second], outcomes)  # raises UserError that names a clip if the tested clips differ
        raise UserError(
            f"{where}: the test set is the same, but their data differ in audio, labels or training clips (selections"
            f" {one.selection[:12]} and {other.selection[:12]}); run both on the same corpus"
        )


def _compared(first: str, second: str, records: Sequence[Record], outcomes: Outcomes, draws: int) -> TaskComparison:
    judged = score_task(records, outcomes, draws)
    columns = [judged.outcomes.columns(name) for name in (first, second)]
    for name, runs in zip((first, second), columns, strict=True):
        if not runs:
            task = records[0].task["name"]
            raise UserError(f"no seed of {name} was run on every fold of {task}; finish it by the same bench run")
    disagreements = disagreements_of(first, second, records, outcomes)
    test = judged.difference(first, second)
    exact = judged.metric in ONE_LABEL_METRICS and _exact(judged, columns)
    p = mcnemar(round(disagreements.gained), round(disagreements.lost)) if exact else test.p
    trained = records[0].lr is not None
    sides = [UpstreamScore(judged.interval(runs), len(runs) if trained else 0) for runs in columns]
    return TaskComparison(
        task=records[0].task["name"], metric=judged.metric, higher=judged.higher, first=sides[0], second=sides[1],
        difference=test.interval, test=_test_name(judged, exact), p=p, adjusted=math.nan,
        disagreements=disagreements, unit=judged.outcomes.unit, clusters=judged.distribution.clusters,
    )  # fmt: skip


def _exact(judged: ScoredTask, columns: Sequence[Sequence[int]]) -> bool:
    """Whether the pairs are independent clips with one prediction of each upstream, as the exact test needs."""
    sample = judged.outcomes.scores
    single = isinstance(sample, Ratios) and bool((sample.sizes == 1).all())
    return single and all(len(runs) == 1 for runs in columns)


def _test_name(judged: ScoredTask, exact: bool) -> str:
    """Return the name of the test; over clusters, McNemar's test is a t test of their sums of discordant pairs."""
    if exact:
        return "McNemar, exact"
    kind = "McNemar" if judged.metric in ONE_LABEL_METRICS else "paired bootstrap"
    return f"{kind} over {judged.outcomes.unit}"
