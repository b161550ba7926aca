"""Checkpoints in fairseq's format, without fairseq: HuBERT, wav2vec 2.0, data2vec audio, WavLM and UniSpeech-SAT.

Up to their heads they are one architecture, and transformers' HubertModel has all of its options but two: for WavLM's
gated relative positions there is WavLMModel, and data2vec's stack of positional convolutions is put into it.
"""

from __future__ import annotations

import argparse
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upstreams import HIGHEST_RATE, LOWEST_RATE
from upstreams.base import Upstream, UpstreamError
from upstreams.families.fairseq_keys import CHOICES, DEFAULTS, FIRST, NESTED, OTHERS, UNUSED, fairseq_name, spelled
from upstreams.families.huggingface import in_single, model_class, quiet
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import listed, misfits, shown
from upstreams.safety.configuration_limits import KERNEL, refuse_slow

MOST_CONVOLUTIONS = 64  # a few characters of an option could ask for thousands


class Release(NamedTuple):
    """What a checkpoint holds: weights by fairseq's names, options of its model, and of what that was trained on."""

    state: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]


class FairseqEncoder(WaveformEncoder):
    """As WaveformEncoder, but clips are normalised as fairseq does it, by a layer norm over their samples."""

    stable_name = "upstreams.fairseq:FairseqEncoder"

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        # A layer norm adds 1e-5 to the variance, transformers 1e-7, which in quiet clips is another scale.
        return super().prepare(waveforms * math.sqrt(1e-7 / 1e-5) if self.normalize else waveforms, lengths)


def load(rest: str, random: bool = False) -> Upstream:
    """The encoder in a checkpoint; its architecture with random weights where `random`.

    Raises UpstreamError where the file is missing, broken, not in this format, or of a model that is not known here.
    """
    if not rest:
        raise UpstreamError("fairseq: has nothing after it; write fairseq:FILE, a checkpoint in fairseq's format")
    path = checkpoints.expanded(rest)
    release = unpacked(checkpoints.load(path), rest)
    normalize, sample_rate = front_end(release.task, rest)
    weights = encoder_weights(release.state, rest)
    config = configuration(checked(release.model, len(weights), rest), sample_rate, rest)
    model = trained(config, weights, rest)
    if random:
        model = architecture(config, weights, rest)
    upstream = FairseqEncoder(model, normalize, sample_rate)
    refuse_slow(upstream, f"cfg of '{rest}'")
    upstream.origin = checkpoints.digests([path])
    return upstream


def unpacked(content: Any, rest: str) -> Release:
    """The parts of a checkpoint, whether fairseq's older ("args") or newer ("cfg") one, Microsoft's, or s3prl's."""
    held = mapping(content)
    state = held.get("model_weight", held.get("model"))
    converted = {"model": held.get("model_cfg"), "task": held.get("task_cfg")}
    model, task = sections(held.get("cfg") or held.get("args") or converted)
    if not isinstance(state, dict) or not model:
        keys = listed([str(key) for key in held]) if held else f"one {type(content).__name__}"
        raise UpstreamError(
            f"'{rest}' is no fairseq checkpoint, which has 'model' and 'cfg' or 'args'; it holds {keys}; give other "
            "models as hf:FOLDER, s3prl:NAME@FILE or file.py:function"
        )
    state = {str(key): value for key, value in state.items()}
    refuse_others(state, rest)
    flat = isinstance(held.get("cfg"), dict) and "model" not in held["cfg"]
    if flat and model.get("extractor_mode", "default") == "default":
        task = {"normalize": False, **task}  # Microsoft's own default, which WavLM Base does not write down
    release = Release(state, model, task)
    return encoder_of(release, rest) if any(NESTED in key for key in state) else release


def encoder_of(tuned: Release, rest: str) -> Release:
    """The encoder within a fine-tuned model, without what was put around it."""
    model, task = sections(tuned.model.get("w2v_args"))
    if not model:
        raise UpstreamError(
            f"'{rest}' was fine-tuned and does not hold 'w2v_args', which describe its encoder; give the checkpoint "
            "that it was fine-tuned from"
        )
    nested = {key: value for key, value in tuned.state.items() if NESTED in key}
    state = checkpoints.renamed(nested, lambda key: key.partition(NESTED)[2], rest)
    return Release(state, model, {**task, **tuned.task})


