"""The checkpoints that come with the project."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmark.features.descriptions import WEIGHTS
from benchmark.pretraining.checkpoint_files import read_header_facts
from benchmark.pretraining.requests import PretrainingRequest
from benchmark.pretraining.training import adjusted_recipe, training_identity
from upstreams import create
from upstreams.base import fingerprint
from upstreams.contract.check import check_contract
from upstreams.pretraining.methods import METHODS, create_method

ONLY = dict.fromkeys(("dino", "masr", "pms"), "speaker")  # of which clips Makefile has them made


@pytest.mark.parametrize("name", METHODS)
def test_what_is_shipped_is_small_keeps_the_contract_and_is_of_the_recipe_here(name: str) -> None:
    path = WEIGHTS / f"{name}_mini.safetensors"
    assert path.stat().st_size <= 3_000_000
    assert not [finding for finding in check_contract(create(f"{name}_mini")) if not finding.ok]
    facts = read_header_facts(path)
    assert facts is not None
    trained = create_method(name, "mini", 0)
    asked = PretrainingRequest(name, "tiny_pool", Path(), half=True, only=ONLY.get(name))
    labels = facts["identity"].get("labels")  # of labels and audio, the pool being made only by the demo
    data: Any = SimpleNamespace(
        digest=facts["identity"]["data"], kinds=["family", "language", "speaker"], digest_of=lambda kinds: labels
    )
    assert facts["identity"] == training_identity(asked, trained, adjusted_recipe(trained.recipe, asked), data)


@pytest.mark.parametrize("name", [f"{name}_mini" for name in METHODS])
def test_random_twins_of_what_is_shipped_are_the_small_architecture_at_its_start(name: str) -> None:
    twin = fingerprint(create(f"{name}@random"))
    options = "size=mini&variant=frame" if name == "ssast_mini" else "size=mini"
    assert twin == fingerprint(create(f"{name.removesuffix('_mini')}?{options}@random"))
    assert twin != fingerprint(create(name))


@pytest.mark.parametrize("name", [f"{name}_mini" for name in METHODS])
def test_random_twins_are_the_same_with_any_number_of_threads(name: str) -> None:
    before = torch.get_num_threads()
    try:
        found = set()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.add(fingerprint(create(f"{name}@random")))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
