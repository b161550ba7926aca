"""From the clips of a split to what a head is fed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from downstreams.base import Batch, HeadError, lengths_of, masked_mean

EncoderModule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Dataset(Protocol):
    """Clips of one split, as batches; its length is the number of clips."""

    @property
    def ids(self) -> Sequence[str]:
        """Utterance ids, one per clip, none twice."""

    @property
    def targets(self) -> Sequence[str]:
        """Label strings, one per clip, in the order of `ids`."""

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        """Every clip once: in the order of training epoch 1, 2, ..., or, for None, in that of evaluation."""

    def __len__(self) -> int: ...


class Feed(NamedTuple):
    """Turns batches into what heads of a view are fed, running the encoder where a batch holds waveforms."""

    view: str
    device: torch.device
    encoder: EncoderModule | None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Finite float features (B, L, D) or (B, T, L, D), and lengths (B,) of the latter."""
        inputs = batch.inputs.to(self.device)
        lengths = None if batch.lengths is None else batch.lengths.to(self.device)
        if inputs.dim() == 2:
            inputs, lengths = self._encode(inputs, lengths)
        if inputs.dtype in (torch.float16, torch.bfloat16):
            inputs = inputs.float()
        if self.view == "summary" and inputs.dim() == 4:
            inputs, lengths = masked_mean(inputs, lengths_of(inputs, lengths)), None
        if self.view == "frames" and inputs.dim() != 4:
            raise HeadError(f"this head needs frames (B, T, L, D), not summaries {tuple(inputs.shape)}")
        _refuse_non_finite(inputs, batch.ids)
        # Tensors of an encoder that runs in inference mode may not take part in a backward pass.
        return (inputs.clone() if inputs.is_inference() else inputs), lengths

    def _encode(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.encoder is None:
            raise HeadError("the batches hold waveforms, so an encoder is needed")
        lengths = lengths_of(waveforms, lengths)
        if self.view == "summary" and hasattr(self.encoder, "summarize"):
            return self.encoder.summarize(waveforms, lengths), None
        frames, lengths = self.encoder(waveforms, lengths)
        return frames, lengths


def collect(data: Dataset, function: Callable[[Batch], list[Any]]) -> dict[str, Any]:
    """What `function` makes of each clip, by id; raises HeadError unless every id comes once."""
    found: dict[str, Any] = {}
    for batch in data.batches(None):
        for key, value in zip(batch.ids, function(batch), strict=True):
            if key in found:
                raise HeadError(f"utterance id {key!r} occurs twice")
            found[key] = value
    missing = [key for key in data.ids if key not in found]
    if missing:
        raise HeadError(f"{len(missing)} of {len(data.ids)} clips are in no batch, such as {missing[0]!r}")
    return found


def settled(encoder: EncoderModule | None) -> EncoderModule | None:
    """The encoder with dropout off, as a frozen one has to be."""
    return encoder.eval() if isinstance(encoder, nn.Module) else encoder


def moved(encoded: Any, device: torch.device) -> Any:
    """What `Head.encode` gave, on another device."""
    if isinstance(encoded, Tensor):
        return encoded.to(device)
    parts = [part.to(device) for part in encoded]
    return type(encoded)(*parts) if hasattr(encoded, "_fields") else tuple(parts)


def _refuse_non_finite(features: Tensor, ids: Sequence[str]) -> None:
    # One sum is much cheaper than a mask of the whole batch, and not finite if any part of it is not.
    if torch.isfinite(features.detach().sum()):
        return
    bad = [key for key, row in zip(ids, features, strict=True) if not torch.isfinite(row).all()]
    if bad:
        raise HeadError(f"features of {len(bad)} clips are not finite: {', '.join(bad[:5])}")
