"""A model of s3prl's (Yang et al., 2021, "SUPERB") as an upstream: all its hidden states, at their own pace.

Lengths are those that the model itself gives a clip, where s3prl repeats its last frame to fill up to
ceil(samples / hop). That rule is kept only for models whose frames do not come at one pace, such as SSAST, which sees
a clip in windows whose frames do not fill their last hop.
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
from upstreams.contract.probe_signals import difference, plural
from upstreams.families.s3prl_bridge import generators_kept

SHORTEST = 800  # samples; s3prl extends shorter clips
COSTLY = (F.linear, F.conv1d, F.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)
EXACT = 1e-4  # relative to a layer's largest value, as the contract has it


class S3prl(Upstream):
    """All hidden states of a model of s3prl's, in its order; layers of a coarser rate are repeated to the finest.

    expert: what s3prl's hub builds: clips, a list of (S,), to {"hidden_states": sequence of (B, T, D)}.
    identity: what of it changes features besides weights, as JSON values.
    Raises UpstreamError where layers differ in width, or their rates are no multiples of each other.
    """

    stable_name = "upstreams.s3prl_encoder:S3prl"

    def __init__(self, expert: nn.Module, identity: dict[str, object]) -> None:
        super().__init__()
        self.expert, self.identity = expert.eval(), identity
        rates = expert.get_downsample_rates("hidden_states")  # type: ignore[operator]
        declared = int(rates if isinstance(rates, int) else min(rates))
        if not 1 <= declared <= 10 * 16_000:
            raise UpstreamError(f"its hop is said to be {declared} samples, where 1 to 160000 make sense")
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.shortest, states = first_states(expert)
            self.repeats, self.layers, self.dim = repeats(states), len(states), width(states)
            alone = self.joined(states)
            count = self.blank_count if self.blank_count(16_000) == alone.shape[1] else self.count
            self.hop, self.window = pace(cache(count), declared, self.shortest)
            if not alone.isfinite().all():
                raise UpstreamError("it makes NaN or infinity of noise; look at its configuration")
            self.together = self.exact_together(alone[0])

    def settings(self) -> dict[str, object]:
        return {**self.identity, "s3prl": metadata.version("s3prl"), "shortest": self.shortest}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return by_length(self.encode, waveforms, lengths, self.frame_lengths(lengths))

    def encode(self, clips: Tensor) -> Tensor:
        """Clips without padding, (N, S), to frames (N, T, L, D), T being what `frame_lengths` says."""
        needed = max(self.window, self.shortest)
        count = int(self.frame_lengths(torch.tensor(clips.shape[1])))
        longer = F.pad(clips, (0, max(needed - clips.shape[1], 0)))
        if self.together:
            return filled(self.stacked(longer), count)
        return filled(torch.cat([self.stacked(clip) for clip in longer.split(1)]), count)

    def stacked(self, clips: Tensor) -> Tensor:
        """All the frames that the model gives clips (N, S), as (N, T, L, D)."""
        return self.joined(hidden_states(self.expert, clips))

    def joined(self, states: Sequence[Tensor]) -> Tensor:
        finest = [
            state.repeat_interleave(n, 1) if n > 1 else state for state, n in zip(states, self.repeats, strict=True)
        ]
        size = min(state.shape[1] for state in finest)
        return torch.stack([state[:, :size].float() for state in finest], dim=2)

    def count(self, samples: int) -> int:
        return self.stacked(noise(1, samples)).shape[1]

    def blank_count(self, samples: int) -> int:
        with Blank():
            return self.count(samples)

    def exact_together(self, alone: Tensor) -> bool:
        """Whether clips of the same length do not change one another; alone: what one second of noise gives."""
        clip = noise(1, 16_000)
        return difference(self.stacked(torch.cat([clip, 2 * clip.flip(1)]))[0], alone) <= EXACT


class Blank(TorchFunctionMode):
    """Within it products and convolutions give zeros, at next to no cost, as there are as many frames of anything."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in COSTLY:
            return func(*args, **(kwargs or {}))
        like = next(each for each in (*args, *(kwargs or {}).values()) if isinstance(each, Tensor))
        return torch.zeros(func(*map(shape, args), **{k: shape(v) for k, v in (kwargs or {}).items()}).shape).to(like)


def shape(value: Any) -> Any:
    """A tensor without its content, which nothing can be computed of but shapes."""
    return value.to("meta") if isinstance(value, Tensor) else value


