"""The contract of an upstream: waveforms in, layerwise frames out."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

SHIPPED = Path(__file__).with_name("weights")  # NAME.safetensors of each registered name that ships with weights


class UpstreamError(ValueError):
    """Something about an upstream that its user must change; the message is one sentence for them."""


class Features(NamedTuple):
    """What an upstream makes of a batch.

    frames: (B, T, L, D) float; time first, so that clips pad, slice and memory-map without transposing.
        Frames at and beyond a clip's length are zero.
    lengths: (B,) int64, valid frames of each clip.
    """

    frames: Tensor
    lengths: Tensor


class Upstream(nn.Module, ABC):
    """An encoder of speech or audio.

    A clip's features depend neither on the clips it is batched with, nor on the batch size, nor on its padding.
    Every clip of at least `SHORTEST` seconds is accepted; one shorter than `window` is extended with zeros.
    """

    SHORTEST = 0.025  # seconds
    sample_rate: int = 16_000  # Hz
    hop: int  # samples from one frame to the next
    window: int  # samples that the first frame needs
    layers: int  # L, counting the input of the first block
    dim: int  # D
    version: int = 1  # raised by the commit that changes what the class computes
    stable_name: str = ""  # "module:Class" that the fingerprint keeps if the class moves; by default where it is now
    source: str = ""  # digest of the user's file that it came from; set by `upstreams.create`
    origin: Mapping[str, str] = {}  # where weights came from: SHA-256 of each file by name, and "revision" of a hub's

    @abstractmethod
    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        """Encode a padded batch.

        waveforms: (B, S) float32 in [-1, 1] at `sample_rate`; whatever lies beyond a clip's length is ignored.
        lengths: (B,) int64, valid samples of each clip, at most S.
        """

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """One vector per layer and clip, (B, L', D'): the time mean of `forward` unless the model defines its own."""
        return mean_over_time(*self(waveforms, lengths))

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Valid frames (B,) that `forward` gives clips of `lengths` samples (B,)."""
        return torch.clamp(lengths - self.window, min=0) // self.hop + 1

    def settings(self) -> dict[str, object]:
        """Everything beside class and weights that changes the features, as JSON values; part of the fingerprint."""
        return {}


def valid(lengths: Tensor, size: int) -> Tensor:
    """Mask (B, size), True before each clip's length."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def mean_over_time(frames: Tensor, lengths: Tensor) -> Tensor:
    """Mean (B, L, D) of the valid frames of (B, T, L, D)."""
    mask = valid(lengths, frames.shape[1])[:, :, None, None]
    return (frames * mask).sum(1) / lengths[:, None, None]


def by_length(encode: Callable[[Tensor], Tensor], waveforms: Tensor, lengths: Tensor, counts: Tensor) -> Features:
    """Features of models that cannot ignore padding: clips of the same length are encoded together, without any.

    encode: (N, S) to frames (N, T, L, D), of which the first `counts` (B,) of each clip are kept.
    """
    parts = []
    for length in lengths.unique().tolist():
        chosen = (lengths == length).nonzero()[:, 0]
        parts.append((chosen, encode(waveforms[chosen, :length].float())[:, : int(counts[chosen[0]])]))
    if len(parts) == 1:
        return Features(parts[0][1], counts)
    shape = parts[0][1].shape[2:]
    frames = parts[0][1].new_zeros(len(lengths), int(counts.max()), *shape)
    for chosen, some in parts:
        frames[chosen, : some.shape[1]] = some
    return Features(frames, counts)


def identity_of(kind: type[Upstream]) -> tuple[str, str]:
    """Module and name by which the fingerprint knows a class; a subclass does not inherit them."""
    module, _, name = vars(kind).get("stable_name", "").partition(":")
    return (module, name) if name else (kind.__module__, kind.__qualname__)


def fingerprint(upstream: Upstream) -> str:
    """Hash (64 hexadecimal digits) of class, version number, settings, weights and buffers."""
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
