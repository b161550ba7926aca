"""Selection of the clips and trials on which a task trains, validates and tests, with checks of their splits."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

from benchmark.data.leaks import PAIRS, audio_key, refuse_leaks
from benchmark.data.trial_lists import fault_message, trial_faults
from benchmark.errors import UserError
from benchmark.files import digest
from benchmark.tasks import Task
from benchmark.values import SPLITS, Clip, Manifest, Selection, SplitTrial

DRAWN_TRIALS = 2000  # most target trials, and most non-target trials, for a corpus without a trial list


def select_clips(
    manifest: Manifest,
    task: Task,
    judged_on: str,
    closed: bool = True,
    fold: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Selection:
    """Select the clips that have the task's label, by split, and check them.

    judged_on: "labels" or "trials". closed: whether every label must occur in training. fold: the value of
    `task.folds` that is held out for test. limit: most clips per split. skip_bad: leave out and count bad audio,
    labels that do not occur in training, and faulty trials, instead of raising UserError for them.
    Raises UserError also for empty splits and for leaks.
    """
    labelled = _clips_of_task(task, manifest)
    usable, skipped = _usable_clips(task, labelled, skip_bad)
    clips = _by_split(usable) if fold is None else _by_fold(task, usable, fold)
    _check_splits(task, clips, usable)
    refuse_leaks(task, clips)
    if task.train_hours is not None:
        clips["train"] = _clips_of_hours(clips["train"], task, task.train_hours)
    if judged_on == "trials":
        clips, trials = _with_trials(task, manifest, clips, skipped, limit, skip_bad)
        return Selection(clips, trials, skipped)
    if closed:
        clips = _with_known_labels(task, clips, skipped, skip_bad)
    return Selection(clips if limit is None else _limited(task, clips, closed, limit), {}, skipped)


def fold_values(manifest: Manifest, task: Task) -> list[str | None]:
    """Return the values of `task.folds`, each of which is the test split once, or [None] for a task without folds."""
    if task.folds is None:
        return [None]
    values = sorted(
        {clip.labels[task.folds] for clip in manifest.clips if task.folds in clip.labels and task.target in clip.labels}
    )
    if len(values) < 3:
        raise UserError(
            f"task {task.name!r}: folds by {task.folds!r} need at least 3 values, the corpus has {len(values)}; use"
            " splits"
        )
    return list(values)


def _clips_of_task(task: Task, manifest: Manifest) -> list[Clip]:
    known = {label for clip in manifest.clips for label in clip.labels}
    listed = ", ".join(sorted(known)) or "none"
    if task.target not in known:
        raise UserError(
            f"task {task.name!r}: no clip of corpus {task.corpus!r} has a label {task.target!r}; it has: {listed}"
        )
    for label in task.apart:
        if label not in known and task.disjoint != "speaker":  # the default; a corpus may lack speakers
            raise UserError(
                f"task {task.name!r}: splits must not share values of {label!r}, but no clip of corpus {task.corpus!r}"
                f" has such a label; it has: {listed}"
            )
    return [clip for clip in manifest.clips if task.target in clip.labels]


def _usable_clips(task: Task, clips: list[Clip], skip_bad: bool) -> tuple[list[Clip], dict[str, int]]:
    bad = [clip for clip in clips if clip.problem]
    if bad and not skip_bad:
        first = bad[0]
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"corpus {task.corpus!r}: {first.stretch.audio} {first.problem}{more}; repair or remove it, or leave out"
            " and count bad audio with --skip-bad"
        )
    return [clip for clip in clips if not clip.problem], {"bad audio": len(bad)} if bad else {}


def _by_split(clips: list[Clip]) -> dict[str, list[Clip]]:
    by_split: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        if clip.split in by_split:
            by_split[clip.split].append(clip)
    return by_split


def _by_fold(task: Task, clips: list[Clip], fold: str) -> dict[str, list[Clip]]:
    name = task.folds or ""
    values = sorted({clip.labels[name] for clip in clips if name in clip.labels})
    if fold not in values:
        raise UserError(f"task {task.name!r}: every clip of fold {fold!r} was left out; repair its audio")
    valid = values[(values.index(fold) + 1) % len(values)]
    split_of_value = {fold: "test", valid: "valid"}
    by_split: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        if name in clip.labels:
            by_split[split_of_value.get(clip.labels[name], "train")].append(clip)
    return by_split


def _check_splits(task: Task, clips: dict[str, list[Clip]], usable: list[Clip]) -> None:
    """Raise UserError where a split is empty."""
    for split in SPLITS:
        if not clips[split]:
            splits = ", ".join(sorted({clip.split for clip in usable})) or "none"
            raise UserError(
                f"task {task.name!r}: corpus {task.corpus!r} has no {split} clips with a label {task.target!r} (splits"
                f" with some: {splits}); add a column 'split' with train, valid and test"
            )


def _with_known_labels(
    task: Task, clips: dict[str, list[Clip]], skipped: dict[str, int], skip_bad: bool
) -> dict[str, list[Clip]]:
    """Return the clips whose labels all occur in training."""
    known = {label for clip in clips["train"] for label in _labels(clip, task.target)}
    selected = {"train": clips["train"]}
    for split in ("valid", "test"):
        unknown = [clip for clip in clips[split] if not _labels(clip, task.target) <= known]
        if unknown and not skip_bad:
            label = sorted(_labels(unknown[0], task.target) - known)[0]
            raise UserError(
                f"task {task.name!r}: {len(unknown)} {split} clips have labels never seen in training,"
                f" {unknown[0].id!r} with {label!r} first; correct them, or leave out and count with --skip-bad"
            )
        if unknown:
            skipped[f"{split} label unseen in training"] = len(unknown)
        left_out = {clip.id for clip in unknown}
        selected[split] = [clip for clip in clips[split] if clip.id not in left_out]
        if not selected[split]:
            raise UserError(
                f"task {task.name!r}: no {split} clip has a label seen in training; check the column {task.target!r}"
            )
    return selected


def _labels(clip: Clip, target: str) -> set[str]:
    return {label.strip() for label in clip.labels[target].split("|") if label.strip()}


def _limited(task: Task, clips: dict[str, list[Clip]], closed: bool, limit: int) -> dict[str, list[Clip]]:
    """Return at most `limit` clips of each split.

    If the task is closed, the valid and test clips are those with labels that the limited training clips have too.
    """
    limited = {"train": _first(clips["train"], task.target, limit)}
    known = {label for clip in limited["train"] for label in _labels(clip, task.target)}
    for split in ("valid", "test"):
        candidates = [clip for clip in clips[split] if not closed or _labels(clip, task.target) <= known]
        if not candidates:
            raise UserError(
                f"task {task.name!r}: --limit {limit} leaves no {split} clip with a label of the training clips; raise"
                " it"
            )
        limited[split] = _first(candidates, task.target, limit)
    return limited


def _clips_of_hours(clips: list[Clip], task: Task, hours: float) -> list[Clip]:
    """Return clips of at most `hours` in total. Raises UserError where there are fewer hours, or no clip fits."""
    available = sum(clip.seconds for clip in clips) / 3600
    if available < hours:
        raise UserError(
            f"task {task.name!r}: train_hours is {hours:g}, but corpus {task.corpus!r} has {available:.3g} h to train"
            " on; lower it, or leave it out to take all"
        )
    seconds_left, chosen = hours * 3600, set()
    for clip in _labels_in_turn(clips, task.target):
        seconds_left -= clip.seconds
        if seconds_left < 0:
            break
        chosen.add(clip.id)
    if not chosen:
        raise UserError(f"task {task.name!r}: train_hours {hours:g} is less than its first clip; raise it")
    return [clip for clip in clips if clip.id in chosen]


def _first(clips: list[Clip], target: str, limit: int | None) -> list[Clip]:
    """Return at most `limit` clips, with as many labels as possible."""
    if limit is None or len(clips) <= limit:
        return clips
    chosen = {clip.id for clip in _labels_in_turn(clips, target)[:limit]}
    return [clip for clip in clips if clip.id in chosen]


def _labels_in_turn(clips: list[Clip], target: str) -> list[Clip]:
    """Return the clips in a fixed order that takes the labels in turn, so that its first clips hold all labels."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: digest(clip.id)):
        groups[clip.labels[target]].append(clip)
    turns = [(turn, label, clip) for label, group in groups.items() for turn, clip in enumerate(group)]
    return [clip for _, _, clip in sorted(turns, key=lambda item: (item[0], item[1], item[2].id))]


