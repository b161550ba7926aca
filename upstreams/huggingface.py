"""Checkpoints of the Hugging Face ecosystem, from a local folder or by hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from upstreams import checkpoints, register
from upstreams.base import Upstream, UpstreamError
from upstreams.hub import Source, locate
from upstreams.spectrogram_encoders import Ast, Whisper
from upstreams.waveform_encoders import WaveformEncoder

MODELS = {
    "audio-spectrogram-transformer": "ASTModel",
    "data2vec-audio": "Data2VecAudioModel",
    "hubert": "HubertModel",
    "unispeech": "UniSpeechModel",
    "unispeech-sat": "UniSpeechSatModel",
    "wav2vec2": "Wav2Vec2Model",
    "wavlm": "WavLMModel",
    "whisper": "WhisperEncoder",
}
UNUSED = ("masked_spec_embed", "adapter.")  # parts of the bare models that no layer depends on


def load(reference: str, random: bool = False) -> Upstream:
    """The model in a folder or hub repository; its architecture with random weights where `random`.

    Raises UpstreamError where files are missing or broken, or weights do not fit the architecture.
    """
    source = locate(reference)
    content = source.read_json("config.json")
    if content is None:
        raise UpstreamError(f"no config.json in '{reference}'; give a folder written by save_pretrained, or a hub id")
    config = configuration(content, reference)
    front_end = preprocessing(source)
    model = untrained(config) if random else trained(config, source)
    try:
        return wrapped(model, front_end)
    except (TypeError, ValueError) as error:
        if isinstance(error, UpstreamError):
            raise
        detail = checkpoints.one_line(error)
        raise UpstreamError(
            f"preprocessor_config.json of '{reference}' has a value of the wrong kind: {detail}"
        ) from error


def configuration(content: dict[str, Any], reference: str) -> Any:
    """A transformers configuration; raises UpstreamError for architectures that are not known here."""
    import transformers

    kind = content.get("model_type")
    if kind not in MODELS:
        raise UpstreamError(f"'{reference}' is a model of type {kind!r}; known here: {', '.join(sorted(MODELS))}")
    try:
        return model_class(str(kind)).config_class.from_dict(content)
    except Exception as error:  # each release has its own for what it does not like
        detail = checkpoints.one_line(error)
        raise UpstreamError(
            f"config.json of '{reference}' does not suit transformers {transformers.__version__}: {detail}"
        ) from error


def model_class(kind: str) -> Any:
    import transformers

    home = transformers.models.whisper.modeling_whisper if kind == "whisper" else transformers
    return getattr(home, MODELS[kind])


def preprocessing(source: Source) -> dict[str, Any]:
    """What the checkpoint's own feature extractor does; raises UpstreamError where that is not written down."""
    content = source.read_json("preprocessor_config.json")
    if content is None:
        content = (source.read_json("processor_config.json") or {}).get("feature_extractor")
    if not isinstance(content, dict):
        raise UpstreamError(
            f"no preprocessor_config.json in '{source.reference}', so how its input is sampled and normalised is "
            "unknown; copy it from where the model was published, or save its feature extractor there"
        )
    return content


def untrained(config: Any) -> Any:
    """Random weights, drawn from torch's generator."""
    try:
        with quiet():
            return model_class(config.model_type)(config).float()
    except Exception as error:
        raise UpstreamError(f"no model can be built from this config.json: {checkpoints.one_line(error)}") from error


def trained(config: Any, source: Source) -> Any:
    """The checkpoint's weights; raises UpstreamError where they are absent, not finite or those of another model."""
    model_type = model_class(config.model_type)
    state = without_heads(checkpoints.read(source.weights()), model_type)
    broken = checkpoints.not_finite(state)
    if broken:
        raise UpstreamError(f"weights of '{source.reference}' are not finite: {listed(broken)}; download them again")
    try:
        with quiet():
            model, report = model_type.from_pretrained(
                None,
                config=config,
                state_dict=in_single(state),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told by name below
                dtype=torch.float32,
            )
    except Exception as error:
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"weights of '{source.reference}' do not fit its config.json: {detail}") from error
    complain(model, report, source.reference)
    return model


