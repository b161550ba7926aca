"""Checkpoints in fairseq's format, without fairseq: HuBERT, wav2vec 2.0, data2vec audio, WavLM and UniSpeech-SAT.

Apart from their heads, these models share one architecture. transformers' HubertModel has all of its options except
two: models with WavLM's gated relative positions use WavLMModel, and data2vec's stack of positional convolutions
replaces the single positional convolution.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upstreams import HIGHEST_RATE, LOWEST_RATE
from upstreams.base import Upstream, UpstreamError
from upstreams.families.fairseq_keys import (
    CHOICES,
    DEFAULTS,
    FIRST,
    NESTED,
    OTHERS,
    UNUSED,
    fairseq_name,
    fairseq_spelling,
)
from upstreams.families.huggingface import in_float32, model_class, transformers_quiet
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import describe_misfits, short_list, short_repr
from upstreams.safety.configuration_limits import KERNEL, refuse_slow

MOST_CONVOLUTIONS = 64  # a short expression in an option could describe thousands


class Release(NamedTuple):
    """Content of a checkpoint: weights by fairseq's names, options of the model, and options of the task."""

    state: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]


class FairseqEncoder(WaveformEncoder):
    """A WaveformEncoder that normalises clips as fairseq does, by a layer norm over their samples."""

    stable_name = "upstreams.fairseq:FairseqEncoder"

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        # A layer norm adds 1e-5 to the variance and transformers 1e-7; in quiet clips this changes the scale.
        return super().prepare(waveforms * math.sqrt(1e-7 / 1e-5) if self.normalize else waveforms, lengths)


def load(reference: str, random: bool = False) -> Upstream:
    """Load the encoder in a checkpoint; random: its architecture with random weights.

    Raises UpstreamError if the file is missing, broken, not in this format, or holds an unsupported model.
    """
    if not reference:
        raise UpstreamError("fairseq: has nothing after it; write fairseq:FILE, a checkpoint in fairseq's format")
    path = checkpoints.expanded_path(reference)
    release = unpack_release(checkpoints.load_checkpoint(path), reference)
    normalize, sample_rate = input_settings(release.task, reference)
    weights = fairseq_encoder_weights(release.state, reference)
    config = config_from_options(encoder_options(release.model, len(weights), reference), sample_rate, reference)
    model = trained_encoder(config, weights, reference)
    if random:
        model = random_encoder(config, weights, reference)
    upstream = FairseqEncoder(model, normalize, sample_rate)
    refuse_slow(upstream, f"cfg of '{reference}'")
    upstream.origin = checkpoints.digests([path])
    return upstream


def unpack_release(content: Any, reference: str) -> Release:
    """Return weights and options of a checkpoint, in the layout of fairseq ("args" or "cfg"), Microsoft or s3prl.

    Raises UpstreamError for other content and for unsupported models.
    """
    options = set_options(content)
    state = options.get("model_weight", options.get("model"))
    converted = {"model": options.get("model_cfg"), "task": options.get("task_cfg")}
    model, task = model_and_task_options(options.get("cfg") or options.get("args") or converted)
    if not isinstance(state, dict) or not model:
        keys = short_list([str(key) for key in options]) if options else f"one {type(content).__name__}"
        raise UpstreamError(
            f"'{reference}' is no fairseq checkpoint, which has 'model' and 'cfg' or 'args'; it holds {keys}; "
            "give other models as hf:FOLDER, s3prl:NAME@FILE or file.py:function"
        )
    state = {str(key): value for key, value in state.items()}
    refuse_other_families(state, reference)
    flat = isinstance(options.get("cfg"), dict) and "model" not in options["cfg"]
    if flat and model.get("extractor_mode", "default") == "default":
        task = {"normalize": False, **task}  # the default in Microsoft's code; WavLM Base does not store it
    release = Release(state, model, task)
    return nested_encoder(release, reference) if any(NESTED in key for key in state) else release


def nested_encoder(tuned: Release, reference: str) -> Release:
    """Return the encoder within a fine-tuned model, without the layers added for fine-tuning."""
    model, task = model_and_task_options(tuned.model.get("w2v_args"))
    if not model:
        raise UpstreamError(
            f"'{reference}' was fine-tuned and does not hold 'w2v_args', which describe its encoder; "
            "give the checkpoint that it was fine-tuned from"
        )
    nested = {key: value for key, value in tuned.state.items() if NESTED in key}
    state = checkpoints.renamed(nested, lambda key: key.partition(NESTED)[2], reference)
    return Release(state, model, {**task, **tuned.task})


