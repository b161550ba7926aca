"""Teacher networks that are moving averages of their students, for self-distillation (ATST, DINO)."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NetworkType = TypeVar("NetworkType", bound=nn.Module)


def teacher_of(student: NetworkType) -> NetworkType:
    """Return a copy of a network with the same weights that requires no gradients."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set each weight of the teacher to momentum * itself + (1 - momentum) * the student's weight of the same name.

    Buffers, such as the statistics of batch norms, are not changed (Grill et al., 2020). The student may have further
    weights. Raises KeyError for a weight that the student lacks.
    """
    weights = dict(student.named_parameters())
    for name, weight in teacher.named_parameters():
        weight.lerp_(weights[name], 1.0 - momentum)


def perceptron(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Return two linear layers without biases around batch norm and ReLU, as in BYOL (Grill et al., 2020)."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out, bias=False)
    )


def embedding_spread(outputs: Tensor) -> Tensor:
    """Return the standard deviation over clips of unit-length outputs (N, out), relative to evenly spread ones."""
    return F.normalize(outputs.detach(), dim=1).std(0).mean() * outputs.shape[1] ** 0.5
