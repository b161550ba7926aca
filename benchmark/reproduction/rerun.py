"""Do a recorded job again, from its record alone; `repeats` says whether the same came out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from benchmark.engines.local import in_process
from benchmark.environment import commit, device_of
from benchmark.errors import UserError
from benchmark.features.descriptions import describe
from benchmark.features.store import extract
from benchmark.plan import PROTOCOL, contents, expand, extractions, fixed, prepare_all, with_jobs
from benchmark.records import Record, Results, load, outcomes_beside
from benchmark.reproduction.agreement import Found, Rerun
from benchmark.run import UNUSABLE, threads, train
from benchmark.tasks import Task
from benchmark.values import Card, GridPoint, Setup, Sweep


def find(reference: str, results: Path) -> Path:
    """The path of a record that is given by its path, or by the id of its job and the folder of results."""
    path = Path(reference).expanduser()
    if path.suffix == ".json" or path.is_file():
        if not path.is_file():
            raise UserError(f"there is no record {reference}; give the path of a .json under runs, or the id of a job")
        return path
    found = Results(results).find(reference)
    if not found:
        raise UserError(f"no record of a job {reference!r} in {results / 'runs'}; give its path, or its --results")
    return found[0]


def read(path: Path) -> Found:
    """The record at a path; raises UserError where it is none."""
    record = load(path)
    if record is None:
        raise UserError(f"{path} is not a record this version can read; give one that bench run wrote")
    try:
        return Found(record, outcomes_beside(path))
    except FileNotFoundError:
        return Found(record, None)


def setup_of(record: Record, home: Path, data: tuple[tuple[str, str], ...], device: str) -> Setup:
    """How the job was run. device: "auto" is what it ran on then, where that is here."""
    at_cpu = device == "auto" and record.device.endswith(" cores")
    asked = record.skip_bad or bool(record.skipped.keys() - {UNUSABLE})  # older records do not tell
    return Setup(
        home, Path(), data, "cpu" if at_cpu else device_of(device), record.upstream["precision"], limit=record.limit,
        skip_bad=asked,
    )  # fmt: skip


def rerun(path: Path, then: Found, setup: Setup) -> Rerun:
    """Do the job again in a folder of its own, with the threads and beside the jobs that it was trained with."""
    sweep, corpus = planned(then.record, setup)
    sweep = with_jobs(sweep, setup, together(then.record, path))
    with TemporaryDirectory() as folder, threads(then.record.threads.get("encoder")):
        here = replace(setup, results=Path(folder))
        for failed in extract(extractions([sweep]), here).values():
            raise UserError(failed.message) if failed.users else RuntimeError(failed.trace)
        stage = partial(train, setup=here, corpus=corpus, code=commit())
        in_process(stage, [sweep], "train heads")
        return Rerun(then, read(Results(here.results).path(sweep.task.name, sweep.card.name, then.record.id)))


def planned(record: Record, setup: Setup) -> tuple[Sweep, str]:
    """The sweep with the recorded job alone, and the digest of its corpus.

    Raises UserError that names what is not as it was: protocol, task, upstream, audio, labels or trials.
    """
    if record.protocol != PROTOCOL:
        raise UserError(
            f"the record is of protocol {record.protocol}, this version runs protocol {PROTOCOL}; rerun it with the"
            " version it was made with"
        )
    task = task_of(record)
    card = describe(record.upstream["name"], setup)
    _same_upstream(record, card)
    manifests = prepare_all([task], setup)
    sweeps = {sweep.fold: sweep for sweep in expand([task], [card], manifests, setup)}
    if record.fold not in sweeps:
        raise UserError(f"corpus {task.corpus!r} has no fold {record.fold!r} any more; rerun needs the labels it had")
    sweep = with_jobs(sweeps[record.fold], setup, [point_of(record)])
    _same_data(record, sweep)
    _same_task(record, sweep)
    return sweep, manifests[task.corpus].digest


def task_of(record: Record) -> Task:
    """The task as it was, with the one point of its grid."""
    rates = [] if record.lr is None else [record.lr]
    grid: dict[str, Any] = {"lr": rates or [1.0], "seeds": [record.seed], "features": record.features}
    try:
        return Task(**record.task, **grid)
    except (ValidationError, TypeError) as error:
        raise UserError(
            f"task {record.task.get('name')!r} of the record is not one that this version knows; rerun it with the"
            " version it was made with"
        ) from error


def point_of(record: Record) -> GridPoint:
    """Where in its grid the job was."""
    return record.lr, record.seed, record.layer


def together(record: Record, path: Path) -> list[GridPoint]:
    """The jobs that were one batched computation with this one: only beside them it gives the same bits."""
    from downstreams import HEADS

    if not HEADS[record.task["head"]].batched:
        return [point_of(record)]
    if point_of(record) in record.beside:
        return record.beside
    # An older record does not name them, but they were written at the same moment, in order of the grid.
    others = filter(None, map(load, path.parent.glob("*.json")))
    moment = (record.group, record.created)
    return sorted({point_of(record)} | {point_of(other) for other in others if (other.group, other.created) == moment})


def _same_upstream(record: Record, card: Card) -> None:
    changed = [key for key, value in card.identity.items() if record.upstream.get(key) != value]
    if "fingerprint" in changed:
        files = [name for name, code in record.origin.items() if card.origin.get(name, code) != code]
        raise UserError(
            f"the weights or the code of upstream {card.name!r} are not those of the record: fingerprint"
            f" {card.fingerprint[:12]}, not {str(record.upstream.get('fingerprint'))[:12]}"
            f"{f' ({files[0]} has changed)' if files else ''}; rerun needs what it was run on"
        )
    if changed:
        raise UserError(
            f"upstream {card.name!r} is not that of the record: {changed[0]} is {card.identity[changed[0]]}, not"
            f" {record.upstream.get(changed[0])}; rerun needs what it was run on"
        )


def _same_data(record: Record, sweep: Sweep) -> None:
    if record.selection == sweep.content:
        return
    changed = [kind for kind, code in contents(sweep.selection).items() if record.contents.get(kind, code) != code]
    kinds = " and ".join(changed) or "audio, labels or trials"
    raise UserError(
        f"the {kinds} of corpus {sweep.task.corpus!r} are not those of the record; rerun needs the data it was run on,"
        f" such as --data {sweep.task.corpus}=PATH"
    )


def _same_task(record: Record, sweep: Sweep) -> None:
    now = fixed(sweep.task)
    changed = [key for key in sorted({*now, *record.task}) if now.get(key) != record.task.get(key)]
    if changed:
        raise UserError(
            f"task {sweep.task.name!r} is not that of the record: it differs in {', '.join(changed)}; rerun it with the"
            " version it was made with"
        )
    if sweep.jobs[0].id != record.id:
        raise UserError(f"the id {record.id} does not follow from what its record holds; rerun it as it was written")
