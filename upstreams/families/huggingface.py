"""Checkpoints of the Hugging Face ecosystem, from a local folder or by hub id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from upstreams.base import Upstream, UpstreamError
from upstreams.families.conformer_encoders import Wav2Vec2Bert
from upstreams.families.front_end import FrontEnd, front_end
from upstreams.families.hub import Source, locate
from upstreams.families.spectrogram_encoders import Ast, Whisper
from upstreams.families.squeezed_encoders import SqueezedEncoder
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import misfits, shown
from upstreams.safety.configuration_limits import MOST, refuse_impossible, refuse_slow, weighed

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
# Parts of the bare models that no layer depends on, and what follows from the configuration alone.
UNUSED = ("masked_spec_embed", "adapter.", "intermediate_ffn.")
DERIVED = ("embed_positions.inv_freq", "embed_positions.pe", "position_ids", "num_batches_tracked")
# What checkpoints hold beside the bare model: heads of recognition and classification, of speakers, of pre-training.
TASKS = ("lm_head.", "classifier.", "projector.", "layer_weights", "proj_out.", "decoder.")
SPEAKERS = ("tdnn.", "feature_extractor.", "objective.")
PRETRAINING = ("quantizer.", "project_q.", "project_hid.", "ctc_proj.", "final_proj.", "speaker_proj.")
HEADS = (*TASKS, *SPEAKERS, *PRETRAINING, "label_embeddings_concat", "layer_norm_for_extract.")
LABELS = ("num_labels", "id2label", "label2id")  # of heads; transformers makes lists of them
SLACK = 50_000_000  # weights that a checkpoint may lack before the missing ones are told by name


def load(reference: str, random: bool = False) -> Upstream:
    """The model in a folder, or in a hub repository at an optional @REVISION; with random weights where `random`.

    Raises UpstreamError where files are missing or broken, or weights do not fit the architecture.
    """
    source = locate(reference)
    content = source.read_json("config.json")
    if content is None:
        raise UpstreamError(f"no config.json in '{reference}'; give a folder written by save_pretrained, or a hub id")
    config = configuration(content, reference)
    settings = front_end(source, config.model_type)
    model = twin(config, reference) if random else trained(config, source)
    try:
        upstream = wrapped(model, settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, UpstreamError):
            raise
        detail = checkpoints.one_line(error)
        raise UpstreamError(f"the front end of '{reference}' does not suit its config.json: {detail}") from error
    upstream.origin = source.origin()
    return upstream


def configuration(content: dict[str, Any], reference: str) -> Any:
    """A transformers configuration; raises UpstreamError for architectures that are not known here."""
    import transformers

    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        own = "whose own code (auto_map) is never run" if content.get("auto_map") else "which is not known"
        raise UpstreamError(
            f"'{reference}' is a model of type {shown(kind)}, {own}; known here: {', '.join(sorted(MODELS))}"
        )
    if content.get("quantization_config"):
        raise UpstreamError(f"weights of '{reference}' are quantised (quantization_config); give the unquantised model")
    # How attention is computed says nothing of the model, and may name code on the hub.
    plain = {key: value for key, value in content.items() if "_implementation" not in key and key not in LABELS}
    refuse_impossible(plain, reference)
    try:
        with quiet():
            config = model_class(kind).config_class.from_dict(plain)
    except Exception as error:  # each release has its own for what it does not like
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
    import transformers

    home = transformers.models.whisper.modeling_whisper if kind == "whisper" else transformers
    return getattr(home, MODELS[kind])


def untrained(config: Any) -> Any:
    """Random weights, drawn from torch's generator."""
    try:
        with quiet():
            return model_class(config.model_type)(bare(config)).float()
    except Exception as error:
        raise UpstreamError(f"no model can be built from this config.json: {checkpoints.one_line(error)}") from error


def twin(config: Any, reference: str) -> Any:
    """A model with random weights; raises UpstreamError for a configuration of more than are ever wanted."""
    refuse_larger(config, None, reference)
    return untrained(config)


