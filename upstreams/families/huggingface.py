"""Checkpoints of the Hugging Face ecosystem, loaded from a local folder or by hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from upstreams.base import Upstream, UpstreamError
from upstreams.families.conformer_encoders import Wav2Vec2Bert
from upstreams.families.front_end import FrontEnd, load_front_end
from upstreams.families.hub import Source, locate
from upstreams.families.spectrogram_encoders import Ast, Whisper
from upstreams.families.squeezed_encoders import SqueezedEncoder
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import describe_misfits, short_repr
from upstreams.safety.configuration_limits import MOST, count_weights, refuse_impossible_sizes, refuse_slow

MODELS = {
    "audio-spectrogram-transformer": "ASTModel",
    "data2vec-audio": "Data2VecAudioModel",
    "encodec": "EncodecModel",
    "hubert": "HubertModel",
    "mimi": "MimiModel",
    "sew": "SEWModel",
    "sew-d": "SEWDModel",
    "unispeech": "UniSpeechModel",
    "unispeech-sat": "UniSpeechSatModel",
    "wav2vec2": "Wav2Vec2Model",
    "wav2vec2-bert": "Wav2Vec2BertModel",
    "wav2vec2-conformer": "Wav2Vec2ConformerModel",
    "wavlm": "WavLMModel",
    "whisper": "WhisperEncoder",
}
# UNUSED: prefixes of weights that no layer depends on. DERIVED: suffixes of buffers computed from the configuration.
UNUSED = ("masked_spec_embed", "adapter.", "intermediate_ffn.")
DERIVED = ("embed_positions.inv_freq", "embed_positions.pe", "position_ids", "num_batches_tracked")
# Prefixes of weights outside the bare model: heads for recognition and classification, for speakers, for pre-training.
TASKS = ("lm_head.", "classifier.", "projector.", "layer_weights", "proj_out.", "decoder.")
SPEAKERS = ("tdnn.", "feature_extractor.", "objective.")
PRETRAINING = ("quantizer.", "project_q.", "project_hid.", "ctc_proj.", "final_proj.", "speaker_proj.")
HEADS = (*TASKS, *SPEAKERS, *PRETRAINING, "label_embeddings_concat", "layer_norm_for_extract.")
LABELS = ("num_labels", "id2label", "label2id")  # used by heads only; transformers builds lists from them
SLACK = 50_000_000  # number of weights that may be missing before the model counts as too large for its checkpoint


def load(reference: str, random: bool = False) -> Upstream:
    """Load the model in a folder, or in a hub repository at an optional @REVISION; random: with random weights.

    Raises UpstreamError if files are missing or broken, or if weights do not fit the architecture.
    """
    source = locate(reference)
    content = source.read_json("config.json")
    if content is None:
        raise UpstreamError(f"no config.json in '{reference}'; give a folder written by save_pretrained, or a hub id")
    config = transformers_config(content, reference)
    settings = load_front_end(source, config.model_type)
    model = limited_random_model(config, reference) if random else pretrained_model(config, source)
    try:
        upstream = upstream_from_model(model, settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, UpstreamError):
            raise
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"the front end of '{reference}' does not suit its config.json: {detail}") from error
    upstream.origin = source.origin()
    return upstream


def transformers_config(content: dict[str, Any], reference: str) -> Any:
    """Return a transformers configuration from the content of config.json.

    Raises UpstreamError for unsupported architectures, quantised weights and invalid values.
    """
    import transformers

    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        status = "whose own code (auto_map) is never run" if content.get("auto_map") else "which is not supported"
        raise UpstreamError(
            f"'{reference}' is a model of type {short_repr(kind)}, {status}; supported: {', '.join(sorted(MODELS))}"
        )
    if content.get("quantization_config"):
        raise UpstreamError(f"weights of '{reference}' are quantised (quantization_config); give the unquantised model")
    # The implementation of attention does not change the model, and its name may refer to code on the hub.
    plain = {key: value for key, value in content.items() if "_implementation" not in key and key not in LABELS}
    refuse_impossible_sizes(plain, reference)
    try:
        with transformers_quiet():
            config = model_class(kind).config_class.from_dict(plain)
    except Exception as error:  # the exception types differ between releases of transformers
        detail = checkpoints.one_line(error)
        raise UpstreamError(
            f"config.json of '{reference}' does not suit transformers {transformers.__version__}: {detail}"
        ) from error
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise UpstreamError(
            f"'{reference}' has no transformer block; num_hidden_layers in its config.json must be >= 1"
        )
    return config


def model_class(kind: str) -> Any:
    """Return the transformers class of a model type in `MODELS`."""
    import transformers

    module = transformers.models.whisper.modeling_whisper if kind == "whisper" else transformers
    return getattr(module, MODELS[kind])


def random_model(config: Any) -> Any:
    """Return a model with random weights, drawn from torch's global generator."""
    try:
        with transformers_quiet():
            return model_class(config.model_type)(without_adapter(config)).float()
    except Exception as error:
        raise UpstreamError(f"no model can be built from this config.json: {checkpoints.one_line(error)}") from error


def limited_random_model(config: Any, reference: str) -> Any:
    """Return a model with random weights; raises UpstreamError if the configuration describes more than `MOST`."""
    refuse_larger(config, None, reference)
    return random_model(config)


