"""Check that third-party code loads all weights of a checkpoint into the model that it builds.

Such code may load with `strict=False`, drop keys, or load from an unexpected place without a message. Therefore each
tensor is traced by identity from the content of the file into the modules.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn


@dataclass
class WeightCoverage:
    """The tensors that modules loaded from state dicts; references to them are kept, so that each id stays unique."""

    taken: dict[int, Tensor] = field(default_factory=dict)  # tensors of state dicts that a module loaded
    filled: dict[int, Tensor] = field(default_factory=dict)  # parameters and buffers that such a tensor was loaded into
    absent: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers that a state dict lacked
    misshapen: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)  # of another kind of number: integer, real or complex

    def note(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        for name, target in [*module.named_parameters(recurse=False), *persistent_buffers(module)]:
            loaded = state.get(prefix + name)
            if not isinstance(loaded, Tensor):
                self.absent[prefix + name] = target
                continue
            self.taken[id(loaded)], self.filled[id(target)] = loaded, target
            if loaded.numel() != target.numel():
                self.misshapen.append(prefix + name)
            kinds = [(tensor.is_floating_point(), tensor.is_complex()) for tensor in (loaded, target)]
            if kinds[0] != kinds[1]:
                self.unlike.append(prefix + name)

    def missing(self, model: nn.Module | None) -> list[str]:
        """Return the names of the tensors of a model that no state dict held; without a model, of all not found."""
        if model is None:
            return [name for name, tensor in self.absent.items() if id(tensor) not in self.filled]
        sought = {id(tensor) for tensor in self.absent.values()}
        empty = [name for name, tensor in model.named_parameters() if id(tensor) not in self.filled]
        return empty + [name for name, tensor in model.named_buffers() if id(tensor) in sought - set(self.filled)]

    def unused(self, content: Any) -> list[str]:
        """Return the names of the checkpoint's tensors that were not loaded although others of the same dict were.

        A dict of which no tensor was loaded is ignored, since it holds an optimiser's state or a head.
        """
        names = []
        for state in dictionaries(content):
            tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
            left = [name for name, value in tensors.items() if id(value) not in self.taken]
            names += left if len(left) < len(tensors) else []
        return names


def persistent_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    excluded = module._non_persistent_buffers_set
    return [(name, tensor) for name, tensor in module.named_buffers(recurse=False) if name not in excluded]


def dictionaries(content: Any) -> Iterator[dict[Any, Any]]:
    """Yield all dicts in nested dicts, namespaces, lists and tuples, which may contain themselves."""
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
def record_coverage() -> Iterator[WeightCoverage]:
    """Record every state dict that is loaded within the block, by `load_state_dict` or module by module."""
    coverage, owner, load = WeightCoverage(), cast(Any, nn.Module), nn.Module._load_from_state_dict

    def recording_load(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        load(module, state_dict, prefix, *args)
        coverage.note(module, state_dict, prefix)

    owner._load_from_state_dict = recording_load
    try:
        yield coverage
    finally:
        owner._load_from_state_dict = load
