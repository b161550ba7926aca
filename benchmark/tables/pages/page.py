"""Make the leaderboard as one self-contained HTML file; the same board and records give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records import Record
from benchmark.statistics.outcomes import Outcomes
from benchmark.tables.cells import ordered_tasks, ordered_upstreams, published_rows, ranking_notes, table_notes
from benchmark.tables.leaderboard import Board, Cell
from benchmark.tables.pages import figures
from benchmark.tables.pages.details import task_details
from benchmark.tables.pages.figures import BEST_MARK, Column, interval_text, score_text, uncertainty_text
from benchmark.tables.pages.markup import Markup, breakable, element, joined_markup, scrolling
from benchmark.tables.pages.provenance import anchor, provenance, uncertainty_in_words

if TYPE_CHECKING:
    from benchmark.tables.published import Published

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text(encoding="utf-8")
SCRIPT = (HERE / "page.js").read_text(encoding="utf-8")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
TITLE = "ssl-bench leaderboard"


def page(
    board: Board,
    records: Sequence[Record],
    outcomes: Outcomes,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    beside: Sequence[Published] = (),
) -> str:
    """Return an HTML document: the table and, for each task, charts, details of the outcomes, and provenance.

    records: the current records of all learning rates, seeds, folds and single layers. outcomes: a function that
    returns the outcomes of a record's test split and raises OSError if they are missing; it is called once for each
    record that a cell averages. rows, columns: upstreams and tasks that come first, in this order. beside: published
    scores, shown below ours and ranked only where the protocol is the same.
    """
    names = ordered_upstreams(board.table, rows)
    tasks = [
        figures.task_column(board, records, task, f"t{place}")
        for place, task in enumerate(ordered_tasks(board.table, columns))
    ]
    table = element("section", element("h2", "Scores"), _board(board, names, tasks, beside), id="scores")
    body = [
        element("h1", TITLE),
        figures.note(_introduction(names, tasks)),
        _navigation(tasks),
        element("main", table, (_section(task, outcomes, _places(names)) for task in tasks)),
        element("footer", "Made by bench report from the records alone."),
    ]
    return _document(*body)


def _document(*body: Markup) -> str:
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", TITLE),
        element("style", Markup(STYLE)),
    ]
    script = element("script", Markup(SCRIPT))
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body, script), lang='en')}\n"


def _introduction(names: Sequence[str], tasks: Sequence[Column]) -> str:
    counts = f"{len(names)} upstreams on {len(tasks)} tasks"
    return (
        f"{counts}: test scores of small heads on frozen or tuned encoders, with 95 % intervals where they are known."
    )


def _navigation(tasks: Sequence[Column]) -> Markup:
    links = [element("a", "Scores", href="#scores")]
    links += [element("a", task.task, href=f"#{task.key}") for task in tasks]
    return element("nav", links, aria_label="Tasks")


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


def _board(board: Board, names: Sequence[str], tasks: Sequence[Column], beside: Sequence[Published]) -> Markup:
    points = bool(board.borda)
    body = element("tbody", (_row(board, name, place, tasks) for place, name in enumerate(names)))
    rows, sources = _published(beside, board, tasks, points)
    table = element("table", _heads(tasks, points), body, rows, class_="sortable")
    notes = element(
        "ul", (element("li", note) for note in [*table_notes(board.table), *_ranking(board)]), class_="notes"
    )
    return joined_markup(scrolling(table, "Leaderboard", "board"), notes, sources)


def _heads(tasks: Sequence[Column], points: bool) -> Markup:
    """Return the table head; data-first is the direction that puts the best score first."""
    heads = [element("th", "upstream", scope="col", data_first="ascending")]
    for task in tasks:
        rest = task.heading.removeprefix(task.task)
        first = "descending" if task.higher else "ascending"
        heads.append(element("th", task.task, element("br"), rest.strip(), scope="col", data_first=first))
    if points:
        heads.append(element("th", "Borda", element("br"), "points ↑", scope="col", data_first="descending"))
    return element("thead", element("tr", heads))


def _row(board: Board, name: str, place: int, tasks: Sequence[Column]) -> Markup:
    cells = [_cell(task.cells.get(name), anchor(task, place)) for task in tasks]
    if board.borda:
        points = board.borda.get(name)
        shown = "–" if points is None else f"{points:g}"
        cells.append(element("td", shown, data_value="" if points is None else f"{points:g}"))
    return element("tr", element("th", breakable(name), scope="row", data_value=name), cells)


def _cell(cell: Cell | None, target: str) -> Markup:
    """Return score, marks, rank and interval with a link to the provenance.

    data-value is the number that rows are sorted by; it is empty if there is none.
    """
    if cell is None:
        return element("td", "–", title="no result", data_value="")
    finite = math.isfinite(cell.value)
    uncertainty = uncertainty_text(cell) if finite else ""
    return element(
        "td",
        element("a", score_text(cell), href=f"#{target}"),
        element("small", f" rank {cell.rank}") if finite and cell.rank is not None else "",
        element("small", uncertainty, class_="range") if uncertainty else "",
        class_="best" if finite and cell.best else None,
        data_value=repr(cell.value) if finite else "",
        title=uncertainty_in_words(cell),
    )


def _ranking(board: Board) -> list[str]:
    """Return notes on the marks, ranks and points that the table contains."""
    marks = [f"{BEST_MARK}: the same as bold"] if any(cell.best for cell in board.table.values()) else []
    ranks = ["rank: one more than the rows that are shown to be better"] if _ranked(board) else []
    return [*ranking_notes(board), *marks, *ranks]


def _ranked(board: Board) -> bool:
    return any(cell.rank is not None for cell in board.table.values())


def _published(
    beside: Sequence[Published], board: Board, tasks: Sequence[Column], points: bool
) -> tuple[Markup, Markup]:
    """Return the table bodies of published rows, and a box with their sources."""
    if not beside:
        return Markup(), Markup()
    systems, sources = published_rows(beside, board, [task.task for task in tasks])
    title = element(
        "th",
        element("span", "published; ranked only where the protocol is the same"),
        colspan=len(tasks) + 1 + points,
        scope="rowgroup",
    )
    rows = (_published_row(system, cells, points) for system, cells in systems)
    bodies = [element("tbody", element("tr", title), class_="group"), element("tbody", rows, class_="published")]
    listed = (element("li", text, id=f"source-{place}") for place, text in enumerate(sources, 1))
    return joined_markup(bodies), _box(
        "Sources of the published rows", element("ol", listed, class_="notes"), wide=True
    )


def _published_row(system: str, cells: Sequence[tuple[str, int] | None], points: bool) -> Markup:
    shown = (
        _published_cell(*cell) if cell else element("td", "–", title="not published", data_value="") for cell in cells
    )
    last = element("td", "–", title="never ranked", data_value="") if points else ""
    return element("tr", element("th", breakable(system), scope="row", data_value=system), shown, last)


def _published_cell(text: str, note: int) -> Markup:
    return element(
        "td", text, " ", element("small", element("a", f"[{note}]", href=f"#source-{note}")), data_value=text
    )


def _section(task: Column, outcomes: Outcomes, places: Mapping[str, int]) -> Markup:
    parts = [element("h2", task.heading), figures.note(_about(task))]
    swept = _box("Learning rates", figures.learning_rate_charts(task), wide=True)
    charts = [figures.score_chart(task), element("div", figures.cost_chart(task), swept)] if task.scored() else [swept]
    parts += [element("div", charts, class_="charts"), _box("Layers", figures.layer_figures(task), wide=True)]
    details = task_details(task, outcomes)
    parts += [_box(*details)] if details else []
    parts.append(_box("Where the numbers come from", *(provenance(task, name, places[name]) for name in task.cells)))
    return element("section", parts, id=task.key)


def _box(title: str, *content: Markup, wide: bool = False) -> Markup:
    """Return a collapsible box; wide: it is open from the start on wide screens."""
    return element("details", element("summary", title), content, class_="wide" if wide else None)


def _about(task: Column) -> str:
    """Return a sentence on the corpus, label, head, amount of test data and intervals of a task."""
    records = [record for name in task.cells for record in task.chosen(name)]
    if not records:
        return "There are no records of this task."
    settings, cell = records[0].task, next(iter(task.cells.values()))
    target = f", label {settings['target']}" if settings.get("target") else ""
    trials = records[0].trials.get("test")
    counts = f"{cell.clips} test clips" + (f", {trials} trials" if trials else "")
    return f"Corpus {settings['corpus']}{target}, head {settings['head']}; {counts}; {_resampled(task)}."


def _resampled(task: Column) -> str:
    units = sorted(
        {f"{cell.clusters} {cell.unit}" for cell in task.cells.values() if cell.unit and interval_text(cell)}
    )
    return f"intervals over {', '.join(units)}" if units else "intervals are not known"
