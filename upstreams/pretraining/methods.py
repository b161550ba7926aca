"""What a method of pre-training is, and where each one lives."""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from upstreams.arguments import arguments_of
from upstreams.base import UpstreamError

# Modules whose `method(size, **options)` builds one.
METHODS = {name: f"upstreams.seeds.{name}" for name in ("ssast", "atst", "dino", "masr", "pms")}
UNKNOWN = -1  # among the labels of a batch
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class AudioBatch(NamedTuple):
    """Stretches of clips, zero-padded to the longest.

    waveforms: (B, S) float32 in [-1, 1]. lengths: (B,) int64, valid samples of each. labels: numbers (B,) int64 by
    kind, such as "language", UNKNOWN where a clip has none; only kinds that were asked for.
    """

    waveforms: Tensor
    lengths: Tensor
    labels: Mapping[str, Tensor] = NOTHING


class Step(NamedTuple):
    """What a method makes of a batch.

    terms: by name, each (); "loss" is minimised, the others are shown. vectors: (V * B, D) with gradients, each clip
    as the encoder that learns sees it, one view of all clips after the other; what a term on metadata is of.
    """

    terms: dict[str, Tensor]
    vectors: Tensor


@dataclass(frozen=True)
class Recipe:
    """How a method is trained, unless the user says otherwise. Rates follow a linear warm-up, then half a cosine."""

    steps: int
    batch: int  # clips in a step, over all processes and accumulated parts
    seconds: float  # of a clip that are seen at once; shorter clips are taken whole
    lr: float  # at the end of the warm-up
    final_lr: float = 1e-6
    warmup: int = 0  # steps
    optimizer: str = "adamw"  # or "adam", whose weight decay is part of the gradient
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # of matrices; vectors (biases, norms) have none
    final_weight_decay: float | None = None  # reached by half a cosine; None: constant
    clip: float | None = None  # largest norm of the gradient
    precision: str = "bf16"  # of autocast; or "fp32"


class Method(nn.Module, ABC):
    """A self-supervised objective together with the networks that it trains.

    Every random choice is drawn from torch's global generator, which the loop seeds anew for each step: weights,
    persistent buffers and the optimiser's moments are all there is to resume from.
    """

    sample_rate: int = 16_000  # Hz
    version: int = 1  # raised by the commit that changes what the training comes to
    recipe: Recipe
    metadata: Mapping[str, float] = MappingProxyType({})  # weights of kinds of labels that it learns from by itself
    origin: Mapping[str, str] = MappingProxyType({})  # SHA-256 of files, or listings of folders, that its options name

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        """Called once, before the first step of a new training, with its batches: such as to find a codebook.

        What it finds belongs in buffers, from which a training is resumed. It reads as many batches as it needs.
        """

    @abstractmethod
    def forward(self, batch: AudioBatch, done: float) -> Step:
        """One look at a batch. done: share of the training that is behind, in [0, 1)."""

    def stepped(self, done: float) -> None:
        """Called after each step of the optimiser, such as to let a teacher follow. done: as of then, in (0, 1]."""

    @abstractmethod
    def exported(self) -> dict[str, Tensor]:
        """Weights to keep, named as in the authors' checkpoints, so that the upstream of this method reads them."""


def mean_where(tokens: Tensor, kept: Tensor) -> Tensor:
    """Mean (B, D) of those of the tokens (B, N, D) that are kept (B, N)."""
    return (tokens.float() * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)


def method(reference: str, size: str, seed: int) -> Method:
    """The method of METHODS that a reference such as `ssast?variant=frame` names, its weights drawn from the seed.

    Raises UpstreamError for unknown names, options and sizes.
    """
    name, _, query = reference.partition("?")
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(METHODS)}"
        raise UpstreamError(f"no method '{name}'; {hint}")
    build = partial(importlib.import_module(METHODS[name]).method, size)
    options = arguments_of(query, build, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**options)
