"""Checks that the splits of a task share neither audio nor values of the labels that the task keeps apart."""

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
    """Two clips of different splits that overlap in a recording. samples: the number of samples in both."""

    first: Clip
    second: Clip
    samples: int


class Reach(NamedTuple):
    """The clips of one recording, sorted by their first sample, for finding overlaps by binary search.

    firsts: the first sample of each. last: for each, the clip with the latest end among it and those before it.
    """

    firsts: list[int]
    last: list[Clip]


def refuse_leaks(task: Task, clips: dict[str, list[Clip]]) -> None:
    """Raise UserError where splits share audio, or values of a label in the task's `disjoint`.

    clips: the clips of train, valid and test. Copies that were resampled, amplified or compressed with loss are not
    detected.
    """
    for first, second in PAIRS:
        if leak := common_audio(clips, first, second):
            raise UserError(f"task {task.name!r}: {leak}")
        for label in task.apart:
            if values := sorted(_values(clips[first], label) & _values(clips[second], label)):
                raise UserError(
                    f"task {task.name!r}: {len(values)} values of {label!r} are in both {first} and {second},"
                    f" {values[0]!r} first; split by {label}, or {_how_to_allow(task, label)} if that is the corpus's"
                    " protocol"
                )


def common_audio(clips: dict[str, list[Clip]], first: str, second: str) -> str:
    """Return a message with the clips of two splits that share audio, how much, and the remedy; "" if none do."""
    shared = shared_audio(clips[first], clips[second])
    if not shared:
        return ""
    clip, other, samples = shared[0]
    if audio_key(clip) == audio_key(other):
        return (
            f"{len(shared)} clips of {second} have the same audio as clips of {first}, {other.id!r} as {clip.id!r}"
            " first; keep each in one split"
        )
    return (
        f"{len(shared)} clips of {second} overlap clips of {first}, {other.id!r} with {clip.id!r} first by"
        f" {samples / other.stretch.rate:.3f} s of one recording; cut them apart, or keep both in one split"
    )


def shared_audio(first_clips: Iterable[Clip], second_clips: Iterable[Clip]) -> list[Shared]:
    """Return each of the second clips that shares audio with a first clip, and that clip, with equal audio if possible.

    An overlap of less than SHORTEST does not count: rounding of the ends makes neighbours overlap by a few samples.
    """
    recordings: dict[str, list[Clip]] = defaultdict(list)
    for clip in first_clips:
        recordings[recording_key(clip)].append(clip)
    by_audio = {audio_key(clip): clip for clips in recordings.values() for clip in reversed(clips)}
    reaches = {key: _reach(clips) for key, clips in recordings.items()}
    shared = []
    for clip in second_clips:
        if (reach := reaches.get(recording_key(clip))) and (
            other := by_audio.get(audio_key(clip)) or _overlapping(clip, reach)
        ):
            shared.append(Shared(other, clip, _overlap(other, clip)))
    return shared


def recording_key(clip: Clip) -> str:
    """Return the digest of the recording that contains the clip, independent of the file name."""
    return clip.content or clip.digest


def audio_key(clip: Clip) -> tuple[str, int, int]:
    """Return a key that is equal for two clips if and only if they have the same audio."""
    return recording_key(clip), clip.stretch.first, clip.stretch.samples


def clips_with_equal_audio(clips: Iterable[Clip]) -> list[list[Clip]]:
    """Return the groups of two or more clips with the same audio."""
    groups: dict[tuple[str, int, int], list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[audio_key(clip)].append(clip)
    return [group for group in groups.values() if len(group) > 1]


def _reach(clips: Sequence[Clip]) -> Reach:
    order = sorted(clips, key=lambda clip: clip.stretch.first)
    return Reach([clip.stretch.first for clip in order], list(accumulate(order, _later_end)))


def _later_end(first: Clip, second: Clip) -> Clip:
    return max((first, second), key=_end)


def _overlapping(clip: Clip, reach: Reach) -> Clip | None:
    """Return a clip of the recording that shares SHORTEST or more with this clip. No clip is shorter than SHORTEST."""
    least = math.ceil(SHORTEST * clip.stretch.rate)
    count = bisect_right(reach.firsts, _end(clip) - least)
    other = reach.last[count - 1] if count else None
    return other if other and _overlap(other, clip) >= least else None


def _overlap(first: Clip, second: Clip) -> int:
    """Return the number of samples in both clips, negative if there is a gap between them."""
    return min(_end(first), _end(second)) - max(first.stretch.first, second.stretch.first)


def _end(clip: Clip) -> int:
    return clip.stretch.first + clip.stretch.samples


def _values(clips: Iterable[Clip], label: str) -> set[str]:
    return {value.strip() for clip in clips for value in clip.labels.get(label, "").split("|") if value.strip()}


def _how_to_allow(task: Task, label: str) -> str:
    several = isinstance(task.disjoint, tuple)
    return f"leave {label!r} out of 'disjoint' in the task" if several else "write 'disjoint: null' in the task"
