"""Write a board and its records as CSV, Markdown and tables for a terminal."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.files import write_text
from benchmark.records import Record
from benchmark.tables.cells import (
    BORDA,
    INTERVAL_COLUMNS,
    cell_text,
    heading,
    ordered_tasks,
    ordered_upstreams,
    published_rows,
    ranking_notes,
    table_metric,
    table_notes,
)
from benchmark.tables.leaderboard import Board, Cell, Table

if TYPE_CHECKING:
    import pandas
    import rich.table

    from benchmark.statistics.outcomes import Outcomes
    from benchmark.tables.published import Published


def leaderboard_frame(board: Board, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> pandas.DataFrame:
    """Return one row per upstream: the score, interval and rank on each task, and the Borda points.

    Missing cells are empty. Scores are rounded to four decimals. rank: one more than the number of significantly better
    upstreams.
    """
    import pandas

    table, tasks = board.table, ordered_tasks(board.table, columns)
    content = [
        {"upstream": name}
        | {title: value for task in tasks for title, value in _task_columns(table, name, task).items()}
        | {BORDA: board.borda.get(name)}
        for name in ordered_upstreams(table, rows)
    ]
    titles = [title for task in tasks for title in _task_columns(table, "", task)]
    frame = pandas.DataFrame(content, columns=["upstream", *titles, BORDA])
    return frame.astype({title: "Int64" for title in titles if title.endswith(" rank")})


def _task_columns(table: Table, name: str, task: str) -> dict[str, float | None]:
    """Return the columns of leaderboard.csv for a task, such as "words accuracy" and "words accuracy low"."""
    cell, title = table.get((name, task)), f"{task} {table_metric(table, task)}"
    values = (
        [None] * 4 if cell is None else [*(round(number, 4) for number in (cell.value, cell.low, cell.high)), cell.rank]
    )
    return {
        title: values[0],
        **{f"{title} {part}": value for part, value in zip(INTERVAL_COLUMNS, values[1:], strict=True)},
    }


def results_frame(records: Iterable[Record], board: Board) -> pandas.DataFrame:
    """Return one row per job with all fields of its record.

    chosen: the leaderboard uses this learning rate. low, high: 95 % interval of the test score over other test data,
    for chosen jobs. layer: the single layer that the head was trained on. macs_per_second: multiply–accumulates of the
    upstream per second of audio. real_time_factor: computing time / audio duration of the upstream alone, on `device`
    with `threads` threads. revision: commit of the hub repository that the weights came from.
    """
    import pandas

    jobs = list(records)
    rows = [_job_row(record, board) for record in jobs]
    names = sorted({name for record in jobs for name in (*record.valid, *record.test)})
    metrics = [f"{split}_{name}" for split in ("valid", "test") for name in names]
    fixed = [title for title in (rows[0] if rows else ()) if title not in metrics]
    place = fixed.index("epoch") if rows else 0  # so that columns do not depend on which task comes first
    return pandas.DataFrame(rows, columns=[*fixed[:place], *metrics, *fixed[place:]])


def _sorted(records: Iterable[Record], table: Table, rows: Sequence[str], columns: Sequence[str]) -> list[Record]:
    """Sort by upstream and task in the order of the leaderboard, then by layer, fold, learning rate and seed."""
    upstreams, tasks = ordered_upstreams(table, rows), ordered_tasks(table, columns)

    def place(record: Record) -> tuple[int, int, int, str, float, int]:
        upstream, task = upstreams.index(record.upstream["name"]), tasks.index(record.task["name"])
        layer = -1 if record.layer is None else record.layer
        return upstream, task, layer, record.fold or "", record.lr or 0.0, record.seed

    return sorted(records, key=place)


def _job_row(record: Record, board: Board) -> dict[str, Any]:
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


def markdown_leaderboard(
    board: Board, rows: Sequence[str] = (), columns: Sequence[str] = (), beside: Sequence[Published] = ()
) -> str:
    """Return the leaderboard as a Markdown table with notes; published rows follow in italics, with their sources."""
    from benchmark.tables.markdown import table_lines

    tasks, table = ordered_tasks(board.table, columns), board.table
    points = [f"{BORDA.capitalize()} ↑"] if board.borda else []
    content = [
        [f"`{name}`", *(_bold(table.get((name, task))) for task in tasks), *_points(board, name)]
        for name in ordered_upstreams(table, rows)
    ]
    published, sources = published_rows(beside, board, tasks)
    content += [
        [f"*{_escaped(name)}*", *(f"*{cell[0]}* [{cell[1]}]" if cell else "–" for cell in cells), *["–"] * len(points)]
        for name, cells in published
    ]
    lines = table_lines(["upstream", *(heading(table, task) for task in tasks), *points], content)
    footer = [
        *table_notes(table),
        *ranking_notes(board),
        *(f"[{number}] {_escaped(text)}" for number, text in enumerate(sources, 1)),
    ]
    return "\n".join([*lines, "", *(f"- {note}" for note in footer)]) + "\n"


def _escaped(text: str) -> str:
    """Escape the characters that have a meaning in Markdown."""
    return re.sub(r"([\\*_<&`])", r"\\\1", text)


def _bold(cell: Cell | None) -> str:
    text = cell_text(cell)
    if cell is None or not cell.best:
        return text
    value, _, rest = text.partition(" ")
    return f"**{value}** {rest}".strip()


def _points(board: Board, name: str) -> list[str]:
    return [f"{board.borda[name]:g}"] if board.borda else []


def terminal_tables(
    table: Table, rows: Sequence[str] = (), columns: Sequence[str] = (), width: int = 200
) -> list[rich.table.Table]:
    """Return the leaderboard for a terminal of `width` characters, split into tables so that no column is cut."""
    from rich.table import Table as TerminalTable

    names = ordered_upstreams(table, rows)
    boards = []
    for tasks in _column_groups(table, names, ordered_tasks(table, columns), width):
        board = TerminalTable("upstream", *(heading(table, task).replace(" ", "\n", 1) for task in tasks))
        for name in names:
            board.add_row(name, *(cell_text(table.get((name, task))) for task in tasks))
        boards.append(board)
    return boards


def _column_groups(table: Table, names: Sequence[str], tasks: Sequence[str], width: int) -> list[list[str]]:
    """Split tasks into groups that fit beside the names of the upstreams; each group has at least one task."""
    free = width - max(map(len, ["upstream", *names]), default=0) - 4
    groups: list[list[str]] = []
    left = 0
    for task in tasks:
        texts = [*heading(table, task).split(" ", 1), *(cell_text(table.get((name, task))) for name in names)]
        needed = max(map(len, texts)) + 3
        if not groups or needed > left:
            groups.append([])
            left = free
        groups[-1].append(task)
        left -= needed
    return groups


def stored_order(folder: Path) -> tuple[list[str], list[str]]:
    """Return upstreams and tasks in the order of `folder`/leaderboard.csv; two empty lists if it cannot be read."""
    try:
        with open(folder / "leaderboard.csv", encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file)
    except (OSError, ValueError):
        return [], []
    tasks = [name.partition(" ")[0] for name in head[1:] if name != BORDA]
    return [row[0] for row in rows if row], list(dict.fromkeys(tasks))


def write_leaderboard(
    folder: Path,
    board: Board,
    records: Sequence[Record],
    outcomes: Outcomes,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    beside: Sequence[Published] = (),
) -> list[Path]:
    """Write leaderboard.csv, .md, .tex and .html, and results.csv; return their paths.

    outcomes: function that returns the outcomes of a record's test split, for the HTML page. rows, columns: upstreams
    and tasks that come first. beside: published scores.
    """
    from benchmark.tables.latex import latex
    from benchmark.tables.pages.page import page

    ordered = _sorted(records, board.table, rows, columns)
    texts = {
        "leaderboard.csv": leaderboard_frame(board, rows, columns).to_csv(index=False, lineterminator="\n"),
        "leaderboard.md": markdown_leaderboard(board, rows, columns, beside),
        "leaderboard.tex": latex(board, rows, columns, beside),
        "leaderboard.html": page(board, records, outcomes, rows, columns, beside),
        "results.csv": results_frame(ordered, board).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]
