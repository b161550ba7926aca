"""A method of pre-training that is small enough to be run whole, and draws from every source of chance there is."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.pretraining.methods import AudioBatch, Method, Recipe, Step

NAME = "toy"
MODULE = "tests.benchmark.toy_method"
RECIPE = Recipe(steps=60, batch=4, seconds=0.1, lr=1e-2, warmup=5, weight_decay=0.01, clip=1.0, precision="fp32")


class Toy(Method):
    """Guesses the second half of a stretch of sound from its noisy first half."""

    sample_rate = 8_000
    recipe = RECIPE

    def __init__(self, width: int, pause: float) -> None:
        super().__init__()
        self.pause = pause
        self.layers = nn.Sequential(nn.Linear(400, width), nn.Dropout(0.2), nn.GELU(), nn.Linear(width, 400))
        self.slow = nn.Linear(400, width).requires_grad_(False)

    def forward(self, batch: AudioBatch, done: float) -> Step:
        time.sleep(self.pause)
        sound = nn.functional.pad(batch.waveforms, (0, 800 - batch.waveforms.shape[1]))
        first, second = sound.split(400, 1)
        vectors = self.layers[:-1](first + 0.01 * torch.randn_like(first))
        error = (self.layers[-1](vectors) - second).square().mean(1)
        return Step({"loss": error.mean(), "heard": batch.lengths.float().mean()}, vectors)

    def stepped(self, done: float) -> None:
        with torch.no_grad():
            self.slow.weight.lerp_(self.layers[0].weight, 0.1)

    def exported(self) -> dict[str, Tensor]:
        return {**self.layers.state_dict(prefix="layers."), **self.slow.state_dict(prefix="slow.")}


def method(size: str, pause: float = 0.0, width: int = 8) -> Toy:
    """pause: seconds that a step takes at least."""
    if size != "mini":
        raise UpstreamError(f"no size '{size}' of 'toy'; there is: mini")
    return Toy(width, pause)


def main() -> None:
    """`bench` with this method registered, in a process of its own."""
    from benchmark.cli.app import main as bench
    from upstreams.pretraining.methods import METHODS

    METHODS[NAME] = MODULE
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bench()


if __name__ == "__main__":
    main()
