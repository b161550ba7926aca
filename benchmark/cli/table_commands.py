"""Commands that read records: `bench report` and `bench compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.cli.options import ResultsOption, TaskOption, expand_home
from benchmark.cli.output import (
    outcome_reader,
    print_leaderboard,
    print_table,
    read_board,
    read_current_records,
    say,
    warn,
    write_tables,
)
from benchmark.errors import UserError, nearest_name

if TYPE_CHECKING:
    from benchmark.comparison.pairs import Pair
    from benchmark.records import Record
    from benchmark.statistics.outcomes import Outcomes, Row
    from benchmark.tables.leaderboard import Table
    from benchmark.tables.published import Published

NamesArgument = Annotated[
    list[str], typer.Argument(metavar="A B...", help="Upstreams to compare, as named in the leaderboard.")
]
AgainstOption = Annotated[
    Path | None,
    typer.Option("--against", help="Results folder of B and the upstreams after it, if it differs from --results."),
]
ShowOption = Annotated[
    int, typer.Option("--show", min=0, help="Number of clips to list per task: those with the largest differences.")
]
PublishedOption = Annotated[
    bool,
    typer.Option(
        "--published", help="Add published scores, from published.csv in the results folder or else from this project."
    ),
]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="CSV file to write the comparison to.")]


def compare_command(
    upstreams: NamesArgument,
    task: TaskOption = None,
    results: ResultsOption = Path("results"),
    against: AgainstOption = None,
    count: ShowOption = 0,
    output: OutputOption = None,
) -> None:
    """Compare upstreams by their records, with significance tests.

    Shows which one is better, on which tasks, and whether the difference is significant.
    """
    from benchmark.comparison import summary
    from benchmark.comparison.pairs import compare_upstreams as contrast
    from benchmark.files import write_text

    if len(upstreams) < 2:
        raise UserError("a comparison needs at least two upstreams, such as: bench compare hf:./mine fbank")
    if output is not None and output.suffix != ".csv":
        raise UserError(f"cannot write {output}: a comparison is written as CSV; give a file name that ends in .csv")
    sides, outcomes = _sides(upstreams, task, expand_home(results), expand_home(against) if against else None)
    pairs = contrast(sides, outcomes)
    for pair in pairs:
        _print_pair(pair, count)
    for note in summary.comparison_notes(pairs):
        say(f"  {note}")
    for pair in pairs:
        say(summary.summary_sentence(pair))
    if output is not None:
        write_text(output, summary.as_csv(pairs))
        say(f"wrote {output}")


def _sides(
    upstreams: Sequence[str], tasks: Sequence[str] | None, results: Path, against: Path | None
) -> tuple[dict[str, list[Record]], Outcomes]:
    """Return the records of each upstream and a function that reads their outcomes.

    The records of the first upstream are read from `results`, those of the others from `against`.
    """
    folders = [results, *[against or results] * (len(upstreams) - 1)]
    read = {folder: read_current_records(folder) for folder in dict.fromkeys(folders)}
    sources = {folder: outcome_reader(folder) for folder in read}
    sides: dict[str, list[Record]] = {}
    owners: dict[str, Path] = {}
    for name, folder in zip(upstreams, folders, strict=True):
        selected = _records_of(name, read[folder], tasks, folder)
        label = f"{name} in {folder}" if against and name in sides else name
        if label in sides:
            raise UserError(f"{name!r} is named twice; name each upstream once, or give the other folder by --against")
        sides[label] = [
            record.model_copy(update={"upstream": record.upstream | {"name": label}}) for record in selected
        ]
        owners[label] = folder
    originals = {(owners[label], record.id): record for label in sides for record in read[owners[label]]}

    def outcomes(record: Record) -> Sequence[Row]:
        folder = owners[record.upstream["name"]]
        try:
            return sources[folder](originals[folder, record.id])
        except OSError as error:
            raise UserError(
                f"the outcomes of {record.upstream['name']} on {record.task['name']} (job {record.id} in {folder}) are"
                " missing or damaged; delete its record and run it again"
            ) from error

    return sides, outcomes


def _records_of(name: str, records: Sequence[Record], tasks: Sequence[str] | None, folder: Path) -> list[Record]:
    """The records of an upstream on the named tasks, or on all tasks."""
    known = {record.upstream["name"] for record in records}
    if not known:
        raise UserError(f"no records in {folder}; make some with: bench run {name} --results {folder}")
    if name not in known:
        raise _absent(f"upstream {name!r} in {folder}", name, known)
    mine = [record for record in records if record.upstream["name"] == name]
    recorded = {record.task["name"] for record in mine}
    for task in tasks or ():
        if task not in recorded:
            raise _absent(f"{name} on task {task!r}", task, recorded)
    return [record for record in mine if not tasks or record.task["name"] in tasks]


def _absent(subject: str, name: str, known: set[str]) -> UserError:
    near = nearest_name(name, known)
    return UserError(
        f"no records of {subject}; {f'did you mean {near!r}?' if near else 'there are: ' + ', '.join(sorted(known))}"
    )


def _print_pair(pair: Pair, count: int) -> None:
    from benchmark.comparison import summary

    say(f"{pair.first} (first) against {pair.second} (second)")
    print_table(summary.COLUMNS, [summary.comparison_row(row) for row in pair.tasks])
    for row in (row for row in pair.tasks if count and row.disagreements.rows):
        clips = len(row.disagreements.rows)
        say(f"{row.task}: {clips} predictions differ; the {min(count, clips)} with the largest differences:")
        print_table(summary.DISAGREEMENT_COLUMNS, summary.disagreement_rows(row, count))


def pack_command(results: ResultsOption = Path("results")) -> None:
    """Gather the records of a run into a few files.

    A run writes a file for each job. Packed, they are one text file with a line for each record, and one Parquet file
    of outcomes for each task: few enough to commit and to review. All commands read both forms.
    """
    from benchmark.records import Results

    folder = expand_home(results)
    store = Results(folder)
    count, kept = store.pack()
    if not count and not kept:
        raise UserError(f"no records in {folder}; make some with: bench run UPSTREAM --results {folder}")
    for path in kept:
        warn(
            f"{path} stays as it is: it is not a record that this version can read, has another name than its job, or"
            " its outcomes are lost"
        )
    say(f"{count} records are packed in {folder}")


def report_command(results: ResultsOption = Path("results"), published: PublishedOption = False) -> None:
    """Write the tables again from the records.

    They are written as CSV, Markdown, LaTeX and one HTML page.
    """
    from benchmark.tables.report import stored_order

    folder = expand_home(results)
    records = read_current_records(folder)
    if not records:
        raise UserError(f"no records in {folder}; make some with: bench run UPSTREAM --results {folder}")
    board, outcomes = read_board(folder, records)
    beside = matching_published_scores(folder, board.table) if published else []
    print_leaderboard(board.table, *stored_order(folder))
    write_tables(folder, board, outcomes, records, beside=beside)


def matching_published_scores(folder: Path, table: Table) -> list[Published]:
    """Return the published scores on tasks and metrics that the table has; warn about those that match no column."""
    from benchmark.tables.published import published as read
    from benchmark.tables.published import scores_for_columns
    from benchmark.tasks import load_tasks

    rows, metrics = read(folder), {task: cell.metric for (_, task), cell in table.items()}
    matching = scores_for_columns(rows, metrics)
    unmatched = [
        row for row in rows if row not in matching and (row.task in metrics or row.task not in load_tasks().tasks)
    ]
    if unmatched:
        first = unmatched[0]
        warn(
            f"{len(unmatched)} published scores are not shown, the first of {first.system!r}: no column"
            f" {first.task!r} with the metric {first.metric!r}; correct 'shown_with' or 'metric' in published.csv"
        )
    return matching
