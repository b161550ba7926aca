"""Attention that reaches only so far, a layer at a time: |i - j| <= w, or everywhere (Wan et al., 2022)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError, valid
from upstreams.safety.allow_list import printable, shown

Bands = tuple[int | None, ...]  # frames that each layer's attention reaches to either side; None: everywhere
WIDEST = 1_000_000  # frames; hours of sound
OPEN = "none"
FEW_DIGITS = re.compile("[0-9]{1,9}").fullmatch  # of thousands Python makes no number


def parsed(text: str, layers: int, told: str) -> Bands:
    """Bands as they are typed, such as 6,12,none, or none for all layers; raises UpstreamError for anything else."""
    words = [word.strip().lower() for word in text.split(",")]
    if words == [OPEN]:
        return (None,) * layers
    return checked([int(word) if FEW_DIGITS(word) else None if word == OPEN else word for word in words], layers, told)


def checked(bands: Any, layers: int, told: str) -> Bands:
    """Bands that a file or user gives, if there is one for each layer; raises UpstreamError otherwise."""
    if not isinstance(bands, (list, tuple)) or len(bands) != layers:
        held = f"bands for {len(bands)}" if isinstance(bands, (list, tuple)) else f"the bands {shown(bands)}"
        raise UpstreamError(f"{told} has {layers} layers and {held}; give one for each, such as 8,16,none")
    for band in bands:
        if band is not None and (type(band) is not int or not 0 <= band <= WIDEST):
            what = printable(band) if isinstance(band, str) else shown(band)
            raise UpstreamError(f"{told} has the band '{what}'; it is a number of frames from 0 to {WIDEST}, or none")
    return tuple(bands)


def reach(mask: Tensor | None, size: int, band: int, device: torch.device) -> Tensor:
    """Which frames (B or 1, 1, T, T) a frame attends to: valid ones (B, T) within the band, and always itself."""
    within = torch.ones(size, size, dtype=torch.bool, device=device).triu(-band).tril(band)[None, None]
    if mask is None:
        return within
    seen = within & mask[:, None, None]
    seen.diagonal(dim1=2, dim2=3).fill_(True)  # padded frames that see nothing would be NaN, and spread it
    return seen


@contextmanager
def banded(blocks: Sequence[nn.Module], bands: Bands, counts: Tensor, size: int) -> Iterator[None]:
    """Within it, transformers' blocks attend within their bands; blocks whose band is None are left as they are.

    counts: (B,) valid frames of each clip, out of `size`.
    """
    everyone = valid(counts, size)
    mask = None if bool(everyone.all()) else everyone
    masks = {band: reach(mask, size, band, counts.device) for band in {*bands} if band is not None and band < size - 1}

    def narrowed(band: int) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"attention_mask": masks[band]}

        return before

    with ExitStack() as stack:
        for block, band in zip(blocks, bands, strict=True):
            if band in masks:
                stack.callback(block.register_forward_pre_hook(narrowed(band), with_kwargs=True).remove)
        yield
