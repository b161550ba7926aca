"""Which clips a task trains, validates and tests on, and whether they may be used so."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable

from benchmark.data.leaks import PAIRS, place, refuse_leaks
from benchmark.data.trial_lists import faults, sentence
from benchmark.errors import UserError
from benchmark.files import digest
from benchmark.tasks import Task
from benchmark.values import SPLITS, Clip, Manifest, Selection, Trial

DRAWN_TRIALS = 2000  # of each kind, where a corpus has speakers but no trial list


def select(
    manifest: Manifest,
    task: Task,
    judged_on: str,
    closed: bool = True,
    fold: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Selection:
    """The clips that carry the task's label, by split, checked.

    judged_on: "labels" or "trials". closed: whether every label must occur in training. fold: the value of
    `task.folds` that is held out for test. limit: clips per split.
    Raises UserError for empty splits and leaks, and, unless `skip_bad` leaves them out and counts them, for bad audio,
    labels of test never seen in training, and faulty trials.
    """
    of_task = _of_task(task, manifest)
    good, skipped = _good(task, of_task, skip_bad)
    clips = _by_split(good) if fold is None else _by_fold(task, good, fold)
    _present(task, clips, good)
    refuse_leaks(task, clips)
    if task.train_hours is not None:
        clips["train"] = _within(clips["train"], task, task.train_hours)
    if judged_on == "trials":
        clips, trials = _with_trials(task, manifest, clips, skipped, limit, skip_bad)
        return Selection(clips, trials, skipped)
    if closed:
        clips = _seen(task, clips, skipped, skip_bad)
    return Selection(clips if limit is None else _limited(task, clips, closed, limit), {}, skipped)


def folds(manifest: Manifest, task: Task) -> list[str | None]:
    """Values that take turns as the test split, or [None] for a corpus with splits of its own."""
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


def _of_task(task: Task, manifest: Manifest) -> list[Clip]:
    known = {label for clip in manifest.clips for label in clip.labels}
    listed = ", ".join(sorted(known)) or "none"
    if task.target not in known:
        raise UserError(
            f"task {task.name!r}: no clip of corpus {task.corpus!r} has a label {task.target!r}; it has: {listed}"
        )
    for label in task.apart:
        if label not in known and task.disjoint != "speaker":  # what is kept apart unless the task says otherwise
            raise UserError(
                f"task {task.name!r}: splits must not share values of {label!r}, but no clip of corpus {task.corpus!r}"
                f" has such a label; it has: {listed}"
            )
    return [clip for clip in manifest.clips if task.target in clip.labels]


def _good(task: Task, clips: list[Clip], skip_bad: bool) -> tuple[list[Clip], dict[str, int]]:
    bad = [clip for clip in clips if clip.problem]
    if bad and not skip_bad:
        first = bad[0]
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"corpus {task.corpus!r}: {first.stretch.audio} {first.problem}{more}; repair or remove, or leave out and"
            " count with --skip-bad"
        )
    return [clip for clip in clips if not clip.problem], {"bad audio": len(bad)} if bad else {}


def _by_split(clips: list[Clip]) -> dict[str, list[Clip]]:
    parts: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        if clip.split in parts:
            parts[clip.split].append(clip)
    return parts


def _by_fold(task: Task, clips: list[Clip], fold: str) -> dict[str, list[Clip]]:
    name = task.folds or ""
    values = sorted({clip.labels[name] for clip in clips if name in clip.labels})
    if fold not in values:
        raise UserError(f"task {task.name!r}: every clip of fold {fold!r} was left out; repair its audio")
    valid = values[(values.index(fold) + 1) % len(values)]
    role = {fold: "test", valid: "valid"}
    parts: dict[str, list[Clip]] = {split: [] for split in SPLITS}
    for clip in clips:
        if name in clip.labels:
            parts[role.get(clip.labels[name], "train")].append(clip)
    return parts


def _present(task: Task, clips: dict[str, list[Clip]], every: list[Clip]) -> None:
    for split in SPLITS:
        if not clips[split]:
            has = ", ".join(sorted({clip.split for clip in every})) or "none"
            raise UserError(
                f"task {task.name!r}: corpus {task.corpus!r} has no {split} clips with a label {task.target!r} (splits"
                f" with some: {has}); add a column 'split' with train, valid and test"
            )


def _seen(task: Task, clips: dict[str, list[Clip]], skipped: dict[str, int], skip_bad: bool) -> dict[str, list[Clip]]:
    """Clips whose labels all occur in training."""
    known = {label for clip in clips["train"] for label in _labels(clip, task.target)}
    kept = {"train": clips["train"]}
    for split in ("valid", "test"):
        strange = [clip for clip in clips[split] if not _labels(clip, task.target) <= known]
        if strange and not skip_bad:
            label = sorted(_labels(strange[0], task.target) - known)[0]
            raise UserError(
                f"task {task.name!r}: {len(strange)} {split} clips have labels never seen in training,"
                f" {strange[0].id!r} with {label!r} first; correct them, or leave out and count with --skip-bad"
            )
        if strange:
            skipped[f"{split} label unseen in training"] = len(strange)
        left_out = {clip.id for clip in strange}
        kept[split] = [clip for clip in clips[split] if clip.id not in left_out]
        if not kept[split]:
            raise UserError(
                f"task {task.name!r}: no {split} clip has a label seen in training; check the column {task.target!r}"
            )
    return kept


def _labels(clip: Clip, target: str) -> set[str]:
    return {label.strip() for label in clip.labels[target].split("|") if label.strip()}


def _limited(task: Task, clips: dict[str, list[Clip]], closed: bool, limit: int) -> dict[str, list[Clip]]:
    """At most `limit` clips of each split, of valid and test only such as have labels of the training clips left."""
    few = {"train": _first(clips["train"], task.target, limit)}
    known = {label for clip in few["train"] for label in _labels(clip, task.target)}
    for split in ("valid", "test"):
        fair = [clip for clip in clips[split] if not closed or _labels(clip, task.target) <= known]
        if not fair:
            raise UserError(
                f"task {task.name!r}: --limit {limit} leaves no {split} clip with a label of the training clips; raise"
                " it"
            )
        few[split] = _first(fair, task.target, limit)
    return few


def _within(clips: list[Clip], task: Task, hours: float) -> list[Clip]:
    """Clips that fill so many hours; raises UserError where there are not as many, or the first is longer."""
    there = sum(clip.seconds for clip in clips) / 3600
    if there < hours:
        raise UserError(
            f"task {task.name!r}: train_hours is {hours:g}, but corpus {task.corpus!r} has {there:.3g} h to train on;"
            " lower it, or leave it out to take all"
        )
    left, chosen = hours * 3600, set()
    for clip in _in_turn(clips, task.target):
        left -= clip.seconds
        if left < 0:
            break
        chosen.add(clip.id)
    if not chosen:
        raise UserError(f"task {task.name!r}: train_hours {hours:g} is less than its first clip; raise it")
    return [clip for clip in clips if clip.id in chosen]


def _first(clips: list[Clip], target: str, limit: int | None) -> list[Clip]:
    """At most `limit` clips."""
    if limit is None or len(clips) <= limit:
        return clips
    chosen = {clip.id for clip in _in_turn(clips, target)[:limit]}
    return [clip for clip in clips if clip.id in chosen]


def _in_turn(clips: list[Clip], target: str) -> list[Clip]:
    """In a fixed order that takes labels in turn, so that a few from its start still hold all of them."""
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in sorted(clips, key=lambda clip: digest(clip.id)):
        groups[clip.labels[target]].append(clip)
    turns = [(place, label, clip) for label, group in groups.items() for place, clip in enumerate(group)]
    return [clip for _, _, clip in sorted(turns, key=lambda turn: (turn[0], turn[1], turn[2].id))]


def _with_trials(
    task: Task,
    manifest: Manifest,
    clips: dict[str, list[Clip]],
    skipped: dict[str, int],
    limit: int | None,
    skip_bad: bool,
) -> tuple[dict[str, list[Clip]], dict[str, list[Trial]]]:
    """Speakers disjoint, trials within their split, and of valid and test only the clips that trials name."""
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
        named = {id for trial in trials[split] for id in (trial.enroll, trial.test)}
        clips = {**clips, split: [clip for clip in clips[split] if clip.id in named]}
    return {**clips, "train": _first(clips["train"], task.target, limit)}, trials


def _trials(
    task: Task,
    split: str,
    clips: list[Clip],
    listed: list[Trial],
    skipped: dict[str, int],
    limit: int | None,
    skip_bad: bool,
) -> list[Trial]:
    by_id = {clip.id: clip for clip in clips}
    faulty = faults(listed, by_id, task.target)
    for fault, some in faulty.items():
        if not skip_bad:
            raise UserError(f"task {task.name!r}: {sentence(split, fault, some, by_id, task.target)}")
        skipped[f"{split} trials {fault}"] = len(some)
    bad = {trial for some in faulty.values() for trial in some}
    whole = [trial for trial in listed if trial not in bad]
    chosen = whole if listed else draw_trials(clips, task.target)
    chosen = chosen if limit is None else _of_each(chosen, limit)
    if {trial.target for trial in chosen} != {True, False}:
        raise UserError(
            f"task {task.name!r}: {split} needs trials of both kinds; give at least two clips of each of two speakers,"
            " or a trial list"
        )
    return chosen


def _of_each(trials: Iterable[Trial], limit: int) -> list[Trial]:
    taken: Counter[bool] = Counter()
    kept = []
    for trial in sorted(trials, key=lambda trial: digest(trial)):
        if taken[trial.target] < limit // 2 or taken[trial.target] == 0:
            taken[trial.target] += 1
            kept.append(trial)
    return kept


def draw_trials(clips: list[Clip], target: str) -> list[Trial]:
    """Trials for a corpus without a list: up to DRAWN_TRIALS of each kind, the same ones every time."""
    order = sorted(clips, key=lambda clip: clip.id)
    pairs = len(order) * (len(order) - 1) // 2
    dice = random.Random(0)
    if pairs <= 500_000:
        every = [(a, b) for place, a in enumerate(order) for b in order[place + 1 :]]
    else:
        every = _drawn_pairs(order, target, dice)
    kinds: dict[bool, list[Trial]] = {True: [], False: []}
    for a, b in every:
        same = a.labels[target] == b.labels[target]
        if place(a) != place(b):  # copies of one recording
            kinds[same].append(Trial(a.split, a.id, b.id, same))
    return [trial for kind in (True, False) for trial in _sample(kinds[kind], dice)]


def _drawn_pairs(order: list[Clip], target: str, dice: random.Random) -> list[tuple[Clip, Clip]]:
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in order:
        groups[clip.labels[target]].append(clip)
    several = [group for _, group in sorted(groups.items()) if len(group) > 1]
    across = [dice.sample(order, 2) for _ in range(2 * DRAWN_TRIALS)]
    within = [dice.sample(dice.choice(several), 2) for _ in range(2 * DRAWN_TRIALS) if several]
    pairs = {(min(a.id, b.id), max(a.id, b.id)): (a, b) for a, b in across + within}
    return [pair for _, pair in sorted(pairs.items(), key=lambda item: item[0])]


def _sample(trials: list[Trial], dice: random.Random) -> list[Trial]:
    return trials if len(trials) <= DRAWN_TRIALS else dice.sample(trials, DRAWN_TRIALS)
