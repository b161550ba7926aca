"""SpeechBrain's pretrained encoders (Ravanelli et al., 2021), from hyperparams.yaml and the .ckpt files beside it.

Speaker embeddings by ECAPA-TDNN (Desplanques et al., 2020), x-vectors (Snyder et al., 2018) or ResNet, and wav2vec 2.0,
HuBERT and WavLM as fine-tuned there. The networks are SpeechBrain's own modules, built from the arguments in the file;
the file is read as data, so that no other object that it names is built or called. Classifiers, label encoders and the
normalisation of embeddings are left out, and their files are not read.
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import Features, Upstream, UpstreamError
from upstreams.families import huggingface, speechbrain_yaml
from upstreams.families.front_end import load_front_end
from upstreams.families.hub import Source, locate
from upstreams.families.speaker_encoders import POOLING, Normalization, SpeakerEncoder
from upstreams.families.speechbrain_yaml import Hyperparams, Tagged
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import describe_misfits, printable, short_list, short_repr
from upstreams.safety.configuration_limits import MOST, count_weights

FILE = "hyperparams.yaml"
FBANK = "speechbrain.lobes.features.Fbank"
NORMALIZATION = "speechbrain.processing.features.InputNormalization"
WRAPPERS = ("hubert.HuBERT", "wav2vec2.Wav2Vec2", "wavlm.WavLM")
FINE_TUNED = (
    "speechbrain.lobes.models.huggingface_wav2vec.HuggingFaceWav2Vec2",  # until 0.5
    *(f"speechbrain.lobes.models.huggingface_transformers.{name}" for name in WRAPPERS),  # 1.0
    *(f"speechbrain.integrations.huggingface.{name}" for name in WRAPPERS),
)
ACTIVATIONS = ("ELU", "GELU", "Hardtanh", "LeakyReLU", "ReLU", "SELU", "SiLU", "Sigmoid", "Softplus", "Tanh")
IDLE = ("avoid_padding_norm", "device", "update_until_epoch")  # arguments that affect training or padding only
SHAPES = ("triangular", "rectangular", "gaussian")  # filter shapes; SpeechBrain treats any other name as the last
LARGEST = 200_000  # upper limit of an argument; the limits below are lower where memory or time grows with it
LARGE = dict.fromkeys(("block_sizes", "left_frames", "n_mels", "res2net_scale", "right_frames", "tdnn_blocks"), 1_000)
LARGE["n_fft"] = 16_384
QUIRKS = "allow_tf32,disable_jit_profiling"  # SpeechBrain's names of torch settings that its import would change


def load(reference: str, random: bool = False) -> Upstream:
    """Load the encoder in a SpeechBrain folder or hub repository (ID or ID@REVISION); random: with random weights.

    Raises UpstreamError if files are missing or broken, if not all weights are loaded, or if hyperparams.yaml uses an
    encoder class that is not supported.
    """
    source = locate_pretrained(reference)
    path = source.find(FILE)
    if path is None:
        raise UpstreamError(f"no {FILE} in '{reference}'; speechbrain: takes a folder or hub id of a pretrained model")
    params = speechbrain_yaml.read_hyperparams(path, reference)
    node = encoder_node(params)
    weights = None if random else weights_of(node, params, source)
    build = speaker_encoder if node.class_name in POOLING else fine_tuned_encoder
    upstream = build(node, params, source, weights)
    upstream.origin = {**upstream.origin, **source.origin()}
    return upstream


def locate_pretrained(reference: str) -> Source:
    """Locate a folder or hub repository; errors give advice for the speechbrain: prefix."""
    try:
        return locate(reference)
    except UpstreamError as error:
        message, _, advice = str(error).partition("; hf:")
        if not advice:
            raise
        raise UpstreamError(f"{message}; speechbrain: takes a folder with {FILE}, or a hub id") from error


def encoder_node(params: Hyperparams) -> Tagged:
    """Return the supported encoder among the pretrainer's loadables; raises UpstreamError if there is none."""
    loaded = params.section("pretrainer", "loadables")
    if not loaded:
        raise params.error("has no pretrainer with loadables; give a model published for SpeechBrain's inference")
    objects = {key: node for key, node in loaded.items() if isinstance(node, Tagged)}
    for node in objects.values():
        if node.class_name in POOLING or node.class_name in FINE_TUNED:
            return node
    classes = ", ".join(f"{key} of {node.class_name}" for key, node in objects.items())[:200]
    supported = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in (*POOLING, *FINE_TUNED)))
    raise params.error(f"defines no supported encoder, but {classes or 'nothing'}; supported: {supported}")


