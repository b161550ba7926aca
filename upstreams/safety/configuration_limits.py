"""What no configuration of a model says, so that a stranger's cannot take the memory or the time of the machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from upstreams.base import Upstream, UpstreamError
from upstreams.safety.allow_list import printable, shown
from upstreams.safety.build_limits import counted

KERNEL = 4_096  # samples or frames; published models have 128 at most
BOUNDS = {  # by how a name ends
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
LARGEST, LONGEST = 10_000_000, 1_000  # whole number, and list, of any configuration
MOST = 5_000_000_000  # weights of a random twin, which take 20 GB
PIECES = 100_000  # modules and their tensors; one of 48 blocks has 3000


def refuse_impossible(sizes: dict[str, Any], reference: str) -> None:
    """Raise UpstreamError for numbers and lists that no model has, but that transformers would build one of."""
    rest = [*sizes.items()]
    while rest:
        key, value = rest.pop()
        told = f"config.json of '{reference}' has {printable(key)}"
        if isinstance(value, (list, dict)):
            if len(value) > LONGEST:
                raise UpstreamError(f"{told} of {len(value)} entries; it may have {LONGEST}")
            rest += value.items() if isinstance(value, dict) else [(key, each) for each in value]
        if isinstance(value, (int, float)):
            ends = [bounds for ending, bounds in BOUNDS.items() if key.endswith(ending)]
            for least, most in ends or ([(-LARGEST, LARGEST)] if isinstance(value, int) else []):
                if not least <= value <= most:
                    raise UpstreamError(f"{told} = {shown(value)}; it must be from {least:g} to {most:g}")


def weighed(build: Callable[[], Any]) -> int:
    """How many weights a model has, built without memory; raises UpstreamError for too many modules.

    Torch's generator is left as it was, so that random twins stay the same.
    """
    left = PIECES

    def spend(elements: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or elements > MOST:
            raise UpstreamError(f"it has more than {PIECES} modules and tensors, or one of far too many numbers")

    with torch.random.fork_rng(devices=[]), torch.device("meta"), counted(spend):
        model = build()
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


def refuse_slow(encoder: Upstream, told: str) -> None:
    """Raise UpstreamError where a frame sees more than 10 s of sound."""
    if encoder.window > 10 * encoder.sample_rate:
        raise UpstreamError(f"{told} has a conv_kernel and conv_stride by which a frame sees more than 10 s of sound")
