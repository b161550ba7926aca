"""The weights of a checkpoint limit the size of the model that its configuration can build."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from upstreams.base import UpstreamError
from upstreams.safety.build_limits import ELEMENTS, Allowance, count_construction


class Table(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer(name="rows", tensor=torch.empty(rows))


HUGE: dict[str, Callable[[], Any]] = {
    "layers": lambda: [nn.Linear(1, 1) for _ in range(10**7)],
    "copies": lambda: [copy.deepcopy(layer) for layer in [nn.Identity()] for _ in range(10**7)],
    "copies of weights": lambda: [copy.deepcopy(layer) for layer in [nn.Linear(999, 999)] for _ in range(250)],
    "one layer many times": lambda: nn.ModuleList([nn.Identity()] * 10**6),
    "recurrent layers": lambda: nn.GRU(1, 1, num_layers=10**6),
    "a width": lambda: nn.Linear(10**5, 10**4),
    "a buffer": lambda: Table(10**9),
}


@pytest.mark.parametrize("what", HUGE)
def test_what_no_checkpoint_can_fill_is_not_built(what: str) -> None:
    with count_construction(Allowance().spend), pytest.raises(UpstreamError, match="far larger model than its weights"):
        HUGE[what]()


def test_a_checkpoint_allows_for_a_model_of_its_size_and_not_for_ten() -> None:
    allowance, layer = Allowance(), torch.empty(ELEMENTS)  # memory that is never written to is not assigned
    allowance.add({"model": [{"weight": layer}]})
    for _ in range(5):
        allowance.spend(layer.numel())
    with pytest.raises(UpstreamError):
        allowance.spend(layer.numel())


def test_a_tensor_counts_by_its_memory_not_its_shape() -> None:
    allowance = Allowance()
    allowance.add({"weight": torch.zeros(1).expand(10**12)})
    with pytest.raises(UpstreamError):
        allowance.spend(ELEMENTS + 5)


def test_modules_are_made_as_before_afterwards_even_after_errors() -> None:
    before = dict(vars(nn.Module))
    with pytest.raises(UpstreamError), count_construction(Allowance().spend):
        HUGE["layers"]()
    assert dict(vars(nn.Module)) == before


@pytest.mark.parametrize(
    "content",
    [
        {"cfg": {"encoder_layers": 101}},
        {"Config": {"transformer": {"num_hidden_layers": 10**400}}},
        [{"config": {"audio": {"n_mels": 10**6}}}],
        {"args": Namespace(max_positions=float("inf"))},
        {"cfg": {"label_rate_ratios": [1, 10**6]}},
    ],
)
def test_depths_and_widths_that_no_model_has_are_refused_by_name(content: Any) -> None:
    with pytest.raises(UpstreamError, match=r"its configuration says (enc|num|n_|max|label)\w+ over 1?\d+00;"):
        Allowance().add(content)


def test_large_numbers_that_are_no_sizes_are_let_pass() -> None:
    counts = {"Global_step": 10**6, "max_tokens": 1_400_000, "seed": 2**31, "max_sample_size": 250_000, "delta": True}
    Allowance().add({"Config": {**counts, "max_positions": 100_000, "encoder_layers": 48, "layer_norm_first": True}})
