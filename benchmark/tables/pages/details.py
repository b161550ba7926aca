"""What lies behind a score: which classes are confused, which words are misheard, which errors a detector trades."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from benchmark.records import Record
from benchmark.statistics.outcomes import Outcomes, Row
from benchmark.tables.pages import layer_charts, plots
from benchmark.tables.pages.figures import Column, figure, interval, marked, note
from benchmark.tables.pages.markup import Markup, breakable, element, listing, scrolling
from benchmark.tables.pages.transcripts import misheard, rates

MATRIX = 20  # classes that a matrix is drawn for; with more, the most frequent confusions are listed
LISTED = 10  # confusions that are listed, where there are more classes
TRADED = (
    "Percent of targets missed (upwards) against others accepted (rightwards) at every threshold, both axes by normal "
    "quantiles, of the first job; dashed: where both are equal; grey: the other upstreams."
)


class TaskPredictions(NamedTuple):
    """Outcomes of the chosen jobs of an upstream by job, without those that are gone."""

    jobs: list[Sequence[Row]]
    lost: int


def drill(task: Column, outcomes: Outcomes) -> tuple[str, Markup] | None:
    """A title and what the outcomes of a task's chosen jobs show; None for heads of which nothing more is shown."""
    answers = {name: _answers(task.chosen(name), outcomes) for name in task.scored()}
    columns = {key for each in answers.values() for job in each.jobs for row in job[:1] for key in row}
    kinds: list[tuple[str, str, Callable[[Column, dict[str, TaskPredictions]], Markup]]] = [
        ("hypothesis", "Errors of recognition", texts),
        ("target", "Misses against false alarms", detection),
        ("correct", "Confusions", confusions),
    ]
    for sign, title, show in kinds:
        if sign in columns:
            return title, show(task, answers)
    if columns or not answers:
        return None
    return "Outcomes", note(_gone(sum(each.lost for each in answers.values())))


def _answers(records: Sequence[Record], outcomes: Outcomes) -> TaskPredictions:
    jobs, lost = [], 0
    for record in records:
        try:
            jobs.append(outcomes(record))
        except OSError:
            lost += 1
    return TaskPredictions([job for job in jobs if job], lost)


def _gone(count: int) -> str:
    return f"The outcomes of {count} {'job is' if count == 1 else 'jobs are'} not there any more."


def _each(
    task: Column, answers: dict[str, TaskPredictions], show: Callable[[Sequence[Sequence[Row]]], Markup]
) -> list[Markup]:
    """A box to open for each upstream."""
    return [
        element(
            "details",
            element(
                "summary",
                breakable(name),
                " ",
                element("small", f"{marked(task.cells[name])} {interval(task.cells[name])}"),
            ),
            note(_gone(each.lost)) if each.lost else "",
            show(each.jobs) if each.jobs else "",
        )
        for name, each in answers.items()
    ]


def confusions(task: Column, answers: dict[str, TaskPredictions]) -> Markup:
    """What each class is taken for, over seeds and folds."""
    pairs = (row for each in answers.values() for job in each.jobs for row in job)
    classes = sorted({name for row in pairs for name in (row["reference"], row["prediction"])})
    told = "Percent of the clips of each class (rows) taken for each (columns), over seeds and folds."
    if len(classes) > MATRIX:
        told = (
            f"The most frequent confusions, over seeds and folds; a matrix of {len(classes)} classes would hide them."
        )
    show = _heat if len(classes) <= MATRIX else _most_confused

    def one(jobs: Sequence[Sequence[Row]]) -> Markup:
        return show(Counter((row["reference"], row["prediction"]) for job in jobs for row in job), classes)

    return element("div", note(told), _each(task, answers, one))


