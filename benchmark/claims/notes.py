"""Notes below the tables of claims: how the numbers were made and how to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmark.claims.definitions import VARIANTS
from benchmark.claims.execution import CORPUS, ROUNDS, SIZE, ClaimPlan, seeds_text, variant_label
from benchmark.errors import UserError
from benchmark.records import Record
from benchmark.tasks import Task


def pretraining_steps(plan: ClaimPlan, records: Iterable[Record]) -> dict[str, int]:
    """Pre-training steps by variant; raises UserError where the seeds of one were trained for different numbers."""
    labels = dict(variant_label(record.upstream["name"]) for record in records)
    steps_of: dict[str, int] = {}
    for variant in plan.variants:
        several = {labels[name] for seed in range(plan.seeds) if (name := f"{variant}-{seed}") in labels}
        if len(several) > 1:
            numbers = " and ".join(f"{steps:,}" for steps in sorted(several))
            raise UserError(
                f"seeds of {variant} were pre-trained for {numbers} steps; say with --steps which ones count"
            )
        if several:
            steps_of[variant] = several.pop()
    return steps_of


def claim_notes(plan: ClaimPlan, intervals: int, steps: Mapping[str, int]) -> list[str]:
    """The notes. intervals: how many intervals are shown. steps: of pre-training, by variant."""
    training = ", ".join(steps_text(variant, steps[variant]) for variant in plan.variants if variant in steps)
    spread = ", ± their standard deviation" if plan.seeds > 1 else ""
    alone = "; of one seed, they leave out how much another pre-training would differ" if plan.seeds == 1 else ""
    varied = "pre-training seeds" if plan.seeds > 1 else "probe seeds"
    asks = "it asks which of the 66 speakers of its training clips speaks in a clip"
    known = f", except for tiny_speaker: {asks}" if any(task.target == "sid" for task in plan.needed) else ""
    return [
        f"scores in percent on test clips, means over {seeds_text(plan.seeds)}{spread}; ↓: lower is better; size"
        f" {SIZE}, pre-trained on {CORPUS}; steps of pre-training: {training}",
        *regime_texts(plan.needed),
        f"no speaker of a test clip occurs in pre-training or in the training of heads{known}",
        "intervals: 95 % of a t distribution whose variance is that of a paired bootstrap over speakers (over clips"
        f" without speech) plus that over {varied}; a relative gain is linearised{alone}",
        'verdicts: "shown" if the whole interval is above 0, in favour of the first system, "opposite" if it is below,'
        f' else "not resolved"; the interval in points decides; the {intervals} intervals are not adjusted for their'
        " number: where nothing differs, one in twenty excludes 0 by chance",
    ]


def steps_text(variant: str, steps: int) -> str:
    """The steps of a variant, such as "dino 700", or those of each round of pseudo-labels."""
    after = VARIANTS[variant].after
    return f"{variant} {steps:,}" + (f" in each of {ROUNDS} rounds after those of {after}" if after else "")


def regime_texts(tasks: Iterable[Task]) -> list[str]:
    """How heads are trained: a sentence for each kind of task."""
    every = list(tasks)
    tuned = [task for task in every if task.features == "finetune"]
    compared = [task for task in every if task.head == "cosine"]
    probes = [task for task in every if task not in tuned and task not in compared]
    parts = []
    if probes:
        parts.append(f"frozen: a probe on a weighted sum of layers, {len(probes[0].seeds)} probe seeds")
    if tuned:
        parts.append(f"fine-tuned: {'; '.join(tuning_texts(tuned))}")
    texts = (
        ["; ".join([*parts, "learning rate and epoch chosen on validation from the same grid for all"])]
        if parts
        else []
    )
    if compared:
        names = " and ".join(task.name for task in compared)
        texts.append(
            f"{names}: EER of the cosine between two clips' vectors, from the layer with the lowest EER on validation"
        )
    return texts


def tuning_texts(tasks: Sequence[Task]) -> list[str]:
    """How tasks are fine-tuned, such as "6 epochs, learning rates 0.0005, 0.001 (tiny_keyword)"."""
    alike: dict[tuple[int, tuple[float, ...]], list[str]] = {}
    for task in tasks:
        alike.setdefault((task.epochs, task.lr), []).append(task.name)
    return [
        f"{epochs} epochs, learning rates {', '.join(f'{lr:g}' for lr in rates)}"
        + (f" ({', '.join(names)})" if len(alike) > 1 else "")
        for (epochs, rates), names in alike.items()
    ]
