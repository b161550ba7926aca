"""Probe signals for checking an upstream, and the comparison of the resulting features."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor

from upstreams.base import Upstream
from upstreams.precision import Autocast


class Fault(Exception):  # noqa: N818
    """Raised if an upstream violates its contract; the message gives the fault and the remedy."""


def require(condition: bool, fault: str) -> None:
    """Raise Fault unless the condition holds."""
    if not condition:
        raise Fault(fault)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless the count is 1."""
    return f"{count} {noun}" + ("s" if count != 1 else "")


def tolerance(upstream: Upstream) -> float:
    """Return the tolerance for features that should be equal, relative to the layer's largest value."""
    return (
        0.1 if isinstance(upstream, Autocast) else 1e-4
    )  # bfloat16 has eight significant bits, and rounds in every layer


def sounds(upstream: Upstream, *seconds: float) -> list[Tensor]:
    """Return clips (S,) of amplitude-modulated noise from a fixed seed, on the device of the upstream."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for duration in seconds:
        samples = round(duration * upstream.sample_rate)
        swell = torch.sin(torch.arange(samples) * (20.0 / upstream.sample_rate)).square()
        clips.append(0.1 * swell * torch.randn(samples, generator=generator))
    return [clip.to(device(upstream)) for clip in clips]


def burst(upstream: Upstream, seconds: float, *spans: tuple[float, float]) -> list[Tensor]:
    """Return stationary noise (S,) and, for each span in seconds, a copy with other noise of equal level there."""
    generator = torch.Generator().manual_seed(0)
    plain, other = (0.1 * torch.randn(round(seconds * upstream.sample_rate), generator=generator) for _ in range(2))
    clips = [plain]
    for start, end in spans:
        part = slice(round(start * upstream.sample_rate), round(end * upstream.sample_rate))
        clips.append(plain.clone())
        clips[-1][part] = other[part]
    return [clip.to(device(upstream)) for clip in clips]


def device(upstream: Upstream) -> torch.device:
    """Return the device of the upstream's weights."""
    return next((tensor.device for tensor in tensors(upstream)), torch.device("cpu"))


def tensors(upstream: Upstream) -> Iterable[Tensor]:
    """Return all weights and buffers."""
    return chain(upstream.parameters(), upstream.buffers())


def edges(upstream: Upstream) -> list[Tensor]:
    """Return twelve clips whose lengths are one sample below, at and above the lengths at which a frame is added."""
    least = math.ceil(upstream.SHORTEST * upstream.sample_rate)
    first = max(1, math.ceil((least + 1 - upstream.window) / upstream.hop))
    ends = [upstream.window + (first + number) * upstream.hop for number in (0, 1, 2, 7)]
    return sounds(upstream, *((end + change) / upstream.sample_rate for end in ends for change in (-1, 0, 1)))


def batch(clips: list[Tensor], extra: int = 0, filling: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return clips padded to the longest plus `extra` samples, (B, S), and their lengths (B,)."""
    lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
    waveforms = clips[0].new_full((len(clips), int(lengths.max()) + extra), filling)
    for row, clip in zip(waveforms, clips, strict=True):
        row[: len(clip)] = clip
    return waveforms, lengths


def encode(upstream: Upstream, clips: list[Tensor], extra: int = 0, filling: float = 0.0) -> list[Tensor]:
    """Return the valid frames (T, L, D) of each clip."""
    frames, lengths = upstream(*batch(clips, extra, filling))
    return [row[: int(length)].float() for row, length in zip(frames, lengths, strict=True)]


def relative_difference(one: Tensor, other: Tensor, least: float = 1e-12) -> float:
    """Return the largest difference of (..., L, D), relative to the layer's largest value, which is at least `least`.

    The result is infinite if the shapes differ or a value is NaN.
    """
    if one.shape != other.shape:
        return float("inf")
    scale = torch.amax(one.abs(), dim=(*range(one.ndim - 2), -1), keepdim=True).clamp(min=least)
    worst = float(((one - other).abs() / scale).amax()) if one.numel() else 0.0
    return worst if worst == worst else float("inf")


def weights_digest(upstream: Upstream) -> str:
    """Return the SHA-256 of all weights and buffers, including non-persistent buffers."""
    content = hashlib.sha256()
    for tensor in tensors(upstream):
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()