def _totals(counts: Counter[tuple[str, str]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for (truth, _), count in counts.items():
        totals[truth] += count
    return totals


def _heat(counts: Counter[tuple[str, str]], classes: Sequence[str]) -> Markup:
    totals = _totals(counts)
    head = [element("th", element("span", name), scope="col") for name in classes]
    kind = "heat upright" if max(map(len, classes)) > 3 else "heat"
    body = [
        element(
            "tr", element("th", truth, scope="row"), (_warm(counts, truth, said, totals[truth]) for said in classes)
        )
        for truth in classes
        if totals[truth]
    ]
    corner = element("td", "true \\ taken for")
    table = element("table", element("thead", element("tr", corner, head)), element("tbody", body), class_=kind)
    return scrolling(table, "Confusions")


def _warm(counts: Counter[tuple[str, str]], truth: str, said: str, total: int) -> Markup:
    percent = 100 * counts[truth, said] / total
    kind = f"h{math.ceil(percent / 20)}" + (" right" if truth == said else "")
    return element("td", f"{percent:.0f}" if percent else "", class_=kind)


def _most_confused(counts: Counter[tuple[str, str]], classes: Sequence[str]) -> Markup:
    totals = _totals(counts)
    wrong = sorted((-count, pair) for pair, count in counts.items() if pair[0] != pair[1])[:LISTED]
    rows = [
        [truth, said, f"{-count} of {totals[truth]}", f"{-100 * count / totals[truth]:.0f} %"]
        for count, (truth, said) in wrong
    ]
    head = ["true", "taken for", "answers", "share"]
    return listing(head, rows, "Most frequent confusions") if rows else note("No confusions.")


def texts(task: Column, answers: dict[str, TaskPredictions]) -> Markup:
    """Kinds of errors of all upstreams; for each, what is misheard most often and the worst utterances."""
    unit = "character" if task.metric == "cer" else "word"
    rows = [
        [breakable(name), *rates([row for job in each.jobs for row in job], unit)] for name, each in answers.items()
    ]
    head = ["upstream", f"{unit} errors", "substituted", "deleted", "inserted"]
    told = f"Errors in percent of the reference's {unit}s, over seeds and folds."
    kinds = listing(head, rows, "Kinds of errors")
    return element("div", note(told), kinds, _each(task, answers, lambda jobs: misheard(jobs, unit)))


def detection(task: Column, answers: dict[str, TaskPredictions]) -> Markup:
    """Misses against false alarms of the first job of each upstream, by normal quantiles, others behind it."""
    curves = {name: _operating(each.jobs[0]) for name, each in answers.items() if each.jobs}
    marks = [(0.01, "1"), (0.05, "5"), (0.2, "20"), (0.5, "50"), (0.9, "90")]
    scale = plots.Scale(0.005, 0.95, 36, layer_charts.SMALL[0] - 6, plots.probit)
    frame = layer_charts.Axes(scale, scale._replace(start=layer_charts.FLOOR - 2, end=6.0), marks, marks)
    behind = f"{task.key}-curves"
    drawn = [layer_charts.line(frame, points, "others", False) for points in curves.values()]
    drawings = [_detector(task, name, points, frame, behind) for name, points in curves.items()]
    lost = sum(each.lost for each in answers.values())
    told = f"{TRADED} {_gone(lost)}" if lost else TRADED
    grid = element("div", drawings, class_="panels")
    return element("div", layer_charts.definition(behind, *drawn), note(told), grid)


def _operating(rows: Sequence[Row]) -> list[plots.Point]:
    """Shares of (others accepted, targets missed), no two of them drawn at the same place."""
    ranked = sorted(((float(row["score"]), row["target"] == "True") for row in rows), reverse=True)
    targets = sum(target for _, target in ranked) or 1
    others = len(ranked) - targets or 1
    hits = alarms = 0
    points = [(0.0, 1.0)]
    for _, tied in groupby(ranked, key=lambda trial: trial[0]):
        for _, target in tied:
            hits, alarms = hits + target, alarms + (not target)
        points.append((alarms / others, 1 - hits / targets))
    return _thinned(points)


def _thinned(points: Sequence[plots.Point], step: float = 0.04) -> list[plots.Point]:
    def bent(share: float) -> float:
        return plots.probit(min(max(share, 0.005), 0.95))

    kept: list[plots.Point] = []
    place = (math.inf, math.inf)
    for point in points:
        here = bent(point[0]), bent(point[1])
        if math.hypot(here[0] - place[0], here[1] - place[1]) > step:
            kept.append(point)
            place = here
    return kept


def _detector(task: Column, name: str, points: Sequence[plots.Point], frame: layer_charts.Axes, behind: str) -> Markup:
    cell = task.cells[name]
    equal = layer_charts.line(frame, [(0.005, 0.005), (0.95, 0.95)], "level", False)
    shapes = [equal, layer_charts.use(behind), layer_charts.line(frame, points, "line", False)]
    told = f"{marked(cell)} {interval(cell)}".strip()
    return figure(name, layer_charts.panel(frame, f"{name}: misses against false alarms on {task.task}", told, *shapes))
