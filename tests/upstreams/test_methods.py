from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from tests.upstreams.training import Toy, same
from upstreams.base import UpstreamError
from upstreams.pretrain import METHODS, method


def build(size: str, dropout: float = 0.0, name: str = "") -> Toy:
    return Toy(dropout)


@pytest.fixture
def listed(monkeypatch) -> None:
    module = ModuleType("toy_method")
    module.method = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_method", module)
    monkeypatch.setitem(METHODS, "toy", "toy_method")


@pytest.mark.usefixtures("listed")
def test_a_method_is_built_from_its_reference_and_seed():
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    built = [method("toy?dropout=0.5", "small", seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert built[0].layers[1].p == 0.5
    assert same(built[0].state_dict(), built[1].state_dict())
    assert not same(built[0].state_dict(), built[2].state_dict())


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("sast", "no method 'sast'; did you mean 'ssast'\\?"),
        ("bert", "no method 'bert'; there are: ssast, atst"),
        ("toy?droput=1", "no argument 'droput' of 'toy'; did you mean 'dropout'\\?"),
        ("toy?size=base", "no argument 'size' of 'toy'"),
    ],
)
def test_unknown_methods_and_options_are_told(reference, told):
    with pytest.raises(UpstreamError, match=told):
        method(reference, "small", 0)
