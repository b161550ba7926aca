"""Wav2Vec2-BERT (Seamless Communication, 2023) as transformers implements it: Conformer blocks over log-mel frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upstreams.base import Features, Upstream, UpstreamError, valid
from upstreams.families.front_end import FrontEnd
from upstreams.families.waveform_encoders import (
    architecture_settings,
    stack_layers,
    statistics_dtype,
    transformer_states,
)
from upstreams.spectral import LogMel, kaldi_mel_filters, trimmed

SCALE = 2.0**15  # the feature extractor scales samples to the range of 16-bit integers
PAIR = 2  # mel frames in one frame of the model


class Wav2Vec2Bert(Upstream):
    """Layer 0 is the input of the first block. The adapter, which may follow the last block, is left out.

    As in SeamlessM4TFeatureExtractor, each mel band is normalised to zero mean and unit variance over a clip. If the
    number of mel frames is odd, the last one counts in these statistics but gives no frame.
    """

    stable_name = "upstreams.conformer_encoders:Wav2Vec2Bert"

    def __init__(self, model: Any, front_end: FrontEnd) -> None:
        super().__init__()
        config = model.config
        config.layerdrop = 0.0  # a dropped block would be missing from the layers
        bands = front_end.whole("num_mel_bins")
        if front_end.whole("stride") != PAIR or config.feature_projection_input_dim != PAIR * bands:
            raise UpstreamError(
                f"preprocessor_config.json joins {front_end['stride']} frames of {bands} mel bands, but it must join 2 "
                f"to feature_projection_input_dim in config.json, {config.feature_projection_input_dim}"
            )
        self.model, self.sample_rate = model, front_end.whole("sampling_rate")
        self.spectrum = LogMel(bands)  # window and hop have the same number of samples at any sample rate
        self.spectrum.banks = kaldi_mel_filters(bands, self.spectrum.fft, self.sample_rate)
        self.hop, self.window = PAIR * self.spectrum.hop, self.spectrum.size + (PAIR - 1) * self.spectrum.hop
        self.layers, self.dim = config.num_hidden_layers + 1, config.hidden_size

    def settings(self) -> dict[str, object]:
        return {"scale": SCALE, **architecture_settings(self.model.config)}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        counts = self.frame_lengths(lengths)
        frames = self.model.feature_projection(self.log_mel(waveforms, lengths))[0]
        return stack_layers(transformer_states(self.model.encoder, frames, counts), counts)

    def log_mel(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return pairs of mel frames (B, T, 2 bands), normalised over each clip and zero after its end."""
        with torch.autocast(waveforms.device.type, enabled=False):
            mel = self.spectrum(trimmed(waveforms.float(), lengths, self.window) * SCALE)
        ends = (torch.clamp(lengths, min=self.window) - self.spectrum.size) // self.spectrum.hop + 1
        mel = standardized_mel(mel, ends)
        return mel[:, : mel.shape[1] // PAIR * PAIR].unflatten(1, (-1, PAIR)).flatten(2)


def standardized_mel(mel: Tensor, ends: Tensor) -> Tensor:
    """Normalise each band of mel (B, M, bands) to zero mean and unit variance over the first `ends` (B,) frames."""
    inside, count = valid(ends, mel.shape[1])[:, :, None], ends[:, None, None]
    exact = mel.to(statistics_dtype(mel)).masked_fill(~inside, 0.0)
    centered = (exact - exact.sum(1, keepdim=True) / count).masked_fill(~inside, 0.0)
    variance = centered.square().sum(1, keepdim=True) / (count - 1)
    return (centered * torch.rsqrt(variance + 1e-7)).to(mel.dtype)
