"""Weights of a checkpoint for an architecture of ours: all of them, no others, each in its shape, and finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import misfits
from upstreams.safety.checkpoints import refuse_unusable

DEPTHS = range(1, 1001)  # numbers of blocks; a stranger could name many thousands in few bytes


def depth_of(names: Iterable[str]) -> int:
    """How many blocks there are weights of, which are named as in `blocks.0.norm1.bias`."""
    return len({found[1] for name in names if (found := re.match(r"blocks\.([0-9]+)\.", name))})


def fitting(
    weights: Mapping[str, Tensor], build: Callable[[], nn.Module], model: str, reference: str
) -> dict[str, Tensor]:
    """The weights in single precision, if they are all that the module which `build` makes has, and no others.

    It is made on the meta device: what a checkpoint claims to be takes no memory. Torch's generator stays as it was.
    Raises UpstreamError that names those which do not fit or, in single precision, are not finite.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        own = {name: tensor.shape for name, tensor in build().state_dict().items()}
    misshapen = [name for name in own.keys() & weights.keys() if own[name] != weights[name].shape]
    told = misfits(own.keys() - weights.keys(), weights.keys() - own.keys(), misshapen)
    if told:
        raise unfit(told, model, reference)
    plain = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    refuse_unusable(plain, reference)
    return plain


def unfit(told: str, model: str, reference: str) -> UpstreamError:
    """The error that says which weights of a checkpoint are not those of a model."""
    told = f"weights of '{reference}' are not those of {model} ({told})"
    return UpstreamError(f"{told}; give the file as it was released, or made by bench pretrain")