def noise(clips: int, samples: int) -> Tensor:
    """The same noise each time, (N, S), other clips being other noise."""
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(0))


def hidden_states(expert: nn.Module, clips: Tensor) -> list[Tensor]:
    with generators_kept():
        return list(expert(list(clips))["hidden_states"])


def first_states(expert: nn.Module) -> tuple[int, list[Tensor]]:
    """The shortest length that a model takes, in samples from 0.05 s up, and its states (1, T, D) for one second."""
    states = hidden_states(expert, noise(1, 16_000))
    for samples in (SHORTEST, 1_600, 3_200, 6_400):
        try:
            with Blank():
                shorter = hidden_states(expert, noise(1, samples))
            if min(state.shape[1] for state in shorter) > 0:
                return samples, states
        except (RuntimeError, ValueError, AssertionError, IndexError):  # what models raise for want of a frame
            continue
    return 16_000, states


def repeats(states: Sequence[Tensor]) -> list[int]:
    """How many frames of the finest layer each layer's frame stands for."""
    counts = [state.shape[1] for state in states]
    found = [round(max(counts) / count) for count in counts]
    if any(abs(max(counts) - count * times) > times for count, times in zip(counts, found, strict=True)):
        raise UpstreamError(f"its layers have {differing(counts)} frames for one second, which are no whole multiples")
    return found


def width(states: Sequence[Tensor]) -> int:
    widths = [state.shape[2] for state in states]
    if len(set(widths)) > 1:
        raise UpstreamError(f"its layers are {differing(widths)} wide; a weighted sum of layers needs them all equal")
    return widths[0]


def differing(values: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(values))[:-1])) + f" and {max(values)}"


def pace(count: Callable[[int], int], declared: int, shortest: int) -> tuple[int, int]:
    """Hop and window of a model's frames, found by counting them; `declared` and 1 where they come at no one pace.

    count: frames of a clip by its samples. declared: the hop that s3prl says, which is 320 for a family whatever the
    strides of its convolutions are.
    """

    def agreed(hop: int, window: int) -> list[bool]:
        """Whether another frame begins where it should, at rising lengths up to the first misfit."""
        least = (shortest - window) // hop + 1
        frames = sorted({max(round(seconds * 16_000 / hop), least, 1) for seconds in (0.1, 0.6, 2.1)})
        found = [True]
        while found[-1] and frames:
            k = frames.pop(0)
            found.append(count(window + k * hop - 1) == k and count(window + k * hop) == k + 1)
        return found[1:]

    for window in (400, 1):
        found = agreed(declared, window)
        if all(found):
            return declared, window
        if len(found) > 2:  # two frames begin where they should, so no other pace fits either
            return in_windows(count, declared)
    start = max(4_000, shortest)
    first = next_frame(count, start, declared)
    hop = next_frame(count, first, declared) - first
    window = first - count(start) * hop
    if all(agreed(hop, window)):
        return hop, max(window, 1)
    return in_windows(count, declared)


def in_windows(count: Callable[[int], int], declared: int) -> tuple[int, int]:
    """Hop and window of frames that come at no one pace; raises UpstreamError where they are not about as declared."""
    if not declared / 1.5 < 16_000 / count(16_000) < declared * 1.5:
        raise UpstreamError(
            f"it gives {plural(count(16_000), 'frame')} for one second, where its hop is said to be {declared}"
        )
    return declared, 1


def next_frame(count: Callable[[int], int], start: int, guess: int) -> int:
    """The first length over `start` that has more frames, in samples; guess: about how far that is."""
    before, low, high = count(start), start, start + guess
    if count(high) > before and count(high - 1) == before:
        return high
    while count(high) == before and high < 16_000 * 12:
        low, high = high, 3 * high - 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) == before else (low, middle)
    return high


def filled(frames: Tensor, count: int) -> Tensor:
    """The first `count` of frames (N, T, L, D), the last one repeated where there are fewer, as s3prl does."""
    lacking = count - frames.shape[1]
    if lacking > frames.shape[1]:
        raise UpstreamError(
            f"it gives {plural(frames.shape[1], 'frame')} where its rate promises {count}; it cannot be used"
        )
    return torch.cat([frames, frames[:, -1:].expand(-1, lacking, -1, -1)], 1) if lacking > 0 else frames[:, :count]
