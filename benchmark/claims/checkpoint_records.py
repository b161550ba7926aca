"""Choose the records that claims are judged by: those of the newest checkpoints, with the best learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmark.claims.execution import ClaimPlan, variant_label
from benchmark.plan import fixed_settings
from benchmark.records import Record
from benchmark.tables.leaderboard import current_records, leaderboard
from benchmark.tasks import Task

# By variant with its pre-training seed, such as "ssast-0", and task: one record for each probe seed.
SystemRecords = dict[tuple[str, str], list[Record]]


def newest_records(records: Iterable[Record], steps: int | None = None) -> list[Record]:
    """The records of the checkpoint of each variant and seed that was run last, or was trained for so many steps."""
    every = sorted(records, key=lambda record: record.created)
    if steps is not None:
        every = [record for record in every if variant_label(record.upstream["name"])[1] in (0, steps)]
    last = {variant_label(record.upstream["name"])[0]: record.upstream["name"] for record in every}
    return [record for record in every if last[variant_label(record.upstream["name"])[0]] == record.upstream["name"]]


def complete_grids(plan: ClaimPlan, records: Iterable[Record]) -> list[Record]:
    """The records of the plan's tasks with their present settings, of upstreams whose whole grid was run."""
    tasks = {task.name: task for regime in plan.tasks.values() for task in regime.values()}
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in current_records(record for record in records if _is_of(record, tasks)):
        cells.setdefault((record.upstream["name"], record.task["name"]), []).append(record)
    grids = {name: len(task.lr) * len(task.seeds) for name, task in tasks.items()}
    return [
        record
        for (_, name), cell in cells.items()
        if len(cell) == (1 if cell[0].lr is None else grids[name])  # a head that is not trained has no grid
        for record in cell
    ]


def _is_of(record: Record, tasks: Mapping[str, Task]) -> bool:
    task = tasks.get(record.task["name"])
    if (
        task is None
        or record.layer is not None
        or (record.lr is not None and (record.lr not in task.lr or record.seed not in task.seeds))
    ):
        return False
    any_metric = {"metric": None}  # a task may leave it to its head, but a record names it
    return record.task | any_metric == fixed_settings(task) | any_metric


def choose_by_validation(records: Sequence[Record]) -> SystemRecords:
    """The records of each system and task with the learning rate that was best on validation."""
    table = leaderboard(records)
    chosen: SystemRecords = {}
    for record in records:
        name, task = record.upstream["name"], record.task["name"]
        if record.lr == table[name, task].lr:
            chosen.setdefault((variant_label(name)[0], task), []).append(record)
    return chosen
