"""The leaderboard as a LaTeX table (booktabs), ready for a paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmark.tables.cells import (
    EDGE,
    LIMITED,
    POINTS,
    SHORT,
    beside_of,
    columns_of,
    digits_of,
    notes,
    rows_of,
    standing_notes,
)
from benchmark.tables.leaderboard import Board, Cell

if TYPE_CHECKING:
    from benchmark.tables.published import Published

Beside = tuple[str, list[tuple[str, int] | None]]  # a published system, and its score and note under each column
ACROSS = 5  # tasks side by side; further ones have a table of their own
NEARLY = 0.15  # of the longer side: what both sides of an interval may differ by and still be told as one
EVEN = "±: half a 95 % interval, the longer side where the two differ by less than 15 %"
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "–": "--",
    "†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}", "×": r"$\times$",
}  # fmt: skip


def latex(board: Board, rows: Sequence[str] = (), columns: Sequence[str] = (), beside: Sequence[Published] = ()) -> str:
    """One `table*` for each few tasks, which need the package booktabs; the last one has Borda's points and the notes.

    Scores are ± half a 95 % interval, or have both ends where these differ. The best of a column is bold only where it
    is shown to be better than every other. Published rows are in italics.
    """
    tasks = columns_of(board.table, columns)
    groups = [tasks[start : start + ACROSS] for start in range(0, len(tasks), ACROSS)]
    published, sources = beside_of(beside, board, tasks)
    told = [*notes(board.table), EVEN, *standing_notes(board)]
    footnotes = [
        r"\par\smallskip", r"\begin{minipage}{\textwidth}\footnotesize",
        *(f"{escaped(note)}.\\par" for note in told),
        *(rf"\textsuperscript{{{number}}}{escaped(text)}.\par" for number, text in enumerate(sources, 1)),
        r"\end{minipage}",
    ]  # fmt: skip
    lines = ["% Made by bench report; needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc};"]
    lines += ["% names in other scripts than Latin need lualatex or xelatex with a font that has them."]
    for place, some in enumerate(groups):
        last = place == len(groups) - 1
        lines += [r"\begin{table*}", r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{4pt}"]
        lines += _tabular(board, rows, some, _under(published, tasks, some), last)
        lines += footnotes if last else []
        lines += [r"\caption{Test scores with 95\,\% intervals.}", rf"\label{{tab:leaderboard-{place + 1}}}"]
        lines += [r"\end{table*}", ""]
    return "\n".join(lines)


def _under(published: Sequence[Beside], tasks: Sequence[str], some: Sequence[str]) -> list[Beside]:
    """The rows that have a score under some of the columns, cut down to these."""
    cut = [(name, [cells[tasks.index(task)] for task in some]) for name, cells in published]
    return [(name, cells) for name, cells in cut if any(cells)]


def _tabular(
    board: Board, rows: Sequence[str], tasks: Sequence[str], published: Sequence[Beside], last: bool
) -> list[str]:
    """Some of the tasks; the last part has Borda's points too."""
    points = bool(board.borda) and last
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(tasks) + points)}}}", r"\toprule",
        _line(["upstream", *map(escaped, tasks), *[POINTS.capitalize()] * points]),
        _line(["", *(_metric(board, task) for task in tasks), *[r"$\uparrow$"] * points]), r"\midrule",
    ]  # fmt: skip
    for name in rows_of(board.table, rows):
        cells = [text_of(board.table.get((name, task))) for task in tasks]
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
    return f"{escaped(SHORT.get(cell.metric, cell.metric))} {SPECIAL['↑' if cell.higher else '↓']}"


def text_of(cell: Cell | None) -> str:
    """A cell, such as "$33.3 \\pm 3.2$" or, where the interval is not even, "$99.1^{+0.5}_{-0.9}$"."""
    if cell is None:
        return "--"
    if math.isnan(cell.value):
        return "diverged"
    digits = digits_of(cell.metric)
    value = f"{cell.value:.{digits}f}"
    marks = (SPECIAL[EDGE] if cell.edge else "") + (SPECIAL[LIMITED] if cell.limit else "")
    value = rf"\mathbf{{{value}}}" if cell.best else value
    return f"${value}{_around(cell, digits)}${marks}"


def _around(cell: Cell, digits: int) -> str:
    if not math.isfinite(cell.low):
        return ""
    below, above = (abs(end - cell.value) for end in (cell.low, cell.high))
    if abs(below - above) <= NEARLY * max(below, above):
        return rf" \pm {max(below, above):.{digits}f}"
    return rf"^{{+{above:.{digits}f}}}_{{-{below:.{digits}f}}}"


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(SPECIAL.get(character, character) for character in text)
