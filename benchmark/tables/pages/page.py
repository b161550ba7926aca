"""The leaderboard as one HTML file that needs nothing else. Pure: the same board and records give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.records import Record
from benchmark.statistics.outcomes import Outcomes
from benchmark.tables.cells import beside_of, columns_of, notes, rows_of, standing_notes
from benchmark.tables.leaderboard import Board, Cell
from benchmark.tables.pages import figures
from benchmark.tables.pages.details import drill
from benchmark.tables.pages.figures import BEST, Column, around, interval, marked
from benchmark.tables.pages.markup import Markup, breakable, element, joined, scrolling
from benchmark.tables.pages.provenance import anchor, provenance, spoken

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
    """A whole document: the table, then for each task charts, what lies behind its scores, and where they come from.

    records: the current ones of every learning rate, seed, fold and single layer. outcomes: of a record's test split,
    called once for each that a cell stands for; OSError where they are gone. rows, columns: upstreams and tasks that
    come first, in this order. beside: published rows, shown below and never ranked.
    """
    names = rows_of(board.table, rows)
    tasks = [
        figures.column(board, records, task, f"t{place}") for place, task in enumerate(columns_of(board.table, columns))
    ]
    table = element("section", element("h2", "Scores"), _board(board, names, tasks, beside), id="scores")
    body = [
        element("h1", TITLE),
        figures.note(_told(names, tasks)),
        _navigation(tasks),
        element("main", table, (_section(task, outcomes, _places(names)) for task in tasks)),
        element("footer", "Made by bench report from records alone."),
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


def _told(names: Sequence[str], tasks: Sequence[Column]) -> str:
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
    told = element("ul", (element("li", note) for note in [*notes(board.table), *_ranking(board)]), class_="notes")
    return joined(scrolling(table, "Leaderboard", "board"), told, sources)


def _heads(tasks: Sequence[Column], points: bool) -> Markup:
    """data-first: the direction in which a column is sorted first, which is the better one."""
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
    """Score, marks, rank and interval, linked to its provenance; data-value is empty where there is none to sort by."""
    if cell is None:
        return element("td", "–", title="no result", data_value="")
    finite = math.isfinite(cell.value)
    known = around(cell) if finite else ""
    return element(
        "td",
        element("a", marked(cell), href=f"#{target}"),
        element("small", f" rank {cell.rank}") if finite and cell.rank is not None else "",
        element("small", known, class_="range") if known else "",
        class_="best" if finite and cell.best else None,
        data_value=repr(cell.value) if finite else "",
        title=spoken(cell),
    )


def _ranking(board: Board) -> list[str]:
    """What marks, ranks and points mean, as far as the table has them."""
    marks = [f"{BEST}: the same as bold"] if any(cell.best for cell in board.table.values()) else []
    ranks = ["rank: one more than the rows that are shown to be better"] if _ranked(board) else []
    return [*standing_notes(board), *marks, *ranks]


def _ranked(board: Board) -> bool:
    return any(cell.rank is not None for cell in board.table.values())


def _published(
    beside: Sequence[Published], board: Board, tasks: Sequence[Column], points: bool
) -> tuple[Markup, Markup]:
    """Bodies of the table with published rows, and a box with their sources."""
    if not beside:
        return Markup(), Markup()
    found, sources = beside_of(beside, board, [task.task for task in tasks])
    title = element(
        "th",
        element("span", "published; ranked only where the protocol is the same"),
        colspan=len(tasks) + 1 + points,
        scope="rowgroup",
    )
    rows = (_published_row(system, cells, points) for system, cells in found)
    bodies = [element("tbody", element("tr", title), class_="group"), element("tbody", rows, class_="published")]
    told = (element("li", text, id=f"source-{place}") for place, text in enumerate(sources, 1))
    return joined(bodies), _box("Sources of the published rows", element("ol", told, class_="notes"), wide=True)


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
    swept = _box("Learning rates", figures.rates(task), wide=True)
    charts = [figures.scores(task), element("div", figures.cost(task), swept)] if task.scored() else [swept]
    parts += [element("div", charts, class_="charts"), _box("Layers", figures.layers(task), wide=True)]
    behind = drill(task, outcomes)
    parts += [_box(*behind)] if behind else []
    parts.append(_box("Where the numbers come from", *(provenance(task, name, places[name]) for name in task.cells)))
    return element("section", parts, id=task.key)


def _box(title: str, *content: Markup, wide: bool = False) -> Markup:
    """Something to open; wide: where there is room for it, it is open from the start."""
    return element("details", element("summary", title), content, class_="wide" if wide else None)


def _about(task: Column) -> str:
    """What is learned from what, and on how much it is tested."""
    records = [record for name in task.cells for record in task.chosen(name)]
    if not records:
        return "No record tells more."
    settings, cell = records[0].task, next(iter(task.cells.values()))
    target = f", label {settings['target']}" if settings.get("target") else ""
    trials = records[0].trials.get("test")
    counts = f"{cell.clips} test clips" + (f", {trials} trials" if trials else "")
    return f"Corpus {settings['corpus']}{target}, head {settings['head']}; {counts}; {_resampled(task)}."


def _resampled(task: Column) -> str:
    units = sorted({f"{cell.clusters} {cell.unit}" for cell in task.cells.values() if cell.unit and interval(cell)})
    return f"intervals over {', '.join(units)}" if units else "intervals are not known"
