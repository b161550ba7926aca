"""Claims and records of their arms, made up for tests of what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from zlib import crc32

import numpy as np

from benchmark.claims import execution, predictions
from benchmark.claims.definitions import VARIANTS, Claim
from benchmark.claims.execution import ClaimPlan
from benchmark.corpora.synthesis.rendering import SyntheticClip
from benchmark.corpora.tiny import clips
from benchmark.plan import fixed
from benchmark.records import Results
from benchmark.tasks import Task
from benchmark.values import Setup
from tests.benchmark.made import record

CODE = "0123abcd"


def speakers_of(corpora: Iterable[str], setup: Setup) -> dict[str, str]:
    return _speakers_of(tuple(corpora), setup.data)


@cache
def _speakers_of(corpora: tuple[str, ...], data: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return predictions.speakers_of(corpora, Setup(Path("unused"), Path("unused"), data))


def reference(arm: str, seed: int, steps: int = 5) -> str:
    return f"{VARIANTS[arm].upstream}@somewhere/home-2/claims/{arm}-{seed}-{steps}-{CODE}.safetensors"


def outcomes(rng: np.random.Generator, share: float, ids: list[str]) -> list[dict[str, object]]:
    return [{"id": id, "reference": "a", "prediction": "b", "correct": bool(rng.random() < share)} for id in ids]


def write_arm(results: Results, task: Task, name: str, share: float, ids: list[str], **fields: object) -> None:
    """Records of a task's whole grid: learning rates that are worse on validation got everything right on test."""
    rng = np.random.default_rng(crc32(f"{task.name} {name}".encode()))
    for lr, seed in product(task.lr, task.seeds):
        valid, right = (60.0, share) if lr == task.lr[0] else (50.0, 1.0)
        one = record(name, task.name, lr=lr, seed=seed, valid=valid, test=0.0, settings=fixed(task), **fields)  # type: ignore[arg-type]
        code = crc32(repr(fields).encode())
        one = one.model_copy(update={"id": f"{name[-30:].replace('/', '-')}-{task.name}-{lr:g}-{seed}-{code}"})
        results.write(one, outcomes(rng, right, ids))


@cache
def every_clip() -> list[SyntheticClip]:
    return clips()


def clips_of(task: Task) -> list[str]:
    return [clip.id for clip in every_clip() if clip.split == "test" and task.target in clip.labels]


def single(task: str) -> tuple[Claim, ClaimPlan]:
    """A claim on one task, with one seed."""
    return Claim("s", "a", "b", "frozen", "", tasks=(task,)), ClaimPlan((), execution.tasks_of([task]), 1)
