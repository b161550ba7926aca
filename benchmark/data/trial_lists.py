"""Faults of trial lists: trials without clips, of a clip with itself, or with contradictory targets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from benchmark.data.leaks import audio_key
from benchmark.values import Clip, SplitTrial

ABSENT = "without their clips"
ITSELF = "of a clip with itself"
DISPUTED = "that contradict each other"
MISLABELLED = "that contradict labels"


def trial_faults(trials: Sequence[SplitTrial], clips: Mapping[str, Clip], target: str) -> dict[str, list[SplitTrial]]:
    """Return the faulty trials of one split by fault; a trial with several faults is listed under the first.

    clips: the clips of the split by id. target: the label that both clips of a target trial share.
    """
    targets: dict[frozenset[str], set[bool]] = defaultdict(set)
    for trial in trials:
        targets[unordered_pair(trial)].add(trial.target)
    faulty: dict[str, list[SplitTrial]] = {}
    for trial in trials:
        if fault := _fault(trial, clips, target, targets[unordered_pair(trial)]):
            faulty.setdefault(fault, []).append(trial)
    return faulty


def unordered_pair(trial: SplitTrial) -> frozenset[str]:
    """Return the two utterance ids of a trial, without their order."""
    return frozenset((trial.enroll, trial.test))


def repeated_trials(trials: Iterable[SplitTrial]) -> list[SplitTrial]:
    """Return the trials that repeat the pair of an earlier trial of their split, in either order."""
    counts = Counter[tuple[str, frozenset[str]]]()
    return [trial for trial in trials if _count(counts, (trial.split, unordered_pair(trial))) > 1]


def fault_message(split: str, fault: str, trials: Sequence[SplitTrial], clips: Mapping[str, Clip], target: str) -> str:
    """Return a message: the fault, the number of trials with it, the first of them, and the remedy."""
    first, count = trials[0], f"{len(trials)} {split} trials"
    pair = f"{first.enroll!r} with {first.test!r}"
    if fault == ABSENT:
        absent = first.enroll if first.enroll not in clips else first.test
        return f"{count} name clips that are not in that split, {absent!r} first; correct the list or the split"
    if fault == ITSELF:
        return f"{count} compare a recording with itself, {pair} first; remove them from the list"
    if fault == DISPUTED:
        return f"{count} are listed both as target and as non-target, {pair} first; correct the list"
    listed_as = "target" if first.target else "non-target"
    enroll, test = (clips[id].labels[target] for id in (first.enroll, first.test))
    return (
        f"{count} contradict the label {target!r}, {pair} first: {listed_as} in the list, but labelled {enroll!r} and"
        f" {test!r}; correct the list or the labels"
    )


def _fault(trial: SplitTrial, clips: Mapping[str, Clip], target: str, targets: set[bool]) -> str:
    if trial.enroll not in clips or trial.test not in clips:
        return ABSENT
    enroll, test = clips[trial.enroll], clips[trial.test]
    if audio_key(enroll) == audio_key(test):
        return ITSELF
    if len(targets) > 1:
        return DISPUTED
    return MISLABELLED if (enroll.labels[target] == test.labels[target]) != trial.target else ""


def _count(counts: Counter[tuple[str, frozenset[str]]], key: tuple[str, frozenset[str]]) -> int:
    """Add one to the count of `key`, and return the count."""
    counts[key] += 1
    return counts[key]
