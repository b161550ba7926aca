"""Which tokens are hidden from a model that is to predict them; every choice is drawn from torch's generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def share_of(valid: Tensor, share: float) -> Tensor:
    """How many tokens (B,) of each clip make up a share of those valid in (B, ...), to the nearest, at least one."""
    return (valid.flatten(1).sum(1) * share).round().clamp(min=1).long()


def scattered(valid: Tensor, number: Tensor) -> Tensor:
    """Mask (B, ...) of `number` (B,) tokens of each clip, any as likely as any other among its valid ones (B, ...)."""
    return first(torch.rand(valid.shape, device=valid.device), valid, number)


def clustered(valid: Tensor, number: Tensor, sides: Sequence[int] = (3, 4, 5)) -> Tensor:
    """Mask (B, F, T) of `number` (B,) valid patches of each clip, in square blocks (Gong et al., 2022).

    A clip's blocks have a side drawn for it from `sides`, and may overlap. They are added at random places until they
    hold enough patches, and of those that the last one adds, as many as are too many are left out. Blocks may overhang
    each edge, so that every patch is as likely as any other to be masked. (In the authors' code they start inside, go
    on in the next row where one ends, never hold the first patch, and the patches left out are the last of all.)
    """
    batch, rows, columns = valid.shape
    overhang = max(sides) - 1
    places = (rows + overhang, columns + overhang)
    turns = torch.rand(batch, places[0] * places[1], device=valid.device).argsort(1).view(batch, *places).float()
    # A patch is reached by the earliest of the blocks that it is in; where a block starts is its lower corner.
    reached = torch.stack([-F.max_pool2d(-turns, side, stride=1)[:, :rows, :columns] for side in sides])
    side = torch.randint(len(sides), (batch,), device=valid.device)
    reached = reached[side, torch.arange(batch, device=valid.device)]
    return first(reached + torch.rand_like(reached), valid, number)


def first(turns: Tensor, valid: Tensor, number: Tensor) -> Tensor:
    """Mask (B, ...) of the `number` (B,) valid tokens of each clip whose turn (B, ...) comes first."""
    turns = turns.masked_fill(~valid, float("inf")).flatten(1)
    return (turns.argsort(1).argsort(1) < number[:, None]).view_as(valid)


def gathered(tokens: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The masked ones (B, most, D) of tokens (B, N, D) in their order, and which of them (B, most) the mask chose.

    mask: (B, N), at most `most` for each clip; one with fewer is filled up with others of its tokens.
    """
    chosen = (~mask).long().argsort(dim=1, stable=True)[:, :most]
    return tokens.take_along_dim(chosen[:, :, None], 1), mask.take_along_dim(chosen, 1)
