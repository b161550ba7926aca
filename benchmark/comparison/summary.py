"""Present a comparison of two upstreams: tables, the clips on which they differ, and a summary sentence."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from benchmark.comparison.pairs import SIGNIFICANCE, Pair, TaskComparison
from benchmark.statistics.intervals import Interval
from benchmark.tables.cells import METRIC_NAMES, decimals_of

COLUMNS = ["task", "metric", "first", "second", "difference [95 %]", "p", "p (Holm)", "better / worse on", "verdict"]
DISAGREEMENT_COLUMNS = ["id", "reference", "first", "second", "better"]


def comparison_row(task: TaskComparison) -> list[str]:
    """Return the row of a task for the columns COLUMNS."""
    disagreements = task.disagreements
    metric = f"{METRIC_NAMES.get(task.metric, task.metric)} {'↑' if task.higher else '↓'}"
    scores = [score_with_interval(side.score, task.metric) for side in (task.first, task.second)]
    p_values = [p_text(task.p), p_text(task.adjusted)]
    counts = f"{disagreements.gained:.0f} / {disagreements.lost:.0f} of {disagreements.total}"
    return [task.task, metric, *scores, difference_text(task), *p_values, counts, task.verdict]


def score_with_interval(score: Interval, metric: str) -> str:
    """Return a score with its interval, such as "33.3 [30.1, 36.6]"."""
    digits = decimals_of(metric)
    if math.isnan(score.low):
        return f"{score.value:.{digits}f}"
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def difference_text(task: TaskComparison) -> str:
    """Return the signed difference with its interval, such as "+5.0 [+2.0, +8.0]"; "–" where it has none."""
    value, low, high = (f"{part:+.{decimals_of(task.metric)}f}" for part in task.difference[:3])
    return f"{value} –" if math.isnan(task.difference.low) else f"{value} [{low}, {high}]"


def p_text(p: float) -> str:
    """Return a p-value as text, such as "0.031"; "–" if it is NaN."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def summary_sentence(pair: Pair) -> str:
    """Return one sentence on what can and what cannot be concluded from a comparison."""
    groups: dict[str, list[TaskComparison]] = {"better": [], "worse": [], "not resolved": [], "unadjusted": []}
    for task in pair.tasks:
        groups["unadjusted" if _only_unadjusted(task) else task.verdict.partition(",")[0]].append(task)
    parts = []
    if groups["better"]:
        parts.append(f"{pair.first} is better than {pair.second} on {_listed(groups['better'])}")
    if groups["worse"]:
        start = "worse" if parts else f"{pair.first} is worse than {pair.second}"
        parts.append(f"{start} on {_listed(groups['worse'])}")
    if groups["not resolved"]:
        start = "which is better" if parts else f"which of {pair.first} and {pair.second} is better"
        parts.append(f"{start} on {_unresolved(groups['not resolved'])}")
    if groups["unadjusted"]:
        tasks = _listed(groups["unadjusted"])
        parts.append(
            f"a difference on {tasks} would count by itself, but not with all tests of this comparison counted"
        )
    return "; ".join(parts) + _limits(pair)


def _only_unadjusted(task: TaskComparison) -> bool:
    """Whether the test is significant before, but not after, the adjustment for multiple tests."""
    return task.verdict == "not resolved" and task.p < SIGNIFICANCE


def _listed(tasks: Sequence[TaskComparison]) -> str:
    remark = {True: ", for one seed", False: ""}
    return _joined([f"{task.task} ({difference_text(task)}{_points(task)}{remark[task.one_seed]})" for task in tasks])


def _unresolved(tasks: Sequence[TaskComparison]) -> str:
    items = [f"{task.task} ({_possible(task)})" for task in tasks]
    return f"{_joined(items)} cannot be said"


def _possible(task: TaskComparison) -> str:
    if task.difference.low == task.difference.high == 0:
        return "nothing differs"
    if math.isnan(task.difference.low):
        one = f"all test clips are of one {task.unit.removesuffix('s')}"
        return one if task.clusters == 1 else "the test data are too few"
    low, high = (f"{end:+.{decimals_of(task.metric)}f}" for end in task.difference[1:3])
    return f"anything from {low} to {high}{_points(task)} remains possible"


def _points(task: TaskComparison) -> str:
    name = METRIC_NAMES.get(task.metric, task.metric)
    return f" {name}" if task.metric == "min_dcf" else f" points of {name}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _limits(pair: Pair) -> str:
    """Return a clause on tasks with a single seed, whose intervals do not cover the variation between seeds."""
    single = [task.task for task in pair.tasks if 1 in (task.first.seeds, task.second.seeds)]
    if not single:
        return ""
    where = "" if len(single) == len(pair.tasks) else f" on {_joined(single)}"
    return f"; with one seed{where}, how much another would change this is not known"


def comparison_notes(pairs: Iterable[Pair]) -> list[str]:
    """Return notes on tests, resampling, adjustment, and tasks that were left out."""
    all_tasks = [task for pair in pairs for task in pair.tasks]
    tests = {task.test: [other.task for other in all_tasks if other.test == task.test] for task in all_tasks}
    used = [f"{test}: {', '.join(dict.fromkeys(tasks))}" for test, tasks in tests.items()]
    sizes = {f"{task.task} {task.clusters} {task.unit}" for task in all_tasks}
    alone = [f"{', '.join(pair.alone)}: only {pair.first} or {pair.second} was run" for pair in pairs if pair.alone]
    return [
        f"p by {'; '.join(used)}", f"resampled: {', '.join(sorted(sizes))}",
        f"p (Holm): adjusted for all tests here, {len(all_tasks)}; a verdict needs less than {SIGNIFICANCE:g};"
        " intervals are 95 %",
        "better / worse on: clips or trials on which the first has the lower or higher error, mean over pairs of seeds",
        *(f"left out: {text}" for text in alone),
    ]  # fmt: skip


def disagreement_rows(task: TaskComparison, count: int) -> list[list[str]]:
    """Return the `count` clips or trials with the largest differences, under DISAGREEMENT_COLUMNS."""
    return [
        [row.id, row.reference, row.first.text, row.second.text,
         "first" if row.first.loss < row.second.loss else "second"]
        for row in task.disagreements.rows[:count]
    ]  # fmt: skip


def as_csv(pairs: Iterable[Pair]) -> str:
    """Return CSV with one row for each pair and task, and all their numbers."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{name}_{part}" for name in ("first", "second", "difference") for part in ("value", "low", "high")]
    writer.writerow(
        ["first", "second", "task", "metric", "higher_is_better", *parts, "first_seeds", "second_seeds", "test", "p",
         "p_holm", "gained", "lost", "count", "unit", "clusters", "verdict"]
    )  # fmt: skip
    for pair in pairs:
        for task in pair.tasks:
            intervals = (task.first.score, task.second.score, task.difference)
            numbers = [part for interval in intervals for part in interval[:3]]
            disagreements = task.disagreements
            writer.writerow(
                [pair.first, pair.second, task.task, task.metric, task.higher, *(f"{number:.4f}" for number in numbers),
                 task.first.seeds, task.second.seeds, task.test, f"{task.p:.3g}", f"{task.adjusted:.3g}",
                 f"{disagreements.gained:.2f}", f"{disagreements.lost:.2f}", disagreements.total, task.unit,
                 task.clusters, task.verdict]
            )  # fmt: skip
    return text.getvalue()