def _with_trials(
    task: Task,
    manifest: Manifest,
    clips: dict[str, list[Clip]],
    skipped: dict[str, int],
    limit: int | None,
    skip_bad: bool,
) -> tuple[dict[str, list[Clip]], dict[str, list[SplitTrial]]]:
    """Select the trials of valid and test, with the clips that they name, and limit the training clips.

    Raises UserError where splits share speakers.
    """
    for first, second in PAIRS:
        shared = {clip.labels[task.target] for clip in clips[first]} & {
            clip.labels[task.target] for clip in clips[second]
        }
        if shared:
            raise UserError(
                f"task {task.name!r}: {len(shared)} speakers are in both {first} and {second}, {min(shared)!r} first;"
                " verification needs unseen speakers in each"
            )
    trials = {}
    for split in ("valid", "test"):
        listed = [trial for trial in manifest.trials if trial.split == split]
        trials[split] = _trials(task, split, clips[split], listed, skipped, limit, skip_bad)
        clip_ids = {id for trial in trials[split] for id in (trial.enroll, trial.test)}
        clips = {**clips, split: [clip for clip in clips[split] if clip.id in clip_ids]}
    return {**clips, "train": _first(clips["train"], task.target, limit)}, trials


def _trials(
    task: Task,
    split: str,
    clips: list[Clip],
    listed: list[SplitTrial],
    skipped: dict[str, int],
    limit: int | None,
    skip_bad: bool,
) -> list[SplitTrial]:
    """Return the listed trials without faults, or drawn trials where none is listed; at most `limit` of them."""
    by_id = {clip.id: clip for clip in clips}
    faulty = trial_faults(listed, by_id, task.target)
    for fault, trials in faulty.items():
        if not skip_bad:
            raise UserError(f"task {task.name!r}: {fault_message(split, fault, trials, by_id, task.target)}")
        skipped[f"{split} trials {fault}"] = len(trials)
    faulty_trials = {trial for trials in faulty.values() for trial in trials}
    without_faults = [trial for trial in listed if trial not in faulty_trials]
    chosen = without_faults if listed else draw_trials(clips, task.target)
    chosen = chosen if limit is None else _first_trials(chosen, limit)
    if {trial.target for trial in chosen} != {True, False}:
        raise UserError(
            f"task {task.name!r}: {split} needs trials of both kinds; give at least two clips of each of two speakers,"
            " or a trial list"
        )
    return chosen


