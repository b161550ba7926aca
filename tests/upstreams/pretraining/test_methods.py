from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.upstreams.training import Toy, same
from upstreams.base import UpstreamError
from upstreams.pretraining.methods import METHODS, create_method, mean_where


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
    built = [create_method("toy?dropout=0.5", "small", seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    assert built[0].layers[1].p == 0.5
    assert same(built[0].state_dict(), built[1].state_dict())
    assert not same(built[0].state_dict(), built[2].state_dict())


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("sast", "no method 'sast'; did you mean 'ssast'\\?"),
        ("bert", "no method 'bert'; there are: ssast, atst, dino, masr, pms"),
        ("toy?droput=1", "no argument 'droput' of 'toy'; did you mean 'dropout'\\?"),
        ("toy?size=base", "no argument 'size' of 'toy'"),
    ],
)
def test_unknown_methods_and_options_are_told(reference, told):
    with pytest.raises(UpstreamError, match=told):
        create_method(reference, "small", 0)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**30))
def test_means_are_of_what_is_kept(clips, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(clips, tokens, 3, generator=generator)
    kept = torch.rand(clips, tokens, generator=generator) < 0.5
    values[0, ~kept[0]] = 1e9
    for row, mean in enumerate(mean_where(values, kept)):
        chosen = [values[row, place] for place in range(tokens) if kept[row, place]]
        expected = torch.stack(chosen).mean(0) if chosen else torch.zeros(3)
        torch.testing.assert_close(mean, expected)


def test_a_method_needs_no_labels_files_or_preparation_unless_it_says_so():
    trained = Toy()
    assert (dict(trained.metadata), dict(trained.origin)) == ({}, {})
    trained.prepare(iter(()))


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_registered_with_weights_of_kinds_and_digests_of_files(name):
    trained = create_method(name, "mini", 0)
    assert all(weight > 0 for weight in trained.metadata.values())
    assert trained.origin == {}, "no option names a file"
    assert trained.recipe.steps > 0
