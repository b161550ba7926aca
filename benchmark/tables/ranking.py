"""The leaderboard with intervals and ranks, computed from records and outcomes, without audio or checkpoints."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.statistics.outcomes import Outcomes, ScoredTask, score_task
from benchmark.tables.leaderboard import Board, Cell, Table, current_records, leaderboard

DRAWS = 2_000  # resamples per cell of a table; the half-widths of intervals have a mean error of 1.6 %


def board(records: Sequence[Record], outcomes: Outcomes, draws: int = DRAWS) -> Board:
    """Return the leaderboard of all records with intervals, ranks and Borda points.

    outcomes: returns the test outcomes of a record. Where it raises OSError, the upstream has no interval and no rank.
    Where outcomes contradict each other or their records, all upstreams tested on the same clips have none.
    """
    table = leaderboard(records)
    beaten: dict[tuple[str, str], set[str]] = {}  # the significantly worse upstreams by upstream and task
    jobs: dict[str, tuple[float, float]] = {}
    problems: list[str] = []
    for task, task_records in group_by_task(leaderboard_records(records, table)).items():
        groups, incomplete = _comparable_groups(task_records, outcomes)
        problems += [_no_interval(task, names, reason) for reason, names in incomplete.items()]
        largest = max(groups, key=lambda group: len({record.upstream["name"] for record in group}), default=None)
        for group in groups:
            try:
                scored = score_task(group, outcomes, draws)
            except UserError as error:
                problems.append(str(error))
                continue
            if reason := _why_no_interval(scored):
                problems.append(_no_interval(task, scored.upstreams, reason))
            ranked = {name: _worse_upstreams(scored, name) for name in scored.upstreams} if group is largest else {}
            for name in scored.upstreams:
                table[name, task] = _with_interval(table[name, task], scored, name, ranked)
            beaten |= {(name, task): others for name, others in ranked.items()}
            jobs |= _job_intervals(group, scored, outcomes, draws)
    return Board(table, *borda_points(table, beaten), jobs, _layer_tables(records, outcomes, draws), tuple(problems))


def _layer_tables(records: Sequence[Record], outcomes: Outcomes, draws: int) -> dict[int, Table]:
    """Return a leaderboard for each probed layer, from the records of that layer alone."""
    by_layer: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.layer is not None:
            by_layer[record.layer].append(record.model_copy(update={"layer": None}))
    return {layer: board(probes, outcomes, draws).table for layer, probes in sorted(by_layer.items())}


def _job_intervals(
    group: Sequence[Record], scored: ScoredTask, outcomes: Outcomes, draws: int
) -> dict[str, tuple[float, float]]:
    """Return the interval of each record by id, computed on the test clips of its fold alone."""
    folds = {record.fold for record in group}
    intervals = {}
    for fold in folds:
        fold_records = [record for record in group if record.fold == fold]
        scored_fold = scored if len(folds) == 1 else score_task(fold_records, outcomes, draws)
        for record in fold_records:
            run = scored_fold.outcomes.runs.index((record.upstream["name"], record.seed))
            interval = scored_fold.interval([run])
            intervals[record.id] = (interval.low, interval.high)
    return intervals


def leaderboard_records(records: Iterable[Record], table: Table) -> list[Record]:
    """Return the records from which the scores in the table are computed: those with the selected learning rate."""
    current = current_records(record for record in records if record.layer is None)
    return [record for record in current if record.lr == table[record.upstream["name"], record.task["name"]].lr]


def group_by_task(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records by task name, in the order of the names."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_task[record.task["name"]].append(record)
    return dict(sorted(by_task.items()))


def _comparable_groups(
    records: Iterable[Record], outcomes: Outcomes
) -> tuple[list[list[Record]], dict[str, list[str]]]:
    """Group the records of one task by `comparison_key`.

    Also returns, by reason, the upstreams that are left out: those that lack a combination of fold and seed, or
    outcomes. Upstreams without a test score are left out without a reason, because their cell shows it.
    """
    by_upstream: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_upstream[record.upstream["name"]].append(record)
    groups: dict[str, list[Record]] = defaultdict(list)
    incomplete: dict[str, list[str]] = defaultdict(list)
    for name, runs in by_upstream.items():
        if any(record.test.get(record.metric) is None for record in runs):
            continue
        if len(runs) != len({record.fold for record in runs}) * len({record.seed for record in runs}):
            incomplete["a seed lacks a fold; finish it by the same bench run"].append(name)
        elif not all(_has_outcomes(record, outcomes) for record in runs):
            incomplete["outcomes are missing or damaged; delete their records and run it again"].append(name)
        else:
            groups[comparison_key(runs)] += runs
    return list(groups.values()), incomplete


def _has_outcomes(record: Record, outcomes: Outcomes) -> bool:
    try:
        return len(outcomes(record)) > 0
    except OSError:
        return False


def _why_no_interval(scored: ScoredTask) -> str:
    """Return why no score of these upstreams has an interval, or ""."""
    if not math.isnan(scored.distribution.covariance[0, 0]):
        return ""
    count, unit = scored.distribution.clusters, scored.outcomes.unit
    if count == 1:
        return f"all test clips are of one {unit.replace('values of', 'value of').removesuffix('s')}"
    return f"the test clips of {count} {unit} are too few, or nearly all of one"


def _no_interval(task: str, names: Sequence[str], reason: str) -> str:
    return f"{', '.join(names)} on {task}: no interval, because {reason}"


def comparison_key(records: Sequence[Record]) -> str:
    """Return a key that is equal for upstreams that may be compared: the task, its selection per fold, its protocol."""
    first = records[0]
    folds = sorted({(record.fold or "", record.selection) for record in records})
    tuned = first.features == "finetune"
    return str((first.protocol, first.metric, first.limit, tuned, sorted(first.task.items()), folds))


def _worse_upstreams(scored: ScoredTask, name: str) -> set[str]:
    """Return the upstreams that are significantly worse than `name`."""
    return {other for other in scored.upstreams if other != name and scored.better(name, other)}


def _with_interval(cell: Cell, scored: ScoredTask, name: str, ranked: Mapping[str, set[str]]) -> Cell:
    """Return the cell with its interval, and with its rank if `ranked` (worse upstreams by upstream) holds `name`."""
    interval = scored.interval(scored.outcomes.columns(name))
    unit, clusters = scored.outcomes.unit, scored.distribution.clusters
    cell = cell._replace(low=interval.low, high=interval.high, unit=unit, clusters=clusters)
    if name not in ranked:
        return cell
    rank = 1 + sum(name in others for others in ranked.values())
    return cell._replace(rank=rank, best=len(ranked) > 1 and len(ranked[name]) == len(ranked) - 1)


def borda_points(
    table: Mapping[tuple[str, str], object], beaten: Mapping[tuple[str, str], set[str]]
) -> tuple[dict[str, float], list[str]]:
    """Return the Borda points of each upstream, and the tasks they sum over: those with a rank for every upstream."""
    upstreams = sorted({name for name, _ in table})
    tasks = sorted({task for _, task in table})
    shared = [task for task in tasks if all((name, task) in beaten for name in upstreams)]
    if not shared or len(upstreams) < 2:
        return {}, []
    total = {name: sum(_points_on_task(name, upstreams, task, beaten) for task in shared) for name in upstreams}
    return total, shared


def _points_on_task(
    name: str, upstreams: Sequence[str], task: str, beaten: Mapping[tuple[str, str], set[str]]
) -> float:
    """Return 1 point per significantly worse upstream, plus 0.5 per upstream without a significant difference."""
    others = [other for other in upstreams if other != name]
    return sum(0.5 + 0.5 * (other in beaten[name, task]) - 0.5 * (name in beaten[other, task]) for other in others)
