"""Limits to what somebody else's code builds from a checkpoint, so that its configuration cannot fill the machine.

The weights of a checkpoint say how large its model is; a configuration beside them may say ten million layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from upstreams.base import UpstreamError
from upstreams.safety.allow_list import printable
from upstreams.safety.weight_coverage import dictionaries

PIECES = 10_000  # modules and parameters of a model that is built before its checkpoint is read
ELEMENTS = 200_000_000  # in its weights; AST, of 87 million, is built twice
DEEPEST, WIDEST = 100, 500_000  # MMS has 48 layers, and MAE-AST positions for 480000 patches
DEPTH = re.compile(r".*(layers|blocks|depth|nLevels\w+|layer_num|delta|label_rate_ratios)")
PLACES = ("__init__", "__setstate__", "register_parameter", "register_buffer", "add_module")
WIDTH = re.compile(
    r"n_(mels|freq|mfcc|fft)|feat(ure)?_dim|max_(token_length|positions)|(hop|win)_ms|frame_(length|shift)"
)


class Allowance:
    """How many modules, parameters and elements may yet be built; a checkpoint adds four times what it holds."""

    def __init__(self) -> None:
        self.pieces, self.elements = PIECES, ELEMENTS

    def add(self, content: Any) -> None:
        """Allow for a checkpoint; raises UpstreamError for one that gives depths or widths that no model has."""
        for inner in dictionaries(content):
            for name, value in inner.items():
                if isinstance(value, Tensor):
                    self.pieces += 4
                    self.elements += 4 * min(value.numel(), value.untyped_storage().nbytes() // value.itemsize)
                refuse_size(name, value)

    def spend(self, elements: int) -> None:
        """Count a module (of no elements) or a tensor; raises UpstreamError where no more may be built."""
        self.pieces -= 1
        self.elements -= elements
        if min(self.pieces, self.elements) < 0:
            raise UpstreamError("its configuration describes a far larger model than its weights are of; get another")


def refuse_size(name: Any, value: Any) -> None:
    text, several = str(name), value if isinstance(value, (list, tuple)) else [value]
    most = DEEPEST if DEPTH.fullmatch(text) else WIDEST if WIDTH.fullmatch(text) else None
    if most is not None and any(isinstance(each, (int, float)) and each > most for each in several):
        raise UpstreamError(f"its configuration says {printable(name)} over {most}; give another checkpoint")


@contextmanager
def counted(spend: Callable[[int], None]) -> Iterator[None]:
    """Within it, `spend` is told of every module that is made or copied, and of each of its tensors with its size.

    A tensor's memory is the system's until something is written to it, and it is told of before that.
    """
    owner = cast(Any, nn.Module)
    init, restore, *puts = theirs = [getattr(owner, name) for name in PLACES]

    def made(module: nn.Module, *args: Any, **options: Any) -> None:
        spend(0)
        init(module, *args, **options)

    def copied(module: nn.Module, state: dict[str, Any]) -> None:
        spend(sum(map(size, (*state["_parameters"].values(), *state["_buffers"].values()))))
        restore(module, state)

    def filled(put: Callable[..., None]) -> Callable[..., None]:
        def inner(module: nn.Module, *args: Any, **options: Any) -> None:
            spend(sum(map(size, (*args, *options.values()))))
            put(module, *args, **options)

        return inner

    try:
        for name, each in zip(PLACES, (made, copied, *map(filled, puts)), strict=True):
            setattr(owner, name, each)
        yield
    finally:
        for name, each in zip(PLACES, theirs, strict=True):
            setattr(owner, name, each)


def size(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) and not value.is_meta else 0
