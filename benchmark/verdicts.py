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

from benchmark.claims import ARMS, FLOOR, POOL, SIZE, Claim, Plan, label_of, seeds_told
from benchmark.contrast import Drawn, Interval, Paired, difference, draw, gain, interval
from benchmark.corpora import Utterance
from benchmark.errors import UserError
from benchmark.files import write_text
from benchmark.leaderboard import current, leaderboard
from benchmark.manifest import find, root_of
from benchmark.markdown import table
from benchmark.plan import Setup, fixed
from benchmark.records import Record, Results
from benchmark.tasks import Task

AVERAGE, GAIN = "average", "average relative gain"
COLUMNS = ["claim", "regime", "task", "first", "second", "difference [95 % interval]", "verdict"]

WHAT = {arm.name: arm.what for arm in ARMS.values()} | {FLOOR: "log-mel energies, nothing learned"}

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


def reach(plan: Plan, records: Iterable[Record], setup: Setup, steps: int | None = None) -> Findings:
    """Verdicts from the records in `setup.results`; raises UserError where some are missing.

    steps: those of pre-training that count; None: of each seed those that were run last.
    """
    kept = complete(plan, newest(records, steps))
    found = answers(kept, Results(setup.results))
    speakers = speakers_of((task for tasks in plan.tasks.values() for task in tasks), setup)
    verdicts = [judged(claim, plan, found, speakers) for claim in plan.claims]
    names = [task.name for task in plan.tasks["frozen"]]
    return Findings(verdicts, names, scores(plan, found), notes(plan, steps_of(plan, kept)))


def newest(records: Iterable[Record], steps: int | None = None) -> list[Record]:
    """The records of each arm and seed that are of the checkpoint which was run last, or of so many steps."""
    every = sorted(records, key=lambda record: record.created)
    if steps is not None:
        every = [record for record in every if label_of(record.upstream["name"])[1] in (0, steps)]
    last = {label_of(record.upstream["name"])[0]: record.upstream["name"] for record in every}
    return [record for record in every if last[label_of(record.upstream["name"])[0]] == record.upstream["name"]]


def complete(plan: Plan, records: Iterable[Record]) -> list[Record]:
    """The records of the plan's tasks as they are now, of those systems on them that were run with the whole grid."""
    tasks = {task.name: task for some in plan.tasks.values() for task in some}
    cells: dict[tuple[str, str], list[Record]] = {}
    for record in current(record for record in records if _is_of(record, tasks)):
        cells.setdefault((record.upstream["name"], record.task["name"]), []).append(record)
    whole = {name: len(task.lr) * len(task.seeds) for name, task in tasks.items()}
    return [record for (_, name), cell in cells.items() if len(cell) == whole[name] for record in cell]


def _is_of(record: Record, tasks: Mapping[str, Task]) -> bool:
    task = tasks.get(record.task["name"])
    if task is None or record.lr not in task.lr or record.seed not in task.seeds:
        return False
    any_metric = {"metric": None}  # a task may leave it to its head, but a record names it
    return record.task | any_metric == fixed(task) | any_metric


def answers(records: Sequence[Record], results: Results) -> Answers:
    """What each system said, with the learning rate that was best on validation."""
    chosen_of = leaderboard(records)
    chosen: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        name, task = record.upstream["name"], record.task["name"]
        if record.lr == chosen_of[name, task].lr:
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
        raise UserError(
            f"there are no records of {label} on {task} yet, or not all; run the same command without --report"
        )
    return found[label, task]


def _row(task: str, drawn: Drawn) -> Row:
    first, second = (100 * float(value) for value in drawn.points.mean((1, 2)))
    return Row(task, first, second, interval(drawn, gain if task == GAIN else difference))


