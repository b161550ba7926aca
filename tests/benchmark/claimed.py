"""Claims and records of their variants, made up for tests of the verdicts on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from zlib import crc32

import numpy as np

from benchmark.claims import execution
from benchmark.claims.checkpoint_records import SystemRecords
from benchmark.claims.definitions import VARIANTS, Claim
from benchmark.claims.execution import ClaimPlan
from benchmark.corpora.synthesis.rendering import SyntheticClip
from benchmark.corpora.tiny import tiny_clips
from benchmark.plan import fixed_settings
from benchmark.records import Results
from benchmark.statistics.outcomes import Outcomes, Row
from benchmark.tasks import Task
from tests.benchmark.made import record

CODE = "0123abcd"


def reference(variant: str, seed: int, steps: int = 5) -> str:
    return f"{VARIANTS[variant].upstream}@somewhere/home-2/claims/{variant}-{seed}-{steps}-{CODE}.safetensors"


def outcomes(rng: np.random.Generator, share: float, ids: list[str]) -> list[dict[str, object]]:
    speakers = speakers_of_clips()
    return [
        {"id": id, "reference": "a", "prediction": "b", "correct": bool(rng.random() < share),
         "cluster": f"speaker {speakers[id]}" if id in speakers else f"clip {id}"}
        for id in ids
    ]  # fmt: skip


def write_variant(results: Results, task: Task, name: str, share: float, ids: list[str], **fields: object) -> None:
    """Records of a task's whole grid: learning rates that are worse on validation got everything right on test."""
    rng = np.random.default_rng(crc32(f"{task.name} {name}".encode()))
    for lr, seed in product(task.lr, task.seeds):
        valid, right = (60.0, share) if lr == task.lr[0] else (50.0, 1.0)
        rows = outcomes(rng, right, ids)
        test = 100 * float(np.mean([row["correct"] for row in rows]))
        one = record(name, task.name, lr=lr, seed=seed, valid=valid, test=test, settings=fixed_settings(task), **fields)  # type: ignore[arg-type]
        code = crc32(repr(fields).encode())
        one = one.model_copy(update={"id": f"{name[-30:].replace('/', '-')}-{task.name}-{lr:g}-{seed}-{code}"})
        results.write(one, rows)


@cache
def speakers_of_clips() -> dict[str, str]:
    return {clip.id: clip.labels["speaker"] for clip in every_clip() if "speaker" in clip.labels}


@cache
def every_clip() -> list[SyntheticClip]:
    return tiny_clips()


def clips_of(task: Task) -> list[str]:
    return [clip.id for clip in every_clip() if clip.split == "test" and task.target in clip.labels]


def single(task: str) -> tuple[Claim, ClaimPlan]:
    """A claim on one task, with one seed."""
    return Claim("s", "a", "b", "frozen", "", tasks=(task,)), ClaimPlan((), execution.claim_tasks([task]), 1)


def systems(
    rows: Mapping[str, Sequence[Sequence[Row]]], task: str, metric: str = "accuracy"
) -> tuple[SystemRecords, Outcomes]:
    """Records of systems such as "a-0" on one task, one for each probe seed, and what reads their outcomes."""
    chosen: SystemRecords = {}
    read: dict[str, Sequence[Row]] = {}
    for label, probes in rows.items():
        for seed, outcomes in enumerate(probes):
            test = 100 * float(np.mean([row["correct"] == "True" for row in outcomes]))
            one = record(label, task, seed=seed, test=test, metric=metric)
            chosen.setdefault((label, task), []).append(one)
            read[one.id] = outcomes
    return chosen, lambda one: read[one.id]