def _first_trials(trials: Iterable[SplitTrial], limit: int) -> list[SplitTrial]:
    """Return at most half of `limit`, but at least one, of the target and of the non-target trials."""
    counts: Counter[bool] = Counter()
    selected = []
    for trial in sorted(trials, key=lambda trial: digest(trial)):
        if counts[trial.target] < limit // 2 or counts[trial.target] == 0:
            counts[trial.target] += 1
            selected.append(trial)
    return selected


def draw_trials(clips: list[Clip], target: str) -> list[SplitTrial]:
    """Draw up to DRAWN_TRIALS target and as many non-target trials with a fixed seed, for a corpus without a list.

    target: the label that both clips of a target trial share. Two clips with equal audio make no trial.
    """
    order = sorted(clips, key=lambda clip: clip.id)
    count = len(order) * (len(order) - 1) // 2
    rng = random.Random(0)
    if count <= 500_000:
        pairs = [(a, b) for position, a in enumerate(order) for b in order[position + 1 :]]
    else:
        pairs = _drawn_pairs(order, target, rng)
    kinds: dict[bool, list[SplitTrial]] = {True: [], False: []}
    for a, b in pairs:
        same = a.labels[target] == b.labels[target]
        if audio_key(a) != audio_key(b):
            kinds[same].append(SplitTrial(a.split, a.id, b.id, same))
    return [trial for kind in (True, False) for trial in _sample(kinds[kind], rng)]


def _drawn_pairs(order: list[Clip], target: str, rng: random.Random) -> list[tuple[Clip, Clip]]:
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in order:
        groups[clip.labels[target]].append(clip)
    larger_groups = [group for _, group in sorted(groups.items()) if len(group) > 1]
    across = [rng.sample(order, 2) for _ in range(2 * DRAWN_TRIALS)]
    within = [rng.sample(rng.choice(larger_groups), 2) for _ in range(2 * DRAWN_TRIALS) if larger_groups]
    pairs = {(min(a.id, b.id), max(a.id, b.id)): (a, b) for a, b in across + within}
    return [pair for _, pair in sorted(pairs.items(), key=lambda item: item[0])]


def _sample(trials: list[SplitTrial], rng: random.Random) -> list[SplitTrial]:
    return trials if len(trials) <= DRAWN_TRIALS else rng.sample(trials, DRAWN_TRIALS)
