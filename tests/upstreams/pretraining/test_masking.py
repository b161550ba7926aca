"""The tokens that masks select."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upstreams.pretraining.masking import block_mask, gather_masked, random_mask, share_of

ROWS, COLUMNS = 8, 20


def grid(*columns: int) -> Tensor:
    """Return the valid patches (B, 8, 20) of clips with these numbers of columns."""
    return (torch.arange(COLUMNS) < torch.tensor(columns)[:, None])[:, None].repeat(1, ROWS, 1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_a_share_is_of_a_clips_own_tokens_and_at_least_one() -> None:
    assert share_of(grid(20, 10, 1), 400 / 512).tolist() == [125, 62, 6]
    assert share_of(grid(1)[:, :1], 0.1).tolist() == [1]


@pytest.mark.parametrize("mask", [random_mask, block_mask])
def test_as_many_patches_as_asked_for_are_masked_and_none_that_are_not_there(mask: type) -> None:
    there = grid(20, 13, 5, 1)
    number = torch.tensor([125, 1, 40, 8])
    for _ in range(20):
        masked = mask(there, number)
        assert masked.flatten(1).sum(1).tolist() == number.tolist()
        assert not bool((masked & ~there).any())


@pytest.mark.parametrize("mask", [random_mask, block_mask])
def test_every_patch_is_as_likely_as_any_other_to_be_masked(mask: type) -> None:
    clips, columns = 4000, 11
    masked = mask(grid(*[columns] * clips), torch.full((clips,), 33))[:, :, :columns]
    share = 33 / (ROWS * columns)
    spread = (share * (1 - share) / clips) ** 0.5
    assert float((masked.float().mean(0) - share).abs().max()) < 5 * spread


@pytest.mark.parametrize("mask", [random_mask, block_mask])
def test_the_seed_decides_the_mask_and_clips_differ(mask: type) -> None:
    there, number = grid(20, 20), torch.tensor([60, 60])
    one = mask(there, number)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, mask(there, number))
    torch.manual_seed(0)
    assert torch.equal(one, mask(there, number))


def whole_blocks(mask: Tensor, side: int) -> Tensor:
    """Return the patches of a mask (F, T) in squares of this side that are masked wherever they overlap the grid."""
    filled = F.pad(mask[None, None].float(), [side - 1] * 4, value=1.0)
    corners = -F.max_pool2d(-filled, side, stride=1)  # 1 where all of a square is masked
    return mask & (F.max_pool2d(corners, side, stride=1)[0, 0] > 0)


def test_clusters_are_squares_of_one_side_but_for_the_last() -> None:
    for side in (3, 4, 5):
        masks = block_mask(grid(*[20] * 30), torch.full((30,), 70), (side,))
        for mask in masks:
            assert int((mask & ~whole_blocks(mask, side)).sum()) < side * side
    plain = random_mask(grid(*[20] * 30), torch.full((30,), 70))
    assert all(int((mask & ~whole_blocks(mask, 3)).sum()) > 9 for mask in plain)


def drawn_one_by_one(side: int, number: int, chance: random.Random) -> set[tuple[int, int]]:
    """The literal algorithm of the paper: add random blocks until there are enough patches, then drop the surplus."""
    masked: set[tuple[int, int]] = set()
    while len(masked) < number:
        row, column = chance.randrange(1 - side, ROWS), chance.randrange(1 - side, COLUMNS)
        block = {(r, c) for r in range(row, row + side) for c in range(column, column + side)}
        fresh = [(r, c) for r, c in sorted(block - masked) if 0 <= r < ROWS and 0 <= c < COLUMNS]
        masked |= set(chance.sample(fresh, min(len(fresh), number - len(masked))))
    return masked


def neighbours(mask: Tensor) -> float:
    """Return the share of masked patches whose right neighbour is masked."""
    return float((mask[:, :, 1:] & mask[:, :, :-1]).sum() / mask.sum())


@pytest.mark.parametrize("side", [3, 5])
def test_clusters_hang_together_as_those_drawn_one_block_after_another(side: int) -> None:
    chance, wanted = random.Random(0), torch.zeros(600, ROWS, COLUMNS, dtype=torch.bool)
    for mask in wanted:
        for row, column in drawn_one_by_one(side, 50, chance):
            mask[row, column] = True
    given = block_mask(grid(*[20] * 600), torch.full((600,), 50), (side,))
    assert abs(neighbours(given) - neighbours(wanted)) < 0.02
    assert neighbours(given) > neighbours(random_mask(grid(*[20] * 600), torch.full((600,), 50))) + 0.2


def test_masked_tokens_are_gathered_in_their_order() -> None:
    tokens = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[False, True, False, True, True, False], [False, False, True, False, False, False]])
    found, chosen = gather_masked(tokens, mask, 3)
    assert found[chosen].flatten().tolist() == [1.0, 3.0, 4.0, 8.0]
    assert chosen.tolist() == [[True, True, True], [True, False, False]]
