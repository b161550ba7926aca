"""Weights are traced from a checkpoint into a model."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from upstreams.families.s3prl import used_parameters
from upstreams.safety.weight_coverage import record_coverage


def test_arrivals_follow_tensors_not_names_or_values() -> None:
    model, twin = nn.Linear(2, 2), nn.Linear(2, 2)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with record_coverage() as arrivals:
        twin.load_state_dict(state)
    assert arrivals.missing(twin) == []
    assert arrivals.unused([{"model": state}]) == []
    assert arrivals.missing(model) == ["weight", "bias"]
    extra = {**state, "weight_old": state["weight"].clone()}
    extra["itself"] = extra  # as in some pickles
    assert arrivals.unused(extra) == ["weight_old"]
    assert arrivals.unused({"optimizer": {"weight": state["weight"].clone()}}) == []


def test_numbers_of_another_kind_are_named() -> None:
    model = nn.BatchNorm1d(2)
    state = model.state_dict() | {"weight": torch.ones(2, dtype=torch.int32), "bias": torch.ones(2) + 1j}
    with record_coverage() as arrivals, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_state_dict(state | {"running_mean": torch.ones(2, dtype=torch.bool)})
    assert arrivals.unlike == ["weight", "bias", "running_mean"]
    with record_coverage() as arrivals:
        model.load_state_dict(
            {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
        )
    assert arrivals.unlike == []


class Headed(nn.Linear):
    """A layer of frames, and a head beside it that no hidden state passes through."""

    def __init__(self) -> None:
        super().__init__(400, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:  # type: ignore[override]
        frames = super().forward(torch.stack(wavs).unfold(1, 400, 320))
        return {"hidden_states": [frames]}


def test_a_weight_that_no_layer_depends_on_is_not_missed() -> None:
    model = Headed().requires_grad_(False)
    assert used_parameters(model, ["weight", "head.weight"]) == ["weight"]
