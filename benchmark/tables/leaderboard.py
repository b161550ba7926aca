"""Turn records into a table of scores. All functions are pure: they read no files, no audio and no clock."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import partial
from statistics import fmean, stdev
from typing import NamedTuple

from benchmark.records import Record


class Cell(NamedTuple):
    """An upstream's score on a task.

    value: mean test score over folds and seeds, at the learning rate with the best validation score; NaN if no
    learning rate has a validation score.
    spread: standard deviation over seeds, each averaged over folds; None with one seed. valid: the same mean as value,
    on validation.
    edge: the learning rate chosen is the lowest or highest tried, so a wider grid might do better.
    low, high: 95 % interval, NaN if unknown. unit: what was resampled for the interval, such as "speakers".
    clusters: the number of these units. rank: one more than the number of significantly better upstreams; None if
    unknown. best: the upstream is significantly better than every other one.
    """

    value: float
    spread: float | None
    valid: float
    metric: str
    higher: bool
    lr: float | None
    edge: bool
    seeds: int
    folds: int
    clips: int
    skipped: int
    limit: int | None
    low: float = math.nan
    high: float = math.nan
    unit: str = ""
    clusters: int = 0
    rank: int | None = None
    best: bool = False


Table = dict[tuple[str, str], Cell]  # (upstream, task) -> Cell


class Board(NamedTuple):
    """A table with its ranking.

    borda: Borda points of each upstream over the shared tasks: one for each other upstream that it is significantly
    better than, and half a point for each tie. shared: the tasks on which every upstream has a rank; there are no
    points without such tasks. jobs: 95 % interval of each record that a cell averages, by record id. layers: tables of
    heads trained on a single layer, by layer. problems: sentences on why cells have no
    interval.
    """

    table: Table
    borda: dict[str, float]
    shared: list[str]
    jobs: dict[str, tuple[float, float]] = {}  # noqa: RUF012 (never changed)
    layers: dict[int, Table] = {}  # noqa: RUF012
    problems: tuple[str, ...] = ()


def leaderboard(records: Iterable[Record]) -> Table:
    """Return one cell for each upstream and task that has records, from the runs that `current_records` selects.

    Records of heads trained on a single layer are ignored.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in current_records(record for record in records if record.layer is None):
        cells[record.upstream["name"], record.task["name"]].append(record)
    return {key: _cell(group) for key, group in cells.items()}


def current_records(records: Iterable[Record], requested: Collection[str] = ()) -> list[Record]:
    """Select one run for each upstream and task: the latest one, where full runs take precedence over limited ones.

    Runs of one upstream on one task differ in weights, data or settings. requested: ids of the records that the present
    command asked for; their runs take precedence over later ones.
    """
    runs: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        runs[record.upstream["name"], record.task["name"]][run_key(record)].append(record)
    return [
        record for choices in runs.values() for record in max(choices.values(), key=partial(_precedence, requested))
    ]


def run_key(record: Record) -> str:
    """Return a key that the records of one run on one task share; they differ in learning rate, seed and fold alone."""
    upstream = (record.upstream["fingerprint"], record.upstream["precision"], record.features)
    return str((upstream, record.limit, record.corpus, sorted(record.task.items())))


def _precedence(requested: Collection[str], records: list[Record]) -> tuple[bool, bool, str]:
    is_requested = any(record.id in requested for record in records)
    return records[0].limit is None, is_requested, max(record.created for record in records)


def _cell(records: list[Record]) -> Cell:
    by_rate: dict[float | None, list[Record]] = defaultdict(list)
    for record in records:
        by_rate[record.lr].append(record)
    first = records[0]
    rate = choose_learning_rate(
        {lr: [_score(record.valid, first) for record in group] for lr, group in by_rate.items()}, first.higher
    )
    chosen = by_rate[rate]
    seeds = defaultdict(list)
    for record in chosen:
        seeds[record.seed].append(_score(record.test, first))
    means = [fmean(scores) for scores in seeds.values()]
    valid = fmean(_score(record.valid, first) for record in chosen)
    rates = sorted(lr for lr in by_rate if lr is not None)
    return Cell(
        value=math.nan if math.isnan(valid) else fmean(means),
        spread=_spread(means),
        valid=valid,
        metric=first.metric,
        higher=first.higher,
        lr=rate,
        edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        seeds=len(means),
        folds=len({record.fold for record in chosen}),
        clips=sum({record.fold: record.clips["test"] for record in chosen}.values()),
        skipped=sum({record.fold: sum(record.skipped.values()) for record in chosen}.values()),
        limit=first.limit,
    )


def _spread(means: list[float]) -> float | None:
    if len(means) < 2:
        return None
    # Python 3.10 and 3.11 raise AttributeError for the deviation of numbers that include NaN.
    return stdev(means) if all(map(math.isfinite, means)) else math.nan


def _score(scores: dict[str, float | None], record: Record) -> float:
    value = scores.get(record.metric)
    return math.nan if value is None else value


def choose_learning_rate(valid: dict[float | None, list[float]], higher: bool) -> float | None:
    """Return the learning rate with the best mean validation score.

    Rates with fewer runs than others, or with a run that has no score, are chosen only if all rates are like that.
    """
    most = max(len(scores) for scores in valid.values())

    def merit(lr: float | None) -> tuple[bool, bool, float, float]:
        mean = fmean(valid[lr])
        failed = math.isnan(mean)
        return len(valid[lr]) == most, not failed, 0.0 if failed else mean if higher else -mean, -(lr or 0.0)

    return max(valid, key=merit)
