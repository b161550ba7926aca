"""From answers to what became of each claim, and how that is told. Needs neither audio nor checkpoints."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from benchmark.claims.confusions import KINDS, matrix
from benchmark.claims.contrasts import Drawn, difference, draw, fewer, gain, interval, reduction, word_of
from benchmark.claims.definitions import FLOOR, TASKS, VARIANTS, Claim
from benchmark.claims.execution import SIZE, ClaimPlan
from benchmark.claims.notes import notes, steps_of
from benchmark.claims.predictions import (
    PredictionTable,
    TaskPredictions,
    answers,
    complete,
    marked,
    newest,
    sample,
    speakers_of,
)
from benchmark.errors import UserError
from benchmark.files import write_text
from benchmark.records import Record, Results
from benchmark.statistics.intervals import Interval
from benchmark.tables.markdown import table
from benchmark.values import Setup

AVERAGE = "average"
COLUMNS = ["claim", "regime", "task", "first", "second", "difference [95 % interval]", "verdict"]
METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "eer": "EER", "wer": "WER", "cer": "CER"}
WHAT = {arm.name: arm.what for arm in VARIANTS.values()} | {FLOOR: "log-mel energies, nothing learned"}


class ContrastRow(NamedTuple):
    """A contrast on one task, or on average. first, second: scores in percent, means over pre-training seeds.

    metric: several are joined by ", ". higher: its better direction. relative: the interval is one of relative gains.
    """

    task: str
    metric: str
    higher: bool
    relative: bool
    first: float
    second: float
    interval: Interval


class Verdict(NamedTuple):
    """A claim with its rows. main: the one that decides. beside: rows of tasks that are shown too."""

    claim: Claim
    rows: list[ContrastRow]
    main: ContrastRow

    @property
    def word(self) -> str:
        """That of the main row."""
        return word_of(self.main.interval)


class Confusion(NamedTuple):
    """Which labels one arm takes for which, as a table."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Findings(NamedTuple):
    """All that is told. scores: a row for each arm and regime, under `tasks`."""

    verdicts: list[Verdict]
    tasks: list[str]
    scores: list[list[str]]
    notes: list[str]
    confusions: list[Confusion]


def reach(plan: ClaimPlan, records: Iterable[Record], setup: Setup, steps: int | None = None) -> Findings:
    """Verdicts from the records in `setup.results`; raises UserError where some are missing.

    steps: those of pre-training that count; None: of each seed those that were run last.
    """
    kept = complete(plan, newest(records, steps))
    found = answers(kept, Results(setup.results))
    speakers = speakers_of(dict.fromkeys(task.corpus for task in plan.needed), setup)
    verdicts = agreeing([judged(claim, plan, found, speakers) for claim in plan.claims])
    columns = columns_of(plan, found)
    contrasts = {_contrast(each.claim, row) for each in verdicts for row in each.rows}
    told = notes(plan, len(contrasts), steps_of(plan, kept))
    return Findings(verdicts, list(columns.values()), scores(plan, found, speakers, columns), told, tables(plan, found))


def judged(claim: Claim, plan: ClaimPlan, found: PredictionTable, speakers: Mapping[str, str]) -> Verdict:
    """What became of a claim. speakers: by clip id; a clip without one stands for itself."""
    if claim.confusions:
        return _judged_by_confusions(claim, plan, found, speakers)
    names = [*claim.tasks, *claim.beside]
    cells = [_sides(claim, name, plan, found) for name in names]
    drawn = draw([sample(both, speakers) for both in cells])
    firsts = [both[0][0] for both in cells]
    titles = [plan.tasks[claim.regime][name].name for name in names]
    every = [_row(titles[at], [firsts[at]], drawn.only(at)) for at in range(len(names))]
    count = len(claim.tasks)
    some, own = drawn.only(*range(count)), firsts[:count]
    rows = [*every[:count], *([_row(AVERAGE, own, some)] if count > 1 else [])]
    relative = [_row("", own, some, relative=True)._replace(task=_relative(own))] if claim.relative else []
    return Verdict(claim, [*rows, *relative, *every[count:]], rows[-1])


