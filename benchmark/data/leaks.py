"""What splits of a task must not share: audio, and the labels that the task keeps apart."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from benchmark.data.audio import SHORTEST
from benchmark.errors import UserError
from benchmark.tasks import Task
from benchmark.values import Clip

PAIRS = (("train", "valid"), ("train", "test"), ("valid", "test"))


class Shared(NamedTuple):
    """Two clips that hold some of the same audio. samples: how much of it."""

    ours: Clip
    theirs: Clip
    samples: int


class Reach(NamedTuple):
    """Stretches of one recording. firsts: where they begin, ascending. last: of those up to each, which ends last."""

    firsts: list[int]
    last: list[Clip]


def refuse_leaks(task: Task, clips: dict[str, list[Clip]]) -> None:
    """Raise UserError where splits share audio, or values of a label that the task keeps apart.

    clips: of train, valid and test. Copies that were resampled, amplified or compressed with loss are not found.
    """
    for first, second in PAIRS:
        if leak := common_audio(clips, first, second):
            raise UserError(f"task {task.name!r}: {leak}")
        for label in task.apart:
            if values := sorted(_values(clips[first], label) & _values(clips[second], label)):
                raise UserError(
                    f"task {task.name!r}: {len(values)} values of {label!r} are in both {first} and {second},"
                    f" {values[0]!r} first; split by {label}, or {_allowing(task, label)} if that is the corpus's"
                    " protocol"
                )


def common_audio(clips: dict[str, list[Clip]], first: str, second: str) -> str:
    """What audio two splits share, how much of it, and what to do; "" for none."""
    shared = shared_audio(clips[first], clips[second])
    if not shared:
        return ""
    ours, theirs, samples = shared[0]
    if place(ours) == place(theirs):
        return (
            f"{len(shared)} clips of {second} have the same audio as clips of {first}, {theirs.id!r} as {ours.id!r}"
            " first; keep each in one split"
        )
    return (
        f"{len(shared)} clips of {second} overlap clips of {first}, {theirs.id!r} with {ours.id!r} first by"
        f" {samples / theirs.stretch.rate:.3f} s of one recording; cut them apart, or keep both in one split"
    )


def shared_audio(ours: Iterable[Clip], theirs: Iterable[Clip]) -> list[Shared]:
    """Each clip of `theirs` that holds audio of one of `ours`, with that one: the same stretch if there is one.

    Less than SHORTEST in common, as where rounded ends of neighbours meet, is nothing that a clip could consist of.
    """
    recordings: dict[str, list[Clip]] = defaultdict(list)
    for clip in ours:
        recordings[recording(clip)].append(clip)
    same = {place(clip): clip for some in recordings.values() for clip in reversed(some)}
    reaches = {name: _reach(some) for name, some in recordings.items()}
    found = []
    for clip in theirs:
        if (reach := reaches.get(recording(clip))) and (other := same.get(place(clip)) or _overlapping(clip, reach)):
            found.append(Shared(other, clip, _overlap(other, clip)))
    return found


def recording(clip: Clip) -> str:
    """Which audio it is a stretch of, whatever the file is called."""
    return clip.content or clip.digest


def place(clip: Clip) -> tuple[str, int, int]:
    """What it has in common with copies of it, and with nothing else."""
    return recording(clip), clip.stretch.first, clip.stretch.samples


def copies(clips: Iterable[Clip]) -> list[list[Clip]]:
    """Clips of the same audio together, without those whose audio is their own."""
    groups: dict[tuple[str, int, int], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[place(clip)].append(clip)
    return [group for group in groups.values() if len(group) > 1]


def _reach(clips: Sequence[Clip]) -> Reach:
    order = sorted(clips, key=lambda clip: clip.stretch.first)
    return Reach([clip.stretch.first for clip in order], list(accumulate(order, _later)))


def _later(one: Clip, other: Clip) -> Clip:
    return max((one, other), key=_end)


def _overlapping(clip: Clip, reach: Reach) -> Clip | None:
    """A clip with which it shares SHORTEST or more; no clip is shorter than that."""
    least = math.ceil(SHORTEST * clip.stretch.rate)
    count = bisect_right(reach.firsts, _end(clip) - least)
    other = reach.last[count - 1] if count else None
    return other if other and _overlap(other, clip) >= least else None


def _overlap(one: Clip, other: Clip) -> int:
    return min(_end(one), _end(other)) - max(one.stretch.first, other.stretch.first)


def _end(clip: Clip) -> int:
    return clip.stretch.first + clip.stretch.samples


def _values(clips: Iterable[Clip], label: str) -> set[str]:
    return {value.strip() for clip in clips for value in clip.labels.get(label, "").split("|") if value.strip()}


def _allowing(task: Task, label: str) -> str:
    several = isinstance(task.disjoint, tuple)
    return f"leave {label!r} out of 'disjoint' in the task" if several else "write 'disjoint: null' in the task"
