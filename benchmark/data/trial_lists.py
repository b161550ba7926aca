"""What is wrong with trials: some cannot be asked, others have no true answer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from benchmark.data.leaks import place
from benchmark.values import Clip, Trial

ABSENT = "without their clips"
ITSELF = "of a clip with itself"
DISPUTED = "that contradict each other"
MISLABELLED = "that contradict labels"


def faults(trials: Sequence[Trial], clips: Mapping[str, Clip], target: str) -> dict[str, list[Trial]]:
    """Faulty trials of one split by what is wrong with them; each once.

    clips: of that split, by id. target: the label that two clips share if and only if theirs is a target trial.
    """
    answers: dict[frozenset[str], set[bool]] = defaultdict(set)
    for trial in trials:
        answers[pair(trial)].add(trial.target)
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        if fault := _fault(trial, clips, target, answers[pair(trial)]):
            found.setdefault(fault, []).append(trial)
    return found


def pair(trial: Trial) -> frozenset[str]:
    """Both sides, whichever comes first."""
    return frozenset((trial.enroll, trial.test))


def repeated(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that ask what an earlier one of their split asks, in either order."""
    counts = Counter[tuple[str, frozenset[str]]]()
    return [trial for trial in trials if _counted(counts, (trial.split, pair(trial))) > 1]


def sentence(split: str, fault: str, trials: Sequence[Trial], clips: Mapping[str, Clip], target: str) -> str:
    """What is wrong with how many trials, naming the first, and what to do."""
    first, count = trials[0], f"{len(trials)} {split} trials"
    named = f"{first.enroll!r} with {first.test!r}"
    if fault == ABSENT:
        absent = first.enroll if first.enroll not in clips else first.test
        return f"{count} name clips that are not in that split, {absent!r} first; correct the list or the split"
    if fault == ITSELF:
        return f"{count} compare a recording with itself, {named} first; take them out of the list"
    if fault == DISPUTED:
        return f"{count} are listed both as target and as non-target, {named} first; correct the list"
    said = "target" if first.target else "non-target"
    enroll, test = (clips[id].labels[target] for id in (first.enroll, first.test))
    return (
        f"{count} contradict the label {target!r}, {named} first: {said} in the list, but labelled {enroll!r} and"
        f" {test!r}; correct the list or the labels"
    )


def _fault(trial: Trial, clips: Mapping[str, Clip], target: str, answers: set[bool]) -> str:
    if trial.enroll not in clips or trial.test not in clips:
        return ABSENT
    enroll, test = clips[trial.enroll], clips[trial.test]
    if place(enroll) == place(test):
        return ITSELF
    if len(answers) > 1:
        return DISPUTED
    return MISLABELLED if (enroll.labels[target] == test.labels[target]) != trial.target else ""


def _counted(counts: Counter[tuple[str, frozenset[str]]], key: tuple[str, frozenset[str]]) -> int:
    counts[key] += 1
    return counts[key]
