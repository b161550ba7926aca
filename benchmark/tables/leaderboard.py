"""From records to a table. Pure: no files, no audio, no clock."""

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

    value: mean over folds and seeds of the test score at the learning rate that was best on validation; NaN where no
    learning rate gave a score on validation.
    spread: standard deviation over seeds, each averaged over folds; None with one seed. valid: as value, on validation.
    edge: the learning rate chosen is the lowest or highest tried, so a wider grid might do better.
    low, high: 95 % interval, NaN where it is not known. unit: what was resampled for it, such as "speakers", and
    clusters: how many there are. rank: one more than the upstreams that are shown to be better; None where it is not
    known. best: it is shown to be better than every other one.
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
    """A table with what it comes to.

    borda: points of each upstream over the tasks that all share: one for each other that it is shown to be better than,
    half a one for each that it is level with. shared: these tasks; with none of them there are no points. jobs: 95 %
    interval of each record that a cell is made of, by id. layers: tables of heads on one layer alone.
    problems: a sentence for each test set whose outcomes cannot be judged.
    """

    table: Table
    borda: dict[str, float]
    shared: list[str]
    jobs: dict[str, tuple[float, float]] = {}  # noqa: RUF012 (never changed)
    layers: dict[int, Table] = {}  # noqa: RUF012
    problems: tuple[str, ...] = ()


def leaderboard(records: Iterable[Record]) -> Table:
    """One cell for each upstream and task that has records; of several runs, `current` says which counts.

    Probes of single layers have no part in it.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in current(record for record in records if record.layer is None):
        cells[record.upstream["name"], record.task["name"]].append(record)
    return {key: _cell(group) for key, group in cells.items()}


def current(records: Iterable[Record], asked: Collection[str] = ()) -> list[Record]:
    """Of the runs of one task on one upstream (weights, data, settings differ), the last; full ones before limited.

    asked: ids of records that were asked for just now, whenever they were made: their runs come before later ones.
    """
    runs: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        runs[record.upstream["name"], record.task["name"]][run_of(record)].append(record)
    return [record for choices in runs.values() for record in max(choices.values(), key=partial(_rank, asked))]


def run_of(record: Record) -> str:
    """What the records of one run on one task share: everything but learning rate, seed and fold."""
    upstream = (record.upstream["fingerprint"], record.upstream["precision"], record.features)
    return str((upstream, record.limit, record.corpus, sorted(record.task.items())))


def _rank(asked: Collection[str], records: list[Record]) -> tuple[bool, bool, str]:
    wanted = any(record.id in asked for record in records)
    return records[0].limit is None, wanted, max(record.created for record in records)


def _cell(records: list[Record]) -> Cell:
    by_rate: dict[float | None, list[Record]] = defaultdict(list)
    for record in records:
        by_rate[record.lr].append(record)
    first = records[0]
    rate = choose(
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


def choose(valid: dict[float | None, list[float]], higher: bool) -> float | None:
    """The learning rate with the best mean validation score; rates with fewer runs or a failed one come last."""
    most = max(len(scores) for scores in valid.values())

    def merit(lr: float | None) -> tuple[bool, bool, float, float]:
        mean = fmean(valid[lr])
        failed = math.isnan(mean)
        return len(valid[lr]) == most, not failed, 0.0 if failed else mean if higher else -mean, -(lr or 0.0)

    return max(valid, key=merit)
