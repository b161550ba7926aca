"""Limits on the numbers in a model configuration, so that building the model ends in bounded time and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from upstreams.base import Upstream, UpstreamError
from upstreams.safety.allow_list import printable, short_repr
from upstreams.safety.build_limits import count_construction

KERNEL = 4_096  # samples or frames; published models have 128 at most
BOUNDS = {  # least and largest value, by the ending of the name
    "_heads": (1, 1e6),
    "_distance": (1, 1e6),
    "_eps": (1e-30, 1),
    "dropout": (0, 1),
    "dropout_prob": (0, 1),
    "_layers": (0, 1_000),
    "hidden_size": (1, 1e5),
    "kernel": (1, KERNEL),
    "kernel_size": (1, KERNEL),
    "_pos_embeddings": (1, KERNEL),
    "_positions": (-1, 1e5),
    "_bandwidths": (0, 1_000),
}
LARGEST, LONGEST = 10_000_000, 1_000  # largest integer, and longest list, of any configuration
MOST = 5_000_000_000  # weights of a randomly initialised model, which take 20 GB
PIECES = 100_000  # modules and tensors; a model of 48 blocks has 3000


def refuse_impossible_sizes(sizes: dict[str, Any], reference: str) -> None:
    """Raise UpstreamError for numbers and lists that no model has but that transformers would accept."""
    rest = [*sizes.items()]
    while rest:
        key, value = rest.pop()
        entry = f"config.json of '{reference}' has {printable(key)}"
        if isinstance(value, (list, dict)):
            if len(value) > LONGEST:
                raise UpstreamError(f"{entry} of {len(value)} entries; it may have {LONGEST}")
            rest += value.items() if isinstance(value, dict) else [(key, item) for item in value]
        if isinstance(value, (int, float)):
            ends = [bounds for ending, bounds in BOUNDS.items() if key.endswith(ending)]
            for least, most in ends or ([(-LARGEST, LARGEST)] if isinstance(value, int) else []):
                if not least <= value <= most:
                    raise UpstreamError(f"{entry} = {short_repr(value)}; it must be from {least:g} to {most:g}")


def count_weights(build: Callable[[], Any]) -> int:
    """Return the number of weights of a model, which is built on the meta device and so takes no memory.

    The state of torch's generator is restored, so that randomly initialised models do not change.
    Raises UpstreamError for a model of too many modules, or with a tensor that is too large.
    """
    left = PIECES

    def spend(elements: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or elements > MOST:
            raise UpstreamError(
                f"it has more than {PIECES} modules and tensors, or a tensor of more than {MOST} numbers"
            )

    with torch.random.fork_rng(devices=[]), torch.device("meta"), count_construction(spend):
        model = build()
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def refuse_slow(encoder: Upstream, source: str) -> None:
    """Raise UpstreamError if the receptive field of a frame is longer than 10 s."""
    if encoder.window > 10 * encoder.sample_rate:
        raise UpstreamError(f"{source} has a conv_kernel and conv_stride by which a frame sees more than 10 s of sound")
