"""Printed lines and tables, the tables that `bench` writes, and its exit codes."""

from __future__ import annotations

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


def print_leaderboard(table: Table, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Print a leaderboard and its notes."""
    from benchmark.tables.cells import table_notes
    from benchmark.tables.report import terminal_tables

    screen = console()
    for board in terminal_tables(table, rows, columns, screen.width):
        screen.print(board)
    for note in table_notes(table):
        say(f"  {note}")


def read_board(folder: Path, records: list[Record]) -> tuple[Board, Outcomes]:
    """Return the leaderboard of all records of a folder, and a function that reads their outcomes."""
    from benchmark.tables.ranking import board

    outcomes = outcome_reader(folder)
    result = board(records, outcomes)
    for problem in result.problems:
        warn(problem)
    return result, outcomes


def outcome_reader(folder: Path) -> Outcomes:
    """Return a function that reads the test outcomes of a record; it keeps those of one task at a time in memory."""
    from benchmark.records import Results

    results, cached, task = Results(folder), dict[str, list[dict[str, str]]](), ""

    def read(record: Record) -> list[dict[str, str]]:
        nonlocal task
        if record.task["name"] != task:
            cached.clear()
            task = record.task["name"]
        if record.id not in cached:
            cached[record.id] = results.outcomes(record)
        return cached[record.id]

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
    """Write the tables of all records of a folder; new rows and columns follow the existing ones."""
    from benchmark.tables.report import stored_order, write_leaderboard

    before = stored_order(folder)
    for path in write_leaderboard(
        folder, board, records, outcomes, [*before[0], *rows], [*before[1], *columns], beside
    ):
        say(f"wrote {path}")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def family_rows(entries: Mapping[str, HubEntry]) -> list[list[str]]:
    """Return a row for each family of s3prl's entries: its name, its entries, and why some of them cannot run here."""
    rows = []
    for family in sorted({entry.family for entry in entries.values()}):
        members = [entry for entry in entries.values() if entry.family == family]
        broken: dict[str, list[str]] = {}
        for entry in members:
            if entry.reason:
                broken.setdefault(entry.reason, []).append(entry.name)
        reasons = [
            reason if len(names) == len(members) else f"{', '.join(names)}: {reason}"
            for reason, names in broken.items()
        ]
        rows.append([family, ", ".join(entry.name for entry in members), "; ".join(reasons)])
    return rows


def console() -> Console:
    """Return a console for plain text, in which a label such as "[b]" or ":x:" is not markup."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Print a line of results."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Print a sentence for the user to stderr, as one line."""
    print(f"bench: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def read_current_records(results: Path, preferred: Collection[str] = ()) -> list[Record]:
    """Return the current records of a folder: of this protocol, and of one run of each upstream on each task.

    preferred: ids of records to choose where an upstream has several runs on a task.
    """
    from benchmark.plan import PROTOCOL
    from benchmark.records import Results
    from benchmark.tables.leaderboard import current_records

    records, strange = Results(results).read_all()
    for path in strange:
        warn(f"{path} is not a record that this version can read; it is left out of the tables, and not changed")
    old = [record for record in records if record.protocol != PROTOCOL]
    if old:
        warn(
            f"{len(old)} records in {results} are of protocol {old[0].protocol}, not {PROTOCOL}: their numbers are not"
            " comparable and are left out; run the same command again to compute them anew"
        )
    records = [record for record in records if record.protocol == PROTOCOL]
    kept = current_records(records, preferred)
    if len(kept) < len(records):
        say(f"{len(records) - len(kept)} records of other runs (other weights, data or settings) are left out")
    return kept


def exit_on_failures(failures: Sequence[Failure], some_succeeded: bool) -> None:
    """Report failures and exit: with 2 where all are user errors and nothing was computed, else with 1."""
    for failure in failures:
        warn(f"{failure.where}: {failure.message}" + (f" (see {failure.path})" if failure.path else ""))
    if failures:
        raise typer.Exit(2 if not some_succeeded and all(failure.users for failure in failures) else 1)
