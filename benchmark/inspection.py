"""What `bench data check` says of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmark.errors import UserError
from benchmark.manifest import Clip, Manifest
from benchmark.plan import Setup, head_card
from benchmark.selection import folds, select
from benchmark.tasks import Task


def summary(manifest: Manifest) -> list[list[str]]:
    """Rows of label, split, clips, hours, number of values and of speakers."""
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in manifest.clips:
        for label in clip.labels or {"(unlabelled)": ""}:
            groups.setdefault((label, clip.split), []).append(clip)
    order = {"train": 0, "valid": 1, "test": 2}
    keys = sorted(groups, key=lambda key: (key[0], order.get(key[1], 3), key[1]))
    return [_row(label, split, groups[label, split]) for label, split in keys]


def _row(label: str, split: str, clips: list[Clip]) -> list[str]:
    values = {clip.labels.get(label) for clip in clips}
    speakers = {clip.labels["speaker"] for clip in clips if "speaker" in clip.labels}
    hours = sum(clip.seconds for clip in clips) / 3600
    return [label, split, str(len(clips)), f"{hours:.2f}", str(len(values)), str(len(speakers) or "–")]


def problems(manifest: Manifest, tasks: Iterable[Task], home: Path) -> list[str]:
    """A sentence for each clip that cannot be used, and for each task that its splits, labels or trials rule out."""
    found = [f"{clip.stretch.audio} {clip.problem}" for clip in manifest.clips if clip.problem]
    for task in tasks:
        head = head_card(task.head, Setup(home, Path()))
        try:
            for fold in folds(manifest, task):
                select(manifest, task, head.judged_on, head.closed, fold, skip_bad=bool(found))
        except UserError as error:
            found.append(str(error))
    return found
