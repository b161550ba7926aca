"""Turn records and the outcomes of their test clips into scores that can be resampled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.intervals import (
    DRAWS,
    Difference,
    Interval,
    ScoreDistribution,
    mean_interval,
    paired_difference,
    score_distribution,
)
from benchmark.statistics.resampling import (
    ClassAverages,
    FoldMeans,
    Integers,
    MeanPrecisions,
    Ratios,
    RunScores,
    TrialErrors,
)

Row = Mapping[str, str]  # one test clip or trial in the outcomes of a record
Outcomes = Callable[[Record], Sequence[Row]]
Run = tuple[str, int]  # upstream and seed
Key = tuple[str, ...]  # the id of a clip, or the two ids of a trial

UNBOUNDED = ("wer", "cer")  # may exceed 100 %
FRACTIONS = ("min_dcf",)  # all other scores are percentages
UNIT_NAMES = {"speaker": "speakers", "session": "sessions", "": "clips", None: "clips"}


class FoldOutcomes(NamedTuple):
    """The outcomes of several runs on one fold.

    first: the rows of the first run. rows: those of every run, in the same order of clips. clusters: for each row the
    name of its cluster, or two lists of names for the two sides of trials.
    """

    first: Sequence[Row]
    rows: Sequence[Sequence[Row]]
    clusters: tuple[list[str], ...]


# Builds scores from the outcomes of a fold, the numbers of its clusters (one list, or two for trials), and their count.
ScoreBuilder = Callable[[FoldOutcomes, Sequence[Integers], int], RunScores]


class TaskOutcomes(NamedTuple):
    """The scores of M runs on the test set of one task.

    runs: upstream and seed of each column. unit: what the bootstrap draws, such as "speakers". clusters: the names of
    the clusters that the scores number.
    """

    runs: list[Run]
    scores: RunScores
    unit: str
    clusters: list[str]

    def columns(self, upstream: str) -> list[int]:
        """The columns of an upstream, one for each seed."""
        return [column for column, (name, _) in enumerate(self.runs) if name == upstream]


class ScoredTask(NamedTuple):
    """Upstreams that were tested in the same way on one test set of a task, and how their scores vary."""

    outcomes: TaskOutcomes
    distribution: ScoreDistribution
    metric: str
    higher: bool

    @property
    def upstreams(self) -> list[str]:
        """The names of the upstreams, sorted."""
        return sorted({name for name, _ in self.outcomes.runs})

    def interval(self, columns: Sequence[int]) -> Interval:
        """The mean score of some runs with its interval, in percent unless the metric is a fraction."""
        bounded = self.metric not in UNBOUNDED
        return mean_interval(self.distribution, columns, bounded).scaled(score_scale(self.metric))

    def difference(self, first: str, second: str) -> Difference:
        """The score of the first upstream minus that of the second, with its test, in the unit of the scores."""
        one, other = self.outcomes.columns(first), self.outcomes.columns(second)
        difference = paired_difference(self.distribution, one, other, self.metric not in UNBOUNDED)
        return difference._replace(interval=difference.interval.scaled(score_scale(self.metric)))

    def better(self, first: str, second: str) -> bool:
        """Whether the first upstream is better and the 95 % interval of the difference excludes zero."""
        difference = self.difference(first, second)
        return difference.p < 0.05 and (difference.interval.value > 0) == self.higher


def score_task(records: Sequence[Record], outcomes: Outcomes, draws: int = DRAWS) -> ScoredTask:
    """Score records of one task and test set, those with the chosen learning rate of each upstream, seed and fold."""
    collected = collect_outcomes(records, outcomes)
    return ScoredTask(collected, score_distribution(collected.scores, draws), records[0].metric, records[0].higher)


def collect_outcomes(
    records: Iterable[Record], outcomes: Outcomes, builder: ScoreBuilder | None = None
) -> TaskOutcomes:
    """Collect the outcomes of records of one task: one record for each upstream, seed and fold, with the same clips.

    builder: computes other scores than the metric of the records. Raises UserError that names the first difference
    where runs were tested on different clips, and where outcomes contradict their record.
    """
    folds: dict[str | None, dict[Run, Record]] = {}
    for record in records:
        folds.setdefault(record.fold, {})[record.upstream["name"], record.seed] = record
    runs = sorted(set.intersection(*(set(fold) for fold in folds.values())))
    by_fold = [[fold[run] for run in runs] for _, fold in sorted(folds.items(), key=lambda item: item[0] or "")]
    first = by_fold[0][0]
    answered = [_fold_outcomes(fold, outcomes) for fold in by_fold]
    names = sorted({name for fold in answered for side in fold.clusters for name in side})
    numbers = {name: number for number, name in enumerate(names)}
    parts = [_fold_scores(first, fold, numbers, builder) for fold in answered]
    if builder is None:
        for fold, (scores, _) in zip(by_fold, parts, strict=True):
            _refuse_contradictions(fold, scores.values() * score_scale(first.metric))
    unit = resampling_unit(record for fold in by_fold for record in fold)
    return TaskOutcomes(runs, _mean_over_folds(parts, len(names)), unit, names)


def resampling_unit(records: Iterable[Record]) -> str:
    """What a bootstrap over the test clips of these records draws, in the plural."""
    known = next((record for record in records if record.clustered_by is not None), None)
    if known is None:
        return UNIT_NAMES[None]
    return "speakers" if known.trials else UNIT_NAMES.get(known.clustered_by, f"values of {known.clustered_by}")


def score_scale(metric: str) -> float:
    """The factor from the fractions of this package to the scores of records."""
    return 1.0 if metric in FRACTIONS else 100.0


def _fold_outcomes(records: Sequence[Record], outcomes: Outcomes) -> FoldOutcomes:
    rows = [list(outcomes(record)) for record in records]
    keys = [[key_of(row) for row in run] for run in rows]
    for record, run in zip(records, keys, strict=True):
        if run != keys[0]:
            raise UserError(
                f"{_pair(records[0], record)} were tested on different clips: {_first_difference(keys[0], run)}"
            )
    if not keys[0]:
        raise UserError(f"the outcomes of {_pair(records[0], records[-1])} are empty; delete them and run it again")
    if "enroll" not in rows[0][0] and len(set(keys[0])) < len(keys[0]):
        twice = next(key for key, count in Counter(keys[0]).items() if count > 1)
        raise UserError(f"the outcomes of {_pair(records[0], records[-1])} hold {twice[0]!r} twice; run it again")
    _check_references(records, rows)
    sides = ("enroll", "test") if "enroll" in rows[0][0] else ("",)
    return FoldOutcomes(rows[0], rows, tuple(_clusters(records, rows, side) for side in sides))


def _clusters(records: Sequence[Record], rows: Sequence[Sequence[Row]], side: str) -> list[str]:
    """The cluster of each row by name; where no outcomes have that column, as in old ones, each clip is a cluster."""
    column = f"{side}_cluster" if side else "cluster"
    named = [
        (record, [row[column] for row in run]) for record, run in zip(records, rows, strict=True) if column in run[0]
    ]
    for record, names in named:
        if names != named[0][1]:
            raise UserError(
                f"{_pair(named[0][0], record)} do not agree on which clips depend on each other; run both again"
            )
    return named[0][1] if named else [f"clip {row[side or 'id']}" for row in rows[0]]


def _check_references(records: Sequence[Record], rows: Sequence[Sequence[Row]]) -> None:
    for record, run in zip(records, rows, strict=True):
        for row, first in zip(run, rows[0], strict=True):
            expected, reference = (one.get("reference", one.get("target")) for one in (first, row))
            if expected != reference:
                raise UserError(
                    f"{_pair(records[0], record)} were tested with different labels: {' '.join(key_of(row))} has"
                    f" {expected!r} and {reference!r}; run both on the same corpus"
                )


def _pair(first: Record, other: Record) -> str:
    return f"{first.upstream['name']} and {other.upstream['name']} on {first.task['name']}"


def _refuse_contradictions(records: Sequence[Record], values: Iterable[float]) -> None:
    """Raise UserError where the outcomes of a record do not give its score."""
    for record, value in zip(records, values, strict=True):
        score = record.test[record.metric]
        if score is None or not abs(score - value) <= 1e-6:
            name = f"record {record.id} of {record.upstream['name']} on {record.task['name']}"
            raise UserError(
                f"{name} says {record.metric} {score}, but its outcomes give {value:.6g}; delete both and run it again"
            )


def _first_difference(first: Sequence[Key], second: Sequence[Key]) -> str:
    for one, other in ((first, second), (second, first)):
        if lost := set(one) - set(other):
            return f"{' '.join(min(lost))} is in one test set only ({len(lost)} such); run both on the same corpus"
    return "the same ones in another order or number; run both on the same corpus"


def key_of(row: Row) -> Key:
    """The id of the clip that a row of outcomes is about, or both ids of a trial."""
    return (row["enroll"], row["test"]) if "enroll" in row else (row["id"],)


def _mean_over_folds(parts: Sequence[tuple[RunScores, Integers]], size: int) -> RunScores:
    if len(parts) == 1:
        return parts[0][0]
    return FoldMeans([scores for scores, _ in parts], [clusters for _, clusters in parts], size)


def _fold_scores(
    record: Record, outcomes: FoldOutcomes, numbers: Mapping[str, int], builder: ScoreBuilder | None
) -> tuple[RunScores, Integers]:
    """The scores of one fold, and which of all clusters it has."""
    places = [np.array([numbers[name] for name in side]) for side in outcomes.clusters]
    clusters, flat = np.unique(np.concatenate(places), return_inverse=True)
    sides = np.split(flat, len(places))
    try:
        return (builder or SCORE_BUILDERS[record.metric])(outcomes, sides, len(clusters)), clusters
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"outcomes of {record.task['name']} do not hold what {record.metric} needs ({error}), those of"
            f" {record.upstream['name']} or of another upstream; delete them with their records and run it again"
        ) from error


def _trial_errors(
    rate: Literal["eer", "min_dcf"], outcomes: FoldOutcomes, sides: Sequence[Integers], size: int
) -> TrialErrors:
    truth = np.array([row["target"] == "True" for row in outcomes.first])
    scores = np.array([[float(row["score"]) for row in run] for run in outcomes.rows])
    return TrialErrors(sides[0], sides[1], size, truth, scores, rate)


def _accuracies(outcomes: FoldOutcomes, sides: Sequence[Integers], size: int) -> Ratios:
    return ratios(lambda row: (float(row["correct"] == "True"), 1.0), outcomes, sides, size)


def _edit_rates(unit: str, outcomes: FoldOutcomes, sides: Sequence[Integers], size: int) -> Ratios:
    rates = ratios(lambda row: (errors_of(row, unit), length_of(row, unit)), outcomes, sides, size)
    return rates._replace(closed=False)


def ratios(
    mark: Callable[[Row], tuple[float, float]], outcomes: FoldOutcomes, sides: Sequence[Integers], size: int
) -> Ratios:
    """Ratios of summed marks and sizes. mark: the mark and the size of a row, such as its word errors and words."""
    pairs = np.array([[mark(row) for row in run] for run in outcomes.rows])
    marks, sizes = (
        np.array([np.bincount(sides[0], run, size) for run in pairs[..., part]], np.float64) for part in (0, 1)
    )
    return Ratios(marks, sizes[0] if (sizes == sizes[0]).all() else sizes)


def errors_of(row: Row, unit: str) -> float:
    """The number of edits of a transcript, in words or characters."""
    return float(sum(int(row[f"{unit}_{kind}"]) for kind in ("substitutions", "deletions", "insertions")))


def length_of(row: Row, unit: str) -> float:
    """The number of words or characters of the reference of a transcript."""
    return float(sum(int(row[f"{unit}_{kind}"]) for kind in ("substitutions", "deletions", "hits")))


def _class_averages(
    average: Literal["macro_f1", "uar"], outcomes: FoldOutcomes, sides: Sequence[Integers], size: int
) -> ClassAverages:
    truth = [row["reference"] for row in outcomes.first]
    predicted = [[row["prediction"] for row in run] for run in outcomes.rows]
    names = {name: number for number, name in enumerate(sorted({*truth, *(name for run in predicted for name in run)}))}
    numbers = [np.array([names[name] for name in labels]) for labels in (truth, *predicted)]
    return ClassAverages(sides[0], size, numbers[0], np.stack(numbers[1:]), len(names), average)


def _mean_precisions(outcomes: FoldOutcomes, sides: Sequence[Integers], size: int) -> MeanPrecisions:
    scores = [[json.loads(row["scores"]) for row in run] for run in outcomes.rows]
    names = sorted(scores[0][0])
    truth = np.array([[name in tags_of(row) for name in names] for row in outcomes.first])
    values = np.array([[[clip[name] for name in names] for clip in run] for run in scores])
    return MeanPrecisions(sides[0], size, truth, values)


def tags_of(row: Row) -> set[str]:
    """The labels of a clip that may have several."""
    return {name.strip() for name in row["reference"].split("|")}


SCORE_BUILDERS: dict[str, Callable[..., Any]] = {
    "accuracy": _accuracies,
    "micro_f1": _accuracies,  # equals the accuracy where every clip has one label
    "macro_f1": partial(_class_averages, "macro_f1"),
    "uar": partial(_class_averages, "uar"),
    "map": _mean_precisions,
    "wer": partial(_edit_rates, "word"),
    "cer": partial(_edit_rates, "character"),
    "eer": partial(_trial_errors, "eer"),
    "min_dcf": partial(_trial_errors, "min_dcf"),
}
