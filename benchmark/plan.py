"""Planning of a run: the sweeps, their jobs and the feature extractions they need, before any audio is read."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from benchmark.data.manifest import prepare_manifest
from benchmark.data.selection import fold_values, select_clips
from benchmark.engines.local import in_process
from benchmark.errors import UserError, unknown_name
from benchmark.features.extraction import make_extraction
from benchmark.files import digest
from benchmark.heads import head_card
from benchmark.tasks import Task
from benchmark.values import (
    Card,
    Engine,
    Extraction,
    GridPoint,
    HeadCard,
    Job,
    Manifest,
    Selection,
    Setup,
    Sweep,
)

PROTOCOL = 1  # increased by a commit that changes scores, after which older records are not used


def make_sweeps(
    tasks: Iterable[Task], cards: Iterable[Card], manifests: dict[str, Manifest], setup: Setup
) -> list[Sweep]:
    """Return a sweep for each task, upstream and fold, and a second one for single layers with `setup.per_layer`.

    manifests: by corpus. Raises UserError for tasks that fit neither their head nor their corpus.
    """
    sweeps = []
    upstreams = list(cards)
    for task in tasks:
        head = head_card(task.head, setup)
        task = _with_metric(task, head)
        manifest = manifests[task.corpus]
        for fold in fold_values(manifest, task):
            select = partial(select_clips, manifest, task, head.judged_on, head.closed, fold, skip_bad=setup.skip_bad)
            selection = select(limit=setup.limit)
            limit = None if setup.limit is None or selection == select() else setup.limit
            content = selection.digest
            for card in upstreams:
                without_jobs = Sweep(task, card, head, fold, "", "", (), selection, content, limit)
                sweeps += _with_layer_sweep(with_jobs(without_jobs, setup), setup)
    return sweeps


def _with_layer_sweep(sweep: Sweep, setup: Setup) -> list[Sweep]:
    """Return a sweep, and with `setup.per_layer` the sweep of its single layers.

    They are two sweeps because batching their heads together would change the last bits of the results.
    """
    if not setup.per_layer or why_not_probed(sweep):
        return [sweep]
    points = [(lr, seed, layer) for layer in range(sweep.card.summary_layers) for lr, seed, _ in grid_points(sweep)]
    return [sweep, with_jobs(sweep, setup, points)]


def why_not_probed(sweep: Sweep) -> str:
    """Return why the layers of a sweep are not probed one by one, or ""."""
    if sweep.features != "summary":
        inputs = {
            "frames": "frames",
            "live": "features that are computed during training",
            "finetune": "an upstream that is fine-tuned",
        }
        return f"no per-layer probes of {sweep.task.name}: its head reads {inputs[sweep.features]}"
    if sweep.card.summary_layers < 2:
        return f"no per-layer probes of {sweep.card.name} on {sweep.task.name}: the upstream has one layer"
    return ""


def _with_metric(task: Task, head: HeadCard) -> Task:
    """Return the task with its metric, by default the head's first. Raises UserError for unknown metrics or options."""
    metric = task.metric or next(iter(head.metrics))
    if metric not in head.metrics:
        raise UserError(
            f"task {task.name!r}: {unknown_name('metric', metric, head.metrics)} ({task.head} reports:"
            f" {', '.join(head.metrics)})"
        )
    for option in task.head_args:
        if option not in head.options:
            raise UserError(
                f"task {task.name!r}: {unknown_name('head option', option, head.options)} ({task.head} takes:"
                f" {', '.join(head.options) or 'none'})"
            )
    return task.model_copy(update={"metric": metric})


def with_jobs(sweep: Sweep, setup: Setup, points: Iterable[GridPoint] | None = None) -> Sweep:
    """Return the sweep with its features, group and jobs. points: one per job, by default those of the task's grid."""
    task, features = sweep.task, _features(sweep, setup)
    group = digest(
        [PROTOCOL, fixed_settings(task), list(sweep.card.identity.values()), features, sweep.content, sweep.fold]
    )
    jobs = tuple(_job(group, *point) for point in (grid_points(sweep) if points is None else points))
    return sweep._replace(features=features, group=group[:16], jobs=jobs)


