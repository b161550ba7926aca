"""A class is known to the fingerprint by its stable name, wherever its module lies."""

from __future__ import annotations

import torch

from tests.upstreams.toys import Toy
from upstreams.base import fingerprint, identity_of


def toy_of(name: str, module: str, parent: type[Toy] = Toy, **fields: object) -> Toy:
    """A toy of a class of that name in that module; its weights are the same each time."""
    kind = type(name, (parent,), {"__module__": module, **fields})
    toy = kind(2, 1.0)
    torch.nn.init.ones_(toy.matrix)
    return toy


def test_a_stable_name_decides_the_fingerprint_instead_of_where_the_class_lies() -> None:
    named = toy_of("Steps", "upstreams.steps")
    moved = toy_of("Steps", "upstreams.deeper.steps")
    assert fingerprint(moved) != fingerprint(named)
    kept = toy_of("Steps", "upstreams.deeper.steps", stable_name="upstreams.steps:Steps")
    renamed = toy_of("Strides", "upstreams.deeper.strides", stable_name="upstreams.steps:Steps")
    assert fingerprint(kept) == fingerprint(renamed) == fingerprint(named)
    other = toy_of("Steps", "upstreams.steps", stable_name="upstreams.steps:Strides")
    assert fingerprint(other) != fingerprint(named)


def test_a_subclass_does_not_inherit_the_stable_name() -> None:
    parent = toy_of("Steps", "upstreams.deeper.steps", stable_name="upstreams.steps:Steps")
    child = toy_of("Steps", "mine", type(parent))
    assert child.stable_name == parent.stable_name
    assert identity_of(type(child)) == ("mine", "Steps")
    assert fingerprint(child) != fingerprint(parent)
    assert fingerprint(child) == fingerprint(toy_of("Steps", "mine"))
