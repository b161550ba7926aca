"""Show the outcomes behind a score: confusions of classes, errors of recognition, and detection error curves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

from benchmark.records import Record
from benchmark.statistics.outcomes import Outcomes, Row
from benchmark.tables.pages import layer_charts, plots
from benchmark.tables.pages.figures import Column, figure, interval_text, note, score_text
from benchmark.tables.pages.markup import Markup, breakable, element, listing, scrolling
from benchmark.tables.pages.transcripts import error_rates, transcript_errors

MATRIX_CLASSES = 20  # with more classes, the most frequent confusions are listed instead of a matrix
LISTED = 10  # confusions that are listed instead of a matrix
CURVES_NOTE = (
    "Misses (percent of targets, upwards) against false alarms (percent of non-targets, rightwards) of the first job "
    "at every threshold, on normal-deviate axes; dashed: both are equal; grey: the other upstreams."
)


class UpstreamOutcomes(NamedTuple):
    """The outcomes of an upstream's chosen jobs, rows by job; lost: number of jobs whose outcomes are missing."""

    jobs: list[Sequence[Row]]
    lost: int


def task_details(task: Column, outcomes: Outcomes) -> tuple[str, Markup] | None:
    """Return a title and the details of a task's outcomes; None if there is nothing to show for this kind of head."""
    predictions = {name: _predictions(task.chosen(name), outcomes) for name in task.scored()}
    columns = {key for upstream in predictions.values() for job in upstream.jobs for row in job[:1] for key in row}
    kinds: list[tuple[str, str, Callable[[Column, dict[str, UpstreamOutcomes]], Markup]]] = [
        ("hypothesis", "Errors of recognition", recognition_errors),
        ("target", "Misses against false alarms", detection_curves),
        ("correct", "Confusions", confusions),
    ]
    for key, title, show in kinds:
        if key in columns:
            return title, show(task, predictions)
    if columns or not predictions:
        return None
    return "Outcomes", note(_lost_jobs(sum(upstream.lost for upstream in predictions.values())))


def _predictions(records: Sequence[Record], outcomes: Outcomes) -> UpstreamOutcomes:
    jobs, lost = [], 0
    for record in records:
        try:
            jobs.append(outcomes(record))
        except OSError:
            lost += 1
    return UpstreamOutcomes([job for job in jobs if job], lost)


def _lost_jobs(count: int) -> str:
    return f"The outcomes of {count} {'job is' if count == 1 else 'jobs are'} missing."


def _boxes(
    task: Column, predictions: dict[str, UpstreamOutcomes], show: Callable[[Sequence[Sequence[Row]]], Markup]
) -> list[Markup]:
    """Return a collapsible box for each upstream."""
    return [
        element(
            "details",
            element(
                "summary",
                breakable(name),
                " ",
                element("small", f"{score_text(task.cells[name])} {interval_text(task.cells[name])}"),
            ),
            note(_lost_jobs(upstream.lost)) if upstream.lost else "",
            show(upstream.jobs) if upstream.jobs else "",
        )
        for name, upstream in predictions.items()
    ]


def confusions(task: Column, predictions: dict[str, UpstreamOutcomes]) -> Markup:
    """Show how often each class is predicted as each other, over seeds and folds."""
    pairs = (row for upstream in predictions.values() for job in upstream.jobs for row in job)
    classes = sorted({name for row in pairs for name in (row["reference"], row["prediction"])})
    text = "Percent of the clips of each class (rows) predicted as each class (columns), over seeds and folds."
    if len(classes) > MATRIX_CLASSES:
        text = f"The most frequent confusions, over seeds and folds, of {len(classes)} classes."
    show = _heat if len(classes) <= MATRIX_CLASSES else _most_confused

    def draw(jobs: Sequence[Sequence[Row]]) -> Markup:
        return show(Counter((row["reference"], row["prediction"]) for job in jobs for row in job), classes)

    return element("div", note(text), _boxes(task, predictions, draw))


