"""Strict loading of weights that match an architecture, and of weights that do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.safety.strict_loading import depth_of, strictly_loaded


def weights(**others: Tensor | None) -> dict[str, Tensor]:
    plain = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    return {name: tensor for name, tensor in {**plain, **others}.items() if tensor is not None}


def fitted(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return strictly_loaded(given, lambda: nn.Linear(3, 2), "a layer", "some.pt")


def test_weights_that_fit_come_back_in_single_precision() -> None:
    for precision in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        loaded = fitted({name: tensor.to(precision) for name, tensor in weights().items()})
        assert {name: tensor.dtype for name, tensor in loaded.items()} == dict.fromkeys(weights(), torch.float32)
        assert all(torch.equal(loaded[name], weights()[name]) for name in loaded)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (weights(bias=None), r"weights of .some.pt. are not those of a layer \(missing: bias\)"),
        (weights(scale=torch.ones(1)), "of no use: scale"),
        (weights(bias=torch.zeros(3)), "of another shape: bias"),
        (weights(bias=torch.tensor([0.0, torch.nan])), "not finite: bias"),
        (weights(bias=torch.tensor([0.0, 1e300], dtype=torch.float64)), "not finite: bias"),
        (weights(bias=torch.zeros(2, dtype=torch.int64)), "no floating-point numbers at bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(given: dict[str, Tensor], told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        fitted(given)


def test_neither_memory_nor_random_numbers_are_spent_on_what_a_checkpoint_claims_to_be() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(UpstreamError, match="of another shape: bias, weight"):
        strictly_loaded(weights(), lambda: nn.Linear(10**6, 10**6), "a layer", "some.pt")  # 4 TB
    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_are_counted_by_their_numbers() -> None:
    names = ["blocks.0.norm1.bias", "blocks.0.norm2.bias", "blocks.7.x", "blocks.x.y", "blocks", "v.blocks.3.x", "norm"]
    assert depth_of(names) == 2
    assert depth_of([]) == 0
