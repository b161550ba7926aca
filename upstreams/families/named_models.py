"""Models of the Hugging Face hub that are registered under short names."""

from __future__ import annotations

from typing import Any

from upstreams import register
from upstreams.base import Upstream
from upstreams.families.front_end import FrontEnd
from upstreams.families.huggingface import load, model_class, random_model, upstream_from_model

AS_IS = {"sampling_rate": 16_000, "do_normalize": False}
NORMALIZED = {"sampling_rate": 16_000, "do_normalize": True}
WHISPER = {"sampling_rate": 16_000, "feature_size": 80, "n_fft": 400, "hop_length": 160, "chunk_length": 30}
AST = {"sampling_rate": 16_000, "do_normalize": True, "mean": -4.2677393, "std": 4.5689974}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


def hub_model(reference: str, random: bool, kind: str, settings: dict[str, Any], **sizes: Any) -> Upstream:
    """Load a model of the hub; random: build its architecture from `sizes` with random weights, without a network."""
    if not random:
        return load(reference)
    return upstream_from_model(random_model(model_class(kind).config_class(**sizes)), FrontEnd(settings, reference))


@register
def wav2vec2_base(random: bool = False) -> Upstream:
    """wav2vec 2.0 base, LibriSpeech 960 h (Baevski et al., 2020)."""
    return hub_model("facebook/wav2vec2-base", random, "wav2vec2", NORMALIZED)


@register
def wav2vec2_large(random: bool = False) -> Upstream:
    """wav2vec 2.0 large, Libri-Light 60 000 h (Baevski et al., 2020)."""
    return hub_model("facebook/wav2vec2-large-lv60", random, "wav2vec2", NORMALIZED, conv_bias=True, **LARGE)


@register
def hubert_base(random: bool = False) -> Upstream:
    """HuBERT base, LibriSpeech 960 h (Hsu et al., 2021)."""
    return hub_model("facebook/hubert-base-ls960", random, "hubert", NORMALIZED)


@register
def hubert_large(random: bool = False) -> Upstream:
    """HuBERT large, Libri-Light 60 000 h (Hsu et al., 2021)."""
    return hub_model("facebook/hubert-large-ll60k", random, "hubert", NORMALIZED, conv_bias=True, **LARGE)


@register
def wavlm_base(random: bool = False) -> Upstream:
    """WavLM base, LibriSpeech 960 h (Chen et al., 2022)."""
    return hub_model("microsoft/wavlm-base", random, "wavlm", AS_IS)


@register
def wavlm_base_plus(random: bool = False) -> Upstream:
    """WavLM base+, 94 000 h of mixed speech (Chen et al., 2022)."""
    return hub_model("microsoft/wavlm-base-plus", random, "wavlm", AS_IS)


@register
def wavlm_large(random: bool = False) -> Upstream:
    """WavLM large, 94 000 h of mixed speech (Chen et al., 2022)."""
    return hub_model("microsoft/wavlm-large", random, "wavlm", NORMALIZED, **LARGE)


@register
def data2vec_audio_base(random: bool = False) -> Upstream:
    """data2vec audio base, LibriSpeech 960 h (Baevski et al., 2022)."""
    return hub_model("facebook/data2vec-audio-base", random, "data2vec-audio", NORMALIZED)


@register
def unispeech_sat_base(random: bool = False) -> Upstream:
    """UniSpeech-SAT base, LibriSpeech 960 h (Chen et al., 2022)."""
    return hub_model("microsoft/unispeech-sat-base", random, "unispeech-sat", AS_IS)


@register
def whisper_base(random: bool = False) -> Upstream:
    """Encoder of Whisper base, 680 000 h of labelled speech (Radford et al., 2022)."""
    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    return hub_model("openai/whisper-base", random, "whisper", WHISPER | {"padding_value": 0.0}, **sizes)


@register
def ast(random: bool = False) -> Upstream:
    """Audio Spectrogram Transformer, supervised on AudioSet (Gong et al., 2021)."""
    return hub_model(
        "MIT/ast-finetuned-audioset-10-10-0.4593",
        random,
        "audio-spectrogram-transformer",
        AST | {"max_length": 1024, "num_mel_bins": 128},
    )
