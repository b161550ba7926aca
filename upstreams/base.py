"""The interface of upstreams: they take a batch of waveforms and return frames of every layer."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

SHIPPED = Path(__file__).with_name("weights")  # folder of NAME.safetensors for each upstream that ships with weights


class UpstreamError(ValueError):
    """An error about an upstream that the user can correct; the message is one sentence addressed to the user."""


class Features(NamedTuple):
    """The output of an upstream for a batch.

    frames: (B, T, L, D) float. Time comes first, so that clips can be padded, sliced and memory-mapped without
        transposing. Frames at and beyond a clip's length are zero.
    lengths: (B,) int64, the number of valid frames of each clip.
    """

    frames: Tensor
    lengths: Tensor


class Upstream(nn.Module, ABC):
    """An encoder of speech or audio.

    A clip's features depend neither on the other clips of its batch, nor on the batch size, nor on its padding.
    Every clip of at least `SHORTEST` seconds is accepted; a clip shorter than `window` is extended with zeros.
    """

    SHORTEST = 0.025  # seconds
    sample_rate: int = 16_000  # Hz
    hop: int  # samples from one frame to the next
    window: int  # samples that the first frame covers
    layers: int  # L, counting the input of the first block
    dim: int  # D
    version: int = 1  # to be raised by a commit that changes what the class computes
    stable_name: str = ""  # "module:Class" in the fingerprint, kept if the class moves; by default its current place
    source: str = ""  # digest of the user's file that defines the upstream; set by `upstreams.create`
    origin: Mapping[str, str] = {}  # the origin of the weights: SHA-256 of each file by name, "revision" on a hub

    @abstractmethod
    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        """Encode a padded batch.

        waveforms: (B, S) float32 in [-1, 1] at `sample_rate`; samples beyond a clip's length are ignored.
        lengths: (B,) int64, the number of valid samples of each clip, at most S.
        """

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return one vector per clip and layer, (B, L', D'); by default the mean of `forward` over time."""
        return mean_over_time(*self(waveforms, lengths))

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return the number of valid frames (B,) that `forward` gives for clips of `lengths` samples (B,)."""
        return torch.clamp(lengths - self.window, min=0) // self.hop + 1

    def settings(self) -> dict[str, object]:
        """Return all settings besides class and weights that change the features, as JSON values.

        They are part of the fingerprint.
        """
        return {}


def valid(lengths: Tensor, size: int) -> Tensor:
    """Return a mask (B, size) that is True before each clip's length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def mean_over_time(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean (B, L, D) over the valid frames of (B, T, L, D)."""
    mask = valid(lengths, frames.shape[1])[:, :, None, None]
    return (frames * mask).sum(1) / lengths[:, None, None]


def by_length(encode: Callable[[Tensor], Tensor], waveforms: Tensor, lengths: Tensor, counts: Tensor) -> Features:
    """Encode clips of equal length together, without padding, for models that cannot ignore padding.

    encode: a function from (N, S) to frames (N, T, L, D).
    counts: (B,) the number of frames to keep of each clip, counted from its start.
    """
    parts = []
    for length in lengths.unique().tolist():
        chosen = (lengths == length).nonzero()[:, 0]
        parts.append((chosen, encode(waveforms[chosen, :length].float())[:, : int(counts[chosen[0]])]))
    if len(parts) == 1:
        return Features(parts[0][1], counts)
    shape = parts[0][1].shape[2:]
    frames = parts[0][1].new_zeros(len(lengths), int(counts.max()), *shape)
    for chosen, part in parts:
        frames[chosen, : part.shape[1]] = part
    return Features(frames, counts)


def identity_of(kind: type[Upstream]) -> tuple[str, str]:
    """Return the module and name that stand for a class in the fingerprint; a subclass does not inherit them."""
    module, _, name = vars(kind).get("stable_name", "").partition(":")
    return (module, name) if name else (kind.__module__, kind.__qualname__)


def fingerprint(upstream: Upstream) -> str:
    """Return the SHA-256 hash (64 hexadecimal digits) of class, version number, settings, weights and buffers."""
    digest = hashlib.sha256()
    module, name = identity_of(type(upstream))
    shape = [upstream.sample_rate, upstream.hop, upstream.window, upstream.layers, upstream.dim]
    facts = [module, name, upstream.version, shape, upstream.settings(), upstream.source]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(upstream.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else b"")
    return digest.hexdigest()
