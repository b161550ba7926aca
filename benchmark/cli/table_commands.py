"""Commands that read records: `bench report` and `bench compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.cli.options import ResultsOption, TaskOption, expanded
from benchmark.cli.output import board_of, draw, outcomes_of, readable, say, show, warn, write_tables
from benchmark.errors import UserError, nearest

if TYPE_CHECKING:
    from benchmark.comparison.pairs import Pair
    from benchmark.records import Record
    from benchmark.statistics.outcomes import Outcomes, Row
    from benchmark.tables.leaderboard import Table
    from benchmark.tables.published import Published

NamesArgument = Annotated[list[str], typer.Argument(metavar="A B...", help="Upstreams, as the leaderboard names them.")]
AgainstOption = Annotated[
    Path | None, typer.Option("--against", help="A results folder where B and the others lie, if it is another.")
]
ShowOption = Annotated[
    int, typer.Option("--show", min=0, help="Clips to list of each task, those answered most differently.")
]
PublishedOption = Annotated[
    bool, typer.Option("--published", help="Show published scores too, of published.csv there or of this project.")
]
OutputOption = Annotated[Path | None, typer.Option("-o", "--output", help="A .csv file for the comparison.")]


def compare(
    upstreams: NamesArgument,
    task: TaskOption = None,
    results: ResultsOption = Path("results"),
    against: AgainstOption = None,
    count: ShowOption = 0,
    output: OutputOption = None,
) -> None:
    """Is A better than B (and C…), at what, and is the difference real? From the records alone."""
    from benchmark.comparison import summary
    from benchmark.comparison.pairs import compare as contrast
    from benchmark.files import write_text

    if len(upstreams) < 2:
        raise UserError("a comparison needs two upstreams or more, such as: bench compare hf:./mine fbank")
    if output is not None and output.suffix != ".csv":
        raise UserError(f"cannot write {output}: a comparison is written as .csv; name it so")
    sides, outcomes = _sides(upstreams, task, expanded(results), expanded(against) if against else None)
    pairs = contrast(sides, outcomes)
    for pair in pairs:
        _tell(pair, count)
    for note in summary.notes(pairs):
        say(f"  {note}")
    for pair in pairs:
        say(summary.sentence(pair))
    if output is not None:
        write_text(output, summary.as_csv(pairs))
        say(f"wrote {output}")


def _sides(
    upstreams: Sequence[str], tasks: Sequence[str] | None, results: Path, against: Path | None
) -> tuple[dict[str, list[Record]], Outcomes]:
    """Records of each upstream, of the first one in `results` and of the others in `against`, and their outcomes."""
    folders = [results, *[against or results] * (len(upstreams) - 1)]
    read = {folder: readable(folder) for folder in dict.fromkeys(folders)}
    sources = {folder: outcomes_of(folder) for folder in read}
    sides: dict[str, list[Record]] = {}
    owners: dict[str, Path] = {}
    for name, folder in zip(upstreams, folders, strict=True):
        found = _of(name, read[folder], tasks, folder)
        label = f"{name} in {folder}" if against and name in sides else name
        if label in sides:
            raise UserError(f"{name!r} is named twice; name each upstream once, or give the other folder by --against")
        sides[label] = [record.model_copy(update={"upstream": record.upstream | {"name": label}}) for record in found]
        owners[label] = folder
    originals = {(owners[label], record.id): record for label in sides for record in read[owners[label]]}

    def outcomes(record: Record) -> Sequence[Row]:
        folder = owners[record.upstream["name"]]
        try:
            return sources[folder](originals[folder, record.id])
        except OSError as error:
            raise UserError(
                f"the outcomes of {record.upstream['name']} on {record.task['name']} ({record.id}.outcomes.csv.gz in"
                f" {folder / 'runs'}) are missing or damaged; delete the record beside them and run it again"
            ) from error

    return sides, outcomes


def _of(name: str, records: Sequence[Record], tasks: Sequence[str] | None, folder: Path) -> list[Record]:
    """Those of an upstream on the tasks that are asked for, or on all."""
    known = {record.upstream["name"] for record in records}
    if not known:
        raise UserError(f"no records in {folder / 'runs'}; make some with: bench run {name} --results {folder}")
    if name not in known:
        raise _absent(f"upstream {name!r} in {folder}", name, known)
    own = [record for record in records if record.upstream["name"] == name]
    there = {record.task["name"] for record in own}
    for task in tasks or ():
        if task not in there:
            raise _absent(f"{name} on task {task!r}", task, there)
    return [record for record in own if not tasks or record.task["name"] in tasks]


def _absent(what: str, name: str, known: set[str]) -> UserError:
    near = nearest(name, known)
    return UserError(
        f"no records of {what}; {f'did you mean {near!r}?' if near else 'there are: ' + ', '.join(sorted(known))}"
    )


def _tell(pair: Pair, count: int) -> None:
    from benchmark.comparison import summary

    say(f"{pair.first} (first) against {pair.second} (second)")
    draw(summary.COLUMNS, [summary.row_of(each) for each in pair.tasks])
    for each in (each for each in pair.tasks if count and each.flips.rows):
        say(
            f"{each.task}: {len(each.flips.rows)} answered differently, the {min(count, len(each.flips.rows))} most so:"
        )
        draw(summary.SHOWN, summary.shown(each, count))


def report(results: ResultsOption = Path("results"), published: PublishedOption = False) -> None:
    """Make the tables anew from the records alone: CSV, Markdown, LaTeX and one HTML page."""
    from benchmark.tables.report import order_of

    folder = expanded(results)
    records = readable(folder)
    if not records:
        raise UserError(f"no records in {folder / 'runs'}; make some with: bench run UPSTREAM --results {folder}")
    board, outcomes = board_of(folder, records)
    beside = published_beside(folder, board.table) if published else []
    show(board.table, *order_of(folder))
    write_tables(folder, board, outcomes, records, beside=beside)


def published_beside(folder: Path, table: Table) -> list[Published]:
    """Published scores that belong beside the columns of a table."""
    from benchmark.tables.published import of_tasks
    from benchmark.tables.published import published as read
    from benchmark.tasks import load_tasks

    rows, metrics = read(folder), {task: cell.metric for (_, task), cell in table.items()}
    found = of_tasks(rows, metrics)
    lost = [row for row in rows if row not in found and (row.task in metrics or row.task not in load_tasks().tasks)]
    if lost:
        first = lost[0]
        warn(
            f"{len(lost)} published scores are shown nowhere, {first.system!r} first: no column {first.task!r} with the"
            f" metric {first.metric!r}; correct 'shown_with' or 'metric' in published.csv"
        )
    return found
