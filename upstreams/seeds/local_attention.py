"""Local attention: in each layer, frame i attends to frames j with |i - j| <= w, or to all (Wan et al., 2022)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.base import UpstreamError, valid
from upstreams.safety.allow_list import printable, short_repr

Bands = tuple[int | None, ...]  # w of each layer, in frames; None for attention to all frames
WIDEST = 1_000_000  # frames; hours of audio
OPEN = "none"
FEW_DIGITS = re.compile("[0-9]{1,9}").fullmatch  # Python refuses to convert thousands of digits


def parse_bands(text: str, layers: int, owner: str) -> Bands:
    """Parse bands such as "6,12,none", or "none" for all layers; raise UpstreamError for anything else.

    owner: the model in error messages.
    """
    words = [word.strip().lower() for word in text.split(",")]
    if words == [OPEN]:
        return (None,) * layers
    return check_bands(
        [int(word) if FEW_DIGITS(word) else None if word == OPEN else word for word in words], layers, owner
    )


def check_bands(bands: Any, layers: int, owner: str) -> Bands:
    """Return bands from a file or a user as a tuple; raise UpstreamError unless there is a valid one for each layer."""
    if not isinstance(bands, (list, tuple)) or len(bands) != layers:
        count = f"bands for {len(bands)}" if isinstance(bands, (list, tuple)) else f"the bands {short_repr(bands)}"
        raise UpstreamError(f"{owner} has {layers} layers and {count}; give one for each, such as 8,16,none")
    for band in bands:
        if band is not None and (type(band) is not int or not 0 <= band <= WIDEST):
            text = printable(band) if isinstance(band, str) else short_repr(band)
            raise UpstreamError(f"{owner} has the band '{text}'; it is a number of frames from 0 to {WIDEST}, or none")
    return tuple(bands)


def local_attention_mask(mask: Tensor | None, size: int, band: int, device: torch.device) -> Tensor:
    """Return an attention mask (B or 1, 1, T, T): a frame attends to itself and to valid frames (B, T) in its band."""
    within = torch.ones(size, size, dtype=torch.bool, device=device).triu(-band).tril(band)[None, None]
    if mask is None:
        return within
    seen = within & mask[:, None, None]
    seen.diagonal(dim1=2, dim2=3).fill_(True)  # padded frames that attend to nothing would be NaN, and spread it
    return seen


@contextmanager
def local_attention(blocks: Sequence[nn.Module], bands: Bands, counts: Tensor, size: int) -> Iterator[None]:
    """Restrict attention of transformers' blocks to their bands within the context; None leaves a block unchanged.

    counts: (B,) number of valid frames of each clip, out of `size`.
    """
    valid_frames = valid(counts, size)
    mask = None if bool(valid_frames.all()) else valid_frames
    masks = {
        band: local_attention_mask(mask, size, band, counts.device)
        for band in {*bands}
        if band is not None and band < size - 1
    }

    def narrowed(band: int) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, kwargs | {"attention_mask": masks[band]}

        return before

    with ExitStack() as stack:
        for block, band in zip(blocks, bands, strict=True):
            if band in masks:
                stack.callback(block.register_forward_pre_hook(narrowed(band), with_kwargs=True).remove)
        yield