def without_heads(state: checkpoints.State, model: Any) -> checkpoints.State:
    """The weights of the bare model under its own names, where a checkpoint of a model with a head nests them."""
    names = (model.base_model_prefix, "encoder") if model.__name__ == MODELS["whisper"] else (model.base_model_prefix,)
    for name in names:
        if any(key.startswith(f"{name}.") for key in state):
            state = {key[len(name) + 1 :]: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
    return state


def in_single(state: checkpoints.State) -> checkpoints.State:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def complain(model: Any, report: dict[str, Any], reference: str) -> None:
    """Raise UpstreamError for weights the model lacks, or that it has no place for though it has their part.

    Heads of pre-training, recognition or classification are parts the bare model does not have, and are left out.
    """
    parts = tuple(f"{name}." for name, _ in model.named_children())
    missing = [key for key in report["missing_keys"] if not key.startswith(UNUSED)]
    surplus = [key for key in report["unexpected_keys"] if key.startswith(parts) and not key.startswith(UNUSED)]
    entries = report.get("mismatched_keys", ())
    mismatched = [entry if isinstance(entry, str) else str(entry[0]) for entry in entries]
    faults = [("missing", missing), ("of no use", surplus), ("of another shape", mismatched)]
    told = "; ".join(f"{what}: {listed(keys)}" for what, keys in faults if keys)
    if told:
        raise UpstreamError(f"weights of '{reference}' do not fit its config.json, {told}")


def listed(keys: list[str], most: int = 4) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and notes on loading; what matters of them is raised here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def wrapped(model: Any, front_end: dict[str, Any]) -> Upstream:
    """A transformers model and its preprocessor's settings as an upstream."""
    kind = model.config.model_type
    if kind == "whisper":
        return Whisper(model, front_end)
    if kind == "audio-spectrogram-transformer":
        return Ast(model, front_end)
    normalize, sample_rate = front_end.get("do_normalize", True), front_end.get("sampling_rate", 16_000)
    return WaveformEncoder(model, bool(normalize), int(sample_rate))


def named(reference: str, random: bool, kind: str, front_end: dict[str, Any], **sizes: Any) -> Upstream:
    """A model of the hub; where `random`, its architecture from the sizes given, so that no network is needed."""
    if not random:
        return load(reference)
    return wrapped(untrained(model_class(kind).config_class(**sizes)), front_end)


AS_IS, NORMALIZED = {"do_normalize": False}, {"do_normalize": True}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}


@register
def wav2vec2_base(random: bool = False) -> Upstream:
    """wav2vec 2.0 base, LibriSpeech 960 h (Baevski et al., 2020)."""
    return named("facebook/wav2vec2-base", random, "wav2vec2", NORMALIZED)


@register
def wav2vec2_large(random: bool = False) -> Upstream:
    """wav2vec 2.0 large, Libri-Light 60 000 h (Baevski et al., 2020)."""
    return named("facebook/wav2vec2-large-lv60", random, "wav2vec2", NORMALIZED, conv_bias=True, **LARGE)


@register
def hubert_base(random: bool = False) -> Upstream:
    """HuBERT base, LibriSpeech 960 h (Hsu et al., 2021)."""
    return named("facebook/hubert-base-ls960", random, "hubert", NORMALIZED)


@register
def hubert_large(random: bool = False) -> Upstream:
    """HuBERT large, Libri-Light 60 000 h (Hsu et al., 2021)."""
    return named("facebook/hubert-large-ll60k", random, "hubert", NORMALIZED, conv_bias=True, **LARGE)


@register
def wavlm_base(random: bool = False) -> Upstream:
    """WavLM base, LibriSpeech 960 h (Chen et al., 2022)."""
    return named("microsoft/wavlm-base", random, "wavlm", AS_IS)


@register
def wavlm_base_plus(random: bool = False) -> Upstream:
    """WavLM base+, 94 000 h of mixed speech (Chen et al., 2022)."""
    return named("microsoft/wavlm-base-plus", random, "wavlm", AS_IS)


@register
def wavlm_large(random: bool = False) -> Upstream:
    """WavLM large, 94 000 h of mixed speech (Chen et al., 2022)."""
    return named("microsoft/wavlm-large", random, "wavlm", NORMALIZED, **LARGE)


@register
def data2vec_audio_base(random: bool = False) -> Upstream:
    """data2vec audio base, LibriSpeech 960 h (Baevski et al., 2022)."""
    return named("facebook/data2vec-audio-base", random, "data2vec-audio", NORMALIZED)


@register
def unispeech_sat_base(random: bool = False) -> Upstream:
    """UniSpeech-SAT base, LibriSpeech 960 h (Chen et al., 2022)."""
    return named("microsoft/unispeech-sat-base", random, "unispeech-sat", AS_IS)


@register
def whisper_base(random: bool = False) -> Upstream:
    """Encoder of Whisper base, 680 000 h of labelled speech (Radford et al., 2022)."""
    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    return named("openai/whisper-base", random, "whisper", {}, **sizes)


@register
def ast(random: bool = False) -> Upstream:
    """Audio Spectrogram Transformer, supervised on AudioSet (Gong et al., 2021)."""
    return named("MIT/ast-finetuned-audioset-10-10-0.4593", random, "audio-spectrogram-transformer", {})
