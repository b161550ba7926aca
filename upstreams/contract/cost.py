"""The cost of an upstream: multiply–accumulates (without Fourier transforms) and seconds per second of audio."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from upstreams.base import Upstream
from upstreams.contract.probe_signals import batch, sounds

SECONDS = 5.0  # length of the measured clip; attention costs more per second for longer clips
ROUNDS = 3  # passes, of which the fastest counts, since other programs can only slow a pass down
PATIENCE = 20.0  # seconds after which no further pass begins


def macs_per_second(upstream: Upstream) -> float:
    """Return the multiply–accumulates per second of audio, counted while one clip of 5 s is encoded.

    Convolutions, matrix products, attention and recurrent layers are counted as often as they run: a model that pads
    each clip to 30 s is charged for 30 s. Fourier transforms and element-wise operations are not counted.
    """
    clip, counting = batch(sounds(upstream, SECONDS)), Counting()
    with torch.inference_mode(), without_fused_encoders(), counting:
        upstream(*clip)
    return counting.operations / 2 / SECONDS


class Counting(TorchDispatchMode):
    """Sum the operations that run within the block, by torch's formulas and those below.

    torch's FlopCounterMode also counts by module, for which it follows gradients; some models do not support that in
    inference mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        formula = flop_registry.get(getattr(func, "_overloadpacket", func))
        kwargs = kwargs or {}
        if formula is None and isinstance(func, torch._ops.OpOverload):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result


def real_time_factor(upstream: Upstream) -> float:
    """Return the seconds of computing per second of audio (lower is faster): the best of three passes over a 5 s clip.

    The result depends on the machine, its number of threads and its other load; warm the upstream up first.
    """
    clip = batch(sounds(upstream, SECONDS))
    began, best = time.perf_counter(), math.inf
    with torch.inference_mode():
        for _ in range(ROUNDS):
            best = min(best, timed(upstream, *clip))
            if time.perf_counter() - began > PATIENCE:
                break
    return best / SECONDS


def timed(upstream: Upstream, waveforms: Tensor, lengths: Tensor) -> float:
    """Return the seconds of one pass, including the wait for the device."""
    wait = torch.cuda.synchronize if waveforms.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    upstream(waveforms, lengths)
    wait()
    return time.perf_counter() - start


@contextmanager
def without_fused_encoders() -> Iterator[None]:
    """Disable the fused kernel of torch.nn's transformer layers, which hides their matrix products from the counter."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# Formulas for operations that torch does not count. As in torch's formulas, each multiply–accumulate counts as 2, and
# the arguments are shapes where the operation has tensors.


def counts(*operations: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register a formula for operations for which torch has none."""

    def counted(formula: Callable[..., int]) -> Callable[..., int]:
        for operation in operations:
            if operation not in flop_registry:
                register_flop_formula(operation)(formula)
        return formula

    return counted


aten = torch.ops.aten


@counts(
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_fused_attention_overrideable,
)
def of_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Attention with shapes (..., T, D), (..., S, D), (..., S, E)."""
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


@counts(aten.mv, aten.dot)
def of_vector(matrix: Sequence[int], *_: Any, **__: Any) -> int:
    """The product of a matrix (N, M) or vector (M,) with a vector."""
    return 2 * math.prod(matrix)


@counts(aten.addmv)
def of_added_vector(_: Sequence[int], matrix: Sequence[int], *__: Any, **___: Any) -> int:
    """The product of a matrix (N, M) with a vector, added to another vector."""
    return 2 * math.prod(matrix)


@counts(aten.mkldnn_rnn_layer)
def of_recurrent_layer(inputs: Sequence[int], ahead: Sequence[int], back: Sequence[int], *_: Any, **__: Any) -> int:
    """Weights (4 H, I) and (4 H, H) applied at every step of (T, B, I) or (B, T, I)."""
    return 2 * inputs[0] * inputs[1] * (math.prod(ahead) + math.prod(back))


@counts(aten._cudnn_rnn)
def of_cuda_recurrence(inputs: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """Every matrix of every layer and direction, applied at every step of (T, B, I), or of (steps, I) if packed."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


@counts(aten._trilinear)
def of_bilinear(left: Sequence[int], weights: Sequence[int], *_: Any, **__: Any) -> int:
    """The bilinear product of (N, I) and (N, J) with weights (O, I, J)."""
    return 2 * left[0] * math.prod(weights)
