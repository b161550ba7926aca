"""Options that several commands share, and functions that turn their values into settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.environment import resolve_device
from benchmark.errors import UserError, unknown_name

if TYPE_CHECKING:
    from benchmark.tasks import Protocol, Task
    from benchmark.values import Setup

REFERENCE = (
    "NAME, NAME@FILE?key=value, NAME@random, hf:FOLDER_OR_ID, s3prl:NAME@FILE, speechbrain:FOLDER_OR_ID, fairseq:FILE"
    " or file.py:function?key=value"
)
UpstreamArgument = Annotated[str, typer.Argument(metavar="UPSTREAM", help=f"Encoder: {REFERENCE}.")]
UpstreamArguments = Annotated[list[str], typer.Argument(metavar="UPSTREAM...", help=f"Encoders: {REFERENCE}.")]
TaskOption = Annotated[list[str] | None, typer.Option("--task", help="Name of a task; may be repeated.")]
SuiteOption = Annotated[list[str] | None, typer.Option("--suite", help="Name of a suite of tasks; may be repeated.")]
ProtocolOption = Annotated[
    Path | None,
    typer.Option(
        "--protocol",
        help="YAML file with tasks and suites, like tasks.yaml; without --task and --suite, all its tasks are used.",
    ),
]
ProtocolFileOption = Annotated[
    Path | None, typer.Option("--protocol", help="YAML file with tasks and suites. [default: the built-in tasks.yaml]")
]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="Folder or table of a corpus; may be repeated.")
]
HomeOption = Annotated[
    Path,
    typer.Option(
        "--home", envvar="BENCH_HOME", help="Folder for corpora, manifests and features; can be deleted at any time."
    ),
]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder for records and tables; keep it.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Number of processes that share the work.")]
DeviceOption = Annotated[str, typer.Option("--device", help="Device to compute on: auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="Precision of the upstream: fp32 or bf16.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Use at most this many clips of each split, for a quick trial.")
]
BudgetOption = Annotated[
    float,
    typer.Option(
        "--budget",
        min=0,
        help="Most GB that one store of frame features may take; above it, the upstream runs during training.",
    ),
]
SkipBadOption = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out unusable clips, and report their number, instead of stopping.")
]
PerLayerOption = Annotated[
    bool, typer.Option("--per-layer", help="Probe each layer separately too, besides their learned weighted sum.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="KIND", help="Use only clips that have a label of this kind.")
]
SaveEveryOption = Annotated[
    float | None,
    typer.Option(
        "--save-every",
        min=0,
        help="Seconds between saved states to resume from. [default: 10 to 300, depending on the model's size]",
    ),
]
ReadersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Number of threads that read audio; 0: one per core, at most 16.")
]
HOME = Path.home() / ".cache" / "bench"


def selected_tasks(path: Path | None, names: list[str] | None, suites: list[str] | None) -> list[Task]:
    """Return the named tasks and suites; without any, all tasks of the file `path`, or else the default suite."""
    protocol = read_protocol(path)
    if not names and not suites:
        return list(protocol.tasks.values()) if path else protocol.choose([], ["default"])
    return protocol.choose(names or [], suites or [])


def read_protocol(path: Path | None) -> Protocol:
    """Return the tasks and suites of a file, or the built-in ones."""
    from benchmark.tasks import load_tasks

    return load_tasks(path)


def setup_from_options(
    data: list[str] | None,
    home: Path,
    results: Path,
    device: str,
    precision: str,
    limit: int | None,
    budget: float,
    skip_bad: bool,
    per_layer: bool = False,
) -> Setup:
    """Return the setup of a run from the options."""
    from benchmark.values import Setup

    return Setup(
        expand_home(home).resolve(), expand_home(results), tuple(sorted(corpus_paths(data).items())),
        resolve_device(device), checked_precision(precision), budget, limit, skip_bad, per_layer,
    )  # fmt: skip


def expand_home(path: Path) -> Path:
    """Return the path with a leading ~ replaced by the home folder, where there is one."""
    return Path(os.path.expanduser(path))


def corpus_paths(data: list[str] | None) -> dict[str, str]:
    """Return the paths given by --data, by corpus; raise UserError for another form than NAME=PATH."""
    pairs = {}
    for item in data or []:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise UserError(f"--data {item!r} is not of the form NAME=PATH, such as --data fsdd=/corpora/fsdd")
        pairs[name] = path
    return pairs


def checked_precision(name: str) -> str:
    """Return the name of a precision; raise UserError for an unknown one."""
    if name not in ("fp32", "bf16"):
        raise unknown_name("precision", name, ["fp32", "bf16"])
    return name
