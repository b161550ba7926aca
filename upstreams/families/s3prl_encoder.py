"""A model of s3prl (Yang et al., 2021, "SUPERB") as an upstream: all its hidden states, at their own frame rate.

The number of frames is that of the model itself, whereas s3prl repeats the last frame up to ceil(samples / hop) frames.
That rule is applied only to models without a constant frame rate, such as SSAST, which splits a clip into windows and
drops the end of each window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from upstreams.base import Features, Upstream, UpstreamError, by_length
from upstreams.contract.probe_signals import plural, relative_difference
from upstreams.families.s3prl_bridge import generators_preserved

SHORTEST = 800  # samples; s3prl extends shorter clips
COSTLY = (F.linear, F.conv1d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
EXACT = 1e-4  # relative to a layer's largest value, as in the contract


class S3prl(Upstream):
    """All hidden states of a model of s3prl, in its order; layers with a lower frame rate are repeated to the highest.

    expert: the module that s3prl's hub builds; it maps clips, a list of (S,), to {"hidden_states": [(B, T, D), ...]}.
    identity: settings besides weights that change features, as JSON values.
    Raises UpstreamError if layers differ in width, or if their frame rates are not multiples of each other.
    """

    stable_name = "upstreams.s3prl_encoder:S3prl"

    def __init__(self, expert: nn.Module, identity: dict[str, object]) -> None:
        super().__init__()
        self.expert, self.identity = expert.eval(), identity
        rates = expert.get_downsample_rates("hidden_states")  # type: ignore[operator]
        declared = int(rates if isinstance(rates, int) else min(rates))
        if not 1 <= declared <= 10 * 16_000:
            raise UpstreamError(f"its declared hop is {declared} samples; it must be from 1 to 160000")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.shortest, states = first_states(expert)
            self.repeats, self.layers, self.dim = repeat_factors(states), len(states), common_width(states)
            alone = self.joined(states)
            count = self.blank_count if self.blank_count(16_000) == alone.shape[1] else self.count
            self.hop, self.window = hop_and_window(cache(count), declared, self.shortest)
            if not alone.isfinite().all():
                raise UpstreamError("its features for noise are NaN or infinite; check its configuration")
            self.together = self.exact_together(alone[0])

    def settings(self) -> dict[str, object]:
        return {**self.identity, "s3prl": metadata.version("s3prl"), "shortest": self.shortest}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return by_length(self.encode, waveforms, lengths, self.frame_lengths(lengths))

    def encode(self, clips: Tensor) -> Tensor:
        """Return frames (N, T, L, D) of clips (N, S) without padding; T is given by `frame_lengths`."""
        needed = max(self.window, self.shortest)
        count = int(self.frame_lengths(torch.tensor(clips.shape[1])))
        longer = F.pad(clips, (0, max(needed - clips.shape[1], 0)))
        if self.together:
            return fill_frames(self.stacked(longer), count)
        return fill_frames(torch.cat([self.stacked(clip) for clip in longer.split(1)]), count)

    def stacked(self, clips: Tensor) -> Tensor:
        """Return all frames of the model for clips (N, S), as (N, T, L, D)."""
        return self.joined(hidden_states(self.expert, clips))

    def joined(self, states: Sequence[Tensor]) -> Tensor:
        """Repeat frames of layers with a lower rate and stack all layers, (N, T, L, D)."""
        finest = [
            state.repeat_interleave(n, 1) if n > 1 else state for state, n in zip(states, self.repeats, strict=True)
        ]
        size = min(state.shape[1] for state in finest)
        return torch.stack([state[:, :size].float() for state in finest], dim=2)

    def count(self, samples: int) -> int:
        return self.stacked(probe_noise(1, samples)).shape[1]

    def blank_count(self, samples: int) -> int:
        with ShapesOnly():
            return self.count(samples)

    def exact_together(self, alone: Tensor) -> bool:
        """Return whether clips in one batch do not influence each other; alone: frames of one second of noise."""
        clip = probe_noise(1, 16_000)
        return relative_difference(self.stacked(torch.cat([clip, 2 * clip.flip(1)]))[0], alone) <= EXACT


class ShapesOnly(TorchFunctionMode):
    """Let products and convolutions return zeros within the context, to count frames at almost no cost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in COSTLY:
            return func(*args, **(kwargs or {}))
        like = next(value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor))
        return torch.zeros(
            func(*map(without_content, args), **{k: without_content(v) for k, v in (kwargs or {}).items()}).shape
        ).to(like)


def without_content(value: Any) -> Any:
    """Move a tensor to the meta device, so that only shapes are computed; return other values unchanged."""
    return value.to("meta") if isinstance(value, Tensor) else value