def mapping(value: Any) -> dict[str, Any]:
    """Options that are set, of a dict or namespace; none where it is something else."""
    held = vars(value) if isinstance(value, argparse.Namespace) else value
    return {str(key): item for key, item in held.items() if item is not None} if isinstance(held, dict) else {}


def sections(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the model and of its task, which are together in older checkpoints."""
    held = mapping(config)
    return mapping(held.get("model")) or held, mapping(held.get("task")) or held


def refuse_others(state: dict[str, Any], rest: str) -> None:
    """Raise UpstreamError for what is no encoder of this architecture, by the family's name where that is known."""
    for part, family, instead in OTHERS:
        if any(part in key for key in state):
            raise UpstreamError(f"'{rest}' is {family}, which fairseq: does not read; {instead}")
    if not any(key.endswith(FIRST) for key in state):
        raise UpstreamError(
            f"'{rest}' is a model that fairseq: does not read, with weights such as {listed(list(state), 2)}; give it "
            "as s3prl:NAME@FILE or file.py:function"
        )


def front_end(task: dict[str, Any], rest: str) -> tuple[bool, int]:
    """Whether clips are normalised, and samples per second."""
    normalize, sample_rate = task.get("normalize"), task.get("sample_rate", 16_000)
    if not isinstance(normalize, bool):
        raise UpstreamError(
            f"'{rest}' does not say whether its input is normalised; set 'normalize' to True or False in its "
            "cfg['task'], as it was in pre-training"
        )
    if type(sample_rate) is not int or not LOWEST_RATE <= sample_rate <= HIGHEST_RATE:
        told = f"'{rest}' has the sample_rate {shown(sample_rate)}"
        raise UpstreamError(f"{told}; it must be a whole number from {LOWEST_RATE} to {HIGHEST_RATE} Hz")
    return normalize, sample_rate


def encoder_weights(state: dict[str, Any], rest: str) -> checkpoints.StateDict:
    """What layers depend on, in float32; raises UpstreamError for what is no tensor of numbers, or not finite."""
    needed = {key: value for key, value in state.items() if not key.startswith(UNUSED)}
    checkpoints.refuse_unusable(needed, rest)
    return in_single(checkpoints.renamed(needed, spelled, rest))


def checked(given: dict[str, Any], tensors: int, rest: str) -> dict[str, Any]:
    """All options of an encoder; raises UpstreamError for those of the wrong kind, or of what is not known here."""
    unread = () if given.get("relative_position_embedding") else ("num_buckets", "max_distance")
    options = {name: given.get(name, default) for name, default in DEFAULTS.items() if name not in unread}
    for name, value in options.items():
        if type(value) is not type(DEFAULTS[name]) or (type(value) is int and value < 1):
            raise UpstreamError(f"cfg of '{rest}' has {name} = {shown(value)}; it must be like {DEFAULTS[name]!r}")
        if value not in CHOICES.get(name, (value,)):
            raise UpstreamError(
                f"cfg of '{rest}' has {name} = {shown(value)}; known here: {', '.join(map(repr, CHOICES[name]))}"
            )
    if options["relative_position_embedding"] and not options["gru_rel_pos"]:
        raise UpstreamError(
            f"cfg of '{rest}' has relative_position_embedding without gru_rel_pos; known here is WavLM, which has both"
        )
    for name in ("encoder_layers", "pos_conv_depth"):
        if options[name] > tensors:
            raise UpstreamError(
                f"cfg of '{rest}' has {name} = {shown(options[name])}, but there are only {tensors} weights"
            )
    if options["conv_pos"] > KERNEL:
        raise UpstreamError(f"cfg of '{rest}' has conv_pos = {shown(options['conv_pos'])}; it must be {KERNEL} at most")
    return options


def configuration(options: dict[str, Any], sample_rate: int, rest: str) -> Any:
    """The same architecture in transformers' terms."""
    import transformers

    dims, kernels, strides = convolutions(options["conv_feature_layers"], sample_rate, rest)
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
        "mask_time_prob": 0.0,  # without masks the model has no embedding of masked frames, which no layer needs
    }
    depth = options["pos_conv_depth"]
    if depth > 1:
        sizes |= {"num_conv_pos_embeddings": depth, "conv_pos_kernel_size": max(3, options["conv_pos"] // depth)}
    if options["relative_position_embedding"]:
        distances = {"num_buckets": options["num_buckets"], "max_bucket_distance": options["max_distance"]}
        return transformers.WavLMConfig(**sizes, **distances)
    return transformers.HubertConfig(**sizes, conv_pos_batch_norm=options["conv_pos_batch_norm"])


def convolutions(text: str, sample_rate: int, rest: str) -> list[list[int]]:
    """Channels, kernels and strides of the feature extractor's layers, as fairseq writes them."""
    told = f"cfg of '{rest}' has conv_feature_layers = {shown(text, 80)}"
    try:
        layers = checkpoints.literal(text)
    except UpstreamError as error:
        raise UpstreamError(f"{told}; write a list of plain values, such as [(512, 10, 5)]") from error
    good = isinstance(layers, list) and all(isinstance(layer, tuple) and len(layer) == 3 for layer in layers)
    if not good or not all(type(size) is int and size >= 1 for layer in layers for size in layer):
        raise UpstreamError(f"{told}; it must list (channels, kernel, stride)")
    if not 1 <= len(layers) <= MOST_CONVOLUTIONS:
        raise UpstreamError(f"{told}, which is {len(layers)} layers; it must be 1 to {MOST_CONVOLUTIONS}")
    if max(kernel for _, kernel, _ in layers) > KERNEL:
        raise UpstreamError(f"{told}; its kernels must be {KERNEL} at most")
    if math.prod(stride for _, _, stride in layers) > sample_rate:
        raise UpstreamError(f"{told}, which is less than a frame per second; correct the strides")
    return [list(sizes) for sizes in zip(*layers, strict=True)]


def architecture(config: Any, weights: checkpoints.StateDict, rest: str) -> Any:
    """The model with random weights; raises UpstreamError where sizes contradict each other."""
    try:
        with quiet():
            model = model_class(config.model_type)(config)
        if hasattr(config, "conv_pos_kernel_size"):
            model.encoder.pos_conv_embed = stacked_positions(config).apply(model._init_weights)
    except Exception as error:
        raise UpstreamError(f"no model can be built from the cfg of '{rest}': {checkpoints.one_line(error)}") from error
    if "post_extract_proj.weight" not in weights and config.conv_dim[-1] == config.hidden_size:
        model.feature_projection.projection = nn.Identity()
    return model


def stacked_positions(config: Any) -> nn.Module:
    from transformers.models.data2vec import modeling_data2vec_audio

    return modeling_data2vec_audio.Data2VecAudioPositionalConvEmbedding(config)


def trained(config: Any, weights: checkpoints.StateDict, rest: str) -> Any:
    """The model with the checkpoint's weights; raises UpstreamError, in fairseq's names, unless all of them fit."""
    with torch.device("meta"):
        model = architecture(config, weights, rest)
    norms = config.feat_extract_norm == "layer", getattr(config, "conv_pos_batch_norm", False)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = {fairseq_name(name, *norms): name for name in wanted}
    complain({name: wanted[theirs] for name, theirs in names.items()}, weights, rest)
    model.load_state_dict({names[name]: tensor for name, tensor in weights.items()}, assign=True)
    return model


def complain(wanted: dict[str, torch.Size], weights: checkpoints.StateDict, rest: str) -> None:
    """Raise UpstreamError for weights that are missing, that have no place, or another shape than the cfg says."""
    missing = [name for name in wanted if name not in weights]
    surplus = [name for name in weights if name not in wanted]
    misshapen = [
        f"{name} is {by(weights[name].shape)}, not {by(shape)}"
        for name, shape in wanted.items()
        if name in weights and weights[name].shape != shape
    ]
    told = misfits(missing, surplus, misshapen)
    if told:
        raise UpstreamError(f"weights of '{rest}' do not fit its cfg, {told}")


def by(shape: torch.Size) -> str:
    return "×".join(map(str, shape)) or "a number"