def grid_points(sweep: Sweep) -> list[GridPoint]:
    """Return the points of all learning rates and seeds of a trained head, or the one point of an untrained head."""
    task = sweep.task
    return [(lr, seed, None) for lr in task.lr for seed in task.seeds] if sweep.head.trained else [(None, 0, None)]


def _job(group: str, lr: float | None, seed: int, layer: int | None) -> Job:
    # A job without a layer leaves it out, so that its id is the same as before jobs had layers.
    return Job(digest([group, lr, seed] if layer is None else [group, lr, seed, layer])[:16], lr, seed, layer)


def fixed_settings(task: Task) -> dict[str, Any]:
    """Return the settings of a task that all its jobs share."""
    content = task.model_dump(mode="json")
    left_out = {"lr", "seeds", "features"}
    if task.train_hours is None:  # left out, so that ids are the same as before tasks had this key
        left_out.add("train_hours")
    return {key: value for key, value in content.items() if key not in left_out}


def _features(sweep: Sweep, setup: Setup) -> str:
    """Return the kind of features of a sweep: "summary", "frames", "live" or "finetune", which replaces "auto".

    Raises UserError where the head or the upstream cannot use the features of the task.
    """
    features = sweep.task.features
    if features == "summary" and sweep.head.view != "summary":
        raise UserError(
            f"task {sweep.task.name!r}: head {sweep.task.head!r} needs frames, not 'features: summary'; use frames,"
            " live or auto"
        )
    if features == "finetune" and (not sweep.card.parameters or not sweep.head.trained):
        reason = "has no weights" if not sweep.card.parameters else f"cannot be trained through {sweep.task.head!r}"
        raise UserError(
            f"task {sweep.task.name!r}: upstream {sweep.card.name!r} {reason}, so 'features: finetune' does not apply;"
            " leave it out"
        )
    if features != "auto":
        return features
    if sweep.head.view == "summary":
        return "summary"
    from benchmark.features.extraction import extraction_bytes

    return (
        "frames"
        if extraction_bytes(make_extraction(sweep.card, "frames", sweep.clips)) <= setup.budget * 1e9
        else "live"
    )


def content_digests(selection: Selection) -> dict[str, str]:
    """Return digests of a selection's audio, labels and trials, which show where two selections differ."""
    by_split = {split: sorted(clips, key=lambda clip: clip.id) for split, clips in selection.clips.items()}
    return {
        "audio": digest({split: [[clip.id, clip.digest] for clip in clips] for split, clips in by_split.items()})[:32],
        "labels": digest({split: [[clip.id, clip.labels] for clip in clips] for split, clips in by_split.items()})[:32],
        "trials": digest(selection.trials)[:32],
    }


def extraction_of(sweep: Sweep) -> Extraction | None:
    """Return the extraction of the features that a sweep reads from disk, None if it reads none."""
    return make_extraction(sweep.card, sweep.features, sweep.clips) if sweep.features in ("summary", "frames") else None


def distinct_extractions(sweeps: Iterable[Sweep]) -> list[Extraction]:
    """Return the extractions of all sweeps, without duplicates."""
    extractions = (extraction_of(sweep) for sweep in sweeps)
    return list({extraction.key: extraction for extraction in extractions if extraction}.values())


def prepare_manifests(tasks: Iterable[Task], setup: Setup, engine: Engine = in_process) -> dict[str, Manifest]:
    """Return the manifest of each corpus of the tasks by name."""
    names = dict.fromkeys(task.corpus for task in tasks)
    return {name: prepare_manifest(name, setup.home, dict(setup.data), engine) for name in names}
