"""From a board and its records to CSV and Markdown."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.files import write_text
from benchmark.records import Record
from benchmark.tables.leaderboard import Board, Cell, Table

if TYPE_CHECKING:
    import pandas
    import rich.table

    from benchmark.statistics.outcomes import Outcomes
    from benchmark.tables.published import Published

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


def wide(board: Board, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> pandas.DataFrame:
    """A row per upstream; of each task its score, interval and rank; Borda's points. Missing cells stay empty.

    Scores are rounded to four decimals. rank: one more than the upstreams that are shown to be better.
    """
    import pandas

    table, tasks = board.table, columns_of(board.table, columns)
    content = [
        {"upstream": name}
        | {title: value for task in tasks for title, value in _parts(table, name, task).items()}
        | {POINTS: board.borda.get(name)}
        for name in rows_of(table, rows)
    ]
    titles = [title for task in tasks for title in _parts(table, "", task)]
    frame = pandas.DataFrame(content, columns=["upstream", *titles, POINTS])
    return frame.astype({title: "Int64" for title in titles if title.endswith(" rank")})


def _parts(table: Table, name: str, task: str) -> dict[str, float | None]:
    """Columns of leaderboard.csv for a task: such as "words accuracy", "words accuracy low" and so on."""
    cell, title = table.get((name, task)), f"{task} {table_metric(table, task)}"
    values = (
        [None] * 4 if cell is None else [*(round(each, 4) for each in (cell.value, cell.low, cell.high)), cell.rank]
    )
    return {title: values[0], **{f"{title} {part}": value for part, value in zip(PARTS, values[1:], strict=True)}}


def table_metric(table: Table, task: str) -> str:
    """The headline metric of a task."""
    return next(cell.metric for (_, name), cell in table.items() if name == task)


def long(records: Iterable[Record], board: Board) -> pandas.DataFrame:
    """A row per job with everything its record holds.

    chosen: its learning rate is the one in the leaderboard. low, high: 95 % interval of its test score over other test
    data, of those chosen. layer: of a probe of one layer alone. macs_per_second: multiply–accumulates of the upstream
    per second of audio. real_time_factor: time / audio of the upstream alone, on `device` with so many `threads`.
    revision: commit of the hub's repository that its weights came from.
    """
    import pandas

    every = list(records)
    rows = [_flat(record, board) for record in every]
    names = sorted({name for record in every for name in (*record.valid, *record.test)})
    metrics = [f"{split}_{name}" for split in ("valid", "test") for name in names]
    fixed = [title for title in (rows[0] if rows else ()) if title not in metrics]
    place = fixed.index("epoch") if rows else 0  # so that columns do not depend on which task comes first
    return pandas.DataFrame(rows, columns=[*fixed[:place], *metrics, *fixed[place:]])


def _sorted(records: Iterable[Record], table: Table, rows: Sequence[str], columns: Sequence[str]) -> list[Record]:
    """As the leaderboard goes, and then by layer, fold, learning rate and seed."""
    upstreams, tasks = rows_of(table, rows), columns_of(table, columns)

    def place(record: Record) -> tuple[int, int, int, str, float, int]:
        upstream, task = upstreams.index(record.upstream["name"]), tasks.index(record.task["name"])
        layer = -1 if record.layer is None else record.layer
        return upstream, task, layer, record.fold or "", record.lr or 0.0, record.seed

    return sorted(records, key=place)


def _flat(record: Record, board: Board) -> dict[str, Any]:
    cell = board.table.get((record.upstream["name"], record.task["name"]))
    chosen = cell is not None and record.layer is None and cell.lr == record.lr
    low, high = board.jobs.get(record.id, (None, None))
    row: dict[str, Any] = {
        "upstream": record.upstream["name"],
        "task": record.task["name"],
        "corpus": record.task["corpus"],
        "head": record.task["head"],
        "metric": record.metric,
        "higher_is_better": record.higher,
        "layer": record.layer,
        "lr": record.lr,
        "seed": record.seed,
        "fold": record.fold,
        "chosen": chosen,
        "lr_at_edge": cell is not None and chosen and cell.edge,
        "valid": record.valid.get(record.metric),
        "test": record.test.get(record.metric),
        "low": low,
        "high": high,
    }
    row |= {f"valid_{name}": value for name, value in sorted(record.valid.items())}
    row |= {f"test_{name}": value for name, value in sorted(record.test.items())}
    row |= {
        "epoch": record.epoch,
        "epochs": len(record.curve),
        "diverged": record.diverged,
        "features": record.features,
    }
    row |= {f"{split}_clips": count for split, count in record.clips.items()}
    row |= {f"{split}_trials": record.trials.get(split) for split in ("valid", "test")}
    row |= {"skipped": sum(record.skipped.values()), "limit": record.limit}
    row |= {f"{stage}_seconds": value for stage, value in record.seconds.items()}
    row |= {name: record.upstream[name] for name in ("layers", "dim", "hop", "parameters", "precision", "fingerprint")}
    row |= {name: record.cost.get(name) for name in ("macs_per_second", "real_time_factor", "threads")}
    row |= {"revision": record.origin.get("revision")}
    row |= {"clustered_by": record.clustered_by, "corpus_digest": record.corpus, "selection": record.selection}
    row |= {"device": record.device, "commit": record.commit, "protocol": record.protocol, "created": record.created}
    row |= {"job": record.id}
    return row


def markdown(
    board: Board, rows: Sequence[str] = (), columns: Sequence[str] = (), beside: Sequence[Published] = ()
) -> str:
    """The leaderboard as a Markdown table with notes; published rows below, in italics and with their sources."""
    from benchmark.tables.markdown import table as lines_of

    tasks, table = columns_of(board.table, columns), board.table
    points = [f"{POINTS.capitalize()} ↑"] if board.borda else []
    content = [
        [f"`{name}`", *(_bold(table.get((name, task))) for task in tasks), *_points(board, name)]
        for name in rows_of(table, rows)
    ]
    shown, sources = beside_of(beside, board, tasks)
    content += [
        [f"*{_plain(name)}*", *(f"*{cell[0]}* [{cell[1]}]" if cell else "–" for cell in cells), *["–"] * len(points)]
        for name, cells in shown
    ]
    lines = lines_of(["upstream", *(heading(table, task) for task in tasks), *points], content)
    told = [
        *notes(table),
        *standing_notes(board),
        *(f"[{number}] {_plain(text)}" for number, text in enumerate(sources, 1)),
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in told)]) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return re.sub(r"([\\*_<&`])", r"\\\1", text)


def _bold(cell: Cell | None) -> str:
    text = text_of(cell)
    if cell is None or not cell.best:
        return text
    value, _, rest = text.partition(" ")
    return f"**{value}** {rest}".strip()


def _points(board: Board, name: str) -> list[str]:
    return [f"{board.borda[name]:g}"] if board.borda else []


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
    from benchmark.tables.published import footnotes

    here = [each for each in beside if each.task in tasks]
    sources, numbers = footnotes(here)
    cells = {(each.system, each.task): (_ranked(each, board), numbers[each.system, each.task]) for each in here}
    names = list(dict.fromkeys(each.system for each in here))
    return [(name, [cells.get((name, task)) for task in tasks]) for name in names], sources


def drawn(
    table: Table, rows: Sequence[str] = (), columns: Sequence[str] = (), width: int = 200
) -> list[rich.table.Table]:
    """The leaderboard for a terminal: as many tables as it takes to show every task whole."""
    from rich.table import Table as Drawn

    names = rows_of(table, rows)
    boards = []
    for tasks in _fitting(table, names, columns_of(table, columns), width):
        board = Drawn("upstream", *(heading(table, task).replace(" ", "\n", 1) for task in tasks))
        for name in names:
            board.add_row(name, *(text_of(table.get((name, task))) for task in tasks))
        boards.append(board)
    return boards


def _fitting(table: Table, names: Sequence[str], tasks: Sequence[str], width: int) -> list[list[str]]:
    """Tasks in groups, each as wide as fits beside the names of upstreams, and at least one task each."""
    free = width - max(map(len, ["upstream", *names]), default=0) - 4
    groups: list[list[str]] = []
    left = 0
    for task in tasks:
        texts = [*heading(table, task).split(" ", 1), *(text_of(table.get((name, task))) for name in names)]
        needed = max(map(len, texts)) + 3
        if not groups or needed > left:
            groups.append([])
            left = free
        groups[-1].append(task)
        left -= needed
    return groups


def order_of(folder: Path) -> tuple[list[str], list[str]]:
    """Upstreams and tasks in the order of the leaderboard that lies there, for the next one to keep."""
    try:
        with open(folder / "leaderboard.csv", encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
    except (OSError, ValueError):
        return [], []
    tasks = [name.partition(" ")[0] for name in head[1:] if name != POINTS]
    return [row[0] for row in rows if row], list(dict.fromkeys(tasks))


def write(
    folder: Path,
    board: Board,
    records: Sequence[Record],
    outcomes: Outcomes,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    beside: Sequence[Published] = (),
) -> list[Path]:
    """leaderboard.csv, .md, .tex and .html, and results.csv; gives their paths.

    outcomes: of a record's test split, for what the page shows of them. beside: published rows.
    """
    from benchmark.tables.latex import latex
    from benchmark.tables.pages.page import page

    ordered = _sorted(records, board.table, rows, columns)
    texts = {
        "leaderboard.csv": wide(board, rows, columns).to_csv(index=False, lineterminator="\n"),
        "leaderboard.md": markdown(board, rows, columns, beside),
        "leaderboard.tex": latex(board, rows, columns, beside),
        "leaderboard.html": page(board, records, outcomes, rows, columns, beside),
        "results.csv": long(ordered, board).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
