"""Sounds to try an upstream on, and how what it makes of them is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from upstreams.base import Upstream


def sounds(upstream: Upstream, *seconds: float) -> list[Tensor]:
    """Clips (S,) of noise that swells and fades, the same ones each time, where the upstream's weights are."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for duration in seconds:
        samples = round(duration * upstream.sample_rate)
        swell = torch.sin(torch.arange(samples) * (20.0 / upstream.sample_rate)).square()
        clips.append(0.1 * swell * torch.randn(samples, generator=generator))
    device = next((t.device for t in tensors(upstream)), torch.device("cpu"))
    return [clip.to(device) for clip in clips]


def tensors(upstream: Upstream) -> Iterable[Tensor]:
    return chain(upstream.parameters(), upstream.buffers())


def batch(clips: list[Tensor], extra: int = 0, filling: float = 0.0) -> tuple[Tensor, Tensor]:
    """Clips padded to the longest and `extra` samples more, (B, S), and their lengths (B,)."""
    lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
    waveforms = clips[0].new_full((len(clips), int(lengths.max()) + extra), filling)
    for row, clip in zip(waveforms, clips, strict=True):
        row[: len(clip)] = clip
    return waveforms, lengths


def encode(upstream: Upstream, clips: list[Tensor], extra: int = 0, filling: float = 0.0) -> list[Tensor]:
    """Frames (T, L, D) of each clip, without what lies beyond its length."""
    frames, lengths = upstream(*batch(clips, extra, filling))
    return [row[: int(length)].float() for row, length in zip(frames, lengths, strict=True)]


def difference(one: Tensor, other: Tensor, least: float = 1e-12) -> float:
    """Largest difference of (..., L, D), relative to the layer's largest value, which is taken to be at least `least`.

    Infinite where shapes differ, and on NaN.
    """
    if one.shape != other.shape:
        return float("inf")
    scale = torch.amax(one.abs(), dim=(*range(one.ndim - 2), -1), keepdim=True).clamp(min=least)
    worst = float(((one - other).abs() / scale).amax()) if one.numel() else 0.0
    return worst if worst == worst else float("inf")


def digest(upstream: Upstream) -> str:
    """Hash of all weights and buffers, those that no state dict holds included."""
    content = hashlib.sha256()
    for tensor in tensors(upstream):
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
