"""Turn the batches of a split into the inputs of a head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from downstreams.base import Batch, lengths_of, masked_mean
from downstreams.errors import HeadError

EncoderModule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Dataset(Protocol):
    """The clips of one split, read in batches; its length is the number of clips."""

    @property
    def ids(self) -> Sequence[str]:
        """Utterance ids, one per clip, without duplicates."""

    @property
    def targets(self) -> Sequence[str]:
        """Label strings, one per clip, in the order of `ids`."""

    def batches(self, epoch: int | None) -> Iterator[Batch]:
        """Yield every clip once, in the order of training epoch 1, 2, ..., or in evaluation order if epoch is None."""

    def __len__(self) -> int: ...


class Feed(NamedTuple):
    """Turns batches into the inputs of heads with this `view`, and runs the encoder where a batch holds waveforms."""

    view: str
    device: torch.device
    encoder: EncoderModule | None

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return float features (B, L, D) without lengths, or (B, T, L, D) with lengths (B,).

        Raises HeadError where features are not finite, and where the batch lacks what the view needs.
        """
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
        # Autograd does not accept the output of an encoder that runs in inference mode; it accepts a copy.
        return (inputs.clone() if inputs.is_inference() else inputs), lengths

    def _encode(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.encoder is None:
            raise HeadError("the batches hold waveforms, so an encoder is needed")
        lengths = lengths_of(waveforms, lengths)
        if self.view == "summary" and hasattr(self.encoder, "summarize"):
            return self.encoder.summarize(waveforms, lengths), None
        frames, lengths = self.encoder(waveforms, lengths)
        return frames, lengths


def collect_by_id(data: Dataset, function: Callable[[Batch], list[Any]]) -> dict[str, Any]:
    """Return the result of `function` for each clip by id. Raises HeadError unless every id occurs exactly once."""
    results: dict[str, Any] = {}
    for batch in data.batches(None):
        for key, value in zip(batch.ids, function(batch), strict=True):
            if key in results:
                raise HeadError(f"utterance id {key!r} occurs twice")
            results[key] = value
    missing = [key for key in data.ids if key not in results]
    if missing:
        raise HeadError(f"{len(missing)} of {len(data.ids)} clips are in no batch, such as {missing[0]!r}")
    return results


def in_eval_mode(encoder: EncoderModule | None) -> EncoderModule | None:
    """Return the encoder in eval mode if it is a module, so that dropout is off."""
    return encoder.eval() if isinstance(encoder, nn.Module) else encoder


def targets_on(encoded: Any, device: torch.device) -> Any:
    """Return the encoded targets of `Head.encode` on another device."""
    if isinstance(encoded, Tensor):
        return encoded.to(device)
    parts = [part.to(device) for part in encoded]
    return type(encoded)(*parts) if hasattr(encoded, "_fields") else tuple(parts)


def _refuse_non_finite(features: Tensor, ids: Sequence[str]) -> None:
    # One sum is much cheaper than a mask over the whole batch, and it is not finite if any value is not finite.
    if torch.isfinite(features.detach().sum()):
        return
    not_finite = [key for key, row in zip(ids, features, strict=True) if not torch.isfinite(row).all()]
    if not_finite:
        raise HeadError(f"features of {len(not_finite)} clips are not finite: {', '.join(not_finite[:5])}")
