"""From a board and its records to CSV and Markdown."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.files import write_text
from benchmark.records import Record
from benchmark.tables.cells import (
    PARTS,
    POINTS,
    beside_of,
    columns_of,
    heading,
    notes,
    rows_of,
    standing_notes,
    table_metric,
    text_of,
)
from benchmark.tables.leaderboard import Board, Cell, Table

if TYPE_CHECKING:
    import pandas
    import rich.table

    from benchmark.statistics.outcomes import Outcomes
    from benchmark.tables.published import Published


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
