"""Read published scores from a CSV file, check each row, and make footnotes with their sources."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmark.errors import UserError, unknown_name

PACKAGE = Path(__file__).parents[1]
FILE_NAME = "published.csv"
COLUMNS = (
    "system", "variant", "task", "dataset", "metric", "value", "protocol", "training", "source", "evidence",
    "shown_with", "same_protocol",
)  # fmt: skip
OPTIONAL = ("variant", "shown_with", "same_protocol")  # cells that may be empty
HIGHER_IS_BETTER = {  # metric -> whether higher is better
    "accuracy": True, "micro_f1": True, "macro_f1": True, "uar": True, "map": True, "slot_f1": True, "mtwv": True,
    "eer": False, "min_dcf": False, "min_dcf_p05": False, "wer": False, "cer": False, "per": False, "der": False,
}  # fmt: skip
FRACTIONS = ("min_dcf", "min_dcf_p05", "mtwv")  # the others are percentages
UNBOUNDED = ("wer", "cer", "per", "der")  # insertions may raise these above 100
INTERCHANGEABLE = ("accuracy", "micro_f1")  # equal where each clip has one label
TRAINING = ("frozen", "fine-tuned", "other")
EVIDENCE = {
    "A": "from the authors' own paper, code or figure, or the official leaderboard",
    "B": "as quoted or measured by somebody else",
    "C": "computed or inferred from such numbers",
}
TRIALS = re.compile(r"VoxCeleb1-[OEH]\b")  # trial lists, which exist in an original and a cleaned version


class Fact(NamedTuple):
    """A row of published.csv: one published score.

    line: line number in the file. value: in percent, except that minDCF and MTWV are fractions. training: how the
    encoder was trained on the task, one of TRAINING. evidence: a key of EVIDENCE. shown_with: our tasks in whose
    columns the score is shown. same_protocol: those of these tasks that use the same protocol.
    """

    line: int
    system: str
    variant: str
    task: str
    dataset: str
    metric: str
    value: float
    protocol: str
    training: str
    source: str
    evidence: str
    shown_with: tuple[str, ...]
    same_protocol: tuple[str, ...]

    @property
    def name(self) -> str:
        """System and variant, which together name the row of a table."""
        return f"{self.system} {self.variant}".strip()


class Published(NamedTuple):
    """A published score in the column of one of our tasks; `system` includes the variant; units are as in Fact."""

    system: str
    task: str
    value: float
    metric: str
    protocol: str
    source: str
    evidence: str
    same_protocol: bool
    dataset: str = ""


def built_in_scores() -> Path:
    """Return the path of the project's published.csv, in the installed package or in the results of a checkout."""
    inside = PACKAGE / FILE_NAME
    return inside if inside.exists() else PACKAGE.parent / "results" / FILE_NAME


def published(folder: Path) -> list[Published]:
    """Return the scores to show, from `folder`/published.csv or else the project's file, in the order of the file.

    Raises UserError with file, line and column if a row is invalid.
    """
    path = folder / FILE_NAME
    return [
        _shown(fact, task) for fact in facts(path if path.exists() else built_in_scores()) for task in fact.shown_with
    ]


def _shown(fact: Fact, task: str) -> Published:
    same = task in fact.same_protocol
    shared = (fact.value, fact.metric, fact.protocol, fact.source, fact.evidence)
    return Published(fact.name, task, *shared, same, fact.dataset)


def scores_for_columns(rows: Iterable[Published], tasks: Mapping[str, str]) -> list[Published]:
    """Return the published scores that belong into the columns of a table.

    tasks: the metric of each task in the table. Accuracy and micro-F1 may share a column; `dataset` then says so.
    """
    return [
        _in_column(row, tasks[row.task]) for row in rows if row.task in tasks and _fits(row.metric, tasks[row.task])
    ]


def _fits(metric: str, column: str) -> bool:
    return metric == column or (metric in INTERCHANGEABLE and column in INTERCHANGEABLE)


def _in_column(row: Published, column: str) -> Published:
    if row.metric == column:
        return row
    names = {"accuracy": "accuracy", "micro_f1": "micro-F1"}
    remark = f"as {names[row.metric]}, which equals {names[column]} where each clip has one label"
    return row._replace(dataset=f"{row.dataset}, {remark}" if row.dataset else remark)


