"""What the cells, headings and notes of a table say, whatever it is written as."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, isnan

from benchmark.tables.leaderboard import Board, Cell, Table
from benchmark.tables.published import Published, footnotes

SHORT = {
    "accuracy": "acc", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "uar": "UAR", "map": "mAP",
    "wer": "WER", "cer": "CER", "eer": "EER", "min_dcf": "minDCF",
}  # fmt: skip


PARTS = ("low", "high", "rank")  # columns of leaderboard.csv beside a score


POINTS = "borda"


EDGE = "†"


LIMITED = "‡"


def rows_of(table: Table, order: Sequence[str] = ()) -> list[str]:
    """Upstreams, those of `order` first, the others by name."""
    return _ordered({upstream for upstream, _ in table}, order)


def columns_of(table: Table, order: Sequence[str] = ()) -> list[str]:
    """Tasks, those of `order` first, the others by name."""
    return _ordered({task for _, task in table}, order)


def _ordered(names: set[str], order: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(order) if name in names] + sorted(names - set(order))


def heading(table: Table, task: str) -> str:
    """A task with its metric and better direction, such as "tiny_keyword acc ↑"."""
    cell = next(cell for (_, name), cell in table.items() if name == task)
    return f"{task} {SHORT.get(cell.metric, cell.metric)} {'↑' if cell.higher else '↓'}"


def text_of(cell: Cell | None) -> str:
    """A cell as printed: a mean with its 95 % interval and its marks; "–" where there is no result.

    Where the interval is not known, ± is the standard deviation over seeds.
    """
    if cell is None:
        return "–"
    if isnan(cell.value):
        return "diverged"
    digits = digits_of(cell.metric)
    if isfinite(cell.low):
        beside = f" [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    else:
        beside = "" if cell.spread is None else f" ± {cell.spread:.{digits}f}"
    return f"{cell.value:.{digits}f}{beside}{marks_of(cell)}"


def marks_of(cell: Cell) -> str:
    """That the learning rate was at an edge, that the data were cut short."""
    return f"{EDGE if cell.edge else ''}{LIMITED if cell.limit else ''}"


def digits_of(metric: str) -> int:
    """Decimals that a metric is shown with."""
    return 3 if metric == "min_dcf" else 1


def notes(table: Table) -> list[str]:
    """What the marks in a table mean, as far as it has them, and what was left out."""
    found = ["test scores in percent, means over seeds; learning rate and epoch chosen on validation"]
    found += interval_notes(table)
    if any(cell.metric == "min_dcf" for cell in table.values()):
        found.append("minDCF is normalised, with a target prior of 0.01, and not a percentage")
    if any(cell.edge for cell in table.values()):
        found.append(f"{EDGE} the learning rate chosen is at the edge of those tried: a wider grid might do better")
    if any(cell.limit for cell in table.values()):
        found.append(f"{LIMITED} measured on part of the data (--limit)")
    skipped = {task: cell.skipped for (_, task), cell in table.items() if cell.skipped}
    found += [
        f"{task}: {count} clips or trials were left out, for reasons that its records give"
        for task, count in sorted(skipped.items())
    ]
    return found


def interval_notes(table: Table) -> list[str]:
    """What was resampled for the intervals, and of what runs they leave out the seeds."""
    units: dict[str, list[str]] = {}
    for task, cell in sorted({task: cell for (_, task), cell in table.items() if isfinite(cell.low)}.items()):
        units.setdefault(cell.unit, []).append(f"{task} {cell.clusters}")
    told = "; ".join(f"{unit}: {', '.join(tasks)}" for unit, tasks in sorted(units.items()))
    found = [f"[ ]: 95 % interval over other test data and seeds; resampled were {told}"] if units else []
    once = sorted({task for (_, task), cell in table.items() if cell.lr is not None and cell.seeds == 1})
    if once:
        found.append(f"{', '.join(once)}: one seed each, so that intervals leave out how much another would change")
    if any(cell.spread is not None and not isfinite(cell.low) for cell in table.values()):
        found.append("±: standard deviation over seeds, where there is no interval")
    return found


def standing_notes(board: Board) -> list[str]:
    """How rows are ranked."""
    found = []
    if any(cell.best for cell in board.table.values()):
        found.append("bold: better than every other row, by the 95 % interval of their paired difference")
    if board.borda:
        found.append(
            f"Borda: over {', '.join(board.shared)}, one point for each row that is beaten and half a one for each tie,"
            " by the same intervals"
        )
    return found


def table_metric(table: Table, task: str) -> str:
    """The headline metric of a task."""
    return next(cell.metric for (_, name), cell in table.items() if name == task)


def _ranked(score: Published, board: Board) -> str:
    if not score.same_protocol:
        return f"{score.value:g}"
    ours = [cell for (_, task), cell in board.table.items() if task == score.task]
    better = [cell for cell in ours if (cell.low > score.value if cell.higher else cell.high < score.value)]
    return f"{score.value:g} (rank {1 + len(better)})"


def beside_of(
    beside: Sequence[Published], board: Board, tasks: Sequence[str]
) -> tuple[list[tuple[str, list[tuple[str, int] | None]]], list[str]]:
    """Published rows under these columns: of each system, text and number of a note, or None; and the notes.

    A score by the very same protocol has a rank: one more than those of ours whose interval lies on its better side.
    """
    here = [each for each in beside if each.task in tasks]
    sources, numbers = footnotes(here)
    cells = {(each.system, each.task): (_ranked(each, board), numbers[each.system, each.task]) for each in here}
    names = list(dict.fromkeys(each.system for each in here))
    return [(name, [cells.get((name, task)) for task in tasks]) for name in names], sources
