"""What `bench` prints, the tables it writes, and how it ends."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from benchmark.errors import Failure
    from benchmark.records import Record
    from benchmark.statistics.outcomes import Outcomes
    from benchmark.tables.leaderboard import Board, Table
    from benchmark.tables.published import Published
    from upstreams.families.s3prl_entries import HubEntry


def show(table: Table, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Print a leaderboard with its notes."""
    from benchmark.tables.cells import notes
    from benchmark.tables.report import drawn

    screen = console()
    for board in drawn(table, rows, columns, screen.width):
        screen.print(board)
    for note in notes(table):
        say(f"  {note}")


def board_of(folder: Path, records: list[Record]) -> tuple[Board, Outcomes]:
    """The board of all records of a folder, and what gives their outcomes."""
    from benchmark.tables.ranking import board

    outcomes = outcomes_of(folder)
    found = board(records, outcomes)
    for problem in found.problems:
        warn(problem)
    lost = sum(math.isnan(cell.low) and not math.isnan(cell.value) for cell in found.table.values())
    if lost:
        warn(
            f"cells without an interval: {lost}; their outcomes in {folder / 'runs'} (JOB.outcomes.csv.gz) are missing"
            " or damaged, a seed lacks a fold, or their clips all depend on each other"
        )
    return found, outcomes


def outcomes_of(folder: Path) -> Outcomes:
    """What gives the outcomes of a record's test split; those of one task at a time are kept in memory."""
    from benchmark.records import Results

    results, kept, at = Results(folder), dict[str, list[dict[str, str]]](), ""

    def read(record: Record) -> list[dict[str, str]]:
        nonlocal at
        if record.task["name"] != at:
            kept.clear()
            at = record.task["name"]
        if record.id not in kept:
            kept[record.id] = results.outcomes(record)
        return kept[record.id]

    return read


def write_tables(
    folder: Path,
    board: Board,
    outcomes: Outcomes,
    records: list[Record],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    beside: Sequence[Published] = (),
) -> None:
    """Write the tables of everything in a folder, new rows and columns after those that were there."""
    from benchmark.tables.report import order_of, write

    before = order_of(folder)
    for path in write(folder, board, records, outcomes, [*before[0], *rows], [*before[1], *columns], beside):
        say(f"wrote {path}")


def draw(columns: list[str], rows: list[list[str]]) -> None:
    """Print any table."""
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def families(entries: Mapping[str, HubEntry]) -> list[list[str]]:
    """A row for each family of s3prl's entries: its name, its entries, and why those that cannot run here cannot."""
    rows = []
    for family in sorted({entry.family for entry in entries.values()}):
        own = [entry for entry in entries.values() if entry.family == family]
        broken: dict[str, list[str]] = {}
        for entry in own:
            if entry.reason:
                broken.setdefault(entry.reason, []).append(entry.name)
        told = [reason if len(some) == len(own) else f"{', '.join(some)}: {reason}" for reason, some in broken.items()]
        rows.append([family, ", ".join(entry.name for entry in own), "; ".join(told)])
    return rows


def console() -> Console:
    """For plain text: a label such as "[b]" or ":x:" is no markup."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Print a line of results."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a sentence for the user, in one line, to stderr."""
    print(f"bench: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def readable(results: Path, asked: Collection[str] = ()) -> list[Record]:
    """All records of a folder that count: of this protocol, and of one run of each upstream on each task.

    asked: ids of those that a run was asked for.
    """
    from benchmark.plan import PROTOCOL
    from benchmark.records import Results
    from benchmark.tables.leaderboard import current

    records, strange = Results(results).read_all()
    for path in strange:
        warn(f"{path} is not a record this version can read; it is left out and left alone")
    old = [record for record in records if record.protocol != PROTOCOL]
    if old:
        warn(
            f"{len(old)} records in {results} are of protocol {old[0].protocol}, not {PROTOCOL}: their numbers do not"
            " compare and are left out; run the same command again to renew them"
        )
    records = [record for record in records if record.protocol == PROTOCOL]
    kept = current(records, asked)
    if len(kept) < len(records):
        say(f"{len(records) - len(kept)} records of other runs (other weights, data or settings) are left out")
    return kept


def finish(failures: Sequence[Failure], some_done: bool) -> None:
    """Name what failed; exit with 2 where all of it was a mistake of the user's and nothing was done, else with 1."""
    for failed in failures:
        warn(f"{failed.where}: {failed.message}" + (f" (see {failed.path})" if failed.path else ""))
    if failures:
        raise typer.Exit(2 if not some_done and all(failed.users for failed in failures) else 1)