def agreeing(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts, where what several claims contrast has one interval; by itself each has one of its own draws."""
    first: dict[tuple[str, ...], ContrastRow] = {}
    found = []
    for each in verdicts:
        rows = [first.setdefault(_contrast(each.claim, row), row) for row in each.rows]
        found.append(each._replace(rows=rows, main=rows[each.rows.index(each.main)]))
    return found


def _contrast(claim: Claim, row: ContrastRow) -> tuple[str, ...]:
    of = claim.tasks if row.relative or row.task == AVERAGE else ()
    return claim.first, claim.second, claim.regime, row.task, *of


def _judged_by_confusions(
    claim: Claim, plan: ClaimPlan, found: PredictionTable, speakers: Mapping[str, str]
) -> Verdict:
    """The first kind of confusion decides; the others are shown beside it."""
    (name,) = claim.tasks
    both = _sides(claim, name, plan, found)
    rows = []
    for kind, mark in KINDS.items():
        drawn = draw([marked(both, mark, speakers)])
        rows.append(_row(f"{name}: {kind}", [TaskPredictions("confusions", False, ())], drawn))
    return Verdict(claim, rows, rows[0])


def _sides(claim: Claim, name: str, plan: ClaimPlan, found: PredictionTable) -> list[list[TaskPredictions]]:
    task = plan.tasks[claim.regime][name].name
    return [[_of(found, label, task) for label in labels_of(arm, plan)] for arm in (claim.first, claim.second)]


def labels_of(arm: str, plan: ClaimPlan) -> list[str]:
    """The arm with each seed; the floor, which has none, as often."""
    return [arm if arm == FLOOR else f"{arm}-{seed}" for seed in range(plan.seeds)]


def _of(found: PredictionTable, label: str, task: str) -> TaskPredictions:
    if (label, task) not in found:
        raise UserError(
            f"there are no records of {label} on {task} yet, or not all; run the same command without --report"
        )
    return found[label, task]


def _row(task: str, cells: Sequence[TaskPredictions], drawn: Drawn, relative: bool = False) -> ContrastRow:
    """cells: one of each task."""
    higher = cells[0].higher
    statistic = (gain if higher else reduction) if relative else (difference if higher else fewer)
    first, second = (100 * float(value) for value in drawn.points.mean((1, 2)))
    metric = ", ".join(dict.fromkeys(cell.metric for cell in cells))
    return ContrastRow(task, metric, higher, relative, first, second, interval(drawn, statistic))


def _relative(cells: Sequence[TaskPredictions]) -> str:
    kind = "gain" if cells[0].higher else "reduction"
    return f"{AVERAGE} relative {kind}" if len(cells) > 1 else f"relative {kind}"


def columns_of(plan: ClaimPlan, found: PredictionTable) -> dict[str, str]:
    """Headings of the scores by the names of tasks, in the order in which claims are judged by them."""
    named = dict.fromkeys(name for claim in plan.claims for name in (*claim.tasks, *claim.beside))
    lower = {task for (_, task), cell in found.items() if not cell.higher}
    titles = {name: {tasks[name].name for tasks in plan.tasks.values() if name in tasks} for name in named}
    return {name: f"{name} ↓" if titles[name] & lower else name for name in named}


def scores(
    plan: ClaimPlan, found: PredictionTable, speakers: Mapping[str, str], columns: Iterable[str]
) -> list[list[str]]:
    """A row for each regime and arm: its score on each task, mean ± standard deviation over pre-training seeds."""
    rows = []
    for regime, tasks in plan.tasks.items():
        for arm in (*plan.arms, FLOOR):
            titles = [tasks[name].name if name in tasks else "" for name in columns]
            told = [_score(plan, found, speakers, arm, title) for title in titles]
            if any(text != "–" for text in told):
                rows.append([arm, regime, *told])
    return rows


def _score(plan: ClaimPlan, found: PredictionTable, speakers: Mapping[str, str], arm: str, task: str) -> str:
    labels = list(dict.fromkeys(labels_of(arm, plan)))
    if not all((label, task) in found for label in labels):
        return "–"
    values = [100 * float(value) for value in sample([[found[label, task] for label in labels]], speakers).points()[0]]
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def tables(plan: ClaimPlan, found: PredictionTable) -> list[Confusion]:
    """Of each arm that a claim about confusions is about."""
    wanted = {
        (arm, claim.regime, claim.tasks[0]): None
        for claim in plan.claims
        if claim.confusions
        for arm in (claim.first, claim.second)
    }
    return [
        Confusion(f"{arm}, {regime}, {name}", *matrix(_of(found, label, task) for label in labels_of(arm, plan)))
        for arm, regime, name in wanted
        for task in [plan.tasks[regime][name].name]
    ]


def cells(verdict: Verdict) -> list[list[str]]:
    """The rows of a claim as they are shown, under COLUMNS."""
    start = [title_of(verdict.claim), verdict.claim.regime]
    return [
        [*start, arrowed(row), f"{row.first:.1f}", f"{row.second:.1f}", text_of(row), word_of(row.interval)]
        for row in verdict.rows
    ]


def arrowed(row: ContrastRow) -> str:
    """The task, marked where lower scores are better."""
    return row.task if row.higher or row.relative else f"{row.task} ↓"


def title_of(claim: Claim) -> str:
    """Such as "ssast > ssast-random"."""
    return f"{claim.first} > {claim.second}"


def text_of(row: ContrastRow, unit: str = "") -> str:
    """Such as "+8.1 [+5.2, +11.0]", in the unit or in percent for a relative gain; "–" for what cannot be had."""
    value, low, high = (f"{bound:+.1f}" if math.isfinite(bound) else "–" for bound in row.interval[:3])
    return f"{value}{' %' if row.relative else unit} [{low}, {high}]"


def sentence(verdict: Verdict) -> str:
    """A claim, what came out by its main row, and what its paper reports."""
    claim, main = verdict.claim, verdict.main
    unit = f" points of {METRICS[main.metric]}" if main.metric in METRICS else " points"
    relative = "".join(f", {row.task} {text_of(row)}" for row in verdict.rows if row.relative)
    where = "" if claim.tasks == TASKS else f", {main.task if claim.confusions else ' and '.join(claim.tasks)}"
    told = f"{text_of(main, unit)}{relative}: {verdict.word}; the paper: {claim.paper}"
    return f"{title_of(claim)}, {claim.regime}{where}: {told}"


def markdown(findings: Findings) -> str:
    """Sentences, contrasts, scores, confusions and notes."""
    rows = [row for verdict in findings.verdicts for row in cells(verdict)]
    shown = {row[0] for row in findings.scores}
    systems = [[name, what] for name, what in WHAT.items() if name in shown]
    return "\n".join(
        [
            f"# What the papers claim, re-run at size {SIZE}", "",
            "Made by `bench claims`. Each line: is the first system better than the second, by how many percentage"
            " points on average over the tasks [95 % interval], and what the paper reports of its own, large models and"
            " data. Above 0 is better: more that is right, or fewer errors.",
            "", *(f"- {sentence(verdict)}" for verdict in findings.verdicts),
            "", "## By task", "", *table(COLUMNS, rows),
            "", "## Scores", "", *table(["system", "regime", *findings.tasks], findings.scores),
            *(line for found in findings.confusions for line in confusion_told(found)),
            "", *table(["system", "what it is"], systems), "", *(f"- {note}" for note in findings.notes), "",
        ]
    )  # fmt: skip


def confusion_told(found: Confusion) -> list[str]:
    """Its lines."""
    what = "Percent of the test clips of each language that are taken for each, means over seeds."
    return ["", f"### Confusions: {found.title}", "", what, "", *table(found.columns, found.rows)]


def write(folder: Path, findings: Findings) -> list[Path]:
    """claims.md and claims.csv; gives their paths."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = ["first_system", "second_system", "regime", "task", "metric", "first", "second", *Interval._fields]
    writer.writerow([*columns, "verdict", "paper"])
    for verdict in findings.verdicts:
        claim = verdict.claim
        for row in verdict.rows:
            numbers = [f"{number:.4f}" for number in (row.first, row.second, *row.interval)]
            whose = [claim.first, claim.second, claim.regime, row.task, row.metric]
            writer.writerow([*whose, *numbers, word_of(row.interval), claim.paper])
    paths = [folder / "claims.md", folder / "claims.csv"]
    write_text(paths[0], markdown(findings))
    write_text(paths[1], text.getvalue())
    return paths