def probe_noise(clips: int, samples: int) -> Tensor:
    """Return Gaussian noise (N, S) from a fixed seed."""
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(0))


def hidden_states(expert: nn.Module, clips: Tensor) -> list[Tensor]:
    """Return the hidden states, (N, T, D) each, of clips (N, S)."""
    with generators_preserved():
        return list(expert(list(clips))["hidden_states"])


def first_states(expert: nn.Module) -> tuple[int, list[Tensor]]:
    """Return the shortest accepted length, in samples and at least 0.05 s, and the states (1, T, D) for one second."""
    states = hidden_states(expert, probe_noise(1, 16_000))
    for samples in (SHORTEST, 1_600, 3_200, 6_400):
        try:
            with ShapesOnly():
                shorter = hidden_states(expert, probe_noise(1, samples))
            if min(state.shape[1] for state in shorter) > 0:
                return samples, states
        except (RuntimeError, ValueError, AssertionError, IndexError):  # raised if a clip has not one frame
            continue
    return 16_000, states


def repeat_factors(states: Sequence[Tensor]) -> list[int]:
    """Return, for each layer, how often its frames are repeated to match the layer with the most frames.

    Raises UpstreamError if the numbers of frames are not multiples of each other.
    """
    counts = [state.shape[1] for state in states]
    factors = [round(max(counts) / count) for count in counts]
    if any(abs(max(counts) - count * times) > times for count, times in zip(counts, factors, strict=True)):
        raise UpstreamError(
            f"its layers have {distinct_text(counts)} frames for one second, which are not multiples of each other"
        )
    return factors


def common_width(states: Sequence[Tensor]) -> int:
    """Return the width of all layers; raises UpstreamError if they differ."""
    widths = [state.shape[2] for state in states]
    if len(set(widths)) > 1:
        raise UpstreamError(
            f"its layers are {distinct_text(widths)} wide; a weighted sum of layers needs them all equal"
        )
    return widths[0]


def distinct_text(values: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(values))[:-1])) + f" and {max(values)}"


def hop_and_window(count: Callable[[int], int], declared: int, shortest: int) -> tuple[int, int]:
    """Measure hop and window of a model by counting frames; return `declared` and 1 if the frame rate is not constant.

    count: maps a number of samples to a number of frames. declared: the hop that s3prl states; for some families it is
    320 whatever the strides of the convolutions are.
    """

    def agreed(hop: int, window: int) -> list[bool]:
        """Return, for increasing lengths up to the first mismatch, whether the next frame begins where expected."""
        least = (shortest - window) // hop + 1
        frames = sorted({max(round(seconds * 16_000 / hop), least, 1) for seconds in (0.1, 0.6, 2.1)})
        matches = [True]
        while matches[-1] and frames:
            k = frames.pop(0)
            matches.append(count(window + k * hop - 1) == k and count(window + k * hop) == k + 1)
        return matches[1:]

    for window in (400, 1):
        matches = agreed(declared, window)
        if all(matches):
            return declared, window
        if len(matches) > 2:  # two lengths match, so no other constant rate fits either
            return declared_hop_and_window(count, declared)
    start = max(4_000, shortest)
    first = next_frame(count, start, declared)
    hop = next_frame(count, first, declared) - first
    window = first - count(start) * hop
    if all(agreed(hop, window)):
        return hop, max(window, 1)
    return declared_hop_and_window(count, declared)


def declared_hop_and_window(count: Callable[[int], int], declared: int) -> tuple[int, int]:
    """Return `declared` and 1, for frames without a constant rate.

    Raises UpstreamError if the number of frames for one second is not near the declared rate.
    """
    if not declared / 1.5 < 16_000 / count(16_000) < declared * 1.5:
        raise UpstreamError(
            f"it gives {plural(count(16_000), 'frame')} for one second, but its declared hop is {declared}"
        )
    return declared, 1


def next_frame(count: Callable[[int], int], start: int, guess: int) -> int:
    """Return the shortest length above `start`, in samples, with more frames; guess: the expected distance."""
    before, low, high = count(start), start, start + guess
    if count(high) > before and count(high - 1) == before:
        return high
    while count(high) == before and high < 16_000 * 12:
        low, high = high, 3 * high - 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) == before else (low, middle)
    return high


def fill_frames(frames: Tensor, count: int) -> Tensor:
    """Return the first `count` of frames (N, T, L, D); if there are fewer, repeat the last one, as s3prl does."""
    lacking = count - frames.shape[1]
    if lacking > frames.shape[1]:
        raise UpstreamError(
            f"it gives {plural(frames.shape[1], 'frame')}, but its frame rate implies {count}; it cannot be used"
        )
    return torch.cat([frames, frames[:, -1:].expand(-1, lacking, -1, -1)], 1) if lacking > 0 else frames[:, :count]
