"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.environment import device_of
from benchmark.errors import UserError, unknown

if TYPE_CHECKING:
    from benchmark.tasks import Protocol, Task
    from benchmark.values import Setup

REFERENCE = (
    "NAME, NAME@FILE?key=value, NAME@random, hf:FOLDER_OR_ID, s3prl:NAME@FILE, speechbrain:FOLDER_OR_ID, fairseq:FILE"
    " or file.py:function?key=value"
)
UpstreamArgument = Annotated[str, typer.Argument(help=REFERENCE)]
UpstreamArguments = Annotated[list[str], typer.Argument(metavar="UPSTREAM...", help=REFERENCE)]
TaskOption = Annotated[list[str] | None, typer.Option("--task", help="A task; may be repeated.")]
SuiteOption = Annotated[list[str] | None, typer.Option("--suite", help="A suite of tasks; may be repeated.")]
ProtocolOption = Annotated[
    Path | None,
    typer.Option("--protocol", help="A file like tasks.yaml; without --task or --suite all its tasks are run."),
]
DataOption = Annotated[
    list[str] | None, typer.Option("--data", metavar="NAME=PATH", help="Where a corpus lies; may be repeated.")
]
HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="BENCH_HOME", help="Corpora, manifests and features: may be deleted at any time."),
]
ResultsOption = Annotated[Path, typer.Option("--results", help="Records and tables: keep these.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes that share the work.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[str, typer.Option("--precision", help="fp32 or bf16, of the upstream.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Clips of each split: a quick look.")]
BudgetOption = Annotated[
    float,
    typer.Option("--budget", min=0, help="GB that one store of frames may take; beyond it the upstream runs live."),
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Leave out and count clips that cannot be used.")]
PerLayerOption = Annotated[
    bool, typer.Option("--per-layer", help="Probe each layer alone too, beside their learned sum.")
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="KIND", help="Leave out clips without a label of this kind.")
]
SaveEveryOption = Annotated[
    float | None, typer.Option("--save-every", min=0, help="Seconds between states to resume from; 10 to 300.")
]
ReadersOption = Annotated[int, typer.Option("--workers", min=0, help="Threads that read audio; 0: up to 16.")]
HOME = Path.home() / ".cache" / "bench"


def tasks_of(path: Path | None, names: list[str] | None, suites: list[str] | None) -> list[Task]:
    """The tasks that are asked for; without names and suites all of a file, or those of the default suite."""
    protocol = protocol_of(path)
    if not names and not suites:
        return list(protocol.tasks.values()) if path else protocol.choose([], ["default"])
    return protocol.choose(names or [], suites or [])


def protocol_of(path: Path | None) -> Protocol:
    """The tasks and suites of a file, or the built-in ones."""
    from benchmark.tasks import load_tasks

    return load_tasks(path)


def setup_of(
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
    """How and where to run, as the options say."""
    from benchmark.values import Setup

    return Setup(
        expanded(home).resolve(), expanded(results), tuple(sorted(pairs_of(data).items())), device_of(device),
        precision_of(precision), budget, limit, skip_bad, per_layer,
    )  # fmt: skip


def expanded(path: Path) -> Path:
    """With the home folder that a leading ~ stands for, or as it is where there is none."""
    return Path(os.path.expanduser(path))


def pairs_of(data: list[str] | None) -> dict[str, str]:
    """Where corpora lie, by name."""
    pairs = {}
    for item in data or []:
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise UserError(f"--data {item!r} is not of the form NAME=PATH, such as --data fsdd=/corpora/fsdd")
        pairs[name] = path
    return pairs


def precision_of(name: str) -> str:
    """The name of a precision that there is."""
    if name not in ("fp32", "bf16"):
        raise unknown("precision", name, ["fp32", "bf16"])
    return name
