"""Strict loading of weights into our own architectures: all names and shapes must match, and all must be finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import describe_misfits
from upstreams.safety.checkpoints import refuse_unusable

DEPTHS = range(1, 1001)  # numbers of blocks; an untrusted file could claim many thousands in few bytes


def depth_of(names: Iterable[str]) -> int:
    """Return the number of blocks among weights that are named as in `blocks.0.norm1.bias`."""
    return len({match[1] for name in names if (match := re.match(r"blocks\.([0-9]+)\.", name))})


def strictly_loaded(
    weights: Mapping[str, Tensor], build: Callable[[], nn.Module], model: str, reference: str
) -> dict[str, Tensor]:
    """Return the weights in float32, after checking that they are exactly those of the module that `build` returns.

    The module is built on the meta device, where a large model takes no memory, and torch's generator is restored.
    Raises UpstreamError that names the weights that do not match or, in float32, are not finite.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    misshapen = [name for name in shapes.keys() & weights.keys() if shapes[name] != weights[name].shape]
    faults = describe_misfits(shapes.keys() - weights.keys(), weights.keys() - shapes.keys(), misshapen)
    if faults:
        raise misfit_error(faults, model, reference)
    plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    refuse_unusable(plain, reference)
    return plain


def misfit_error(faults: str, model: str, reference: str) -> UpstreamError:
    """Return the error for weights of a checkpoint that are not those of a model."""
    text = f"weights of '{reference}' are not those of {model} ({faults})"
    return UpstreamError(f"{text}; give the file as it was released, or made by bench pretrain")
