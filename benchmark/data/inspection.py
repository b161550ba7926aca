"""What `bench data check` says of a corpus."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmark.data.leaks import PAIRS, common_audio, copies
from benchmark.data.selection import folds, select
from benchmark.data.trial_lists import repeated
from benchmark.errors import UserError
from benchmark.heads import head_card
from benchmark.tasks import Task
from benchmark.values import SPLITS, Clip, Manifest, Setup


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
    """A sentence for each clip that cannot be used, and for each fault of the tasks."""
    asked = list(tasks)
    return [
        *(f"{clip.stretch.audio} {clip.problem}" for clip in manifest.clips if clip.problem),
        *ruled_out(manifest, asked, home),
        *contradictions(manifest, asked),
    ]


def ruled_out(manifest: Manifest, tasks: Iterable[Task], home: Path) -> list[str]:
    """A sentence for each task that leaks, empty splits, unknown labels or faulty trials rule out, whatever is bad.

    Without tasks, one for each two splits that share audio.
    """
    sound, asked = _sound(manifest), list(tasks)
    found = [] if asked else _common_audio(sound)
    for task in asked:
        head = head_card(task.head, Setup(home, Path()))
        try:
            for fold in folds(sound, task):
                select(sound, task, head.judged_on, head.closed, fold)
        except UserError as error:
            found.append(str(error))
    return found


def contradictions(manifest: Manifest, tasks: Iterable[Task]) -> list[str]:
    """A sentence for each task that labels the same audio differently within one split."""
    return [sentence for task in tasks if (sentence := _contradiction(manifest, task))]


def duplicates(manifest: Manifest) -> list[list[Clip]]:
    """Clips of one split that have the same audio, under whatever names, together."""
    splits: dict[str, list[Clip]] = {}
    for clip in manifest.clips:
        if not clip.problem:
            splits.setdefault(clip.split, []).append(clip)
    return [group for clips in splits.values() for group in copies(clips)]


def notes(manifest: Manifest) -> list[str]:
    """What is no fault, but good to know: audio and trials that count more than once."""
    found = []
    if groups := duplicates(manifest):
        count, (first, second, *_) = sum(len(group) - 1 for group in groups), groups[0]
        found.append(
            f"{count} clips have the audio of another clip of their split, {second.id!r} that of {first.id!r} first; it"
            " counts more than once"
        )
    if trials := repeated(manifest.trials):
        enroll, test = trials[0].enroll, trials[0].test
        found.append(f"{len(trials)} trials repeat another one, {enroll!r} with {test!r} first; it counts twice")
    return found


def _common_audio(manifest: Manifest) -> list[str]:
    clips = {split: [clip for clip in manifest.clips if clip.split == split] for split in SPLITS}
    return [f"corpus {manifest.corpus!r}: {leak}" for pair in PAIRS if (leak := common_audio(clips, *pair))]


def _sound(manifest: Manifest) -> Manifest:
    """Without the clips that cannot be used, and their trials."""
    bad = {clip.id for clip in manifest.clips if clip.problem}
    trials = [trial for trial in manifest.trials if not {trial.enroll, trial.test} & bad]
    return manifest._replace(clips=[clip for clip in manifest.clips if not clip.problem], trials=trials)


def _contradiction(manifest: Manifest, task: Task) -> str:
    labelled = [clip for clip in manifest.clips if not clip.problem and task.target in clip.labels]
    groups = copies(labelled) if task.folds else duplicates(manifest._replace(clips=labelled))
    pairs = [(one, other) for one, *rest in groups for other in rest if _differ(one, other, task.target)]
    if not pairs:
        return ""
    one, other = pairs[0]
    return (
        f"task {task.name!r}: {len(pairs)} clips of {other.split} have the same audio as others but another label,"
        f" {other.id!r} with {other.labels[task.target]!r} as {one.id!r} with {one.labels[task.target]!r} first;"
        " correct one of each"
    )


def _differ(one: Clip, other: Clip, target: str) -> bool:
    """Whether labels are others, whatever the order of several ones."""
    first, second = ({label.strip() for label in clip.labels[target].split("|")} for clip in (one, other))
    return first != second
