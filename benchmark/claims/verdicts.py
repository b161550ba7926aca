"""Judge each claim by the records of its systems, and say so in sentences and tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from benchmark.claims.checkpoint_records import SystemRecords, choose_by_validation, complete_grids, newest_records
from benchmark.claims.confusions import CONFUSION_KINDS, confusion_matrix
from benchmark.claims.contrasts import (
    Contrast,
    contrast_interval,
    make_contrast,
    point_gain,
    point_reduction,
    relative_gain,
    relative_reduction,
    verdict_word,
)
from benchmark.claims.definitions import FLOOR, TASKS, VARIANTS, Claim
from benchmark.claims.execution import SIZE, ClaimPlan
from benchmark.claims.notes import claim_notes, pretraining_steps
from benchmark.errors import UserError
from benchmark.files import write_text
from benchmark.records import Record, Results
from benchmark.statistics.intervals import Interval
from benchmark.statistics.outcomes import UNBOUNDED, Outcomes, Row, collect_outcomes, ratios
from benchmark.tables.markdown import table_lines

AVERAGE = "average"
COLUMNS = ["claim", "regime", "task", "first", "second", "difference [95 % interval]", "verdict"]
METRICS = {"accuracy": "accuracy", "micro_f1": "micro-F1", "eer": "EER", "wer": "WER", "cer": "CER"}
DESCRIPTIONS = {variant.name: variant.description for variant in VARIANTS.values()} | {
    FLOOR: "log-mel energies, nothing learned"
}
CONFUSIONS = "confusions"  # stands for a metric: a share of clips, lower is better


class ContrastRow(NamedTuple):
    """A contrast on one task or on the average of several.

    metric: several metrics are joined by ", ". higher: whether higher scores are better. relative: the interval is one
    of relative gains. first, second: scores in percent, means over pre-training seeds. seeds: number of these.
    """

    task: str
    metric: str
    higher: bool
    relative: bool
    first: float
    second: float
    interval: Interval
    seeds: int

    @property
    def word(self) -> str:
        """Whether the interval resolves the contrast; see `verdict_word`."""
        return verdict_word(self.interval, self.seeds)


class Verdict(NamedTuple):
    """A claim and its contrasts. main: the row that decides."""

    claim: Claim
    rows: list[ContrastRow]
    main: ContrastRow

    @property
    def word(self) -> str:
        """The result of the row that decides."""
        return self.main.word


class Confusion(NamedTuple):
    """A table of how often a variant mistakes each label for each other one."""

    title: str
    columns: list[str]
    rows: list[list[str]]


class Findings(NamedTuple):
    """Verdicts and tables. scores: a row for each variant and regime; tasks: the headings of their columns."""

    verdicts: list[Verdict]
    tasks: list[str]
    scores: list[list[str]]
    notes: list[str]
    confusions: list[Confusion]


def judge_claims(plan: ClaimPlan, records: Iterable[Record], results: Results, steps: int | None = None) -> Findings:
    """Judge the plan's claims by records and their outcomes; raises UserError where some are missing.

    steps: the number of pre-training steps of the checkpoints that count; None: those that were run last.
    """
    complete = complete_grids(plan, newest_records(records, steps))
    chosen = choose_by_validation(complete)
    outcomes = remembered_outcomes(results.outcomes)
    verdicts = [judge_claim(claim, plan, chosen, outcomes) for claim in plan.claims]
    headings = score_headings(plan, chosen)
    contrasts = {_identity(verdict.claim, row) for verdict in verdicts for row in verdict.rows}
    notes = claim_notes(plan, len(contrasts), pretraining_steps(plan, complete))
    scores = score_rows(plan, chosen, headings)
    return Findings(verdicts, list(headings.values()), scores, notes, confusion_tables(plan, chosen, outcomes))


def remembered_outcomes(outcomes: Outcomes) -> Outcomes:
    """The same outcomes, read once for each record, because several claims share them."""
    read: dict[str, Sequence[Row]] = {}

    def remembered(record: Record) -> Sequence[Row]:
        if record.id not in read:
            read[record.id] = outcomes(record)
        return read[record.id]

    return remembered


def judge_claim(claim: Claim, plan: ClaimPlan, chosen: SystemRecords, outcomes: Outcomes) -> Verdict:
    """Contrast the two systems of a claim on each of its tasks and on their average, which decides."""
    if claim.confusions:
        return _judge_confusions(claim, plan, chosen, outcomes)
    names = [*claim.tasks, *claim.beside]
    records = [_records(claim, name, plan, chosen) for name in names]
    sides = _upstreams(claim, names[0], plan, chosen)
    collected = [collect_outcomes(task, outcomes) for task in records]
    titles = [plan.tasks[claim.regime][name].name for name in names]
    count = len(claim.tasks)
    single = [
        _row(title, [task[0]], make_contrast([one], *sides), plan.seeds)
        for title, task, one in zip(titles, records, collected, strict=True)
    ]
    firsts = [task[0] for task in records[:count]]
    joint = make_contrast(collected[:count], *sides)
    rows = [*single[:count], *([_row(AVERAGE, firsts, joint, plan.seeds)] if count > 1 else [])]
    relative = [_row(_relative_title(firsts), firsts, joint, plan.seeds, relative=True)] if claim.relative else []
    return Verdict(claim, [*rows, *relative, *single[count:]], rows[-1])


def _identity(claim: Claim, row: ContrastRow) -> tuple[str, ...]:
    """What a row contrasts; several claims may contrast the same."""
    tasks = claim.tasks if row.relative or row.task == AVERAGE else ()
    return claim.first, claim.second, claim.regime, row.task, *tasks


def _judge_confusions(claim: Claim, plan: ClaimPlan, chosen: SystemRecords, outcomes: Outcomes) -> Verdict:
    """Contrast each kind of confusion; the first kind decides and the others are shown beside it."""
    (name,) = claim.tasks
    records = _records(claim, name, plan, chosen)
    sides = _upstreams(claim, name, plan, chosen)
    rows = []
    for kind, mark in CONFUSION_KINDS.items():
        contrast = make_contrast([collect_outcomes(records, outcomes, partial(ratios, mark))], *sides)
        first, second = (100 * float(value) for value in contrast.means().mean(1))
        interval = contrast_interval(contrast, point_reduction)
        rows.append(ContrastRow(f"{name}: {kind}", CONFUSIONS, False, False, first, second, interval, plan.seeds))
    return Verdict(claim, rows, rows[0])


def _records(claim: Claim, name: str, plan: ClaimPlan, chosen: SystemRecords) -> list[Record]:
    """The records of both systems of a claim on a task, with every seed; raises UserError where some are missing."""
    task = plan.tasks[claim.regime][name].name
    labels = dict.fromkeys([*labels_of(claim.first, plan), *labels_of(claim.second, plan)])
    return [record for label in labels for record in _records_of(chosen, label, task)]


def _upstreams(claim: Claim, name: str, plan: ClaimPlan, chosen: SystemRecords) -> tuple[list[str], list[str]]:
    """The upstreams of both systems of a claim, one for each pre-training seed."""
    task = plan.tasks[claim.regime][name].name
    first, second = (
        [_records_of(chosen, label, task)[0].upstream["name"] for label in labels_of(variant, plan)]
        for variant in (claim.first, claim.second)
    )
    return first, second


def labels_of(variant: str, plan: ClaimPlan) -> list[str]:
    """The variant with each pre-training seed; the floor, which has none, as often."""
    return [variant if variant == FLOOR else f"{variant}-{seed}" for seed in range(plan.seeds)]


def _records_of(chosen: SystemRecords, label: str, task: str) -> list[Record]:
    if (label, task) not in chosen:
        raise UserError(
            f"there are no records of {label} on {task} yet, or not all; run the same command without --report"
        )
    return chosen[label, task]


def _row(title: str, tasks: Sequence[Record], contrast: Contrast, seeds: int, relative: bool = False) -> ContrastRow:
    """A row of the table. tasks: a record of each task, for its metric."""
    higher = tasks[0].higher
    functions = (relative_gain, relative_reduction) if relative else (point_gain, point_reduction)
    first, second = (100 * float(value) for value in contrast.means().mean(1))
    metrics = list(dict.fromkeys(record.metric for record in tasks))
    bounded = not any(metric in UNBOUNDED for metric in metrics)
    interval = contrast_interval(contrast, functions[0] if higher else functions[1], bounded)
    return ContrastRow(title, ", ".join(metrics), higher, relative, first, second, interval, seeds)


def _relative_title(tasks: Sequence[Record]) -> str:
    kind = "gain" if tasks[0].higher else "reduction"
    return f"{AVERAGE} relative {kind}" if len(tasks) > 1 else f"relative {kind}"


def score_headings(plan: ClaimPlan, chosen: SystemRecords) -> dict[str, str]:
    """Headings of the table of scores by task name, in the order in which claims use the tasks."""
    named = dict.fromkeys(name for claim in plan.claims for name in (*claim.tasks, *claim.beside))
    lower = {task for (_, task), records in chosen.items() if not records[0].higher}
    titles = {name: {tasks[name].name for tasks in plan.tasks.values() if name in tasks} for name in named}
    return {name: f"{name} ↓" if titles[name] & lower else name for name in named}


def score_rows(plan: ClaimPlan, chosen: SystemRecords, names: Iterable[str]) -> list[list[str]]:
    """A row for each regime and variant: its score on each task, mean ± standard deviation over pre-training seeds."""
    rows = []
    for regime, tasks in plan.tasks.items():
        for variant in (*plan.variants, FLOOR):
            titles = [tasks[name].name if name in tasks else "" for name in names]
            scores = [_score(plan, chosen, variant, title) for title in titles]
            if any(text != "–" for text in scores):
                rows.append([variant, regime, *scores])
    return rows


def _score(plan: ClaimPlan, chosen: SystemRecords, variant: str, task: str) -> str:
    labels = list(dict.fromkeys(labels_of(variant, plan)))
    if not all((label, task) in chosen for label in labels):
        return "–"
    values = [
        fmean(math.nan if (score := record.test[record.metric]) is None else score for record in chosen[label, task])
        for label in labels
    ]
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def confusion_tables(plan: ClaimPlan, chosen: SystemRecords, outcomes: Outcomes) -> list[Confusion]:
    """A confusion matrix of each variant that a claim about confusions contrasts."""
    wanted = {
        (variant, claim.regime, claim.tasks[0]): None
        for claim in plan.claims
        if claim.confusions
        for variant in (claim.first, claim.second)
    }
    tables = []
    for variant, regime, name in wanted:
        task = plan.tasks[regime][name].name
        records = [record for label in labels_of(variant, plan) for record in _records_of(chosen, label, task)]
        tables.append(Confusion(f"{variant}, {regime}, {name}", *confusion_matrix(map(outcomes, records))))
    return tables


def verdict_rows(verdict: Verdict) -> list[list[str]]:
    """The rows of a claim as texts, under COLUMNS."""
    start = [claim_title(verdict.claim), verdict.claim.regime]
    return [
        [*start, task_heading(row), f"{row.first:.1f}", f"{row.second:.1f}", difference_with_interval(row), row.word]
        for row in verdict.rows
    ]


def task_heading(row: ContrastRow) -> str:
    """The name of the task, with an arrow where lower scores are better."""
    return row.task if row.higher or row.relative else f"{row.task} ↓"


def claim_title(claim: Claim) -> str:
    """The claim in short, such as "ssast > ssast-random"."""
    return f"{claim.first} > {claim.second}"


def difference_with_interval(row: ContrastRow, unit: str = "") -> str:
    """The difference with its interval, such as "+8.1 [+5.2, +11.0]"; "–" stands for a bound that is not known.

    unit: follows the difference; a relative one is in percent.
    """
    value, low, high = (f"{bound:+.1f}" if math.isfinite(bound) else "–" for bound in row.interval[:3])
    return f"{value}{' %' if row.relative else unit} [{low}, {high}]"


def verdict_sentence(verdict: Verdict) -> str:
    """A claim, the result of the row that decides, and what the paper reports."""
    claim, main = verdict.claim, verdict.main
    unit = f" points of {METRICS[main.metric]}" if main.metric in METRICS else " points"
    relative = "".join(f", {row.task} {difference_with_interval(row)}" for row in verdict.rows if row.relative)
    where = "" if claim.tasks == TASKS else f", {main.task if claim.confusions else ' and '.join(claim.tasks)}"
    result = f"{difference_with_interval(main, unit)}{relative}: {verdict.word}; the paper: {claim.paper}"
    return f"{claim_title(claim)}, {claim.regime}{where}: {result}"


def claims_markdown(findings: Findings) -> str:
    """The whole page: a sentence for each claim, the contrasts, scores, confusions and notes."""
    rows = [row for verdict in findings.verdicts for row in verdict_rows(verdict)]
    shown = {row[0] for row in findings.scores}
    systems = [[name, text] for name, text in DESCRIPTIONS.items() if name in shown]
    return "\n".join(
        [
            f"# What the papers claim, re-run at size {SIZE}", "",
            "Made by `bench claims`. Each line: is the first system better than the second, by how many percentage"
            " points on average over the tasks [95 % interval], and what the paper reports of its own, large models and"
            " data. Above 0 is better: more correct predictions, or fewer errors.",
            "", *(f"- {verdict_sentence(verdict)}" for verdict in findings.verdicts),
            "", "## By task", "", *table_lines(COLUMNS, rows),
            "", "## Scores", "", *table_lines(["system", "regime", *findings.tasks], findings.scores),
            *(line for confusion in findings.confusions for line in confusion_lines(confusion)),
            "", *table_lines(["system", "what it is"], systems), "", *(f"- {note}" for note in findings.notes), "",
        ]
    )  # fmt: skip


def confusion_lines(confusion: Confusion) -> list[str]:
    """The lines of a confusion matrix with its heading."""
    caption = "Percent of the test clips of each language that are taken for each, means over seeds."
    return ["", f"### Confusions: {confusion.title}", "", caption, "", *table_lines(confusion.columns, confusion.rows)]


def write_claims(folder: Path, findings: Findings) -> list[Path]:
    """Write claims.md and claims.csv into a folder and return their paths."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = ["first_system", "second_system", "regime", "task", "metric", "first", "second", *Interval._fields]
    writer.writerow([*columns, "verdict", "paper"])
    for verdict in findings.verdicts:
        claim = verdict.claim
        for row in verdict.rows:
            numbers = [f"{number:.4f}" for number in (row.first, row.second, *row.interval)]
            names = [claim.first, claim.second, claim.regime, row.task, row.metric]
            writer.writerow([*names, *numbers, row.word, claim.paper])
    paths = [folder / "claims.md", folder / "claims.csv"]
    write_text(paths[0], claims_markdown(findings))
    write_text(paths[1], text.getvalue())
    return paths
