"""Whether the weights of a checkpoint all arrive in a model that somebody else's code builds from it.

Such code loads with `strict=False`, drops keys, or loads from another place than expected, and says nothing. So every
tensor is followed by identity from the file's content into the modules.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn


@dataclass
class Arrivals:
    """What modules took from state dicts while this was `recorded`; tensors are kept, so that no id names two."""

    taken: dict[int, Tensor] = field(default_factory=dict)  # tensors of state dicts that a module has a place for
    filled: dict[int, Tensor] = field(default_factory=dict)  # parameters and buffers that such a tensor went into
    absent: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers that a state dict had nothing for
    misshapen: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)  # whole or complex numbers for real ones, or the other way round

    def note(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        for name, own in [*module.named_parameters(recurse=False), *persistent_buffers(module)]:
            given = state.get(prefix + name)
            if not isinstance(given, Tensor):
                self.absent[prefix + name] = own
                continue
            self.taken[id(given)], self.filled[id(own)] = given, own
            if given.numel() != own.numel():
                self.misshapen.append(prefix + name)
            if (given.is_floating_point(), given.is_complex()) != (own.is_floating_point(), own.is_complex()):
                self.unlike.append(prefix + name)

    def missing(self, model: nn.Module | None) -> list[str]:
        """Names of what a model has from no state dict; of all that was sought in vain where there is no model."""
        if model is None:
            return [name for name, own in self.absent.items() if id(own) not in self.filled]
        sought = {id(own) for own in self.absent.values()}
        empty = [name for name, own in model.named_parameters() if id(own) not in self.filled]
        return empty + [name for name, own in model.named_buffers() if id(own) in sought - set(self.filled)]

    def unused(self, content: Any) -> list[str]:
        """Names of the tensors in a checkpoint's content that went nowhere, though others of their dict did.

        A dict of which nothing was taken is another's: an optimizer's state, or a head.
        """
        names = []
        for state in dictionaries(content):
            tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
            left = [name for name, value in tensors.items() if id(value) not in self.taken]
            names += left if len(left) < len(tensors) else []
        return names


def persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    fleeting = module._non_persistent_buffers_set
    return [(name, tensor) for name, tensor in module.named_buffers(recurse=False) if name not in fleeting]


def dictionaries(content: Any) -> Iterator[dict[Any, Any]]:
    """All dicts in nested dicts, namespaces, lists and tuples, which may hold themselves."""
    rest, seen = [content], set()
    while rest:
        value = rest.pop()
        value = vars(value) if isinstance(value, Namespace) else value
        if not isinstance(value, (dict, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            yield value
        rest += reversed(value.values() if isinstance(value, dict) else value)


@contextmanager
def recorded() -> Iterator[Arrivals]:
    """Follows every state dict that is loaded within, whether by `load_state_dict` or module by module."""
    arrivals, owner, load = Arrivals(), cast(Any, nn.Module), nn.Module._load_from_state_dict

    def noted(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        load(module, state_dict, prefix, *args)
        arrivals.note(module, state_dict, prefix)

    owner._load_from_state_dict = noted
    try:
        yield arrivals
    finally:
        owner._load_from_state_dict = load