def scores(plan: Plan, found: Answers) -> list[list[str]]:
    """A row for each regime and arm: accuracy on each task, mean ± standard deviation over pre-training seeds."""
    rows = []
    for regime, tasks in plan.tasks.items():
        for arm in (*plan.arms, FLOOR):
            labels = [FLOOR] if arm == FLOOR else [f"{arm}-{seed}" for seed in range(plan.seeds)]
            if all((label, task.name) in found for label in labels for task in tasks):
                rows.append([arm, regime, *(_score(found, labels, task.name) for task in tasks)])
    return rows


def _score(found: Answers, labels: Sequence[str], task: str) -> str:
    values = [100 * fmean(found[label, task].values()) for label in labels]
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def steps_of(plan: Plan, records: Iterable[Record]) -> dict[str, int]:
    """Of pre-training, by arm; raises UserError for an arm whose seeds were trained for different numbers of them."""
    labels = dict(label_of(record.upstream["name"]) for record in records)
    found: dict[str, int] = {}
    for arm in plan.arms:
        several = {labels[name] for seed in range(plan.seeds) if (name := f"{arm}-{seed}") in labels}
        if len(several) > 1:
            told = " and ".join(f"{steps:,}" for steps in sorted(several))
            raise UserError(f"seeds of {arm} were pre-trained for {told} steps; say with --steps which ones count")
        if several:
            found[arm] = several.pop()
    return found


def notes(plan: Plan, steps: Mapping[str, int]) -> list[str]:
    """How the numbers came about. steps: of pre-training, by arm."""
    told = ", ".join(f"{arm} {steps[arm]:,}" for arm in plan.arms)
    frozen, tuned = plan.tasks["frozen"][0], plan.tasks["fine-tuned"][0]
    rows = sum(len(plan.tasks[claim.regime]) + 1 + claim.relative for claim in plan.claims)
    spread = ", ± their standard deviation" if plan.seeds > 1 else ""
    alone = "; of one seed, they leave out how much another would differ" if plan.seeds == 1 else ""
    return [
        f"accuracies in percent on test clips, means over {seeds_told(plan.seeds)}{spread}; size"
        f" {SIZE}, pre-trained on {POOL}; steps of pre-training: {told}",
        f"frozen: a probe on a weighted sum of layers, {len(frozen.seeds)} probe seeds; fine-tuned: {tuned.epochs}"
        f" epochs, learning rates {', '.join(f'{lr:g}' for lr in tuned.lr)}; rate and epoch chosen on validation, from"
        " the same grid for all",
        "who speaks in test clips is heard neither in pre-training nor in the training of heads, but for tiny_speaker:"
        " it asks which of 66 speakers of its training clips speaks, in other clips of theirs",
        "intervals: 95 % of a t distribution, its error that of a paired bootstrap over speakers (over clips, where"
        f" nobody speaks) and the spread over pre-training seeds{alone}",
        'verdicts: "shown", where the whole interval is above 0, "opposite", where it is below, else "not resolved";'
        f" each of {rows} intervals stands for itself: where nothing differs, one in twenty misses 0 by chance",
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
    relative = f", {GAIN} {means[GAIN]}" if GAIN in means else ""
    return f"{title_of(claim)}, {claim.regime}: {means[AVERAGE]}{relative}: {verdict.word}; the paper: {claim.paper}"


def markdown(findings: Findings) -> str:
    """Sentences, contrasts, scores and notes."""
    rows = [row for verdict in findings.verdicts for row in cells(verdict)]
    shown = {row[0] for row in findings.scores}
    systems = [[name, what] for name, what in WHAT.items() if name in shown]
    return "\n".join(
        [
            f"# What the papers claim, re-run at size {SIZE}", "",
            "Made by `bench claims`. Each line: is the first system above the second, by how many percentage points on"
            " average over the tasks [95 % interval], and what the paper reports of its own, large models and data.",
            "", *(f"- {sentence(verdict)}" for verdict in findings.verdicts),
            "", "## By task", "", *table(COLUMNS, rows),
            "", "## Accuracies", "", *table(["system", "regime", *findings.tasks], findings.scores),
            "", *table(["system", "what it is"], systems), "", *(f"- {note}" for note in findings.notes), "",
        ]
    )  # fmt: skip


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
