"""The texts of cells, headings and notes, which all formats of a table share."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan

from benchmark.tables.leaderboard import Board, Cell, Table
from benchmark.tables.published import Published, footnotes

METRIC_NAMES = {
    "accuracy": "acc", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "uar": "UAR", "map": "mAP",
    "wer": "WER", "cer": "CER", "eer": "EER", "min_dcf": "minDCF",
}  # fmt: skip
INTERVAL_COLUMNS = ("low", "high", "rank")  # suffixes of the columns of leaderboard.csv that follow a score
BORDA = "borda"
EDGE_MARK = "†"
LIMIT_MARK = "‡"


def ordered_upstreams(table: Table, order: Sequence[str] = ()) -> list[str]:
    """Return the upstreams of a table: first those in `order`, then the others sorted by name."""
    return _ordered({upstream for upstream, _ in table}, order)


def ordered_tasks(table: Table, order: Sequence[str] = ()) -> list[str]:
    """Return the tasks of a table: first those in `order`, then the others sorted by name."""
    return _ordered({task for _, task in table}, order)


def _ordered(names: set[str], order: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(order) if name in names] + sorted(names - set(order))


def heading(table: Table, task: str) -> str:
    """Return a task's name, its metric and an arrow in the better direction, such as "tiny_keyword acc ↑"."""
    cell = next(cell for (_, name), cell in table.items() if name == task)
    return f"{task} {METRIC_NAMES.get(cell.metric, cell.metric)} {'↑' if cell.higher else '↓'}"


def cell_text(cell: Cell | None) -> str:
    """Return the text of a cell: the mean, its 95 % interval and its marks; "–" where there is no result.

    Where the interval is unknown, ± gives the standard deviation over seeds.
    """
    if cell is None:
        return "–"
    if isnan(cell.value):
        return "diverged"
    digits = decimals_of(cell.metric)
    if isfinite(cell.low):
        uncertainty = f" [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    else:
        uncertainty = "" if cell.spread is None else f" ± {cell.spread:.{digits}f}"
    return f"{cell.value:.{digits}f}{uncertainty}{cell_marks(cell)}"


def cell_marks(cell: Cell) -> str:
    """Return the marks of a cell: † if the learning rate is at the edge of the grid, ‡ if the data were limited."""
    return f"{EDGE_MARK if cell.edge else ''}{LIMIT_MARK if cell.limit else ''}"


def decimals_of(metric: str) -> int:
    """Return the number of decimals that scores of a metric are shown with."""
    return 3 if metric == "min_dcf" else 1


def table_notes(table: Table) -> list[str]:
    """Return the notes below a table: units, the meaning of the marks it contains, and how much was left out."""
    lines = ["test scores in percent, means over seeds; learning rate and epoch chosen on validation"]
    lines += interval_notes(table)
    if any(cell.metric == "min_dcf" for cell in table.values()):
        lines.append("minDCF is normalised, with a target prior of 0.01, and not a percentage")
    if any(cell.edge for cell in table.values()):
        lines.append(
            f"{EDGE_MARK} the learning rate chosen is at the edge of those tried: a wider grid might do better"
        )
    if any(cell.limit for cell in table.values()):
        lines.append(f"{LIMIT_MARK} measured on part of the data (--limit)")
    skipped = {task: cell.skipped for (_, task), cell in table.items() if cell.skipped}
    lines += [
        f"{task}: {count} clips or trials were left out, for reasons that its records give"
        for task, count in sorted(skipped.items())
    ]
    return lines


def interval_notes(table: Table) -> list[str]:
    """Return notes on what was resampled for the intervals, and on tasks whose intervals do not cover seeds."""
    units: dict[str, list[str]] = {}
    for task, cell in sorted({task: cell for (_, task), cell in table.items() if isfinite(cell.low)}.items()):
        units.setdefault(cell.unit, []).append(f"{task} {cell.clusters}")
    resampled = "; ".join(f"{unit}: {', '.join(tasks)}" for unit, tasks in sorted(units.items()))
    lines = [f"[ ]: 95 % interval over other test data and seeds; resampled were {resampled}"] if units else []
    single_seed = sorted({task for (_, task), cell in table.items() if cell.lr is not None and cell.seeds == 1})
    if single_seed:
        lines.append(
            f"{', '.join(single_seed)}: one seed each, so that the intervals do not cover the variation between seeds"
        )
    if any(cell.spread is not None and not isfinite(cell.low) for cell in table.values()):
        lines.append("±: standard deviation over seeds, where there is no interval")
    return lines


def ranking_notes(board: Board) -> list[str]:
    """Return notes on bold scores and on Borda points, as far as the board contains them."""
    lines = []
    if any(cell.best for cell in board.table.values()):
        lines.append("bold: better than every other row, by the 95 % interval of their paired difference")
    if board.borda:
        lines.append(
            f"Borda: over {', '.join(board.shared)}, one point for each row that is beaten and half a point for each"
            " tie, by the same intervals"
        )
    return lines


def table_metric(table: Table, task: str) -> str:
    """Return the headline metric of a task."""
    return next(cell.metric for (_, name), cell in table.items() if name == task)


def _with_rank(score: Published, board: Board) -> str:
    if not score.same_protocol:
        return f"{score.value:g}"
    ours = [cell for (_, task), cell in board.table.items() if task == score.task]
    better = [cell for cell in ours if (cell.low > score.value if cell.higher else cell.high < score.value)]
    return f"{score.value:g} (rank {1 + len(better)})"


def published_rows(
    beside: Sequence[Published], board: Board, tasks: Sequence[str]
) -> tuple[list[tuple[str, list[tuple[str, int] | None]]], list[str]]:
    """Return the published rows for these columns, and the texts of their footnotes.

    Each row is a system and one item per task: the score's text and the number of its footnote, or None where there is
    no score. A score with the same protocol as ours has a rank: one more than the number of our scores whose whole
    interval is better than it.
    """
    rows = [score for score in beside if score.task in tasks]
    sources, numbers = footnotes(rows)
    cells = {(row.system, row.task): (_with_rank(row, board), numbers[row.system, row.task]) for row in rows}
    names = list(dict.fromkeys(row.system for row in rows))
    return [(name, [cells.get((name, task)) for task in tasks]) for name in names], sources
