"""From a table and its records to CSV and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark.files import write_text
from benchmark.leaderboard import Cell, Table
from benchmark.records import Record

if TYPE_CHECKING:
    import pandas
    import rich.table

SHORT = {
    "accuracy": "acc", "micro_f1": "micro-F1", "macro_f1": "macro-F1", "uar": "UAR", "map": "mAP",
    "wer": "WER", "cer": "CER", "eer": "EER", "min_dcf": "minDCF",
}  # fmt: skip
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
    """A cell as printed: mean ± standard deviation over seeds, with its marks; "–" where there is no result."""
    if cell is None:
        return "–"
    if isnan(cell.value):
        return "diverged"
    spread = "" if cell.spread is None else f" ± {cell.spread:.1f}"
    return f"{cell.value:.1f}{spread}{EDGE if cell.edge else ''}{LIMITED if cell.limit else ''}"


def notes(table: Table) -> list[str]:
    """What the marks in a table mean, as far as it has them, and what was left out."""
    found = [
        "test scores in percent, mean ± standard deviation over seeds; learning rate and epoch chosen on validation"
    ]
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


def wide(table: Table, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> pandas.DataFrame:
    """A row per upstream, a column per task and metric, scores rounded to four decimals; missing cells stay empty."""
    import pandas

    tasks = columns_of(table, columns)
    content = [
        {"upstream": name}
        | {f"{task} {table_metric(table, task)}": _rounded(table.get((name, task))) for task in tasks}
        for name in rows_of(table, rows)
    ]
    return pandas.DataFrame(content, columns=["upstream", *(f"{task} {table_metric(table, task)}" for task in tasks)])


def table_metric(table: Table, task: str) -> str:
    """The headline metric of a task."""
    return next(cell.metric for (_, name), cell in table.items() if name == task)


def _rounded(cell: Cell | None) -> float | None:
    return None if cell is None else round(cell.value, 4)


def long(records: Iterable[Record], table: Table) -> pandas.DataFrame:
    """A row per job with everything its record holds.

    chosen: its learning rate is the one in the leaderboard. macs_per_second: multiply–accumulates of the upstream per
    second of audio. real_time_factor: time / audio of the upstream alone, on `device` with so many `threads`. revision:
    commit of the hub's repository that its weights came from.
    """
    import pandas

    return pandas.DataFrame([_flat(record, table) for record in records])


def _sorted(records: Iterable[Record], table: Table, rows: Sequence[str], columns: Sequence[str]) -> list[Record]:
    """As the leaderboard goes, and then by fold, learning rate and seed."""
    upstreams, tasks = rows_of(table, rows), columns_of(table, columns)

    def place(record: Record) -> tuple[int, int, str, float, int]:
        upstream, task = record.upstream["name"], record.task["name"]
        return upstreams.index(upstream), tasks.index(task), record.fold or "", record.lr or 0.0, record.seed

    return sorted(records, key=place)


def _flat(record: Record, table: Table) -> dict[str, Any]:
    cell = table.get((record.upstream["name"], record.task["name"]))
    row: dict[str, Any] = {
        "upstream": record.upstream["name"],
        "task": record.task["name"],
        "corpus": record.task["corpus"],
        "head": record.task["head"],
        "metric": record.metric,
        "higher_is_better": record.higher,
        "lr": record.lr,
        "seed": record.seed,
        "fold": record.fold,
        "chosen": cell is not None and cell.lr == record.lr,
        "lr_at_edge": cell is not None and cell.lr == record.lr and cell.edge,
        "valid": record.valid.get(record.metric),
        "test": record.test.get(record.metric),
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
    row |= {f"{split}_trials": count for split, count in record.trials.items()}
    row |= {"skipped": sum(record.skipped.values()), "limit": record.limit}
    row |= {f"{stage}_seconds": value for stage, value in record.seconds.items()}
    row |= {name: record.upstream[name] for name in ("layers", "dim", "hop", "parameters", "precision", "fingerprint")}
    row |= {name: record.cost.get(name) for name in ("macs_per_second", "real_time_factor", "threads")}
    row |= {"revision": record.origin.get("revision")}
    row |= {"device": record.device, "protocol": record.protocol, "created": record.created, "job": record.id}
    return row


def markdown(table: Table, rows: Sequence[str] = (), columns: Sequence[str] = ()) -> str:
    """The leaderboard as a Markdown table with notes."""
    tasks = columns_of(table, columns)
    lines = [
        "| upstream | " + " | ".join(heading(table, task) for task in tasks) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for name in rows_of(table, rows):
        lines.append(f"| `{name}` | " + " | ".join(text_of(table.get((name, task))) for task in tasks) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(table))]) + "\n"


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
    return [row[0] for row in rows if row], [name.rpartition(" ")[0] for name in head[1:]]


def write(
    folder: Path, table: Table, records: Sequence[Record], rows: Sequence[str] = (), columns: Sequence[str] = ()
) -> list[Path]:
    """leaderboard.csv, leaderboard.md and results.csv; gives their paths."""
    paths = [folder / name for name in ("leaderboard.csv", "leaderboard.md", "results.csv")]
    write_text(paths[0], wide(table, rows, columns).to_csv(index=False, lineterminator="\n"))
    write_text(paths[1], markdown(table, rows, columns))
    write_text(paths[2], long(_sorted(records, table, rows, columns), table).to_csv(index=False, lineterminator="\n"))
    return paths
