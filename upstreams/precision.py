"""Computation of features in bfloat16 mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor

from upstreams.base import Features, Upstream, UpstreamError, fingerprint


class Autocast(Upstream):
    """An upstream that computes under bfloat16 autocast and returns float32 features."""

    stable_name = "upstreams.precision:Autocast"

    def __init__(self, upstream: Upstream) -> None:
        super().__init__()
        self.upstream = upstream
        for name in ("sample_rate", "hop", "window", "layers", "dim", "version", "source", "origin"):
            setattr(self, name, getattr(upstream, name))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        with torch.autocast(waveforms.device.type, torch.bfloat16):
            frames, valid = self.upstream(waveforms, lengths)
        return Features(frames.float(), valid)

    def summarize(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(waveforms.device.type, torch.bfloat16):
            summary = self.upstream.summarize(waveforms, lengths)
        return summary.float()

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        return self.upstream.frame_lengths(lengths)

    def settings(self) -> dict[str, object]:
        return {"precision": "bf16", "upstream": fingerprint(self.upstream)}


def with_precision(precision: str, upstream: Upstream) -> Upstream:
    """Return the upstream at a precision, "fp32" or "bf16"; raise UpstreamError for any other."""
    if precision not in ("fp32", "bf16"):
        raise UpstreamError(f"no precision {precision!r}; use fp32 or bf16")
    return Autocast(upstream).train(upstream.training) if precision == "bf16" else upstream
