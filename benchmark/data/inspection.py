"""The checks of a corpus behind `bench data check`: its summary, its faults and its notes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmark.data.leaks import PAIRS, clips_with_equal_audio, common_audio
from benchmark.data.selection import fold_values, select_clips
from benchmark.data.trial_lists import repeated_trials
from benchmark.errors import UserError
from benchmark.heads import head_card
from benchmark.tasks import Task
from benchmark.values import SPLITS, Clip, Manifest, Setup


def corpus_summary(manifest: Manifest) -> list[list[str]]:
    """Return rows of label, split, clips, hours, number of values and number of speakers."""
    groups: dict[tuple[str, str], list[Clip]] = {}
    for clip in manifest.clips:
        for label in clip.labels or {"(unlabelled)": ""}:
            groups.setdefault((label, clip.split), []).append(clip)
    order = {"train": 0, "valid": 1, "test": 2}
    keys = sorted(groups, key=lambda key: (key[0], order.get(key[1], 3), key[1]))
    return [_summary_row(label, split, groups[label, split]) for label, split in keys]


def _summary_row(label: str, split: str, clips: list[Clip]) -> list[str]:
    values = {clip.labels.get(label) for clip in clips}
    speakers = {clip.labels["speaker"] for clip in clips if "speaker" in clip.labels}
    hours = sum(clip.seconds for clip in clips) / 3600
    return [label, split, str(len(clips)), f"{hours:.2f}", str(len(values)), str(len(speakers) or "–")]


def corpus_problems(manifest: Manifest, tasks: Iterable[Task], home: Path) -> list[str]:
    """Return one sentence for each unusable clip, and for each fault of the tasks."""
    task_list = list(tasks)
    return [
        *(f"{clip.stretch.audio} {clip.problem}" for clip in manifest.clips if clip.problem),
        *task_errors(manifest, task_list, home),
        *label_contradictions(manifest, task_list),
    ]


def task_errors(manifest: Manifest, tasks: Iterable[Task], home: Path) -> list[str]:
    """Return one sentence for each task that cannot run: for leaks, empty splits, unknown labels or faulty trials.

    Without tasks, return one sentence for each pair of splits that share audio. Unusable clips are left out first.
    """
    usable, task_list = _usable_part(manifest), list(tasks)
    errors = [] if task_list else _common_audio(usable)
    for task in task_list:
        head = head_card(task.head, Setup(home, Path()))
        try:
            for fold in fold_values(usable, task):
                select_clips(usable, task, head.judged_on, head.closed, fold)
        except UserError as error:
            errors.append(str(error))
    return errors


def label_contradictions(manifest: Manifest, tasks: Iterable[Task]) -> list[str]:
    """Return one sentence for each task in which clips of one split have the same audio but different labels."""
    return [sentence for task in tasks if (sentence := _contradiction(manifest, task))]


def duplicate_clips(manifest: Manifest) -> list[list[Clip]]:
    """Return the groups of two or more usable clips of one split with the same audio."""
    splits: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        if not clip.problem:
            splits.setdefault(clip.split, []).append(clip)
    return [group for clips in splits.values() for group in clips_with_equal_audio(clips)]


def corpus_notes(manifest: Manifest) -> list[str]:
    """Return sentences on audio and trials that count more than once, which is not a fault."""
    notes = []
    if groups := duplicate_clips(manifest):
        count, (first, second, *_) = sum(len(group) - 1 for group in groups), groups[0]
        notes.append(
            f"{count} clips have the audio of another clip of their split, {second.id!r} that of {first.id!r} first; it"
            " counts more than once"
        )
    if trials := repeated_trials(manifest.trials):
        enroll, test = trials[0].enroll, trials[0].test
        notes.append(f"{len(trials)} trials repeat another one, {enroll!r} with {test!r} first; it counts twice")
    return notes


def _common_audio(manifest: Manifest) -> list[str]:
    clips = {split: [clip for clip in manifest.clips if clip.split == split] for split in SPLITS}
    return [f"corpus {manifest.corpus!r}: {leak}" for pair in PAIRS if (leak := common_audio(clips, *pair))]


def _usable_part(manifest: Manifest) -> Manifest:
    """Return the manifest without the clips that have a problem, and without their trials."""
    unusable = {clip.id for clip in manifest.clips if clip.problem}
    trials = [trial for trial in manifest.trials if not {trial.enroll, trial.test} & unusable]
    return manifest._replace(clips=[clip for clip in manifest.clips if not clip.problem], trials=trials)


def _contradiction(manifest: Manifest, task: Task) -> str:
    labelled = [clip for clip in manifest.clips if not clip.problem and task.target in clip.labels]
    groups = clips_with_equal_audio(labelled) if task.folds else duplicate_clips(manifest._replace(clips=labelled))
    pairs = [(first, copy) for first, *copies in groups for copy in copies if _labels_differ(first, copy, task.target)]
    if not pairs:
        return ""
    first, copy = pairs[0]
    return (
        f"task {task.name!r}: {len(pairs)} clips of {copy.split} have the same audio as others but another label,"
        f" {copy.id!r} with {copy.labels[task.target]!r} as {first.id!r} with {first.labels[task.target]!r} first;"
        " correct one of each"
    )


def _labels_differ(first: Clip, second: Clip, target: str) -> bool:
    """Return whether two clips have different sets of labels."""
    labels, other_labels = ({label.strip() for label in clip.labels[target].split("|")} for clip in (first, second))
    return labels != other_labels