def without_adapter(config: Any) -> Any:
    """Remove from a configuration, in place, the adapter that may follow a model's last layer, and return it."""
    if getattr(config, "add_adapter", False):
        config.add_adapter = False
        config.use_intermediate_ffn_before_adapter = False
    return config


def pretrained_model(config: Any, source: Source) -> Any:
    """Return a model with the checkpoint's weights.

    Raises UpstreamError if weights are missing, not finite, or belong to another architecture.
    """
    model_type = model_class(config.model_type)
    state, unknown = without_heads(checkpoints.read_weights(source.weights()), model_type)
    state = checkpoints.renamed(state, current_weight_name, source.reference)
    checkpoints.refuse_unusable(state, source.reference)
    refuse_larger(config, state, source.reference)
    try:
        with transformers_quiet():
            model, report = reporting_class(model_type).from_pretrained(
                None,
                config=config,
                state_dict=in_float32(state),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refuse_incomplete_loading reports them by name
                dtype=torch.float32,
            )
    except Exception as error:
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"weights of '{source.reference}' do not fit its config.json: {detail}") from error
    refuse_incomplete_loading(report, unknown, source.reference, model_type.base_model_prefix)
    model.__class__ = model_type
    return model


def reporting_class(model: Any) -> Any:
    """Return a subclass of a transformers class that reports every unexpected weight.

    The class itself may list weights that it does not report.
    """
    no_keys = property(lambda _: set(), lambda *_: None)
    return type(
        model.__name__, (model,), {"_keys_to_ignore_on_load_unexpected": no_keys, "__module__": model.__module__}
    )


def refuse_larger(config: Any, state: checkpoints.StateDict | None, reference: str) -> None:
    """Raise UpstreamError, before memory is allocated, if a configuration has far more weights than `state`.

    Without a state, that is for random weights, the limit is 5 billion weights.
    """
    described = count_weights(lambda: random_model(without_adapter(config)))
    if state is None and described > MOST:
        problem = f"config.json of '{reference}' describes a model of {described:.2g} weights"
        raise UpstreamError(f"{problem}; a random twin may have {MOST:.0e}")
    if state is not None and described > SLACK + 2 * sum(tensor.numel() for tensor in state.values()):
        raise UpstreamError(f"config.json of '{reference}' describes a far larger model than its weights belong to")


def without_heads(state: checkpoints.StateDict, model: Any) -> tuple[checkpoints.StateDict, list[str]]:
    """Return the bare model's weights by its own names, and the names of weights that belong to no known head."""
    names = (model.base_model_prefix, "encoder") if model.__name__ == MODELS["whisper"] else (model.base_model_prefix,)
    unknown: list[str] = []
    for name in names:
        if any(key.startswith(f"{name}.") for key in state):
            unknown += [key for key in state if not key.startswith((f"{name}.", *HEADS))]
            state = {key[len(name) + 1 :]: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
    return state, unknown


def current_weight_name(name: str) -> str:
    """Return the current name of a weight; older releases of torch name the parts of weight norm differently."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if name.endswith(f".{old}"):
            return f"{name.removesuffix(old)}parametrizations.weight.{new}"
    return name


def in_float32(state: checkpoints.StateDict) -> checkpoints.StateDict:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def refuse_incomplete_loading(report: dict[str, Any], unknown: list[str], reference: str, base: str) -> None:
    """Raise UpstreamError for missing or mismatched weights, and for unexpected ones of no known head.

    report: loading information of `from_pretrained`. base: the attribute of head classes that holds the bare model.
    """

    def matters(key: str) -> bool:
        return not key.startswith(UNUSED) and not key.endswith(DERIVED)

    parts = tuple(head for head in HEADS if head not in SPEAKERS)  # "feature_extractor." is a part of the bare model
    missing = [key for key in report["missing_keys"] if matters(key)]
    surplus = [key for key in report["unexpected_keys"] if matters(key) and not key.startswith(parts)]
    entries = report.get("mismatched_keys", ())
    mismatched = [entry if isinstance(entry, str) else str(entry[0]) for entry in entries]
    problem = describe_misfits(missing, surplus + unknown, mismatched)
    if problem and not missing and not mismatched:
        problem += (
            f"; where these are a head of your own, save the encoder alone, by model.{base}.save_pretrained(FOLDER)"
        )
    if problem:
        raise UpstreamError(f"weights of '{reference}' do not fit its config.json, {problem}")


@contextmanager
def transformers_quiet() -> Iterator[None]:
    """Silence transformers' progress bars and log messages; problems are raised as errors instead."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # its error messages print untrusted text unescaped
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def upstream_from_model(model: Any, settings: FrontEnd) -> Upstream:
    """Return a transformers model with its feature extractor's settings as an upstream."""
    kind = model.config.model_type
    if kind in ("encodec", "mimi"):
        from upstreams.families.codecs import codec_upstream

        return codec_upstream(model, settings)
    if kind == "whisper":
        return Whisper(model, settings)
    if kind == "audio-spectrogram-transformer":
        return Ast(model, settings)
    if kind == "wav2vec2-bert":
        return Wav2Vec2Bert(model, settings)
    family = SqueezedEncoder if kind in ("sew", "sew-d") else WaveformEncoder
    encoder = family(model, settings.flag("do_normalize"), settings.whole("sampling_rate"))
    refuse_slow(encoder, f"config.json of '{settings.reference}'")
    return encoder
