"""Masks of the tokens that a model must predict; all random numbers come from torch's generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def share_of(valid: Tensor, share: float) -> Tensor:
    """Return the rounded number of tokens (B,) that is a share of each clip's valid tokens (B, ...); at least 1."""
    return (valid.flatten(1).sum(1) * share).round().clamp(min=1).long()


def random_mask(valid: Tensor, number: Tensor) -> Tensor:
    """Return a mask (B, ...) of `number` (B,) tokens of each clip, drawn uniformly from its valid tokens (B, ...)."""
    return earliest(torch.rand(valid.shape, device=valid.device), valid, number)


def block_mask(valid: Tensor, number: Tensor, sides: Sequence[int] = (3, 4, 5)) -> Tensor:
    """Return a mask (B, F, T) of `number` (B,) valid patches of each clip, in square blocks (Gong et al., 2022).

    All blocks of a clip have the same side, drawn from `sides`, and may overlap. Blocks are added at random places
    until they hold enough patches, and surplus patches of the last block are dropped. Blocks may extend beyond each
    edge, so that all patches are masked with equal probability. (In the authors' code, blocks start inside, continue in
    the next row at the end of a row, never hold the first patch, and the last patches of all are dropped.)
    """
    batch, rows, columns = valid.shape
    overhang = max(sides) - 1
    places = (rows + overhang, columns + overhang)
    turns = torch.rand(batch, places[0] * places[1], device=valid.device).argsort(1).view(batch, *places).float()
    # A patch takes the turn of the earliest block that contains it; the place of a block is its lower corner.
    reached = torch.stack([-F.max_pool2d(-turns, side, stride=1)[:, :rows, :columns] for side in sides])
    side = torch.randint(len(sides), (batch,), device=valid.device)
    reached = reached[side, torch.arange(batch, device=valid.device)]
    return earliest(reached + torch.rand_like(reached), valid, number)


def earliest(turns: Tensor, valid: Tensor, number: Tensor) -> Tensor:
    """Return a mask (B, ...) of the `number` (B,) valid tokens of each clip with the smallest `turns` (B, ...)."""
    turns = turns.masked_fill(~valid, float("inf")).flatten(1)
    return (turns.argsort(1).argsort(1) < number[:, None]).view_as(valid)


def gather_masked(tokens: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the masked tokens (B, most, D) of (B, N, D) in order, and whether each of them (B, most) is masked.

    mask: (B, N), with at most `most` tokens for each clip; clips with fewer are filled up with unmasked tokens.
    """
    chosen = (~mask).long().argsort(dim=1, stable=True)[:, :most]
    return tokens.take_along_dim(chosen[:, :, None], 1), mask.take_along_dim(chosen, 1)
