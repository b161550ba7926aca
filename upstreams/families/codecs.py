"""Encoders of the neural codecs EnCodec and Mimi as transformers implements them; the features are the latents before
quantisation.

The quantiser and the decoder are not part of these upstreams. Clips of the same length are encoded together and without
padding, because every convolution pads its input depending on the end of the clip.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from upstreams.base import Features, Upstream, UpstreamError, by_length
from upstreams.families.waveform_encoders import collect_states, fold_weight_norm
from upstreams.safety.allow_list import short_repr

# Settings of a configuration that change features but not the shape of a weight.
CONVOLUTIONS = ("upsampling_ratios", "dilation_growth_rate", "use_causal_conv", "use_conv_shortcut", "pad_mode")
BLOCKS = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "norm_eps", "sliding_window")
POSITIONS = ("rope_parameters", "rope_theta", "rope_scaling")
ARCHITECTURE = ("model_type", "audio_channels", "norm_type", "normalize", *CONVOLUTIONS, *BLOCKS, *POSITIONS)


class Codec(Upstream):
    """The encoder of a codec. A clip of S samples has ceil(S / hop) frames; the last one may see padding."""

    window = 1

    def __init__(self, config: Any, sample_rate: int, layers: int) -> None:
        super().__init__()
        content = config.to_dict()
        self.architecture = {key: content[key] for key in ARCHITECTURE if key in content}
        self.sample_rate, self.channels = sample_rate, config.audio_channels
        self.hop = math.prod(config.upsampling_ratios)
        self.layers, self.dim = layers, config.hidden_size

    def settings(self) -> dict[str, object]:
        return self.architecture

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        return by_length(self.encode, waveforms, lengths, self.frame_lengths(lengths))

    @abstractmethod
    def encode(self, clips: Tensor) -> Tensor:
        """Return frames (N, T, L, D) of clips (N, S) of the same length."""

    def to_channels(self, clips: Tensor) -> Tensor:
        """Copy mono clips (N, S) into all channels (N, channels, S)."""
        return clips[:, None].expand(-1, self.channels, -1)


class Encodec(Codec):
    """EnCodec (Défossez et al., 2022); the only layer is the output of the encoder."""

    stable_name = "upstreams.codecs:Encodec"

    def __init__(self, model: Any, sample_rate: int) -> None:
        super().__init__(model.config, sample_rate, layers=1)
        fold_weight_norm(model.encoder)
        self.encoder, self.normalize = model.encoder, model.config.normalize

    def encode(self, clips: Tensor) -> Tensor:
        if self.normalize:
            clips = clips / (clips.square().mean(1, keepdim=True).sqrt() + 1e-8)
        return self.encoder(self.to_channels(clips)).float().transpose(1, 2)[:, :, None]


class Mimi(Codec):
    """Mimi (Défossez et al., 2024): layer 0 is the input of its transformer, layer n the output of block n.

    The downsampling before quantisation, which halves the frame rate, is left out, so all layers have one rate.
    """

    stable_name = "upstreams.codecs:Mimi"

    def __init__(self, model: Any, sample_rate: int) -> None:
        super().__init__(model.config, sample_rate, layers=model.config.num_hidden_layers + 1)
        if model.encoder is None or not model.config.num_hidden_layers:
            raise UpstreamError("the model has no encoder with a transformer block; give a whole Mimi checkpoint")
        nested = hasattr(model.encoder, "encoder_seanet")  # not in earlier releases of transformers
        self.convolutions = model.encoder.encoder_seanet if nested else model.encoder
        self.transformer = (model.encoder if nested else model).encoder_transformer
        for module in self.convolutions.modules():
            if hasattr(module, "padding_total"):  # transformers 5 loses both values when it loads weights
                module.padding_right = int(module.padding_total) // 2
                module.padding_left = int(module.padding_total) - module.padding_right

    def encode(self, clips: Tensor) -> Tensor:
        frames = self.convolutions(self.to_channels(clips)).transpose(1, 2)
        with collect_states(self.transformer.layers) as states:
            self.transformer(frames, use_cache=False)
        return torch.stack([state.float() for state in states], dim=2)


def codec_upstream(model: Any, front_end: dict[str, Any]) -> Upstream:
    """Return an upstream for an EncodecModel or MimiModel and the settings of its preprocessor.

    Raises UpstreamError if the two disagree, or if the frame rate is not constant.
    """
    config = model.config
    refuse_chunks(config, front_end)
    for key, value in (("sampling_rate", config.sampling_rate), ("feature_size", config.audio_channels)):
        if front_end.get(key) != value:
            raise UpstreamError(
                f"preprocessor_config.json gives {key} {short_repr(front_end.get(key))}, but config.json makes it "
                f"{value}; copy both from where the model was published"
            )
    return (Mimi if config.model_type == "mimi" else Encodec)(model, config.sampling_rate)


def refuse_chunks(config: Any, front_end: dict[str, Any]) -> None:
    """Raise UpstreamError if the model encodes overlapping chunks."""
    chunk = getattr(config, "chunk_length_s", None) or front_end.get("chunk_length_s")
    if chunk:
        raise UpstreamError(
            f"the model encodes overlapping chunks of {short_repr(chunk)} s one by one, so its frames do not come at a "
            "constant rate; use one without chunks, such as facebook/encodec_24khz"
        )
