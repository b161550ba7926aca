"""Teachers that follow their students: for ATST, and later systems that teach themselves."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NetworkType = TypeVar("NetworkType", bound=nn.Module)


def teacher_of(student: NetworkType) -> NetworkType:
    """A copy of a network with the same weights, which takes no gradients."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move each of the teacher's weights to momentum * itself + (1 - momentum) * the student's of the same name.

    Buffers, such as what batch norms have seen, stay its own (Grill et al., 2020); raises KeyError for weights that
    the student lacks, while it may have more.
    """
    weights = dict(student.named_parameters())
    for name, weight in teacher.named_parameters():
        weight.lerp_(weights[name], 1.0 - momentum)


def perceptron(dim: int, hidden: int, out: int) -> nn.Sequential:
    """Two linear layers around batch norm and ReLU, as BYOL's heads (Grill et al., 2020), without biases."""
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out, bias=False)
    )


def spread(outputs: Tensor) -> Tensor:
    """Standard deviation over clips of (N, out) scaled to unit length, relative to that of evenly spread ones."""
    return F.normalize(outputs.detach(), dim=1).std(0).mean() * outputs.shape[1] ** 0.5
