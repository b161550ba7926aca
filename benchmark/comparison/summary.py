"""What a comparison of two upstreams comes to: tables, the clips they differ on, and one sentence."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from benchmark.comparison.pairs import LEVEL, Pair, TaskComparison
from benchmark.statistics.intervals import Interval
from benchmark.tables.cells import SHORT, digits_of

COLUMNS = ["task", "metric", "first", "second", "difference [95 %]", "p", "p (Holm)", "better / worse on", "verdict"]
SHOWN = ["id", "reference", "first", "second", "better"]


def row_of(each: TaskComparison) -> list[str]:
    """Under COLUMNS."""
    flips = each.flips
    metric = f"{SHORT.get(each.metric, each.metric)} {'↑' if each.higher else '↓'}"
    scores = [scored(side.score, each.metric) for side in (each.first, each.second)]
    chances = [chance_of(each.p), chance_of(each.adjusted)]
    told = f"{flips.gained:.0f} / {flips.lost:.0f} of {flips.total}"
    return [each.task, metric, *scores, between(each), *chances, told, each.verdict]


def scored(score: Interval, metric: str) -> str:
    """Such as "33.3 [30.1, 36.6]"."""
    digits = digits_of(metric)
    if math.isnan(score.low):
        return f"{score.value:.{digits}f}"
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def between(each: TaskComparison) -> str:
    """The difference with its interval, signed."""
    value, low, high = (f"{part:+.{digits_of(each.metric)}f}" for part in each.difference[:3])
    return f"{value} [{low}, {high}]"


def chance_of(p: float) -> str:
    """Such as "0.031"."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def sentence(pair: Pair) -> str:
    """What can and what cannot be concluded, in one."""
    groups: dict[str, list[TaskComparison]] = {"better": [], "worse": [], "not resolved": [], "alone": []}
    for each in pair.tasks:
        groups["alone" if _by_itself(each) else each.verdict.partition(",")[0]].append(each)
    parts = []
    if groups["better"]:
        parts.append(f"{pair.first} is better than {pair.second} on {_listed(groups['better'])}")
    if groups["worse"]:
        who = "worse" if parts else f"{pair.first} is worse than {pair.second}"
        parts.append(f"{who} on {_listed(groups['worse'])}")
    if groups["not resolved"]:
        who = "which is better" if parts else f"which of {pair.first} and {pair.second} is better"
        parts.append(f"{who} on {_open(groups['not resolved'])}")
    if groups["alone"]:
        told = _listed(groups["alone"])
        parts.append(f"a difference on {told} would count by itself, but not with all tests of this comparison counted")
    return "; ".join(parts) + _limits(pair)


def _by_itself(each: TaskComparison) -> bool:
    """Whether the test says something that it does not say once adjusted."""
    return each.verdict == "not resolved" and each.p < LEVEL


def _listed(some: Sequence[TaskComparison]) -> str:
    alone = {True: ", for one seed", False: ""}
    return _joined([f"{each.task} ({between(each)}{_points(each)}{alone[each.one_seed]})" for each in some])


def _open(some: Sequence[TaskComparison]) -> str:
    told = [f"{each.task} ({_possible(each)})" for each in some]
    return f"{_joined(told)} cannot be said"


def _possible(each: TaskComparison) -> str:
    if each.difference.low == each.difference.high == 0:
        return "nothing differs"
    if math.isnan(each.difference.low):
        return "the test data are too few"
    low, high = (f"{end:+.{digits_of(each.metric)}f}" for end in each.difference[1:3])
    return f"anything from {low} to {high}{_points(each)} remains possible"


def _points(each: TaskComparison) -> str:
    name = SHORT.get(each.metric, each.metric)
    return f" {name}" if each.metric == "min_dcf" else f" points of {name}"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _limits(pair: Pair) -> str:
    """What the numbers leave out."""
    single = [each.task for each in pair.tasks if 1 in (each.first.seeds, each.second.seeds)]
    if not single:
        return ""
    where = "" if len(single) == len(pair.tasks) else f" on {_joined(single)}"
    return f"; with one seed{where}, how much another would change this is not known"


def notes(pairs: Iterable[Pair]) -> list[str]:
    """How the numbers came about."""
    every = [each for pair in pairs for each in pair.tasks]
    tests = {each.test: [other.task for other in every if other.test == each.test] for each in every}
    told = [f"{test}: {', '.join(dict.fromkeys(tasks))}" for test, tasks in tests.items()]
    sizes = {f"{each.task} {each.clusters} {each.unit}" for each in every}
    alone = [f"{', '.join(pair.alone)}: only {pair.first} or {pair.second} was run" for pair in pairs if pair.alone]
    return [
        f"p by {'; '.join(told)}", f"resampled: {', '.join(sorted(sizes))}",
        f"p (Holm): adjusted for all tests here, {len(every)}; a verdict needs less than {LEVEL:g}; intervals are 95 %",
        "better / worse on: clips or trials that the first answers better or worse, mean over pairs of seeds",
        *(f"left out: {told}" for told in alone),
    ]  # fmt: skip


def shown(each: TaskComparison, count: int) -> list[list[str]]:
    """Under SHOWN, the clips or trials that the two differ most on."""
    return [
        [row.id, row.reference, row.first.answer, row.second.answer,
         "first" if row.first.loss < row.second.loss else "second"]
        for row in each.flips.rows[:count]
    ]  # fmt: skip


def as_csv(pairs: Iterable[Pair]) -> str:
    """A row for each pair and task, with everything."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{name}_{part}" for name in ("first", "second", "difference") for part in ("value", "low", "high")]
    writer.writerow(
        ["first", "second", "task", "metric", "higher_is_better", *parts, "first_seeds", "second_seeds", "test", "p",
         "p_holm", "gained", "lost", "count", "unit", "clusters", "verdict"]
    )  # fmt: skip
    for pair in pairs:
        for each in pair.tasks:
            numbers = [part for told in (each.first.score, each.second.score, each.difference) for part in told[:3]]
            writer.writerow(
                [pair.first, pair.second, each.task, each.metric, each.higher, *(f"{number:.4f}" for number in numbers),
                 each.first.seeds, each.second.seeds, each.test, f"{each.p:.3g}", f"{each.adjusted:.3g}",
                 f"{each.flips.gained:.2f}", f"{each.flips.lost:.2f}", each.flips.total, each.unit, each.clusters,
                 each.verdict]
            )  # fmt: skip
    return text.getvalue()
