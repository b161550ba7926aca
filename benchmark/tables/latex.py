"""The leaderboard as a LaTeX table (booktabs), ready for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmark.tables.cells import (
    BORDA,
    EDGE_MARK,
    LIMIT_MARK,
    METRIC_NAMES,
    decimals_of,
    ordered_tasks,
    ordered_upstreams,
    published_rows,
    ranking_notes,
    table_notes,
)
from benchmark.tables.leaderboard import Board, Cell

if TYPE_CHECKING:
    from benchmark.tables.published import Published

PublishedRow = tuple[
    str, list[tuple[str, int] | None]
]  # a published system, with its score and the number of its note for each task
TASKS_PER_TABLE = 5  # columns of tasks in a table; further tasks go into further tables
MAX_ASYMMETRY = 0.15  # of the longer side: if the two sides of an interval differ by no more, they are written as one ±
INTERVAL_NOTE = "±: half a 95 % interval, the longer side where the two differ by less than 15 %"
LATEX_CHARACTERS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--",
    "†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}", "×": r"$\times$",
}  # fmt: skip


def latex(board: Board, rows: Sequence[str] = (), columns: Sequence[str] = (), beside: Sequence[Published] = ()) -> str:
    """Return a `table*` for every few tasks, in LaTeX with the package booktabs.

    The last table has the Borda points and the notes. Scores are given ± half a 95 % interval, or with both sides where
    these differ. A score is bold only if it is significantly better than every other score of its column. Published
    rows are in italics.
    """
    tasks = ordered_tasks(board.table, columns)
    groups = [tasks[start : start + TASKS_PER_TABLE] for start in range(0, len(tasks), TASKS_PER_TABLE)]
    published, sources = published_rows(beside, board, tasks)
    footer = [*table_notes(board.table), INTERVAL_NOTE, *ranking_notes(board)]
    footnotes = [
        r"\par\smallskip", r"\begin{minipage}{\textwidth}\footnotesize",
        *(f"{escaped(note)}.\\par" for note in footer),
        *(rf"\textsuperscript{{{number}}}{escaped(text)}.\par" for number, text in enumerate(sources, 1)),
        r"\end{minipage}",
    ]  # fmt: skip
    lines = ["% Made by bench report; needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc};"]
    lines += ["% names in other scripts than Latin need lualatex or xelatex with a font that has them."]
    for place, group in enumerate(groups):
        last = place == len(groups) - 1
        lines += [r"\begin{table*}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
        lines += _tabular(board, rows, group, _restricted(published, tasks, group), last)
        lines += footnotes if last else []
        lines += [r"\caption{Test scores with 95\,\% intervals.}", rf"\label{{tab:leaderboard-{place + 1}}}"]
        lines += [r"\end{table*}", ""]
    return "\n".join(lines)


def _restricted(published: Sequence[PublishedRow], tasks: Sequence[str], group: Sequence[str]) -> list[PublishedRow]:
    """Restrict published rows to the columns of a group; rows without a score there are left out."""
    cut = [(name, [cells[tasks.index(task)] for task in group]) for name, cells in published]
    return [(name, cells) for name, cells in cut if any(cells)]


def _tabular(
    board: Board, rows: Sequence[str], tasks: Sequence[str], published: Sequence[PublishedRow], last: bool
) -> list[str]:
    """Return the tabular environment for a group of tasks; the last one has the Borda points too."""
    points = bool(board.borda) and last
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(tasks) + points)}}}", r"\toprule",
        _line(["upstream", *map(escaped, tasks), *[BORDA.capitalize()] * points]),
        _line(["", *(_metric(board, task) for task in tasks), *[r"$\uparrow$"] * points]), r"\midrule",
    ]  # fmt: skip
    for name in ordered_upstreams(board.table, rows):
        cells = [latex_cell(board.table.get((name, task))) for task in tasks]
        lines.append(_line([rf"\texttt{{{escaped(name)}}}", *cells, *[f"{board.borda.get(name, 0):g}"] * points]))
    lines += [r"\midrule"] if published else []
    for name, scores in published:
        cells = [rf"\textit{{{cell[0]}}}\textsuperscript{{{cell[1]}}}" if cell else "--" for cell in scores]
        lines.append(_line([rf"\textit{{{escaped(name)}}}", *cells, *["--"] * points]))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _metric(board: Board, task: str) -> str:
    cell = next(cell for (_, name), cell in board.table.items() if name == task)
    return f"{escaped(METRIC_NAMES.get(cell.metric, cell.metric))} {LATEX_CHARACTERS['↑' if cell.higher else '↓']}"


def latex_cell(cell: Cell | None) -> str:
    """Return a cell, such as "$33.3 \\pm 3.2$", or "$99.1^{+0.5}_{-0.9}$" where the interval is asymmetric."""
    if cell is None:
        return "--"
    if math.isnan(cell.value):
        return "diverged"
    digits = decimals_of(cell.metric)
    value = f"{cell.value:.{digits}f}"
    marks = (LATEX_CHARACTERS[EDGE_MARK] if cell.edge else "") + (LATEX_CHARACTERS[LIMIT_MARK] if cell.limit else "")
    value = rf"\mathbf{{{value}}}" if cell.best else value
    return f"${value}{_interval(cell, digits)}${marks}"


def _interval(cell: Cell, digits: int) -> str:
    if not math.isfinite(cell.low):
        return ""
    below, above = (abs(end - cell.value) for end in (cell.low, cell.high))
    if abs(below - above) <= MAX_ASYMMETRY * max(below, above):
        return rf" \pm {max(below, above):.{digits}f}"
    return rf"^{{+{above:.{digits}f}}}_{{-{below:.{digits}f}}}"


def escaped(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(LATEX_CHARACTERS.get(character, character) for character in text)