def _totals(counts: Counter[tuple[str, str]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for (reference, _), count in counts.items():
        totals[reference] += count
    return totals


def _heat(counts: Counter[tuple[str, str]], classes: Sequence[str]) -> Markup:
    totals = _totals(counts)
    head = [element("th", element("span", name), scope="col") for name in classes]
    kind = "heat upright" if max(map(len, classes)) > 3 else "heat"
    body = [
        element(
            "tr",
            element("th", reference, scope="row"),
            (_heat_cell(counts, reference, prediction, totals[reference]) for prediction in classes),
        )
        for reference in classes
        if totals[reference]
    ]
    corner = element("td", "reference \\ prediction")
    table = element("table", element("thead", element("tr", corner, head)), element("tbody", body), class_=kind)
    return scrolling(table, "Confusions")


def _heat_cell(counts: Counter[tuple[str, str]], reference: str, prediction: str, total: int) -> Markup:
    percent = 100 * counts[reference, prediction] / total
    kind = f"h{math.ceil(percent / 20)}" + (" right" if reference == prediction else "")
    return element("td", f"{percent:.0f}" if percent else "", class_=kind)


def _most_confused(counts: Counter[tuple[str, str]], classes: Sequence[str]) -> Markup:
    totals = _totals(counts)
    wrong = sorted((-count, pair) for pair, count in counts.items() if pair[0] != pair[1])[:LISTED]
    rows = [
        [
            reference,
            prediction,
            f"{-count} of {totals[reference]}",
            f"{-100 * count / totals[reference]:.0f} %",
        ]
        for count, (reference, prediction) in wrong
    ]
    head = ["reference", "prediction", "predictions", "share"]
    return listing(head, rows, "Most frequent confusions") if rows else note("No confusions.")


def recognition_errors(task: Column, predictions: dict[str, UpstreamOutcomes]) -> Markup:
    """Show the kinds of errors of all upstreams, and the frequent errors and worst utterances of each."""
    unit = "character" if task.metric == "cer" else "word"
    rows = [
        [breakable(name), *error_rates([row for job in upstream.jobs for row in job], unit)]
        for name, upstream in predictions.items()
    ]
    head = ["upstream", f"{unit} errors", "substituted", "deleted", "inserted"]
    text = f"Errors in percent of the reference's {unit}s, over seeds and folds."
    kinds = listing(head, rows, "Kinds of errors")
    return element("div", note(text), kinds, _boxes(task, predictions, lambda jobs: transcript_errors(jobs, unit)))


def detection_curves(task: Column, predictions: dict[str, UpstreamOutcomes]) -> Markup:
    """Draw a detection error trade-off curve of the first job of each upstream, with the others in grey behind it."""
    curves = {name: _operating_points(upstream.jobs[0]) for name, upstream in predictions.items() if upstream.jobs}
    marks = [(0.01, "1"), (0.05, "5"), (0.2, "20"), (0.5, "50"), (0.9, "90")]
    scale = plots.Scale(0.005, 0.95, 36, layer_charts.SMALL[0] - 6, plots.probit)
    frame = layer_charts.Axes(scale, scale._replace(start=layer_charts.FLOOR - 2, end=6.0), marks, marks)
    behind = f"{task.key}-curves"
    drawn = [layer_charts.line(frame, points, "others", False) for points in curves.values()]
    drawings = [_curve_figure(task, name, points, frame, behind) for name, points in curves.items()]
    lost = sum(upstream.lost for upstream in predictions.values())
    text = f"{CURVES_NOTE} {_lost_jobs(lost)}" if lost else CURVES_NOTE
    grid = element("div", drawings, class_="panels")
    return element("div", layer_charts.definition(behind, *drawn), note(text), grid)


def _operating_points(rows: Sequence[Row]) -> list[plots.Point]:
    """Return (false alarm rate, miss rate) at every threshold, without points that would be drawn at the same place."""
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
    def deviate(share: float) -> float:
        return plots.probit(min(max(share, 0.005), 0.95))

    distinct: list[plots.Point] = []
    last = (math.inf, math.inf)
    for point in points:
        here = deviate(point[0]), deviate(point[1])
        if math.hypot(here[0] - last[0], here[1] - last[1]) > step:
            distinct.append(point)
            last = here
    return distinct


def _curve_figure(
    task: Column, name: str, points: Sequence[plots.Point], frame: layer_charts.Axes, behind: str
) -> Markup:
    cell = task.cells[name]
    equal = layer_charts.line(frame, [(0.005, 0.005), (0.95, 0.95)], "level", False)
    shapes = [equal, layer_charts.use(behind), layer_charts.line(frame, points, "line", False)]
    description = f"{score_text(cell)} {interval_text(cell)}".strip()
    return figure(
        name,
        layer_charts.small_chart(frame, f"{name}: misses against false alarms on {task.task}", description, *shapes),
    )
