"""The run, top to bottom: the table of contents of the project."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

from benchmark.data.clusters import clusters_of, with_clusters
from benchmark.engines.local import progress
from benchmark.environment import commit, device_name, machine_facts, package_versions
from benchmark.errors import Failure, UserError, as_failure
from benchmark.features.datasets import AudioSet, FeatureSet
from benchmark.features.descriptions import describe
from benchmark.features.encoding import load_upstream
from benchmark.features.store import extract_features
from benchmark.plan import (
    PROTOCOL,
    content_digests,
    distinct_extractions,
    extraction_of,
    fixed_settings,
    make_sweeps,
    prepare_manifests,
    why_not_probed,
)
from benchmark.records import Record, Results
from benchmark.tables.leaderboard import Table, leaderboard
from benchmark.tasks import Task
from benchmark.values import SPLITS, Card, Engine, Extraction, Job, Manifest, Setup, Sweep

UNUSABLE = "training texts longer than their frames"  # always left out of training


class Plan(NamedTuple):
    """All sweeps of a run. failures: upstreams that could not be loaded. manifests: by corpus."""

    sweeps: list[Sweep]
    failures: list[Failure]
    manifests: dict[str, Manifest]


class Outcome(NamedTuple):
    """The result of a run: the table of its jobs, their records, the failures and the number of heads trained."""

    table: Table
    records: list[Record]
    failures: list[Failure]
    trained: int


def plan(tasks: Sequence[Task], names: Iterable[str], setup: Setup, engine: Engine) -> Plan:
    """Load each upstream once, prepare the manifest of each corpus, and list the sweeps.

    Raises UserError for an upstream that is misnamed or has a bad checkpoint: it is raised before anything is computed.
    """
    described = [_describe(name, setup) for name in dict.fromkeys(names)]
    cards = [card for card in described if isinstance(card, Card)]
    failures = [failure for failure in described if isinstance(failure, Failure)]
    for failure in failures:
        if failure.users:
            raise UserError(failure.message)
    manifests = prepare_manifests(tasks, setup, engine)
    return Plan(make_sweeps(tasks, cards, manifests, setup), failures, manifests)


def run(
    tasks: Sequence[Task], names: Iterable[str], setup: Setup, engine: Engine, tell: Callable[[str], object] = str
) -> Outcome:
    """Run the jobs that have no record yet, and return the table of all jobs; `tell` receives progress messages."""
    results = Results(setup.results)
    results.prepare()
    sweeps, unloaded, manifests = plan(tasks, names, setup, engine)
    failures = [_unloaded(failure, tasks, results) for failure in unloaded]
    todo = [rest for sweep in sweeps if (rest := remaining(sweep, results)).jobs]
    jobs, left = (sum(len(sweep.jobs) for sweep in group) for group in (sweeps, todo))
    tell(f"{jobs} jobs, {jobs - left} done already, {left} to do")
    for sentence in without_probes(sweeps, setup):
        tell(sentence)
    for sweep in todo:
        results.forget(sweep.task.name, sweep.card.name)
    broken = extract_features(distinct_extractions(todo), setup, engine)
    ready = [sweep for sweep in todo if not _broken(sweep, broken)]
    ready.sort(key=work_of, reverse=True)  # the longest first, so that no worker is left alone with one at the end
    failures += [_note(sweep, failed, results) for sweep in todo if (failed := _broken(sweep, broken))]
    corpora = {name: manifest.digest for name, manifest in manifests.items()}
    stage = partial(train_stage, setup=setup, corpora=corpora, code=commit() if ready else "")
    ended = engine(stage, ready, "train heads", work_of)
    failures += [failure for failure in ended if failure]
    keys = [(sweep.task.name, sweep.card.name, job.id) for sweep in sweeps for job in sweep.jobs]
    records = results.read(keys)
    trained = sum(len(sweep.jobs) for sweep, failed in zip(ready, ended, strict=True) if not failed)
    return Outcome(leaderboard(records), records, failures, trained)


def without_probes(sweeps: Iterable[Sweep], setup: Setup) -> list[str]:
    """A sentence for each task whose layers were to be probed one by one but cannot be."""
    return list(dict.fromkeys(filter(None, map(why_not_probed, sweeps)))) if setup.per_layer else []


def remaining(sweep: Sweep, results: Results) -> Sweep:
    """The sweep with only the jobs that have no record yet."""
    jobs = [job for job in sweep.jobs if not results.has(sweep.task.name, sweep.card.name, job.id)]
    return sweep._replace(jobs=tuple(jobs))


def work_of(sweep: Sweep) -> float:
    """Rough seconds that a sweep takes, for the progress bar and the order of work."""
    audio = sum(clip.seconds for clip in sweep.selection.clips["train"])
    if sweep.features == "summary":
        return 0.02 * len(sweep.selection.clips["train"]) * (sweep.task.epochs if sweep.head.trained else 1)
    return audio * sweep.task.epochs * len(sweep.jobs)


def _describe(name: str, setup: Setup) -> Card | Failure:
    try:
        return describe(name, setup)
    except Exception as error:
        return as_failure(name, error)


def _broken(sweep: Sweep, broken: dict[str, Failure]) -> Failure | None:
    needs = extraction_of(sweep) if broken else None
    return broken.get(needs.key) if needs else None


def _unloaded(failed: Failure, tasks: Iterable[Task], results: Results) -> Failure:
    """Write the failure of an upstream that cannot be loaded beside where its records would be."""
    paths = [results.fail(task.name, failed.where, ["upstream"], failed.trace)[0] for task in tasks]
    return failed._replace(path=paths[0])


def _note(sweep: Sweep, failed: Failure, results: Results) -> Failure:
    """Write the failure of a sweep beside where its records would be."""
    text = failed.trace or failed.message + "\n"
    paths = results.fail(sweep.task.name, sweep.card.name, [job.id for job in sweep.jobs], text)
    return failed._replace(where=f"{sweep.card.name} on {sweep.task.name}", path=paths[0])


def train_stage(sweep: Sweep, setup: Setup, corpora: dict[str, str], code: str) -> Failure | None:
    """Train a sweep as `train` does, but return a failure instead of raising it, so that other sweeps continue."""
    try:
        train(sweep, setup, corpora[sweep.task.corpus], code)
    except Exception as error:
        return _note(sweep, as_failure("", error), Results(setup.results))
    return None


def train(sweep: Sweep, setup: Setup, corpus: str, code: str) -> None:
    """Train, choose on validation and test the jobs of a sweep, and write their records.

    corpus: its digest. code: the commit that runs.
    """
    import torch

    stored = sweep.features in ("summary", "frames")
    encoding = torch.get_num_threads()
    with threads(1 if stored and setup.device == "cpu" else None):
        counts = {"heads": torch.get_num_threads(), "encoder": encoding}
        _train(sweep, setup, {"corpus": corpus, "commit": code, "threads": counts})


def _train(sweep: Sweep, setup: Setup, facts: dict[str, Any]) -> None:
    from downstreams import HEADS
    from downstreams.train import Setting, TrainingOptions, fit_heads, predict

    task, head = sweep.task, HEADS[sweep.task.head]
    stored = extraction_of(sweep)
    sets = {split: _data(sweep, split, stored, setup) for split in SPLITS}
    references = {split: _references(sweep, split) for split in ("valid", "test")}
    encoder = None if stored else load_upstream(sweep.card.name, setup.device, setup.precision)
    began = time.monotonic()
    fitted = fit_heads(
        build=partial(head, *_feature_shape(sweep), sets["train"].targets, **task.head_args),
        settings=[Setting(job.lr or 0.0, job.seed, job.layer) for job in sweep.jobs],
        train=sets["train"],
        valid=sets["valid"],
        references=references["valid"],
        metric=task.metric or "",
        options=TrainingOptions(
            epochs=task.epochs, optimizer=task.optimizer, weight_decay=task.weight_decay, clip=task.clip,
            patience=task.patience, encoder_lr=task.encoder_lr,
        ),
        encoder=encoder,
        tune=sweep.features == "finetune",
        device=setup.device,
        report=progress,
    )  # fmt: skip
    trained = time.monotonic()
    predictions = predict(fitted, sets["test"], encoder=encoder, device=setup.device)
    seconds = {"fit": trained - began, "test": time.monotonic() - trained}
    scored = [head.score(predicted, references["test"]) for predicted in predictions]
    by, clusters = clusters_of(sweep.selection.clips["test"], task, head.judged_on)
    shared, results = _shared(sweep, seconds, setup, {**facts, "clustered_by": by}), Results(setup.results)
    for job, result, (scores, outcomes) in zip(sweep.jobs, fitted, scored, strict=True):
        record = _record(job, result, scores, sweep.selection.skipped, shared)
        results.write(record, with_clusters(outcomes, clusters))


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads, None for as many as before.

    Heads take one: their steps are so small that several threads mostly wait for each other, and with another number
    sums are rounded otherwise, so that the table would depend on the number of workers.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _data(sweep: Sweep, split: str, stored: Extraction | None, setup: Setup) -> FeatureSet | AudioSet:
    clips, task = sweep.selection.clips[split], sweep.task
    if stored:
        return FeatureSet(stored, clips, task.target, task.batch, setup.home)
    return AudioSet(clips, task.target, task.batch, sweep.card)


def _references(sweep: Sweep, split: str) -> Any:
    """The references for `Head.score`: labels by id, or trials."""
    if sweep.head.judged_on == "labels":
        return sweep.selection.targets(split, sweep.task.target)
    from downstreams.base import Trial

    return [Trial(trial.enroll, trial.test, trial.target) for trial in sweep.selection.trials[split]]


def _feature_shape(sweep: Sweep) -> tuple[int, int]:
    card = sweep.card
    summaries = sweep.head.view == "summary" and sweep.features != "frames"
    return (card.summary_layers, card.summary_dim) if summaries else (card.layers, card.dim)


def _shared(sweep: Sweep, seconds: dict[str, float], setup: Setup, facts: dict[str, Any]) -> dict[str, Any]:
    """The fields that all records of a sweep share. facts: those that neither the sweep nor the setup holds."""
    metric = sweep.task.metric or ""
    return facts | {
        "group": sweep.group,
        "protocol": PROTOCOL,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": fixed_settings(sweep.task),
        "upstream": sweep.card.identity,
        "features": sweep.features,
        "fold": sweep.fold,
        "metric": metric,
        "higher": sweep.head.metrics[metric],
        "selection": sweep.content,
        "contents": content_digests(sweep.selection),
        "clips": {split: len(clips) for split, clips in sweep.selection.clips.items()},
        "trials": {split: len(trials) for split, trials in sweep.selection.trials.items()},
        "limit": sweep.limit,
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
        "cost": sweep.card.cost,
        "origin": sweep.card.origin,
        "device": device_name(setup.device),
        "versions": package_versions(),
        "beside": [job.point for job in sweep.jobs],
        "skip_bad": setup.skip_bad,
        "machine": machine_facts(setup.device),
    }


def _record(job: Job, result: Any, scores: dict[str, float], skipped: dict[str, int], shared: dict[str, Any]) -> Record:
    """The record of a job. result: of `fit_heads`; scores: on test; shared: fields from `_shared`."""
    unusable = {UNUSABLE: result.unusable} if result.unusable else {}
    return Record(
        id=job.id,
        lr=job.lr,
        seed=job.seed,
        layer=job.layer,
        valid=_finite(result.valid),
        test=_finite(scores),
        epoch=result.epoch,
        curve=[(_number(loss), _number(score)) for loss, score in result.curve],
        diverged=result.diverged,
        layer_weights=[round(weight, 6) for weight in result.head.layer_sum.weights.tolist()],
        skipped=skipped | unusable,
        **shared,
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in scores.items()}
