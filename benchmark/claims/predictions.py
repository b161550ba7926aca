"""What the systems of claims answered on test data, from records to samples that can be contrasted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from benchmark.claims.contrasts import Clips, Sample, Trials
from benchmark.claims.execution import ClaimPlan, label_of
from benchmark.data.manifest import find, root_of
from benchmark.errors import UserError
from benchmark.plan import fixed
from benchmark.records import Record, Results
from benchmark.tables.leaderboard import current, leaderboard
from benchmark.tasks import Task
from benchmark.values import Setup, Utterance

Row = Mapping[str, str]  # of outcomes
Mark = Callable[[Row], tuple[float, float] | None]


class TaskPredictions(NamedTuple):
    """What one upstream answered on one task. heads: of each one that was trained, a row for each clip or trial."""

    metric: str
    higher: bool
    heads: Sequence[Sequence[Row]]


PredictionTable = dict[tuple[str, str], TaskPredictions]  # (arm with seed, task)


def newest(records: Iterable[Record], steps: int | None = None) -> list[Record]:
    """The records of each arm and seed that are of the checkpoint which was run last, or of so many steps."""
    every = sorted(records, key=lambda record: record.created)
    if steps is not None:
        every = [record for record in every if label_of(record.upstream["name"])[1] in (0, steps)]
    last = {label_of(record.upstream["name"])[0]: record.upstream["name"] for record in every}
    return [record for record in every if last[label_of(record.upstream["name"])[0]] == record.upstream["name"]]


def complete(plan: ClaimPlan, records: Iterable[Record]) -> list[Record]:
    """The records of the plan's tasks as they are now, of those systems on them that were run with the whole grid."""
    tasks = {task.name: task for some in plan.tasks.values() for task in some.values()}
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in current(record for record in records if _is_of(record, tasks)):
        cells.setdefault((record.upstream["name"], record.task["name"]), []).append(record)
    whole = {name: len(task.lr) * len(task.seeds) for name, task in tasks.items()}
    return [
        record
        for (_, name), cell in cells.items()
        if len(cell) == (1 if cell[0].lr is None else whole[name])  # a head that is not trained has no grid
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
    return record.task | any_metric == fixed(task) | any_metric


def answers(records: Sequence[Record], results: Results) -> PredictionTable:
    """What each system said, with the learning rate that was best on validation."""
    chosen_of = leaderboard(records)
    chosen: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        name, task = record.upstream["name"], record.task["name"]
        if record.lr == chosen_of[name, task].lr:
            chosen.setdefault((label_of(name)[0], task), []).append(record)
    return {
        key: TaskPredictions(some[0].metric, some[0].higher, [results.outcomes(record) for record in some])
        for key, some in chosen.items()
    }


def speakers_of(corpora: Iterable[str], setup: Setup) -> dict[str, str]:
    """Who speaks in each clip of these that somebody speaks in, as they say."""
    data = dict(setup.data)
    found = [find(name, data) for name in corpora]
    items = (item for corpus in found for item in corpus.generate(root_of(corpus, setup.home, data)))
    return {
        item.id: item.labels["speaker"] for item in items if isinstance(item, Utterance) and "speaker" in item.labels
    }


def right(row: Row) -> tuple[float, float]:
    """1 for an answer that is right, of 1."""
    return float(row["correct"] == "True"), 1.0


def errors(row: Row, unit: str) -> tuple[float, float]:
    """Edits of a transcript, and the length of its reference; unit: "word" or "character"."""
    changed, missed, added, hits = (
        int(row[f"{unit}_{kind}"]) for kind in ("substitutions", "deletions", "insertions", "hits")
    )
    return float(changed + missed + added), float(changed + missed + hits)


MARKS: dict[str, Mark] = {
    "accuracy": right,
    "micro_f1": right,  # the same, where every clip has one label
    "wer": lambda row: errors(row, "word"),
    "cer": lambda row: errors(row, "character"),
}


def sample(cells: Sequence[Sequence[TaskPredictions]], speakers: Mapping[str, str]) -> Sample:
    """Answers by system and pre-training seed; speakers: by clip id, a clip without one stands for itself.

    Raises UserError where they are of different clips, and for a metric that is not drawn from single clips.
    """
    metric = cells[0][0].metric
    if metric == "eer":
        return _trials(cells, speakers)
    if metric not in MARKS:
        raise UserError(f"claims cannot be judged by {metric!r}; use a task with one of: eer, {', '.join(MARKS)}")
    return marked(cells, MARKS[metric], speakers)


def marked(cells: Sequence[Sequence[TaskPredictions]], mark: Mark, speakers: Mapping[str, str]) -> Clips:
    """As `sample`. mark: what a row of outcomes counts, and of how much; None leaves it out."""
    tallies = [[_tally(cell, mark) for cell in some] for some in cells]
    first = tallies[0][0]
    _alike([each.keys() for some in tallies for each in some])
    clips = sorted(first)
    found = np.array([[[each[clip] for clip in clips] for each in some] for some in tallies])
    return Clips([_owner(clip, speakers) for clip in clips], found[..., 0], found[..., 1])


def _tally(cell: TaskPredictions, mark: Mark) -> dict[str, tuple[float, float]]:
    """By clip, the mean mark and size over heads."""
    by_clip: dict[str, list[tuple[float, float]]] = {}
    for rows in cell.heads:
        for row in rows:
            if found := mark(row):
                by_clip.setdefault(row["id"], []).append(found)
    return {
        clip: (fmean(mark for mark, _ in found), fmean(size for _, size in found)) for clip, found in by_clip.items()
    }


def _trials(cells: Sequence[Sequence[TaskPredictions]], speakers: Mapping[str, str]) -> Trials:
    ranked = [[[_by_trial(rows) for rows in cell.heads] for cell in some] for some in cells]
    first = ranked[0][0][0]
    _alike([each.keys() for some in ranked for heads in some for each in heads])
    scores = [[[[each[trial] for trial in first] for each in heads] for heads in some] for some in ranked]
    enroll, test = ([_owner(trial[side], speakers) for trial in first] for side in (0, 1))
    return Trials(enroll, test, np.array([target == "True" for *_, target in first]), np.array(scores))


def _by_trial(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    return {(row["enroll"], row["test"], row["target"]): float(row["score"]) for row in rows}


def _alike(keys: Sequence[object]) -> None:
    if any(each != keys[0] for each in keys):
        raise UserError("records of one task are of different test clips; run the same command without --report")


def _owner(clip: str, speakers: Mapping[str, str]) -> str:
    return f"speaker {speakers[clip]}" if clip in speakers else f"clip {clip}"
