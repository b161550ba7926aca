"""The leaderboard with intervals and ranks, from records and their outcomes. Pure: neither audio nor checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.intervals import Estimates, Interval, difference, estimate, interval
from benchmark.statistics.outcomes import UNBOUNDED, Evidence, Outcomes, evidence, scale_of
from benchmark.tables.leaderboard import Board, Cell, Table, current, leaderboard

DRAWS = 2_000  # for the many cells of a table; half-widths are off by 1.6 % on average


class Judged(NamedTuple):
    """The upstreams that were tested on one test set of a task, in one way."""

    evidence: Evidence
    found: Estimates
    metric: str
    higher: bool

    @property
    def upstreams(self) -> list[str]:
        """By name."""
        return sorted({name for name, _ in self.evidence.runs})

    def interval(self, columns: Sequence[int]) -> Interval:
        """Of the mean of some runs, as scores are told."""
        told = interval(self.found, columns, self.metric not in UNBOUNDED)
        return told.scaled(scale_of(self.metric))

    def better(self, first: str, second: str) -> bool:
        """Whether the paired difference is in favour of the first, and its 95 % interval leaves out zero."""
        told = difference(self.found, self.evidence.columns(first), self.evidence.columns(second))
        return told.p < 0.05 and (told.interval.value > 0) == self.higher


def board(records: Sequence[Record], outcomes: Outcomes, draws: int = DRAWS) -> Board:
    """The table of all records with intervals, ranks and points.

    outcomes: of a record's test split; an OSError of it leaves the upstream without interval and rank, and outcomes
    that contradict each other or their records leave all that were tested on the same clips without.
    """
    table = leaderboard(records)
    beaten: dict[tuple[str, str], set[str]] = {}  # of each upstream and task that has a rank
    jobs: dict[str, tuple[float, float]] = {}
    problems: list[str] = []
    for task, some in by_task(chosen(records, table)).items():
        groups = _groups(some, outcomes)
        largest = max(groups, key=lambda group: len({record.upstream["name"] for record in group}), default=None)
        for group in groups:
            try:
                judged = judge(group, outcomes, draws)
            except UserError as error:
                problems.append(str(error))
                continue
            ranked = {name: _beaten(judged, name) for name in judged.upstreams} if group is largest else {}
            for name in judged.upstreams:
                table[name, task] = _placed(table[name, task], judged, name, ranked)
            beaten |= {(name, task): others for name, others in ranked.items()}
            jobs |= _of_jobs(group, judged, outcomes, draws)
    return Board(table, *points(table, beaten), jobs, _of_layers(records, outcomes, draws), tuple(problems))


def _of_layers(records: Sequence[Record], outcomes: Outcomes, draws: int) -> dict[int, Table]:
    """Tables of the probes of each layer, as if it were all there is."""
    probes: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.layer is not None:
            probes[record.layer].append(record.model_copy(update={"layer": None}))
    return {layer: board(some, outcomes, draws).table for layer, some in sorted(probes.items())}


def _of_jobs(group: Sequence[Record], judged: Judged, outcomes: Outcomes, draws: int) -> dict[str, tuple[float, float]]:
    """Intervals of single records; with folds, each is judged by its own."""
    folds = {record.fold for record in group}
    found = {}
    for fold in folds:
        some = [record for record in group if record.fold == fold]
        own = judged if len(folds) == 1 else judge(some, outcomes, draws)
        for record in some:
            told = own.interval([own.evidence.runs.index((record.upstream["name"], record.seed))])
            found[record.id] = (told.low, told.high)
    return found


def chosen(records: Iterable[Record], table: Table) -> list[Record]:
    """Those that the table's numbers are made of."""
    found = current(record for record in records if record.layer is None)
    return [record for record in found if record.lr == table[record.upstream["name"], record.task["name"]].lr]


def judge(records: Sequence[Record], outcomes: Outcomes, draws: int = DRAWS) -> Judged:
    """Of records of one task and one test set, the chosen ones of each upstream."""
    found = evidence(records, outcomes)
    return Judged(found, estimate(found.sample, draws), records[0].metric, records[0].higher)


def by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """In order of their names."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[record.task["name"]].append(record)
    return dict(sorted(found.items()))


def _groups(records: Iterable[Record], outcomes: Outcomes) -> list[list[Record]]:
    """The records of upstreams that were tested on the same clips in the same way; whole ones only."""
    cells: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        cells[record.upstream["name"]].append(record)
    groups: dict[str, list[Record]] = defaultdict(list)
    for cell in cells.values():
        whole = len(cell) == len({record.fold for record in cell}) * len({record.seed for record in cell})
        if whole and all(_usable(record, outcomes) for record in cell):
            groups[question_of(cell)] += cell
    return list(groups.values())


def _usable(record: Record, outcomes: Outcomes) -> bool:
    try:
        return record.test.get(record.metric) is not None and len(outcomes(record)) > 0
    except OSError:
        return False


def question_of(records: Sequence[Record]) -> str:
    """What upstreams must have in common to be compared: the task, its test set in each fold, and its protocol."""
    first = records[0]
    folds = sorted({(record.fold or "", record.selection) for record in records})
    tuned = first.features == "finetune"
    return str((first.protocol, first.metric, first.limit, tuned, sorted(first.task.items()), folds))


def _beaten(judged: Judged, name: str) -> set[str]:
    return {other for other in judged.upstreams if other != name and judged.better(name, other)}


def _placed(cell: Cell, judged: Judged, name: str, ranked: Mapping[str, set[str]]) -> Cell:
    told = judged.interval(judged.evidence.columns(name))
    cell = cell._replace(low=told.low, high=told.high, unit=judged.evidence.unit, clusters=judged.found.clusters)
    if name not in ranked:
        return cell
    rank = 1 + sum(name in others for others in ranked.values())
    return cell._replace(rank=rank, best=len(ranked) > 1 and len(ranked[name]) == len(ranked) - 1)


def points(
    table: Mapping[tuple[str, str], object], beaten: Mapping[tuple[str, str], set[str]]
) -> tuple[dict[str, float], list[str]]:
    """Borda's points of each upstream, and the tasks that they are over: those on which every upstream has a rank."""
    upstreams = sorted({name for name, _ in table})
    tasks = sorted({task for _, task in table})
    shared = [task for task in tasks if all((name, task) in beaten for name in upstreams)]
    if not shared or len(upstreams) < 2:
        return {}, []
    total = {name: sum(_points(name, upstreams, task, beaten) for task in shared) for name in upstreams}
    return total, shared


def _points(name: str, upstreams: Sequence[str], task: str, beaten: Mapping[tuple[str, str], set[str]]) -> float:
    """One for each that it is better than, half a one for each that neither is better than the other."""
    others = [other for other in upstreams if other != name]
    return sum(0.5 + 0.5 * (other in beaten[name, task]) - 0.5 * (name in beaten[other, task]) for other in others)
