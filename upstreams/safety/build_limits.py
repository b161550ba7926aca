"""Limits on the modules and tensors that third-party code builds from a checkpoint, so that memory cannot run out.

The weights of a checkpoint bound the size of its model, but the configuration beside them may claim ten million layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import printable
from upstreams.safety.weight_coverage import dictionaries

PIECES = 10_000  # modules and tensors that may be built in addition to those that the checkpoint allows
ELEMENTS = 200_000_000  # of their weights; AST, which has 87 million, is built twice
DEEPEST, WIDEST = 100, 500_000  # MMS has 48 layers, and MAE-AST has positions for 480000 patches
DEPTH = re.compile(r".*(layers|blocks|depth|nLevels\w+|layer_num|delta|label_rate_ratios)")
PLACES = ("__init__", "__setstate__", "register_parameter", "register_buffer", "add_module")
WIDTH = re.compile(
    r"n_(mels|freq|mfcc|fft)|feat(ure)?_dim|max_(token_length|positions)|(hop|win)_ms|frame_(length|shift)"
)


class Allowance:
    """The number of modules, tensors and elements that may still be built; a checkpoint adds four times its own."""

    def __init__(self) -> None:
        self.pieces, self.elements = PIECES, ELEMENTS

    def add(self, content: Any) -> None:
        """Raise the limits for a checkpoint; raises UpstreamError if it states a depth or width that no model has."""
        for inner in dictionaries(content):
            for name, value in inner.items():
                if isinstance(value, Tensor):
                    self.pieces += 4
                    self.elements += 4 * min(value.numel(), value.untyped_storage().nbytes() // value.itemsize)
                refuse_size(name, value)

    def spend(self, elements: int) -> None:
        """Count a module (0 elements) or a tensor; raises UpstreamError once the limits are exceeded."""
        self.pieces -= 1
        self.elements -= elements
        if min(self.pieces, self.elements) < 0:
            raise UpstreamError(
                "its configuration describes a far larger model than its weights; give another checkpoint"
            )


def refuse_size(name: Any, value: Any) -> None:
    text, numbers = str(name), value if isinstance(value, (list, tuple)) else [value]
    most = DEEPEST if DEPTH.fullmatch(text) else WIDEST if WIDTH.fullmatch(text) else None
    if most is not None and any(isinstance(number, (int, float)) and number > most for number in numbers):
        raise UpstreamError(f"its configuration says {printable(name)} over {most}; give another checkpoint")


@contextmanager
def count_construction(spend: Callable[[int], None]) -> Iterator[None]:
    """Within the block, call `spend` for every module that is built or copied, and for its tensors with their sizes.

    The call comes before anything is written to a tensor, hence before the system assigns memory to it.
    """
    owner = cast(Any, nn.Module)
    init, restore, *setters = originals = [getattr(owner, name) for name in PLACES]

    def counting_init(module: nn.Module, *args: Any, **options: Any) -> None:
        spend(0)
        init(module, *args, **options)

    def counting_restore(module: nn.Module, state: dict[str, Any]) -> None:
        spend(sum(map(element_count, (*state["_parameters"].values(), *state["_buffers"].values()))))
        restore(module, state)

    def counting_setter(setter: Callable[..., None]) -> Callable[..., None]:
        @wraps(setter)  # torch looks for parameters in the signature
        def inner(module: nn.Module, *args: Any, **options: Any) -> None:
            spend(sum(map(element_count, (*args, *options.values()))))
            setter(module, *args, **options)

        return inner

    try:
        for name, method in zip(PLACES, (counting_init, counting_restore, *map(counting_setter, setters)), strict=True):
            setattr(owner, name, method)
        yield
    finally:
        for name, method in zip(PLACES, originals, strict=True):
            setattr(owner, name, method)


def element_count(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) and not value.is_meta else 0