def weights_of(node: Tagged, params: Hyperparams, source: Source) -> Path:
    """Return the checkpoint of a part, by the name in the pretrainer's paths or by KEY.ckpt; raises UpstreamError."""
    loaded = params.section("pretrainer", "loadables")
    key = next((key for key, value in loaded.items() if value is node), None)
    if key is None:
        raise params.error(
            f"loads no weights into its {node.class_name}; give a model published for SpeechBrain's inference"
        )
    published = Path(str(params.section("pretrainer", "paths").get(key, ""))).name
    names = [name for name in (published, Path(f"{key}.ckpt").name) if name]
    path = next((path for name in names if (path := source.find(name))), None)
    if path is None:
        raise UpstreamError(
            f"'{source.reference}' lacks {printable(names[0])}, which its {FILE} names; download it too"
        )
    return path


def speechbrain_class(name: str) -> Any:
    """Import a class of SpeechBrain by its full name; raises UpstreamError if SpeechBrain cannot be imported."""
    module, _, kind = name.rpartition(".")
    os.environ.setdefault("SB_DISABLE_QUIRKS", QUIRKS)  # they would change the results of all other models
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        problem = f"speechbrain: needs SpeechBrain, which does not import here ({checkpoints.one_line(error)})"
        raise UpstreamError(f"{problem}; pip install speechbrain") from error


def construct(node: Tagged, params: Hyperparams) -> tuple[Any, dict[str, Any]]:
    """Build a module of SpeechBrain; return it and all its arguments, including defaults, as JSON values."""
    kind = speechbrain_class(node.class_name)
    arguments = {
        key: checked_argument(key, value, params) for key, value in params.arguments(node).items() if key not in IDLE
    }
    try:
        bound = inspect.signature(kind).bind(**arguments)
        bound.apply_defaults()
        refuse_bad_arguments(kind, bound.arguments)
        module = kind(**arguments)
    except Exception as error:
        raise params.error(
            f"gives {node.class_name} arguments that do not suit it: {checkpoints.one_line(error)}"
        ) from error
    return module, {key: getattr(value, "__name__", value) for key, value in bound.arguments.items() if key not in IDLE}


def refuse_bad_arguments(kind: Any, arguments: dict[str, Any]) -> None:
    """Raise ValueError for arguments that SpeechBrain would misinterpret or that give empty filters."""
    for key, parameter in inspect.signature(kind).parameters.items():
        if isinstance(parameter.default, bool) and not isinstance(arguments[key], bool):
            raise ValueError(f"{key} must be true or false")
    if arguments.get("filter_shape", SHAPES[0]) not in SHAPES:
        raise ValueError(f"filter_shape must be one of {', '.join(SHAPES)}")
    if "f_min" in arguments:
        highest = arguments["f_max"]
        if not 0 <= arguments["f_min"] < (arguments["sample_rate"] / 2 if highest is None else highest):
            raise ValueError("f_min must be at least 0 and below f_max")


def checked_argument(key: str, value: Any, params: Hyperparams) -> Any:
    """Return an argument, with the name of an activation replaced by its class.

    Raises UpstreamError unless it is a number, a text, a list of these within limits, or a known activation of torch.
    """
    if isinstance(value, Tagged):
        module, _, name = value.class_name.removeprefix("!name:").rpartition(".")
        if not value.tag.startswith("!name:") or not module.startswith("torch.nn") or name not in ACTIVATIONS:
            raise params.error(
                f"gives {value.class_name} as {key}, which is neither a number nor a supported activation"
            )
        if value.content:
            raise params.error(f"gives the activation {name} arguments, which are not supported")
        return getattr(nn, name)
    most = LARGE.get(key, LARGEST)
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, (int, float, str, type(None))) or (isinstance(entry, int) and abs(entry) > most):
            raise params.error(f"gives a {key} that is neither a number up to {most} nor a list of such numbers")
    return value