def bare(config: Any) -> Any:
    """A configuration without the adapter that may follow a model's last layer."""
    if getattr(config, "add_adapter", False):
        config.add_adapter = False
        config.use_intermediate_ffn_before_adapter = False
    return config


def trained(config: Any, source: Source) -> Any:
    """The checkpoint's weights; raises UpstreamError where they are absent, not finite or those of another model."""
    model_type = model_class(config.model_type)
    state, strangers = without_heads(checkpoints.read(source.weights()), model_type)
    state = checkpoints.renamed(state, present, source.reference)
    checkpoints.refuse_unusable(state, source.reference)
    refuse_larger(config, state, source.reference)
    try:
        with quiet():
            model, report = telling(model_type).from_pretrained(
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
    complain(report, strangers, source.reference, model_type.base_model_prefix)
    model.__class__ = model_type
    return model


def telling(model: Any) -> Any:
    """A transformers class that reports all weights that it has no place for; as it is, it may keep some to itself."""
    kept = property(lambda _: set(), lambda *_: None)
    return type(model.__name__, (model,), {"_keys_to_ignore_on_load_unexpected": kept, "__module__": model.__module__})


def refuse_larger(config: Any, state: checkpoints.StateDict | None, reference: str) -> None:
    """Raise UpstreamError, before memory is taken, for a configuration of far more weights than there are.

    Without a state, which is for random weights, of more than 5 billion.
    """
    described = weighed(lambda: untrained(bare(config)))
    if state is None and described > MOST:
        told = f"config.json of '{reference}' describes a model of {described:.2g} weights"
        raise UpstreamError(f"{told}; a random twin may have {MOST:.0e}")
    if state is not None and described > SLACK + 2 * sum(tensor.numel() for tensor in state.values()):
        raise UpstreamError(f"config.json of '{reference}' describes a far larger model than its weights are of")


def without_heads(state: checkpoints.StateDict, model: Any) -> tuple[checkpoints.StateDict, list[str]]:
    """The weights of the bare model under its own names, and the names of those that are neither its nor a head's."""
    names = (model.base_model_prefix, "encoder") if model.__name__ == MODELS["whisper"] else (model.base_model_prefix,)
    strangers: list[str] = []
    for name in names:
        if any(key.startswith(f"{name}.") for key in state):
            strangers += [key for key in state if not key.startswith((f"{name}.", *HEADS))]
            state = {key[len(name) + 1 :]: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
    return state, strangers


def present(name: str) -> str:
    """The present name of a weight, where older releases of torch normalised weights in another way."""
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        if name.endswith(f".{old}"):
            return f"{name.removesuffix(old)}parametrizations.weight.{new}"
    return name


def in_single(state: checkpoints.StateDict) -> checkpoints.StateDict:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def complain(report: dict[str, Any], strangers: list[str], reference: str, base: str) -> None:
    """Raise UpstreamError for weights that the model lacks, or that are neither its nor those of a known head."""

    def matters(key: str) -> bool:
        return not key.startswith(UNUSED) and not key.endswith(DERIVED)

    parts = tuple(head for head in HEADS if head not in SPEAKERS)  # "feature_extractor." is the model's own here
    missing = [key for key in report["missing_keys"] if matters(key)]
    surplus = [key for key in report["unexpected_keys"] if matters(key) and not key.startswith(parts)]
    entries = report.get("mismatched_keys", ())
    mismatched = [entry if isinstance(entry, str) else str(entry[0]) for entry in entries]
    told = misfits(missing, surplus + strangers, mismatched)
    if told and not missing and not mismatched:
        told += f"; where these are a head of your own, save the encoder alone, by model.{base}.save_pretrained(FOLDER)"
    if told:
        raise UpstreamError(f"weights of '{reference}' do not fit its config.json, {told}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and notes on loading; what matters of them is raised here."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # errors print a stranger's text as it is
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def wrapped(model: Any, settings: FrontEnd) -> Upstream:
    """A transformers model and its feature extractor's settings as an upstream."""
    kind = model.config.model_type
    if kind in ("encodec", "mimi"):
        from upstreams.families.codecs import wrapped as codec

        return codec(model, settings)
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
