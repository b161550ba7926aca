"""Encoders of neural codecs as transformers implements them: the latents that EnCodec and Mimi quantise.

Quantiser and decoder are no part of these upstreams. Clips of the same length are encoded together without any padding,
as every convolution fills its input up from a clip's own ends.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from upstreams.base import Features, Upstream, UpstreamError, by_length
from upstreams.families.waveform_encoders import fold_weight_norm, recorded
from upstreams.safety.allow_list import shown

# What of a configuration changes features without being a weight's shape.
CONVOLUTIONS = ("upsampling_ratios", "dilation_growth_rate", "use_causal_conv", "use_conv_shortcut", "pad_mode")
BLOCKS = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "norm_eps", "sliding_window")
POSITIONS = ("rope_parameters", "rope_theta", "rope_scaling")
ARCHITECTURE = ("model_type", "audio_channels", "norm_type", "normalize", *CONVOLUTIONS, *BLOCKS, *POSITIONS)


class Codec(Upstream):
    """A clip of S samples has ceil(S / hop) frames, the last of which sees padding beyond the clip's end."""

    window = 1

    def __init__(self, config: Any, sample_rate: int, layers: int) -> None:
        super().__init__()
        content = config.to_dict()
        self.kept = {key: content[key] for key in ARCHITECTURE if key in content}
        self.sample_rate, self.channels = sample_rate, config.audio_channels
        self.hop = math.prod(config.upsampling_ratios)
        self.layers, self.dim = layers, config.hidden_size

    def settings(self) -> dict[str, object]:
        return self.kept

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return by_length(self.encode, waveforms, lengths, self.frame_lengths(lengths))

    @abstractmethod
    def encode(self, clips: Tensor) -> Tensor:
        """Frames (N, T, L, D) of clips (N, S) of one length."""

    def spread(self, clips: Tensor) -> Tensor:
        """(N, S) to (N, channels, S): sound that has one channel is the same in all."""
        return clips[:, None].expand(-1, self.channels, -1)


class Encodec(Codec):
    """EnCodec (Défossez et al., 2022); the only layer is its encoder's output."""

    stable_name = "upstreams.codecs:Encodec"

    def __init__(self, model: Any, sample_rate: int) -> None:
        super().__init__(model.config, sample_rate, layers=1)
        fold_weight_norm(model.encoder)
        self.encoder, self.normalize = model.encoder, model.config.normalize

    def encode(self, clips: Tensor) -> Tensor:
        if self.normalize:
            clips = clips / (clips.square().mean(1, keepdim=True).sqrt() + 1e-8)
        return self.encoder(self.spread(clips)).float().transpose(1, 2)[:, :, None]


class Mimi(Codec):
    """Mimi (Défossez et al., 2024): layer 0 is its transformer's input, others follow each block.

    The last step before quantisation, which halves the rate of the last layer, is left out: layers share one rate.
    """

    stable_name = "upstreams.codecs:Mimi"

    def __init__(self, model: Any, sample_rate: int) -> None:
        super().__init__(model.config, sample_rate, layers=model.config.num_hidden_layers + 1)
        if model.encoder is None or not model.config.num_hidden_layers:
            raise UpstreamError("the model has no encoder with a transformer block; give a whole Mimi checkpoint")
        halves = hasattr(model.encoder, "encoder_seanet")  # earlier releases of transformers have none
        self.convolutions = model.encoder.encoder_seanet if halves else model.encoder
        self.transformer = (model.encoder if halves else model).encoder_transformer
        for module in self.convolutions.modules():
            if hasattr(module, "padding_total"):  # transformers 5 loses its halves where it loads weights
                module.padding_right = int(module.padding_total) // 2
                module.padding_left = int(module.padding_total) - module.padding_right

    def encode(self, clips: Tensor) -> Tensor:
        frames = self.convolutions(self.spread(clips)).transpose(1, 2)
        with recorded(self.transformer.layers) as states:
            self.transformer(frames, use_cache=False)
        return torch.stack([state.float() for state in states], dim=2)


def wrapped(model: Any, front_end: dict[str, Any]) -> Upstream:
    """An EncodecModel or MimiModel and its preprocessor's settings as an upstream.

    Raises UpstreamError where the two disagree, or where frames do not come at a constant rate.
    """
    config = model.config
    refuse_chunks(config, front_end)
    for key, value in (("sampling_rate", config.sampling_rate), ("feature_size", config.audio_channels)):
        if front_end.get(key) != value:
            raise UpstreamError(
                f"preprocessor_config.json gives {key} {shown(front_end.get(key))}, but config.json makes it {value}; "
                "copy both from where the model was published"
            )
    return (Mimi if config.model_type == "mimi" else Encodec)(model, config.sampling_rate)


def refuse_chunks(config: Any, front_end: dict[str, Any]) -> None:
    chunk = getattr(config, "chunk_length_s", None) or front_end.get("chunk_length_s")
    if chunk:
        raise UpstreamError(
            f"the model encodes overlapping chunks of {shown(chunk)} s one by one, so its frames do not come at a "
            "constant rate; use one without chunks, such as facebook/encodec_24khz"
        )