def footnotes(rows: Iterable[Published]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Return the texts of footnotes on sources, and the footnote number, from 1, for each system and task.

    Scores with the same protocol, source and evidence share a note. Notes are numbered in the order of the rows.
    """
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.source, row.evidence), []).append(row)
    numbers = {(row.system, row.task): place for place, group in enumerate(groups.values(), 1) for row in group}
    return [_note(group) for group in groups.values()], numbers


def _note(rows: list[Published]) -> str:
    """Return a note such as "frozen, linear probe; on VoxForge (tiny_language); Li, 2022 [B: as quoted …]"."""
    first = rows[0]
    data = dict.fromkeys(f"{row.dataset} ({row.task})" for row in rows if row.dataset)
    same = dict.fromkeys(row.task for row in rows if row.same_protocol)
    parts = [first.protocol, f"on {', '.join(data)}" if data else "", first.source]
    parts.insert(2, f"the same protocol as ours in {', '.join(same)}" if same else "")
    return f"{'; '.join(filter(None, parts))} [{first.evidence}: {EVIDENCE[first.evidence]}]"


def facts(path: Path) -> list[Fact]:
    """Return all rows of a file, including those that are not shown; raises UserError as `published` does."""
    rows = [_fact(path, line, row) for line, row in _rows(path)]
    _refuse_duplicates(path, rows)
    for task in dict.fromkeys(task for fact in rows for task in fact.shown_with):
        _refuse_mixtures(path, task, [fact for fact in rows if task in fact.shown_with])
    return rows


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row with the number of its last line; optional columns that are missing are empty."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            _check_titles(path, reader.fieldnames or [])
            for row in reader:
                if None in row:
                    raise UserError(f"{path}: line {reader.line_num}: more cells than columns; quote cells with commas")
                yield reader.line_num, {name: (row.get(name) or "").strip() for name in COLUMNS}
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give a CSV file with columns {', '.join(COLUMNS)}"
        ) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not CSV in UTF-8 ({error}); save it as such") from error


def _check_titles(path: Path, titles: Iterable[str]) -> None:
    for title in titles:
        if title not in COLUMNS:
            raise UserError(f"{path}: {unknown_name('column', title, COLUMNS)}")
    for name in COLUMNS:
        if name not in titles and name not in OPTIONAL:
            raise UserError(f"{path}: column {name!r} is missing; the columns are {', '.join(COLUMNS)}")


def _fact(path: Path, line: int, row: Mapping[str, str]) -> Fact:
    for name in COLUMNS:
        if not row[name] and name not in OPTIONAL:
            raise _row_error(path, line, name, "is empty; every published score needs one")
    for name, known in (("metric", HIGHER_IS_BETTER), ("training", TRAINING), ("evidence", EVIDENCE)):
        if row[name] not in known:
            raise _row_error(path, line, name, f"{row[name]!r} is none of {', '.join(known)}")
    shown, same = tuple(row["shown_with"].split()), tuple(row["same_protocol"].split())
    for task in same:
        if task not in shown:
            raise _row_error(path, line, "same_protocol", f"{task!r} is not in shown_with; name it there too")
    value = _value(path, line, row["metric"], row["value"])
    texts = {name: row[name] for name in COLUMNS if name not in ("value", "shown_with", "same_protocol")}
    return Fact(line=line, value=value, shown_with=shown, same_protocol=same, **texts)


def _value(path: Path, line: int, metric: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _row_error(path, line, "value", f"{text!r} is not a number; give the score alone, such as 12.3") from None
    most = 1.0 if metric in FRACTIONS else math.inf if metric in UNBOUNDED else 100.0
    if not (math.isfinite(value) and 0 <= value <= most):
        unit = "a fraction" if metric in FRACTIONS else "a percentage"
        raise _row_error(path, line, "value", f"{text} cannot be {metric}, which is {unit} here; convert it")
    return value


def _refuse_duplicates(path: Path, rows: Iterable[Fact]) -> None:
    """Raise UserError if a row repeats another one, or if two scores would be shown in one cell."""
    lines: dict[tuple[str, ...], int] = {}
    cells: dict[tuple[str, str, str], int] = {}
    for fact in rows:
        key = (fact.name, fact.task, fact.dataset, fact.metric, fact.protocol)
        if key in lines:
            raise _row_error(
                path, fact.line, "system", f"repeats line {lines[key]}; keep one, or distinguish them in variant"
            )
        lines[key] = fact.line
        for task in fact.shown_with:
            cell = (fact.name, task, INTERCHANGEABLE[0] if fact.metric in INTERCHANGEABLE else fact.metric)
            if cell in cells:
                problem = f"{fact.name} has a score beside {task} in line {cells[cell]}; show one of them"
                raise _row_error(path, fact.line, "shown_with", problem)
            cells[cell] = fact.line


def _refuse_mixtures(path: Path, task: str, column: Iterable[Fact]) -> None:
    """Raise UserError if a column mixes frozen and fine-tuned encoders, or two trial lists."""
    trained: dict[str, int] = {}
    lists: dict[str, int] = {}
    for fact in column:
        if fact.training != "other":
            trained.setdefault(fact.training, fact.line)
        if TRIALS.match(fact.dataset):
            lists.setdefault(fact.dataset, fact.line)
        for kinds in (trained, lists):
            if len(kinds) > 1:
                (first, line), (second, _) = kinds.items()
                problem = f"{second!r} beside {task}, where line {line} has {first!r}; show them with different tasks"
                raise _row_error(path, fact.line, "shown_with", problem)


def _row_error(path: Path, line: int, column: str, problem: str) -> UserError:
    return UserError(f"{path}: line {line}: {column}: {problem}")