def speaker_encoder(node: Tagged, params: Hyperparams, source: Source, weights: Path | None) -> Upstream:
    """Build a SpeakerEncoder from features, normalisation and network; without `weights`, with random weights."""
    features, front = construct(module_node("compute_features", FBANK, params), params)
    if list(features.parameters()):
        raise params.error(f"trains its {FBANK} (requires_grad), which is not supported; give a model with a fixed one")
    rate = params.value("sample_rate")
    if rate is not None and rate != front["sample_rate"]:
        raise params.error(
            f"says sample_rate {short_repr(rate)}, but its Fbank takes {front['sample_rate']}; make them agree"
        )
    normalization, norm = input_normalization(params, source)
    if not weights and count_weights(lambda: construct(node, params)[0]) > MOST:
        raise params.error(f"describes a network of more than {MOST:.0e} weights; get another")
    with torch.device("meta" if weights else "cpu"):  # memory is allocated only after the weights were found to fit
        network, arguments = construct(node, params)
    if weights:
        fill_weights(network, checkpoints.read_weights(weights), source.reference)
    settings = {"network": node.class_name, "arguments": arguments, "features": front, "normalization": norm}
    try:
        return SpeakerEncoder(features, normalization, network, settings)
    except Exception as error:
        raise params.error(f"gives parts that do not fit together: {checkpoints.one_line(error)}") from error


def module_node(key: str, supported: str, params: Hyperparams) -> Tagged:
    """Return the node under a key of `modules`; raises UpstreamError unless its class is `supported`."""
    node = params.section("modules").get(key)
    if not isinstance(node, Tagged) or node.class_name != supported:
        name = node.class_name if isinstance(node, Tagged) else "nothing"
        raise params.error(f"uses {name} as {key}, but only {supported} is supported")
    return node


def input_normalization(params: Hyperparams, source: Source) -> tuple[Normalization, dict[str, Any]]:
    """Return the input normalisation and its settings; a global one has the statistics of the training data."""
    node = module_node("mean_var_norm", NORMALIZATION, params)
    _, arguments = construct(node, params)
    if arguments["norm_type"] not in ("global", "sentence") or arguments["length_dim"] != 1:
        raise params.error(f"normalises by {arguments['norm_type']}; supported norm_types are global and sentence")
    settings = {key: arguments[key] for key in ("norm_type", "std_norm", "epsilon")}
    if arguments["norm_type"] == "sentence":
        return Normalization(arguments["std_norm"], arguments["epsilon"]), settings
    content = checkpoints.load_checkpoint(weights_of(node, params, source))
    statistics = [content.get(key) if isinstance(content, dict) else None for key in ("glob_mean", "glob_std")]
    if not all(isinstance(value, Tensor) and value.ndim == 1 and bool(value.isfinite().all()) for value in statistics):
        raise params.error("normalises with statistics of training, and their file holds no finite glob_mean, glob_std")
    return Normalization(arguments["std_norm"], arguments["epsilon"], *statistics), settings


def fill_weights(network: nn.Module, state: checkpoints.StateDict, reference: str, idle: tuple[str, ...] = ()) -> None:
    """Load weights into a network; raises UpstreamError unless all fit, except those with a prefix in `idle`."""
    checkpoints.refuse_unusable(state, reference)
    expected = network.state_dict()
    problem = describe_misfits(
        [key for key in expected if key not in state and not key.startswith(idle)],
        [key for key in state if key not in expected and not key.startswith(idle)],
        [key for key in expected if key in state and expected[key].shape != state[key].shape],
    )
    if problem:
        raise UpstreamError(f"weights of '{reference}' do not fit its {FILE}, {problem}")
    fitting = {key: state[key].to(tensor.dtype) for key, tensor in expected.items() if key in state}
    network.load_state_dict(fitting, strict=not idle, assign=any(tensor.is_meta for tensor in expected.values()))


