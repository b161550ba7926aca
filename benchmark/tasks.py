"""Tasks and suites, read from YAML and validated key by key."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from benchmark.errors import UserError, unknown_name

HERE = Path(__file__).parent
FeatureMode = Literal["auto", "summary", "frames", "live", "finetune"]


class NumberLoader(yaml.SafeLoader):
    """A YAML 1.1 loader that also reads 1e-4 as a number, as YAML 1.2 does, and not only 1.0e-4."""


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class Task(BaseModel):
    """One column of the leaderboard.

    corpus, target: the corpus, and the kind of its labels to predict. head, head_args: the downstream model. metric: by
    default the first one of the head. lr, seeds: the grid; each pair is one job. folds: a label (such as "session")
    whose values take turns as test split; the next value in order is the validation split. train_hours: hours of
    training audio, the same subset for all jobs; None: all of it. batch: clips. disjoint: a label, or several, whose
    values must not occur in two splits; null where the corpus's own protocol shares them.
    features: the input of the head; "auto" selects summaries where the head accepts them, else stored frames if they
    fit the budget, else the upstream run live; "finetune" trains the upstream too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    corpus: str
    target: str
    head: str
    head_args: dict[str, Any] = Field(default_factory=dict)
    metric: str | None = None
    lr: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: str | None = None
    train_hours: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epochs: int = Field(default=30, ge=1)
    batch: int = Field(default=32, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    patience: int | None = Field(default=None, ge=1)
    encoder_lr: float | None = Field(default=None, gt=0)
    features: FeatureMode = "auto"
    disjoint: str | tuple[str, ...] | None = "speaker"

    @field_validator("lr")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError("needs at least one learning rate, each above 0")
        return tuple(sorted(set(rates)))

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds:
            raise ValueError("needs at least one seed")
        return tuple(sorted(set(seeds)))

    @field_validator("disjoint")
    @classmethod
    def _disjoint(cls, labels: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        """Replace a list of one label by this label, so that both ways of writing it give the same task."""
        if not isinstance(labels, tuple):
            return labels
        names = tuple(sorted(set(labels)))
        return names if len(names) > 1 else next(iter(names), None)

    @property
    def apart(self) -> tuple[str, ...]:
        """The labels of `disjoint` without the target, whose values the splits must share."""
        names = self.disjoint if isinstance(self.disjoint, tuple) else (self.disjoint,)
        return tuple(name for name in names if name and name != self.target)


class Protocol(BaseModel):
    """The content of a protocol file such as tasks.yaml: tasks by name, and suites of tasks."""

    model_config = ConfigDict(frozen=True)

    tasks: dict[str, Task]
    suites: dict[str, tuple[str, ...]]

    def choose(self, names: Iterable[str], suites: Iterable[str]) -> list[Task]:
        """Return the tasks of the named suites and the named tasks, each once, in the given order.

        Raises UserError for an unknown name.
        """
        wanted = [name for suite in suites for name in self._suite(suite)] + list(names)
        for name in wanted:
            if name not in self.tasks:
                raise unknown_name("task", name, self.tasks, "bench list tasks")
        return [self.tasks[name] for name in dict.fromkeys(wanted)]

    def _suite(self, name: str) -> tuple[str, ...]:
        if name not in self.suites:
            raise unknown_name("suite", name, self.suites, "bench list suites")
        return self.suites[name]


def built_in_tasks_path() -> Path:
    """Return the path of tasks.yaml, inside the installed package or at the top of a checkout."""
    inside = HERE / "tasks.yaml"
    return inside if inside.exists() else HERE.parent / "tasks.yaml"


@cache
def load_tasks(path: Path | None = None) -> Protocol:
    """Read a protocol file, by default the built-in one; raise UserError that names file, task and key."""
    path = path or built_in_tasks_path()
    content = _parse(path)
    for key in set(content) - {"tasks", "suites"}:
        raise UserError(f"{path}: {unknown_name('section', key, ['tasks', 'suites'])}")
    tasks = {name: _task(path, name, fields) for name, fields in _mapping(path, content, "tasks").items()}
    suites = {name: _members(path, name, listed) for name, listed in _mapping(path, content, "suites").items()}
    for suite, members in suites.items():
        for member in members:
            if member not in tasks:
                raise UserError(f"{path}: suite {suite!r}: {unknown_name('task', member, tasks)}")
    return Protocol(tasks=tasks, suites=suites)


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), NumberLoader)
    except OSError as error:
        raise UserError(f"cannot read the protocol {path}: {error.strerror}; give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        raise UserError(f"{path} is not valid YAML{line}; see tasks.yaml for an example") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} has no 'tasks:' section; see tasks.yaml for the form")
    return dict(content)


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{path}: {key!r} must map names to values")
    return {str(name): value for name, value in section.items()}


def _members(path: Path, suite: str, listed: Any) -> tuple[str, ...]:
    if not isinstance(listed, list):
        raise UserError(f"{path}: suite {suite!r} must list tasks, such as [tiny_keyword, tiny_asr]")
    return tuple(map(str, listed))


def _task(path: Path, name: str, fields: Any) -> Task:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{path}: task name {name!r} may hold only letters, digits, '_', '-' and '.'; rename it")
    if not isinstance(fields, Mapping):
        raise UserError(f"{path}: task {name!r} must map keys to values, such as 'corpus: tiny'")
    known = [key for key in Task.model_fields if key != "name"]
    for key in fields:
        if key not in known:
            raise UserError(f"{path}: task {name!r}: {unknown_name('key', str(key), known)}")
    try:
        return Task(name=name, **fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: task {name!r}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error
