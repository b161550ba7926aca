"""A method that trains in no time, and clips for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from upstreams.pretraining.loop import Schedule, fit
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step

CLIPS, SAMPLES, STEPS = 8, 6, 13
RECIPE = Recipe(
    steps=STEPS, batch=CLIPS, seconds=1.0, lr=3e-2, warmup=3, weight_decay=0.1, final_weight_decay=0.3, clip=0.5
)
PLAN = Schedule(replace(RECIPE, precision="fp32"), seed=5, accumulate=2, every=4, report_every=math.inf)


class Toy(Method):
    """Clips from fewer numbers; a slow copy follows, buffers learn about clips, and one weight takes no part."""

    recipe = RECIPE

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SAMPLES, 4), nn.Dropout(dropout), nn.GELU(), nn.Linear(4, SAMPLES))
        self.slow = nn.Linear(SAMPLES, 4).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("middle", torch.zeros(SAMPLES))
        self.seen: list[float] = []
        self.drawn: list[float] = []
        self.stepped_at: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch: AudioBatch, done: float) -> Step:
        vectors = self.layers[:-1](batch.waveforms)
        guessed = self.layers[-1](vectors)
        self.calls += 1
        self.middle.lerp_(batch.waveforms.mean(0), 0.1)
        self.drawn.append(float(torch.rand(())))
        self.seen.append(done)
        self.dtypes.add(guessed.dtype)
        loss = (guessed.float() - batch.waveforms).square().mean()
        return Step({"loss": loss, "done": torch.tensor(done), "drawn": torch.tensor(self.drawn[-1])}, vectors)

    def stepped(self, done: float) -> None:
        self.stepped_at.append(done)
        self.slow.weight.lerp_(self.layers[0].weight, 0.1)

    def exported(self) -> dict[str, Tensor]:
        return self.layers.state_dict()


class Spoilt(Toy):
    """Its loss is infinite in the seventh step."""

    def forward(self, batch: AudioBatch, done: float) -> Step:
        terms, vectors = super().forward(batch, done)
        return Step(terms | {"loss": terms["loss"] * (math.inf if round(done * STEPS) == 6 else 1.0)}, vectors)


def toy(dropout: float = 0.0, kind: type[Toy] = Toy) -> Toy:
    torch.manual_seed(0)
    return kind(dropout)


def batches(first: int, parts: int = 2, rank: int = 0, world: int = 1, steps: int = STEPS) -> Iterator[AudioBatch]:
    """Clips of each step, dealt out to processes and parts."""
    for step in range(first, steps):
        clips = torch.randn(CLIPS, SAMPLES, generator=torch.Generator().manual_seed(step))
        for rows in clips[rank::world].chunk(parts):
            yield AudioBatch(rows, torch.full((len(rows),), SAMPLES))


def fitted(plan: Schedule = PLAN, dropout: float = 0.0, **options) -> tuple[dict[str, Tensor], list]:
    trained = toy(dropout)
    history = fit(trained, lambda first: batches(first, plan.accumulate), plan, **options)
    return trained.state_dict(), history


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all that is trained is the same but for rounding."""
    names = [name for name in one if name not in ("calls", "middle")]
    return one.keys() == other.keys() and all(torch.allclose(one[name], other[name], 1e-6, 1e-6) for name in names)
