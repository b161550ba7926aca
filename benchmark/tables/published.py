"""Scores that others published, to stand beside ours: read from a CSV file, checked row by row, and footnoted."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmark.errors import UserError, unknown

HERE = Path(__file__).parents[1]
NAME = "published.csv"
COLUMNS = (
    "system", "variant", "task", "dataset", "metric", "value", "protocol", "training", "source", "evidence",
    "shown_with", "same_protocol",
)  # fmt: skip
OPTIONAL = ("variant", "shown_with", "same_protocol")  # cells that may be empty
HIGHER = {  # metric -> whether higher is better
    "accuracy": True, "micro_f1": True, "macro_f1": True, "uar": True, "map": True, "slot_f1": True, "mtwv": True,
    "eer": False, "min_dcf": False, "min_dcf_p05": False, "wer": False, "cer": False, "per": False, "der": False,
}  # fmt: skip
FRACTIONS = ("min_dcf", "min_dcf_p05", "mtwv")  # the others are percentages
UNBOUNDED = ("wer", "cer", "per", "der")  # insertions may take these above 100
EQUAL = ("accuracy", "micro_f1")  # the same number where each clip has one label
TRAINING = ("frozen", "fine-tuned", "other")
EVIDENCE = {
    "A": "from the authors' own paper, code or figure, or the official leaderboard",
    "B": "as quoted or measured by somebody else",
    "C": "computed or inferred from such numbers",
}
TRIALS = re.compile(r"VoxCeleb1-[OEH]\b")  # a list of trials: each comes in an original and a cleaned version


class Fact(NamedTuple):
    """A row of published.csv: one score that somebody published.

    line: of the file. value: in percent, except that minDCF and MTWV are fractions. training: of the encoder on the
    task. evidence: a key of EVIDENCE. shown_with: tasks of ours beside which it is shown. same_protocol: those of them
    whose protocol is the very same.
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
        """System and variant, as the row of a table is called."""
        return f"{self.system} {self.variant}".strip()


class Published(NamedTuple):
    """One published score as it is shown: `system` with its variant, beside a task of ours; units as in Fact."""

    system: str
    task: str
    value: float
    metric: str
    protocol: str
    source: str
    evidence: str
    same_protocol: bool
    dataset: str = ""


def built_in() -> Path:
    """published.csv, inside the installed package or in the results of a checkout."""
    inside = HERE / NAME
    return inside if inside.exists() else HERE.parent / "results" / NAME


def published(folder: Path) -> list[Published]:
    """What is shown of `folder`/published.csv, or else of the one that comes with this package, in the file's order.

    Raises UserError naming file, line and column of a row that is not fit to be shown.
    """
    own = folder / NAME
    return [_shown(fact, task) for fact in facts(own if own.exists() else built_in()) for task in fact.shown_with]


def _shown(fact: Fact, task: str) -> Published:
    same = task in fact.same_protocol
    shared = (fact.value, fact.metric, fact.protocol, fact.source, fact.evidence)
    return Published(fact.name, task, *shared, same, fact.dataset)


def of_tasks(rows: Iterable[Published], tasks: Mapping[str, str]) -> list[Published]:
    """Those that fit beside the columns of a table: its tasks, each with the metric that it is judged by.

    Accuracy and micro-F1 stand in one column, and `dataset` says so.
    """
    return [_beside(row, tasks[row.task]) for row in rows if row.task in tasks and _fits(row.metric, tasks[row.task])]


def _fits(metric: str, column: str) -> bool:
    return metric == column or (metric in EQUAL and column in EQUAL)


def _beside(row: Published, column: str) -> Published:
    if row.metric == column:
        return row
    names = {"accuracy": "accuracy", "micro_f1": "micro-F1"}
    told = f"as {names[row.metric]}, which equals {names[column]} where each clip has one label"
    return row._replace(dataset=f"{row.dataset}, {told}" if row.dataset else told)


