"""A model of s3prl's (Yang et al., 2021, "SUPERB") as an upstream: all its hidden states, at their own pace.

Lengths are those that the model itself gives a clip, where s3prl repeats its last frame to fill up to
ceil(samples / hop). That rule is kept only for models whose frames do not come at one pace, such as SSAST, which sees
a clip in windows whose frames do not fill their last hop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

import torch
from torch import Tensor, nn

from upstreams.base import Features, Upstream, UpstreamError, by_length
from upstreams.trial import difference

SHORTEST = 800  # samples; s3prl extends shorter clips
EXACT = 1e-4  # relative to a layer's largest value, as the contract has it


class S3prl(Upstream):
    """All hidden states of a model of s3prl's, in its order; layers of a coarser rate are repeated to the finest.

    expert: what s3prl's hub builds: clips, a list of (S,), to {"hidden_states": sequence of (B, T, D)}.
    identity: what of it changes features besides weights, as JSON values.
    Raises UpstreamError where layers differ in width, or their rates are no multiples of each other.
    """

    def __init__(self, expert: nn.Module, identity: dict[str, object]) -> None:
        super().__init__()
        self.expert, self.identity = expert.eval(), identity
        rates = expert.get_downsample_rates("hidden_states")  # type: ignore[operator]
        declared = int(rates if isinstance(rates, int) else min(rates))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            self.shortest, states = first_states(expert)
            self.repeats, self.layers, self.dim = repeats(states), len(states), width(states)
            self.hop, self.window = pace(self.count, declared, self.shortest)
            self.together = self.exact_together()

    def settings(self) -> dict[str, object]:
        return {**self.identity, "s3prl": metadata.version("s3prl"), "shortest": self.shortest}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return by_length(self.encode, waveforms, lengths, self.frame_lengths(lengths))

    def encode(self, clips: Tensor) -> Tensor:
        """Clips without padding, (N, S), to frames (N, T, L, D), T being what `frame_lengths` says."""
        needed = max(self.window, self.shortest)
        count = int(self.frame_lengths(torch.tensor(clips.shape[1])))
        longer = torch.nn.functional.pad(clips, (0, max(needed - clips.shape[1], 0)))
        parts = [longer] if self.together else longer.split(1)
        return filled(torch.cat([self.stacked(part) for part in parts]), count)

    def stacked(self, clips: Tensor) -> Tensor:
        """All the frames that the model gives clips (N, S), as (N, T, L, D)."""
        states = hidden_states(self.expert, clips)
        finest = [
            state.repeat_interleave(n, 1) if n > 1 else state for state, n in zip(states, self.repeats, strict=True)
        ]
        size = min(state.shape[1] for state in finest)
        return torch.stack([state[:, :size].float() for state in finest], dim=2)

    def count(self, samples: int) -> int:
        return self.stacked(noise(1, samples)).shape[1]

    def exact_together(self) -> bool:
        """Whether clips of the same length do not change one another."""
        clips = noise(2, max(8_000, self.shortest))
        return difference(self.stacked(clips)[1], self.stacked(clips[1:])[0]) <= EXACT


def noise(clips: int, samples: int) -> Tensor:
    """The same noise each time, (N, S), other clips being other noise."""
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(0))


def hidden_states(expert: nn.Module, clips: Tensor) -> list[Tensor]:
    return list(expert(list(clips))["hidden_states"])


def first_states(expert: nn.Module) -> tuple[int, list[Tensor]]:
    """The shortest length that a model takes, in samples from 0.05 s up, and its states (1, T, D) for one second."""
    states = hidden_states(expert, noise(1, 16_000))
    for samples in (SHORTEST, 1_600, 3_200, 6_400):
        try:
            if min(state.shape[1] for state in hidden_states(expert, noise(1, samples))) > 0:
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

    def fits(hop: int, window: int) -> bool:
        least = (shortest - window) // hop + 1
        frames = {max(round(seconds * 16_000 / hop), least, 1) for seconds in (0.1, 0.6, 2.1)}
        return all(count(window + k * hop - 1) == k and count(window + k * hop) == k + 1 for k in sorted(frames))

    usual = next((window for window in (400, 1) if fits(declared, window)), None)
    if usual:
        return declared, usual
    start = max(4_000, shortest)
    first = next_frame(count, start, declared)
    hop = next_frame(count, first, declared) - first
    window = first - count(start) * hop
    if fits(hop, window):
        return hop, max(window, 1)
    if not declared / 1.5 < 16_000 / count(16_000) < declared * 1.5:
        raise UpstreamError(f"it gives {count(16_000)} frames for one second, where its hop is said to be {declared}")
    return declared, 1


def next_frame(count: Callable[[int], int], start: int, guess: int) -> int:
    """The first length over `start` that has more frames, in samples; guess: about how far that is."""
    before, low, high = count(start), start, start + guess
    while count(high) == before and high < 16_000 * 12:
        low, high = high, high + guess
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) == before else (low, middle)
    return high


def filled(frames: Tensor, count: int) -> Tensor:
    """The first `count` of frames (N, T, L, D), the last one repeated where there are fewer, as s3prl does."""
    lacking = count - frames.shape[1]
    if lacking > frames.shape[1]:
        raise UpstreamError(f"it gives {frames.shape[1]} frames where its rate promises {count}; it cannot be used")
    return torch.cat([frames, frames[:, -1:].expand(-1, lacking, -1, -1)], 1) if lacking > 0 else frames[:, :count]
