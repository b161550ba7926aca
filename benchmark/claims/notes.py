"""What has to be told beside the verdicts on claims: how their numbers came about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmark.claims.definitions import VARIANTS
from benchmark.claims.execution import POOL, ROUNDS, SIZE, ClaimPlan, label_of, seeds_told
from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.tasks import Task


def steps_of(plan: ClaimPlan, records: Iterable[Record]) -> dict[str, int]:
    """Of pre-training, by arm; raises UserError for an arm whose seeds were trained for different numbers of them."""
    labels = dict(label_of(record.upstream["name"]) for record in records)
    found: dict[str, int] = {}
    for arm in plan.arms:
        several = {labels[name] for seed in range(plan.seeds) if (name := f"{arm}-{seed}") in labels}
        if len(several) > 1:
            told = " and ".join(f"{steps:,}" for steps in sorted(several))
            raise UserError(f"seeds of {arm} were pre-trained for {told} steps; say with --steps which ones count")
        if several:
            found[arm] = several.pop()
    return found


def notes(plan: ClaimPlan, intervals: int, steps: Mapping[str, int]) -> list[str]:
    """How the numbers came about. intervals: how many are shown. steps: of pre-training, by arm."""
    told = ", ".join(steps_told(arm, steps[arm]) for arm in plan.arms if arm in steps)
    spread = ", ± their standard deviation" if plan.seeds > 1 else ""
    alone = "; of one seed, they leave out how much another would differ" if plan.seeds == 1 else ""
    asks = "it asks which of 66 speakers of its training clips speaks, in other clips of theirs"
    known = f", but for tiny_speaker: {asks}" if any(task.target == "sid" for task in plan.needed) else ""
    return [
        f"scores in percent on test clips, means over {seeds_told(plan.seeds)}{spread}; ↓: lower is better; size"
        f" {SIZE}, pre-trained on {POOL}; steps of pre-training: {told}",
        *regimes_told(plan.needed),
        f"who speaks in test clips is heard neither in pre-training nor in the training of heads{known}",
        "intervals: 95 % of a t distribution, its error that of a paired bootstrap over speakers (over clips, where"
        f" nobody speaks) and the spread over pre-training seeds{alone}",
        'verdicts: "shown", where the whole interval is above 0, which is for the first system, "opposite", where it is'
        ' below, else "not resolved"; the interval in points decides, a relative one is beside it; each of'
        f" {intervals} intervals stands for itself: where nothing differs, one in twenty misses 0 by chance",
    ]


def steps_told(arm: str, steps: int) -> str:
    """Such as "dino 700"; of an arm that goes on from another, those of each of its rounds."""
    after = VARIANTS[arm].after
    return f"{arm} {steps:,}" + (f" in each of {ROUNDS} rounds after those of {after}" if after else "")


def regimes_told(tasks: Iterable[Task]) -> list[str]:
    """How heads are trained, a sentence for each regime that the tasks are of."""
    every = list(tasks)
    tuned = [task for task in every if task.features == "finetune"]
    compared = [task for task in every if task.head == "cosine"]
    probes = [task for task in every if task not in tuned and task not in compared]
    said = []
    if probes:
        said.append(f"frozen: a probe on a weighted sum of layers, {len(probes[0].seeds)} probe seeds")
    if tuned:
        said.append(f"fine-tuned: {'; '.join(tuning_told(tuned))}")
    told = ["; ".join([*said, "rate and epoch chosen on validation, from the same grid for all"])] if said else []
    if compared:
        names = " and ".join(task.name for task in compared)
        told.append(f"{names}: EER of the cosine of two clips' vectors, of the layer with the lowest on validation")
    return told


def tuning_told(tasks: Sequence[Task]) -> list[str]:
    """Such as "6 epochs, learning rates 0.0005, 0.001 (tiny_keyword, ...)", tasks that are tuned alike together."""
    alike: dict[tuple[int, tuple[float, ...]], list[str]] = {}
    for task in tasks:
        alike.setdefault((task.epochs, task.lr), []).append(task.name)
    return [
        f"{epochs} epochs, learning rates {', '.join(f'{lr:g}' for lr in rates)}"
        + (f" ({', '.join(names)})" if len(alike) > 1 else "")
        for (epochs, rates), names in alike.items()
    ]
