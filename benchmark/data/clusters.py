"""Clusters of dependent test clips; confidence intervals resample whole clusters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmark.tasks import Task
from benchmark.values import Clip

Row = Mapping[str, Any]  # the outcome of a clip or trial


def clusters_of(clips: Sequence[Clip], task: Task, judged_on: str) -> tuple[str, dict[str, str]]:
    """Return the label whose values are clusters of test clips ("" if there is none), and each clip's cluster by id.

    For trials the label is the target, which is the speaker. For labels it is the first that any clip has of the
    task's disjoint labels, "speaker" and "session", except the target. A clip without this label is in one cluster
    with the clips of its file and those with equal audio.
    """
    candidates = [task.target] if judged_on == "trials" else _candidate_labels(clips, task)
    label = next((name for name in candidates if _values(clips, name)), "")
    labelled = {clip.id: f"{label} {clip.labels[label]}" for clip in clips if clip.labels.get(label)}
    prefix = "file" if label.split(" ")[0] == "clip" else "clip"  # differs from the prefix of the label's values
    firsts = _first_of_component(clip for clip in clips if clip.id not in labelled)
    return label, labelled | {id: f"{prefix} {first}" for id, first in firsts.items()}


def _candidate_labels(clips: Sequence[Clip], task: Task) -> list[str]:
    """Return the possible labels, best first: among disjoint labels, fewest values (largest clusters) first."""
    apart = sorted(task.apart, key=lambda name: len(_values(clips, name)))
    return apart + [name for name in ("speaker", "session") if name != task.target]


def _values(clips: Sequence[Clip], label: str) -> set[str]:
    return {clip.labels[label] for clip in clips if clip.labels.get(label)}


def _first_of_component(clips: Iterable[Clip]) -> dict[str, str]:
    """Return by clip id the first id of its connected component, by union-find over files and equal audio."""
    in_order = list(clips)
    parents = {clip.id: clip.id for clip in in_order}
    id_of_key: dict[tuple[str, str], str] = {}

    def root(id: str) -> str:
        while parents[id] != id:
            id = parents[id]
        return id

    positions = {clip.id: position for position, clip in enumerate(in_order)}
    for clip in in_order:
        keys = {"file": clip.stretch.audio, "stretch": clip.digest, "sound": clip.content}
        for key in ((kind, value) for kind, value in keys.items() if value):
            roots = root(clip.id), root(id_of_key.setdefault(key, clip.id))
            first, second = sorted(roots, key=positions.__getitem__)
            parents[second] = first
    return {clip.id: root(clip.id) for clip in in_order}


def with_clusters(outcomes: Iterable[Row], clusters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the outcomes of clips with their clusters, or the outcomes of trials with the clusters of both sides."""
    return [dict(row) | _clusters(row, clusters) for row in outcomes]


def _clusters(row: Row, clusters: Mapping[str, str]) -> dict[str, str]:
    if "id" in row:
        return {"cluster": clusters[row["id"]]}
    return {f"{side}_cluster": clusters[row[side]] for side in ("enroll", "test")}
