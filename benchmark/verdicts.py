"""From records to what became of each claim, and how that is told. Needs neither audio nor checkpoints."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from benchmark.claims import ARMS, FLOOR, SIZE, Claim, Plan, label_of
from benchmark.contrast import Drawn, Interval, Paired, difference, draw, gain, interval
from benchmark.corpora import Utterance
from benchmark.errors import UserError
from benchmark.files import write_text
from benchmark.leaderboard import leaderboard
from benchmark.manifest import find, root_of
from benchmark.plan import Setup
from benchmark.records import Record, Results
from benchmark.tasks import Task

AVERAGE, GAIN = "average", "average relative gain"
COLUMNS = ["claim", "regime", "task", "first", "second", "difference [95 % interval]", "verdict"]

Answers = dict[tuple[str, str], dict[str, float]]  # (arm with seed, task) -> share of probes that are right, by clip


class Row(NamedTuple):
    """A contrast on one task, or on average. first, second: accuracies in percent, means over pre-training seeds."""

    task: str
    first: float
    second: float
    interval: Interval


class Verdict(NamedTuple):
    """A claim with its rows, those of single tasks first."""

    claim: Claim
    rows: list[Row]

    @property
    def word(self) -> str:
        """The verdict on the average over tasks."""
        return next(row for row in self.rows if row.task == AVERAGE).interval.verdict


class Findings(NamedTuple):
    """All that is told. scores: a row for each arm and regime, under `tasks`."""

    verdicts: list[Verdict]
    tasks: list[str]
    scores: list[list[str]]
    notes: list[str]


def reach(plan: Plan, records: Iterable[Record], setup: Setup) -> Findings:
    """Verdicts from the records in `setup.results`; raises UserError where some are missing."""
    kept = newest(records)
    found = answers(kept, Results(setup.results))
    speakers = speakers_of((task for tasks in plan.tasks.values() for task in tasks), setup)
    verdicts = [judged(claim, plan, found, speakers) for claim in plan.claims]
    names = [task.name for task in plan.tasks["frozen"]]
    return Findings(verdicts, names, scores(plan, found), notes(plan, steps_of(kept)))


def newest(records: Iterable[Record]) -> list[Record]:
    """The records of each arm and seed that are of the checkpoint which was run last."""
    every = sorted(records, key=lambda record: record.created)
    last = {label_of(record.upstream["name"])[0]: record.upstream["name"] for record in every}
    return [record for record in every if last[label_of(record.upstream["name"])[0]] == record.upstream["name"]]


def answers(records: Sequence[Record], results: Results) -> Answers:
    """What each system said, with the learning rate that was best on validation."""
    table = leaderboard(records)
    chosen: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        name, task = record.upstream["name"], record.task["name"]
        if record.lr == table[name, task].lr:
            chosen.setdefault((label_of(name)[0], task), []).append(record)
    return {key: _shares([results.outcomes(record) for record in some]) for key, some in chosen.items()}


def _shares(probes: Sequence[Sequence[Mapping[str, str]]]) -> dict[str, float]:
    """By clip, the share of the probes that were right."""
    by_clip: dict[str, list[bool]] = {}
    for rows in probes:
        for row in rows:
            by_clip.setdefault(row["id"], []).append(row["correct"] == "True")
    return {clip: fmean(right) for clip, right in by_clip.items()}


def speakers_of(tasks: Iterable[Task], setup: Setup) -> dict[str, str]:
    """Who speaks in each clip that somebody speaks in, as the corpora say."""
    data = dict(setup.data)
    found = [find(name, data) for name in dict.fromkeys(task.corpus for task in tasks)]
    items = (item for corpus in found for item in corpus.generate(root_of(corpus, setup.home, data)))
    return {
        item.id: item.labels["speaker"] for item in items if isinstance(item, Utterance) and "speaker" in item.labels
    }


def judged(claim: Claim, plan: Plan, found: Answers, speakers: Mapping[str, str]) -> Verdict:
    """What became of a claim. speakers: by clip id; a clip without one stands for itself."""
    names = [task.name for task in plan.tasks[claim.regime]]
    drawn = draw([_paired(claim, name, plan.seeds, found, speakers) for name in names])
    rows = [_row(name, drawn.only(place)) for place, name in enumerate(names)] + [_row(AVERAGE, drawn)]
    return Verdict(claim, [*rows, _row(GAIN, drawn)] if claim.relative else rows)


def _paired(claim: Claim, task: str, seeds: int, found: Answers, speakers: Mapping[str, str]) -> Paired:
    both = [[_of(found, f"{arm}-{seed}", task) for seed in range(seeds)] for arm in (claim.first, claim.second)]
    clips = sorted(both[0][0])
    right = np.array([[[shares[clip] for clip in clips] for shares in some] for some in both])
    return Paired([f"speaker {speakers[clip]}" if clip in speakers else f"clip {clip}" for clip in clips], right)


def _of(found: Answers, label: str, task: str) -> dict[str, float]:
    if (label, task) not in found:
        raise UserError(f"there is no record of {label} on {task} yet; run the same command without --report")
    return found[label, task]


def _row(task: str, drawn: Drawn) -> Row:
    first, second = (100 * float(value) for value in drawn.points.mean((1, 2)))
    return Row(task, first, second, interval(drawn, gain if task == GAIN else difference))


def scores(plan: Plan, found: Answers) -> list[list[str]]:
    """A row for each regime and arm: accuracy on each task, mean ± standard deviation over pre-training seeds."""
    rows = []
    for regime, tasks in plan.tasks.items():
        for arm in (*ARMS, FLOOR):
            labels = [FLOOR] if arm == FLOOR else [f"{arm}-{seed}" for seed in range(plan.seeds)]
            if all((label, task.name) in found for label in labels for task in tasks):
                rows.append([arm, regime, *(_score(found, labels, task.name) for task in tasks)])
    return rows


def _score(found: Answers, labels: Sequence[str], task: str) -> str:
    values = [100 * fmean(found[label, task].values()) for label in labels]
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def steps_of(records: Iterable[Record]) -> dict[str, int]:
    """Of pre-training, by arm."""
    labels = dict(label_of(record.upstream["name"]) for record in records)
    return {label.rpartition("-")[0]: steps for label, steps in labels.items()}


def notes(plan: Plan, steps: Mapping[str, int]) -> list[str]:
    """How the numbers came about. steps: of pre-training, by arm."""
    told = ", ".join(f"{arm} {steps[arm]:,}" for arm in ARMS if arm in steps)
    frozen, tuned = plan.tasks["frozen"][0], plan.tasks["fine-tuned"][0]
    return [
        f"accuracies in percent on test clips, means over {plan.seeds} pre-training seeds; size {SIZE}; steps of"
        f" pre-training: {told}",
        f"frozen: a probe on a weighted sum of layers, {len(frozen.seeds)} probe seeds; fine-tuned: {tuned.epochs}"
        f" epochs, learning rates {', '.join(f'{lr:g}' for lr in tuned.lr)}; rate and epoch chosen on validation",
        "intervals: paired bootstrap over speakers (over clips, where nobody speaks) and spread over pre-training"
        ' seeds; "shown": all above 0, "opposite": all below 0; one verdict in twenty may be due to chance',
    ]


def cells(verdict: Verdict) -> list[list[str]]:
    """The rows of a claim as they are shown, under COLUMNS."""
    start = [title_of(verdict.claim), verdict.claim.regime]
    return [
        [*start, row.task, f"{row.first:.1f}", f"{row.second:.1f}", text_of(row), row.interval.verdict]
        for row in verdict.rows
    ]


def title_of(claim: Claim) -> str:
    """Such as "ssast > ssast-random"."""
    return f"{claim.first} > {claim.second}"


def text_of(row: Row, unit: str = "") -> str:
    """Such as "+8.1 [+5.2, +11.0]", in the unit or in percent for a relative gain; "–" for what cannot be had."""
    value, low, high = (f"{bound:+.1f}" if math.isfinite(bound) else "–" for bound in row.interval[:3])
    return f"{value}{' %' if row.task == GAIN else unit} [{low}, {high}]"


def sentence(verdict: Verdict) -> str:
    """A claim, what came out on average, and what its paper reports."""
    claim, means = verdict.claim, {row.task: text_of(row, " points") for row in verdict.rows}
    relative = f", relative gain {means[GAIN]}" if GAIN in means else ""
    return f"{title_of(claim)}, {claim.regime}: {means[AVERAGE]}{relative}: {verdict.word}; the paper: {claim.paper}"


def markdown(findings: Findings) -> str:
    """Sentences, contrasts, scores and notes."""
    rows = [row for verdict in findings.verdicts for row in cells(verdict)]
    return "\n".join(
        [
            *(f"- {sentence(verdict)}" for verdict in findings.verdicts), "", *_table(COLUMNS, rows), "",
            *_table(["system", "regime", *findings.tasks], findings.scores), "",
            *(f"- {note}" for note in findings.notes), "",
        ]
    )  # fmt: skip


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def write(folder: Path, findings: Findings) -> list[Path]:
    """claims.md and claims.csv; gives their paths."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = ["first_system", "second_system", "regime", "task", "first", "second", *Interval._fields]
    writer.writerow([*columns, "verdict", "paper"])
    for claim, rows in findings.verdicts:
        for row in rows:
            numbers = [f"{number:.4f}" for number in (row.first, row.second, *row.interval)]
            whose = [claim.first, claim.second, claim.regime, row.task]
            writer.writerow([*whose, *numbers, row.interval.verdict, claim.paper])
    paths = [folder / "claims.md", folder / "claims.csv"]
    write_text(paths[0], markdown(findings))
    write_text(paths[1], text.getvalue())
    return paths