def fine_tuned_encoder(node: Tagged, params: Hyperparams, source: Source, weights: Path | None) -> Upstream:
    """Build wav2vec 2.0 or a related model: the architecture of its base model, with SpeechBrain's weights."""
    arguments = params.arguments(node)
    base = base_source(arguments, params, source)
    config = huggingface.transformers_config(base.read_json("config.json") or {}, base.reference)
    settings = load_front_end(base, config.model_type)
    state = (
        fine_tuned_weights(weights, huggingface.model_class(config.model_type), source.reference) if weights else None
    )
    huggingface.refuse_larger(config, state, base.reference)
    model = huggingface.random_model(config)
    if state is not None:
        fill_weights(model, state, source.reference, huggingface.UNUSED)
    plain = huggingface.upstream_from_model(model, settings)
    if type(plain) is not WaveformEncoder:
        raise params.error(f"wraps a model of type '{config.model_type}', which only hf: supports")
    upstream = FineTuned(model, plain.normalize, plain.sample_rate, arguments.get("output_norm") is True)
    upstream.origin = base.origin()
    return upstream


def base_source(arguments: dict[str, Any], params: Hyperparams, source: Source) -> Source:
    """Return the source of the base model's configuration.

    This is a folder that the file names, the folder of the file itself, or a hub repository that the file names.
    Raises UpstreamError if none of them has a config.json.
    """
    named = [str(arguments[key]) for key in ("save_path", "source") if key in arguments]
    folders = [source.folder / name for name in named] if source.folder else []
    for candidate in [*(Source(printable(str(folder), 400), folder) for folder in folders), source]:
        if describes_a_model(candidate):
            return candidate
    try:
        base = locate(str(arguments.get("source", "")))
        base.find("config.json")
    except UpstreamError as error:
        advice = f"put its config.json and preprocessor_config.json beside {FILE}"
        raise params.error(f"builds on the model '{arguments.get('source')}', which is not here; {advice}") from error
    return base


def describes_a_model(source: Source) -> bool:
    """Return whether config.json is one of transformers; SpeechBrain's repositories have other files of this name."""
    try:
        return "model_type" in (source.read_json("config.json") or {})
    except UpstreamError:
        if source.folder is None:  # the hub cannot be reached, and another source may have the file
            return False
        raise


def fine_tuned_weights(path: Path, kind: Any, reference: str) -> checkpoints.StateDict:
    """Return weights by the names of transformers' bare model, which is `model` in SpeechBrain's wrapper."""
    state = checkpoints.renamed(checkpoints.read_weights(path), lambda name: name.removeprefix("model."), reference)
    bare, unknown = huggingface.without_heads(state, kind)
    if unknown:
        raise UpstreamError(f"weights of '{reference}' do not fit its {FILE}, of no use: {short_list(unknown)}")
    return checkpoints.renamed(bare, huggingface.current_weight_name, reference)


class FineTuned(WaveformEncoder):
    """wav2vec 2.0 and related models as SpeechBrain runs them.

    normalize: whether each clip is normalised by a layer norm over all its samples. output_norm: whether the output is
    normalised by a layer norm over all its values; every other layer is then normalised too. The last layer is
    SpeechBrain's output.
    """

    stable_name = "upstreams.speechbrain:FineTuned"

    def __init__(self, model: Any, normalize: bool, sample_rate: int, output_norm: bool) -> None:
        super().__init__(model, False, sample_rate)
        self.layer_norm, self.output_norm = normalize, output_norm

    def settings(self) -> dict[str, object]:
        return super().settings() | {"normalize": self.layer_norm, "output_norm": self.output_norm}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        frames, counts = super().forward(waveforms, lengths)
        if self.output_norm:
            for index, count in enumerate(counts.tolist()):
                layers = frames[index, :count].transpose(0, 1)
                frames[index, :count] = F.layer_norm(layers, layers.shape[1:]).transpose(0, 1)
        return Features(frames, counts)

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        clean = super().prepare(waveforms, lengths)
        if self.layer_norm:
            for index, length in enumerate(lengths.tolist()):
                clean[index, :length] = F.layer_norm(clean[index, :length], (length,))
        return clean
