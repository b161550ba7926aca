"""The interface of a pre-training method, and the registry of methods."""

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

from upstreams.arguments import parse_arguments
from upstreams.base import UpstreamError

# Modules by method; the function `method(size, **options)` of each builds it.
METHODS = {name: f"upstreams.seeds.{name}" for name in ("ssast", "atst", "dino", "masr", "pms")}
UNKNOWN = -1  # the label of clips that have none
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class AudioBatch(NamedTuple):
    """Segments of clips, zero-padded to the longest.

    waveforms: (B, S) float32 in [-1, 1]. lengths: (B,) int64, valid samples of each. labels: (B,) int64 by
    kind, such as "language", UNKNOWN if a clip has none; only the requested kinds are present.
    """

    waveforms: Tensor
    lengths: Tensor
    labels: Mapping[str, Tensor] = NOTHING


class Step(NamedTuple):
    """The result of a method for one batch.

    terms: scalars () by name; "loss" is minimised, the others are reported. vectors: (V * B, D) with gradients, the
    utterance vectors of the trained encoder for V views, each of all clips; the metadata triplet loss uses them.
    """

    terms: dict[str, Tensor]
    vectors: Tensor


@dataclass(frozen=True)
class Recipe:
    """Default training settings. The learning rate rises linearly during the warm-up, then falls by half a cosine."""

    steps: int
    batch: int  # clips per step, over all processes and micro-batches
    seconds: float  # of each segment; shorter clips are used whole
    lr: float  # learning rate at the end of the warm-up
    final_lr: float = 1e-6
    warmup: int = 0  # steps
    optimizer: str = "adamw"  # or "adam", whose weight decay is part of the gradient
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # of matrices; vectors (biases, norms) are not decayed
    final_weight_decay: float | None = None  # reached by half a cosine; None: constant
    clip: float | None = None  # largest norm of the gradient
    precision: str = "bf16"  # of autocast; or "fp32"


class Method(nn.Module, ABC):
    """A self-supervised objective together with the networks that it trains.

    All random numbers come from torch's global generator, which the loop seeds for each step. A training therefore
    resumes from weights, persistent buffers and the moments of the optimiser alone.
    """

    sample_rate: int = 16_000  # Hz
    version: int = 1  # raised by each commit that changes the result of the training
    recipe: Recipe
    metadata: Mapping[str, float] = MappingProxyType({})  # weights of the kinds of labels that the method itself uses
    origin: Mapping[str, str] = MappingProxyType(
        {}
    )  # SHA-256 of the files, or of listings of the folders, named by options

    def prepare(self, batches: Iterator[AudioBatch]) -> None:
        """Prepare a new training, before its first step, from as many batches as needed, for example by a codebook.

        The result belongs in buffers, from which a training is resumed.
        """

    @abstractmethod
    def forward(self, batch: AudioBatch, done: float) -> Step:
        """Return the terms and vectors of a batch. done: the completed share of the training, in [0, 1)."""

    def stepped(self, done: float) -> None:
        """Called after each optimiser step, for example to update a teacher. done: completed share, in (0, 1]."""

    @abstractmethod
    def exported(self) -> dict[str, Tensor]:
        """Return the weights to save, named as in the authors' checkpoints, which the upstream of this method reads."""


def mean_where(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, D) of the tokens (B, N, D) that a mask (B, N) selects."""
    return (tokens.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def create_method(reference: str, size: str, seed: int) -> Method:
    """Build the method named by a reference such as `ssast?variant=frame`, with weights initialised from the seed.

    Raises UpstreamError for unknown names, options and sizes.
    """
    name, _, query = reference.partition("?")
    if name not in METHODS:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(METHODS)}"
        raise UpstreamError(f"no method '{name}'; {hint}")
    build = partial(importlib.import_module(METHODS[name]).method, size)
    options = parse_arguments(query, build, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(**options)
