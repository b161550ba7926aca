"""What there is to do: cards, extractions, jobs and sweeps, before any audio is touched."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from benchmark.data.manifest import prepare
from benchmark.data.selection import folds, select
from benchmark.engines.local import in_process
from benchmark.errors import UserError, unknown
from benchmark.features.store import extraction
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

PROTOCOL = 1  # raised in the commit that changes numbers: older records then no longer count


def expand(tasks: Iterable[Task], cards: Iterable[Card], manifests: dict[str, Manifest], setup: Setup) -> list[Sweep]:
    """Task × upstream × fold, each with its grid of jobs, and with that of its layers if asked for and possible."""
    sweeps = []
    upstreams = list(cards)
    for task in tasks:
        head = head_card(task.head, setup)
        task = _fitting(task, head)
        manifest = manifests[task.corpus]
        for fold in folds(manifest, task):
            choose = partial(select, manifest, task, head.judged_on, head.closed, fold, skip_bad=setup.skip_bad)
            selection = choose(limit=setup.limit)
            limit = None if setup.limit is None or selection == choose() else setup.limit
            content = selection.digest
            bare = [Sweep(task, card, head, fold, "", "", (), selection, content, limit) for card in upstreams]
            sweeps += [each for sweep in bare for each in _with_probes(with_jobs(sweep, setup), setup)]
    return sweeps


def _with_probes(sweep: Sweep, setup: Setup) -> list[Sweep]:
    """A sweep and that of its layers: two, since in one batched computation each would change the other's last bits."""
    if not setup.per_layer or unprobed(sweep):
        return [sweep]
    points = [(lr, seed, layer) for layer in range(sweep.card.summary_layers) for lr, seed, _ in grid(sweep)]
    return [sweep, with_jobs(sweep, setup, points)]


def unprobed(sweep: Sweep) -> str:
    """Why the layers of a sweep are not probed one by one, or ""."""
    if sweep.features != "summary":
        reads = {"frames": "frames", "live": "what the upstream gives live", "finetune": "an upstream that learns too"}
        return f"no per-layer probes of {sweep.task.name}: its head reads {reads[sweep.features]}"
    if sweep.card.summary_layers < 2:
        return f"no per-layer probes of {sweep.card.name} on {sweep.task.name}: the upstream has one layer"
    return ""


def _fitting(task: Task, head: HeadCard) -> Task:
    """The task with its metric settled; raises UserError for a metric or head option that its head does not know."""
    metric = task.metric or next(iter(head.metrics))
    if metric not in head.metrics:
        raise UserError(
            f"task {task.name!r}: {unknown('metric', metric, head.metrics)} ({task.head} reports:"
            f" {', '.join(head.metrics)})"
        )
    for option in task.head_args:
        if option not in head.options:
            raise UserError(
                f"task {task.name!r}: {unknown('head option', option, head.options)} ({task.head} takes:"
                f" {', '.join(head.options) or 'none'})"
            )
    return task.model_copy(update={"metric": metric})


def with_jobs(sweep: Sweep, setup: Setup, points: Iterable[GridPoint] | None = None) -> Sweep:
    """The sweep with its features settled and its grid filled in. points: those of other jobs than the grid's."""
    task, features = sweep.task, _features(sweep, setup)
    group = digest([PROTOCOL, fixed(task), list(sweep.card.identity.values()), features, sweep.content, sweep.fold])
    jobs = tuple(_job(group, *point) for point in (grid(sweep) if points is None else points))
    return sweep._replace(features=features, group=group[:16], jobs=jobs)


def grid(sweep: Sweep) -> list[GridPoint]:
    """Learning rates × seeds of a head that is trained."""
    task = sweep.task
    return [(lr, seed, None) for lr in task.lr for seed in task.seeds] if sweep.head.trained else [(None, 0, None)]


def _job(group: str, lr: float | None, seed: int, layer: int | None) -> Job:
    # Without a layer the id is what it was before there were layers.
    return Job(digest([group, lr, seed] if layer is None else [group, lr, seed, layer])[:16], lr, seed, layer)


def fixed(task: Task) -> dict[str, Any]:
    """A task without its grid: what all its jobs share."""
    content = task.model_dump(mode="json")
    left_out = {"lr", "seeds", "features"}
    if task.train_hours is None:  # a later key, without which jobs are what they were before it
        left_out.add("train_hours")
    return {key: value for key, value in content.items() if key not in left_out}


def _features(sweep: Sweep, setup: Setup) -> str:
    """How the head is fed: "auto" settled."""
    asked = sweep.task.features
    if asked == "summary" and sweep.head.view != "summary":
        raise UserError(
            f"task {sweep.task.name!r}: head {sweep.task.head!r} needs frames, not 'features: summary'; use frames,"
            " live or auto"
        )
    if asked == "finetune" and (not sweep.card.parameters or not sweep.head.trained):
        why = "has no weights" if not sweep.card.parameters else f"cannot be trained through {sweep.task.head!r}"
        raise UserError(
            f"task {sweep.task.name!r}: upstream {sweep.card.name!r} {why}, so 'features: finetune' does not apply;"
            " leave it out"
        )
    if asked != "auto":
        return asked
    if sweep.head.view == "summary":
        return "summary"
    from benchmark.features.store import size

    return "frames" if size(extraction(sweep.card, "frames", sweep.clips)) <= setup.budget * 1e9 else "live"


def contents(selection: Selection) -> dict[str, str]:
    """Digests of its audio, labels and trials, each by the ids of its clips: to tell which of them is another."""
    clips = {split: sorted(some, key=lambda clip: clip.id) for split, some in selection.clips.items()}
    return {
        "audio": digest({split: [[clip.id, clip.digest] for clip in some] for split, some in clips.items()})[:32],
        "labels": digest({split: [[clip.id, clip.labels] for clip in some] for split, some in clips.items()})[:32],
        "trials": digest(selection.trials)[:32],
    }


def extraction_of(sweep: Sweep) -> Extraction | None:
    """The features a sweep reads from disk, if any."""
    return extraction(sweep.card, sweep.features, sweep.clips) if sweep.features in ("summary", "frames") else None


def extractions(sweeps: Iterable[Sweep]) -> list[Extraction]:
    """Those that the sweeps share, each once."""
    every = (extraction_of(sweep) for sweep in sweeps)
    return list({each.key: each for each in every if each}.values())


def prepare_all(tasks: Iterable[Task], setup: Setup, engine: Engine = in_process) -> dict[str, Manifest]:
    """The manifest of every corpus the tasks need."""
    names = dict.fromkeys(task.corpus for task in tasks)
    return {name: prepare(name, setup.home, dict(setup.data), engine) for name in names}
