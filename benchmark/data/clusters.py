"""Which test clips depend on each other, so that an interval is of what was drawn, not of what was counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmark.tasks import Task
from benchmark.values import Clip

Row = Mapping[str, Any]  # of outcomes


def clusters_of(clips: Sequence[Clip], task: Task, judged_on: str) -> tuple[str, dict[str, str]]:
    """The label that test clips depend on each other by, "" where there is none, and the cluster of each clip by id.

    For trials it is the target, who speaks; for labels what splits must not share, else the speaker or the session, the
    first of them that any clip has, but never the target. A clip without it is in one cluster with those of its file
    and of the same audio.
    """
    candidates = [task.target] if judged_on == "trials" else _candidates(clips, task)
    label = next((name for name in candidates if _values(clips, name)), "")
    labelled = {clip.id: f"{label} {clip.labels[label]}" for clip in clips if clip.labels.get(label)}
    alone = "file" if label.split(" ")[0] == "clip" else "clip"  # no label's value is taken for a clip
    firsts = _firsts(clip for clip in clips if clip.id not in labelled)
    return label, labelled | {id: f"{alone} {first}" for id, first in firsts.items()}


def _candidates(clips: Sequence[Clip], task: Task) -> list[str]:
    """Of several labels that splits must not share, that with the fewest values, and so the largest clusters, first."""
    apart = sorted(task.apart, key=lambda name: len(_values(clips, name)))
    return apart + [name for name in ("speaker", "session") if name != task.target]


def _values(clips: Sequence[Clip], label: str) -> set[str]:
    return {clip.labels[label] for clip in clips if clip.labels.get(label)}


def _firsts(clips: Iterable[Clip]) -> dict[str, str]:
    """By id of each clip, that of the first one that it is joined with by files and equal audio."""
    rest = list(clips)
    first = {clip.id: clip.id for clip in rest}
    seen: dict[tuple[str, str], str] = {}

    def root(id: str) -> str:
        while first[id] != id:
            id = first[id]
        return id

    places = {clip.id: place for place, clip in enumerate(rest)}
    for clip in rest:
        keys = {"file": clip.stretch.audio, "stretch": clip.digest, "sound": clip.content}
        for key in ((kind, value) for kind, value in keys.items() if value):
            one, other = sorted((root(clip.id), root(seen.setdefault(key, clip.id))), key=places.__getitem__)
            first[other] = one
    return {clip.id: root(clip.id) for clip in rest}


def with_clusters(outcomes: Iterable[Row], clusters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Outcomes of clips with their cluster, or of trials with those of both sides."""
    return [dict(row) | _clusters(row, clusters) for row in outcomes]


def _clusters(row: Row, clusters: Mapping[str, str]) -> dict[str, str]:
    if "id" in row:
        return {"cluster": clusters[row["id"]]}
    return {f"{side}_cluster": clusters[row[side]] for side in ("enroll", "test")}