def footnotes(rows: Iterable[Published]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Notes on where scores are from, and the number, from 1, of the note of each system and task.

    Scores of one protocol, source and evidence share a note; notes are numbered in the order of the rows.
    """
    groups: dict[tuple[str, str, str], list[Published]] = {}
    for row in rows:
        groups.setdefault((row.protocol, row.source, row.evidence), []).append(row)
    numbers = {(row.system, row.task): place for place, group in enumerate(groups.values(), 1) for row in group}
    return [_note(group) for group in groups.values()], numbers


def _note(rows: list[Published]) -> str:
    """Such as "frozen, linear probe; on VoxForge (tiny_language); Li, 2022 [B: as quoted …]"."""
    first = rows[0]
    data = dict.fromkeys(f"{row.dataset} ({row.task})" for row in rows if row.dataset)
    same = dict.fromkeys(row.task for row in rows if row.same_protocol)
    parts = [first.protocol, f"on {', '.join(data)}" if data else "", first.source]
    parts.insert(2, f"the same protocol as ours in {', '.join(same)}" if same else "")
    return f"{'; '.join(filter(None, parts))} [{first.evidence}: {EVIDENCE[first.evidence]}]"


def facts(path: Path) -> list[Fact]:
    """All rows of a file, shown or not; raises UserError as `published` does."""
    found = [_fact(path, line, row) for line, row in _rows(path)]
    _once(path, found)
    for task in dict.fromkeys(task for fact in found for task in fact.shown_with):
        _alike(path, task, [fact for fact in found if task in fact.shown_with])
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with the line on which each ends; missing columns count as empty if they may be."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            _titles(path, reader.fieldnames or [])
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


def _titles(path: Path, titles: Iterable[str]) -> None:
    for title in titles:
        if title not in COLUMNS:
            raise UserError(f"{path}: {unknown('column', title, COLUMNS)}")
    for name in COLUMNS:
        if name not in titles and name not in OPTIONAL:
            raise UserError(f"{path}: column {name!r} is missing; the columns are {', '.join(COLUMNS)}")


def _fact(path: Path, line: int, row: Mapping[str, str]) -> Fact:
    for name in COLUMNS:
        if not row[name] and name not in OPTIONAL:
            raise _wrong(path, line, name, "is empty; every published score needs one")
    for name, known in (("metric", HIGHER), ("training", TRAINING), ("evidence", EVIDENCE)):
        if row[name] not in known:
            raise _wrong(path, line, name, f"{row[name]!r} is none of {', '.join(known)}")
    shown, same = tuple(row["shown_with"].split()), tuple(row["same_protocol"].split())
    for task in same:
        if task not in shown:
            raise _wrong(path, line, "same_protocol", f"{task!r} is not in shown_with; name it there too")
    value = _value(path, line, row["metric"], row["value"])
    texts = {name: row[name] for name in COLUMNS if name not in ("value", "shown_with", "same_protocol")}
    return Fact(line=line, value=value, shown_with=shown, same_protocol=same, **texts)


def _value(path: Path, line: int, metric: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _wrong(path, line, "value", f"{text!r} is not a number; give the score alone, such as 12.3") from None
    most = 1.0 if metric in FRACTIONS else math.inf if metric in UNBOUNDED else 100.0
    if not (math.isfinite(value) and 0 <= value <= most):
        unit = "a fraction" if metric in FRACTIONS else "a percentage"
        raise _wrong(path, line, "value", f"{text} cannot be {metric}, which is {unit} here; convert it")
    return value


def _once(path: Path, found: Iterable[Fact]) -> None:
    """Nothing is said twice, and no cell of a table has two scores to show."""
    lines: dict[tuple[str, ...], int] = {}
    cells: dict[tuple[str, str, str], int] = {}
    for fact in found:
        key = (fact.name, fact.task, fact.dataset, fact.metric, fact.protocol)
        if key in lines:
            raise _wrong(
                path, fact.line, "system", f"repeats line {lines[key]}; keep one, or tell them apart in variant"
            )
        lines[key] = fact.line
        for task in fact.shown_with:
            cell = (fact.name, task, EQUAL[0] if fact.metric in EQUAL else fact.metric)
            if cell in cells:
                told = f"{fact.name} has a score beside {task} in line {cells[cell]}; show one of them"
                raise _wrong(path, fact.line, "shown_with", told)
            cells[cell] = fact.line


def _alike(path: Path, task: str, beside: Iterable[Fact]) -> None:
    """One column never mixes frozen with fine-tuned encoders, nor two lists of trials."""
    trained: dict[str, int] = {}
    lists: dict[str, int] = {}
    for fact in beside:
        if fact.training != "other":
            trained.setdefault(fact.training, fact.line)
        if TRIALS.match(fact.dataset):
            lists.setdefault(fact.dataset, fact.line)
        for kinds in (trained, lists):
            if len(kinds) > 1:
                (first, line), (second, _) = kinds.items()
                told = f"{second!r} beside {task}, where line {line} has {first!r}; show them with different tasks"
                raise _wrong(path, fact.line, "shown_with", told)


def _wrong(path: Path, line: int, column: str, told: str) -> UserError:
    return UserError(f"{path}: line {line}: {column}: {told}")
