"""Run a recorded job again from its record alone; `agreement` compares the results."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from benchmark.engines.local import in_process
from benchmark.environment import commit, resolve_device
from benchmark.errors import UserError
from benchmark.features.descriptions import describe
from benchmark.features.store import extract_features
from benchmark.plan import (
    PROTOCOL,
    content_digests,
    distinct_extractions,
    fixed_settings,
    make_sweeps,
    prepare_manifests,
    with_jobs,
)
from benchmark.records import Record, Results, load_record, outcomes_beside
from benchmark.reproduction.agreement import RecordedJob, Rerun
from benchmark.run import UNUSABLE, threads, train
from benchmark.tasks import Task
from benchmark.values import Card, GridPoint, Setup, Sweep


def find_recorded_job(reference: str, results: Path) -> RecordedJob:
    """Return a recorded job, given as the path of its record or as its id; raise UserError where there is none."""
    path = Path(reference).expanduser()
    if path.is_file():
        return read_recorded_job(path)
    if path.suffix == ".json":
        raise UserError(f"there is no record {reference}; give the path of a .json under runs, or the id of a job")
    store = Results(results)
    found = store.find(reference)
    if not found:
        raise UserError(
            f"no record of a job {reference!r} in {results}; give the path of the record, or its folder by --results"
        )
    record = found[0]
    names = (record.task["name"], record.upstream["name"])
    siblings = [one for one in store.read_all()[0] if (one.task["name"], one.upstream["name"]) == names]
    try:
        return RecordedJob(record, store.outcomes(record), siblings)
    except FileNotFoundError:
        return RecordedJob(record, None, siblings)


def read_recorded_job(path: Path) -> RecordedJob:
    """Return the record at a path with its outcomes; raise UserError where the file is not a record."""
    record = load_record(path)
    if record is None:
        raise UserError(f"{path} is not a record that this version can read; give one that bench run wrote")
    siblings = [one for one in map(load_record, sorted(path.parent.glob("*.json"))) if one]
    try:
        return RecordedJob(record, outcomes_beside(path), siblings)
    except FileNotFoundError:
        return RecordedJob(record, None, siblings)


def recorded_setup(record: Record, home: Path, data: tuple[tuple[str, str], ...], device: str) -> Setup:
    """Return the setup of the recorded job. device: "auto" selects the CPU for a job recorded on a CPU."""
    on_cpu = device == "auto" and record.device.endswith(" cores")
    skip_bad = record.skip_bad or bool(record.skipped.keys() - {UNUSABLE})  # older records lack skip_bad
    return Setup(
        home, Path(), data, "cpu" if on_cpu else resolve_device(device), record.upstream["precision"],
        limit=record.limit, skip_bad=skip_bad,
    )  # fmt: skip


def rerun_job(then: RecordedJob, setup: Setup) -> Rerun:
    """Run the job again in a temporary folder, with the same number of threads and in the same batch of jobs.

    Raises UserError where the job can no longer be planned as it was, or features cannot be extracted.
    """
    sweep, corpus = plan_rerun(then.record, setup)
    sweep = with_jobs(sweep, setup, batched_points(then))
    with TemporaryDirectory() as folder, threads(then.record.threads.get("encoder")):
        temporary = replace(setup, results=Path(folder))
        for failure in extract_features(distinct_extractions([sweep]), temporary).values():
            raise UserError(failure.message) if failure.users else RuntimeError(failure.trace)
        stage = partial(train, setup=temporary, corpus=corpus, code=commit())
        in_process(stage, [sweep], "train heads")
        return Rerun(
            then, read_recorded_job(Results(temporary.results).path(sweep.task.name, sweep.card.name, then.record.id))
        )


def plan_rerun(record: Record, setup: Setup) -> tuple[Sweep, str]:
    """Return the sweep with the recorded job alone, and the digest of its corpus.

    Raises UserError that names what has changed: protocol, task, upstream, audio, labels or trials.
    """
    if record.protocol != PROTOCOL:
        raise UserError(
            f"the record is of protocol {record.protocol}, but this version runs protocol {PROTOCOL}; rerun it with the"
            " version it was made with"
        )
    task = recorded_task(record)
    card = describe(record.upstream["name"], setup)
    _same_upstream(record, card)
    manifests = prepare_manifests([task], setup)
    sweeps = {sweep.fold: sweep for sweep in make_sweeps([task], [card], manifests, setup)}
    if record.fold not in sweeps:
        raise UserError(f"corpus {task.corpus!r} has no fold {record.fold!r} any more; rerun needs the labels it had")
    sweep = with_jobs(sweeps[record.fold], setup, [grid_point(record)])
    _same_data(record, sweep)
    _same_task(record, sweep)
    return sweep, manifests[task.corpus].digest


def recorded_task(record: Record) -> Task:
    """Return the recorded task, with the grid reduced to the recorded point."""
    rates = [] if record.lr is None else [record.lr]
    grid: dict[str, Any] = {"lr": rates or [1.0], "seeds": [record.seed], "features": record.features}
    try:
        return Task(**record.task, **grid)
    except (ValidationError, TypeError) as error:
        raise UserError(
            f"task {record.task.get('name')!r} of the record is not one that this version knows; rerun it with the"
            " version it was made with"
        ) from error


def grid_point(record: Record) -> GridPoint:
    """Return the point of the grid that the job was run at."""
    return record.lr, record.seed, record.layer


def batched_points(job: RecordedJob) -> list[GridPoint]:
    """Return the jobs that were trained in one batched computation with this one.

    Only in the same batch is the result identical to the last bit.
    """
    from downstreams import HEADS

    record = job.record
    if not HEADS[record.task["head"]].batched:
        return [grid_point(record)]
    if grid_point(record) in record.beside:
        return record.beside
    # Older records do not name them, but records of one batch were written at the same moment, in order of the grid.
    moment = (record.group, record.created)
    batch = [other for other in job.siblings if (other.group, other.created) == moment]
    return sorted({grid_point(record)} | {grid_point(other) for other in batch})


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
    changed = [
        kind for kind, code in content_digests(sweep.selection).items() if record.contents.get(kind, code) != code
    ]
    kinds = " and ".join(changed) or "audio, labels or trials"
    raise UserError(
        f"the {kinds} of corpus {sweep.task.corpus!r} are not those of the record; rerun needs the data it was run on,"
        f" such as --data {sweep.task.corpus}=PATH"
    )


def _same_task(record: Record, sweep: Sweep) -> None:
    now = fixed_settings(sweep.task)
    changed = [key for key in sorted({*now, *record.task}) if now.get(key) != record.task.get(key)]
    if changed:
        raise UserError(
            f"task {sweep.task.name!r} is not that of the record: it differs in {', '.join(changed)}; rerun it with the"
            " version it was made with"
        )
    if sweep.jobs[0].id != record.id:
        raise UserError(f"the id {record.id} does not follow from what its record holds; rerun it as it was written")