def set_options(value: Any) -> dict[str, Any]:
    """Return the options of a dict or namespace that are not None; an empty dict for other values."""
    options = vars(value) if isinstance(value, argparse.Namespace) else value
    return {str(key): item for key, item in options.items() if item is not None} if isinstance(options, dict) else {}


def model_and_task_options(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return options of the model and of its task; older checkpoints hold both in one mapping."""
    options = set_options(config)
    return set_options(options.get("model")) or options, set_options(options.get("task")) or options


def refuse_other_families(state: dict[str, Any], reference: str) -> None:
    """Raise UpstreamError for weights of another architecture; the message names its family if it is known."""
    for part, family, instead in OTHERS:
        if any(part in key for key in state):
            raise UpstreamError(f"'{reference}' is {family}, which fairseq: does not read; {instead}")
    if not any(key.endswith(FIRST) for key in state):
        raise UpstreamError(
            f"'{reference}' is a model that fairseq: does not read, with weights such as {short_list(list(state), 2)}; "
            "give it as s3prl:NAME@FILE or file.py:function"
        )


def input_settings(task: dict[str, Any], reference: str) -> tuple[bool, int]:
    """Return whether clips are normalised, and the sampling rate in Hz; raises UpstreamError for invalid values."""
    normalize, sample_rate = task.get("normalize"), task.get("sample_rate", 16_000)
    if not isinstance(normalize, bool):
        raise UpstreamError(
            f"'{reference}' does not say whether its input is normalised; set 'normalize' to True or False in its "
            "cfg['task'], as it was in pre-training"
        )
    if type(sample_rate) is not int or not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        problem = f"'{reference}' has the sample_rate {short_repr(sample_rate)}"
        raise UpstreamError(f"{problem}; it must be a whole number from {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    return normalize, sample_rate


def fairseq_encoder_weights(state: dict[str, Any], reference: str) -> checkpoints.StateDict:
    """Return the weights that layers depend on, in float32; raises UpstreamError for anything but finite tensors."""
    used = {key: value for key, value in state.items() if not key.startswith(UNUSED)}
    checkpoints.refuse_unusable(used, reference)
    return in_float32(checkpoints.renamed(used, fairseq_spelling, reference))


def encoder_options(cfg: dict[str, Any], tensors: int, reference: str) -> dict[str, Any]:
    """Return all options of an encoder, with defaults; raises UpstreamError for wrong types and unsupported values.

    tensors: number of weights in the checkpoint, an upper bound on the number of layers.
    """
    unread = () if cfg.get("relative_position_embedding") else ("num_buckets", "max_distance")
    options = {name: cfg.get(name, default) for name, default in DEFAULTS.items() if name not in unread}
    for name, value in options.items():
        if type(value) is not type(DEFAULTS[name]) or (type(value) is int and value < 1):
            raise UpstreamError(
                f"cfg of '{reference}' has {name} = {short_repr(value)}; it must be like {DEFAULTS[name]!r}"
            )
        if value not in CHOICES.get(name, (value,)):
            raise UpstreamError(
                f"cfg of '{reference}' has {name} = {short_repr(value)}; "
                f"supported: {', '.join(map(repr, CHOICES[name]))}"
            )
    if options["relative_position_embedding"] and not options["gru_rel_pos"]:
        raise UpstreamError(
            f"cfg of '{reference}' has relative_position_embedding without gru_rel_pos; "
            "only WavLM, with both, is supported"
        )
    for name in ("encoder_layers", "pos_conv_depth"):
        if options[name] > tensors:
            raise UpstreamError(
                f"cfg of '{reference}' has {name} = {short_repr(options[name])}, but there are only {tensors} weights"
            )
    if options["conv_pos"] > KERNEL:
        raise UpstreamError(
            f"cfg of '{reference}' has conv_pos = {short_repr(options['conv_pos'])}; it must be {KERNEL} at most"
        )
    return options


def config_from_options(options: dict[str, Any], sample_rate: int, reference: str) -> Any:
    """Return the transformers configuration of the architecture that fairseq's options describe."""
    import transformers

    dims, kernels, strides = convolution_sizes(options["conv_feature_layers"], sample_rate, reference)
    sizes = {
        "hidden_size": options["encoder_embed_dim"],
        "num_hidden_layers": options["encoder_layers"],
        "num_attention_heads": options["encoder_attention_heads"],
        "intermediate_size": options["encoder_ffn_embed_dim"],
        "hidden_act": CHOICES["activation_fn"][options["activation_fn"]],
        "do_stable_layer_norm": options["layer_norm_first"],
        "layer_norm_eps": 1e-5,
        "feat_extract_norm": CHOICES["extractor_mode"][options["extractor_mode"]],
        "feat_extract_activation": "gelu",
        "conv_dim": dims,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": options["conv_bias"],
        "num_conv_pos_embeddings": options["conv_pos"],
        "num_conv_pos_embedding_groups": options["conv_pos_groups"],
        "mask_time_prob": 0.0,  # without masking the model has no mask embedding, which no layer needs
    }
    depth = options["pos_conv_depth"]
    if depth > 1:
        sizes |= {"num_conv_pos_embeddings": depth, "conv_pos_kernel_size": max(3, options["conv_pos"] // depth)}
    if options["relative_position_embedding"]:
        distances = {"num_buckets": options["num_buckets"], "max_bucket_distance": options["max_distance"]}
        return transformers.WavLMConfig(**sizes, **distances)
    return transformers.HubertConfig(**sizes, conv_pos_batch_norm=options["conv_pos_batch_norm"])


def convolution_sizes(text: str, sample_rate: int, reference: str) -> list[list[int]]:
    """Return channels, kernels and strides of the feature extractor, read from fairseq's text.

    Raises UpstreamError if the text is no list of (channels, kernel, stride), or sizes are out of bounds.
    """
    problem = f"cfg of '{reference}' has conv_feature_layers = {short_repr(text, 80)}"
    try:
        layers = checkpoints.literal_value(text)
    except UpstreamError as error:
        raise UpstreamError(f"{problem}; write a list of plain values, such as [(512, 10, 5)]") from error
    good = isinstance(layers, list) and all(isinstance(layer, tuple) and len(layer) == 3 for layer in layers)
    if not good or not all(type(size) is int and size >= 1 for layer in layers for size in layer):
        raise UpstreamError(f"{problem}; it must list (channels, kernel, stride)")
    if not 1 <= len(layers) <= MOST_CONVOLUTIONS:
        raise UpstreamError(f"{problem}, which is {len(layers)} layers; it must be 1 to {MOST_CONVOLUTIONS}")
    if max(kernel for _, kernel, _ in layers) > KERNEL:
        raise UpstreamError(f"{problem}; its kernels must be {KERNEL} at most")
    if math.prod(stride for _, _, stride in layers) > sample_rate:
        raise UpstreamError(f"{problem}, which is less than a frame per second; correct the strides")
    return [list(sizes) for sizes in zip(*layers, strict=True)]


def random_encoder(config: Any, weights: checkpoints.StateDict, reference: str) -> Any:
    """Return a model with random weights; raises UpstreamError if sizes contradict each other."""
    try:
        with transformers_quiet():
            model = model_class(config.model_type)(config)
        if hasattr(config, "conv_pos_kernel_size"):
            model.encoder.pos_conv_embed = stacked_positions(config).apply(model._init_weights)
    except Exception as error:
        raise UpstreamError(
            f"no model can be built from the cfg of '{reference}': {checkpoints.one_line(error)}"
        ) from error
    if "post_extract_proj.weight" not in weights and config.conv_dim[-1] == config.hidden_size:
        model.feature_projection.projection = nn.Identity()
    return model


def stacked_positions(config: Any) -> nn.Module:
    from transformers.models.data2vec import modeling_data2vec_audio

    return modeling_data2vec_audio.Data2VecAudioPositionalConvEmbedding(config)


def trained_encoder(config: Any, weights: checkpoints.StateDict, reference: str) -> Any:
    """Return a model with the checkpoint's weights; raises UpstreamError, with fairseq's names, unless all fit."""
    model_class(config.model_type)  # imported first: torch 2.7 cannot import its compiler under another default device
    with torch.device("meta"):
        model = random_encoder(config, weights, reference)
    norms = config.feat_extract_norm == "layer", getattr(config, "conv_pos_batch_norm", False)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = {fairseq_name(name, *norms): name for name in wanted}
    refuse_fairseq_misfits({name: wanted[original] for name, original in names.items()}, weights, reference)
    model.load_state_dict({names[name]: tensor for name, tensor in weights.items()}, assign=True)
    return model


def refuse_fairseq_misfits(wanted: dict[str, torch.Size], weights: checkpoints.StateDict, reference: str) -> None:
    """Raise UpstreamError for weights that are missing, unexpected, or of another shape than the cfg describes."""
    missing = [name for name in wanted if name not in weights]
    surplus = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} is {shape_text(weights[name].shape)}, not {shape_text(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    problem = describe_misfits(missing, surplus, misshapen)
    if problem:
        raise UpstreamError(f"weights of '{reference}' do not fit its cfg, {problem}")


def shape_text(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "a number"
