"""SpeechBrain's pretrained encoders (Ravanelli et al., 2021), from hyperparams.yaml and the .ckpt files beside it.

Speaker embeddings by ECAPA-TDNN (Desplanques et al., 2020), x-vectors (Snyder et al., 2018) or ResNet, and wav2vec 2.0,
HuBERT and WavLM as fine-tuned there. The networks are SpeechBrain's own modules, built from the arguments in the file;
it is read as data, so that nothing else it names is ever made or called. Classifiers, label encoders and the
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
from upstreams.families.front_end import front_end
from upstreams.families.hub import Source, locate
from upstreams.families.speaker_encoders import POOLING, Normalization, SpeakerEncoder
from upstreams.families.speechbrain_yaml import Hyperparams, Tagged
from upstreams.families.waveform_encoders import WaveformEncoder
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import listed, misfits, printable, shown
from upstreams.safety.configuration_limits import MOST, weighed

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
IDLE = ("avoid_padding_norm", "device", "update_until_epoch")  # arguments that matter to training or padding only
SHAPES = ("triangular", "rectangular", "gaussian")  # of filters; any other name is taken for the last
LARGEST = 200_000  # argument; those that memory or time grow with are kept smaller
LARGE = dict.fromkeys(("block_sizes", "left_frames", "n_mels", "res2net_scale", "right_frames", "tdnn_blocks"), 1_000)
LARGE["n_fft"] = 16_384
QUIRKS = "allow_tf32,disable_jit_profiling"  # settings of torch that it changes as it is imported, by its own names


def load(reference: str, random: bool = False) -> Upstream:
    """The encoder in a folder or hub repository (ID or ID@REVISION) of SpeechBrain's; random weights where `random`.

    Raises UpstreamError where files are missing or broken, weights do not all arrive, or hyperparams.yaml makes its
    encoder of a class that is not known here.
    """
    source = located(reference)
    path = source.find(FILE)
    if path is None:
        raise UpstreamError(f"no {FILE} in '{reference}'; speechbrain: takes a folder or hub id of a pretrained model")
    plan = speechbrain_yaml.read(path, reference)
    node = encoder(plan)
    weights = None if random else weights_of(node, plan, source)
    build = speaker_encoder if node.made in POOLING else fine_tuned
    upstream = build(node, plan, source, weights)
    upstream.origin = {**upstream.origin, **source.origin()}
    return upstream


def located(reference: str) -> Source:
    try:
        return locate(reference)
    except UpstreamError as error:
        told, _, advice = str(error).partition("; hf:")
        if not advice:
            raise
        raise UpstreamError(f"{told}; speechbrain: takes a folder with {FILE}, or a hub id") from error


def encoder(plan: Hyperparams) -> Tagged:
    """What the pretrainer loads that is an encoder known here."""
    loaded = plan.section("pretrainer", "loadables")
    if not loaded:
        raise plan.error("has no pretrainer with loadables; give a model published for SpeechBrain's inference")
    objects = {key: node for key, node in loaded.items() if isinstance(node, Tagged)}
    for node in objects.values():
        if node.made in POOLING or node.made in FINE_TUNED:
            return node
    found = ", ".join(f"{key} of {node.made}" for key, node in objects.items())[:200]
    known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in (*POOLING, *FINE_TUNED)))
    raise plan.error(f"makes no encoder known here, but {found or 'nothing'}; known: {known}")


def weights_of(node: Tagged, plan: Hyperparams, source: Source) -> Path:
    """The file that the pretrainer loads a part from, by the name it was published or collected under."""
    loaded = plan.section("pretrainer", "loadables")
    key = next((key for key, value in loaded.items() if value is node), None)
    if key is None:
        raise plan.error(f"loads no weights into its {node.made}; give a model published for SpeechBrain's inference")
    named = Path(str(plan.section("pretrainer", "paths").get(key, ""))).name
    names = [name for name in (named, Path(f"{key}.ckpt").name) if name]
    path = next((path for name in names if (path := source.find(name))), None)
    if path is None:
        raise UpstreamError(
            f"'{source.reference}' lacks {printable(names[0])}, which its {FILE} names; download it too"
        )
    return path


def library(name: str) -> Any:
    """A class of SpeechBrain, by one of the names above."""
    module, _, kind = name.rpartition(".")
    os.environ.setdefault("SB_DISABLE_QUIRKS", QUIRKS)  # they would change what every other model here computes
    try:
        return getattr(importlib.import_module(module), kind)
    except ImportError as error:
        told = f"speechbrain: needs SpeechBrain, which does not import here ({checkpoints.one_line(error)})"
        raise UpstreamError(f"{told}; pip install speechbrain") from error


def constructed(node: Tagged, plan: Hyperparams) -> tuple[Any, dict[str, Any]]:
    """A module of SpeechBrain, and all its arguments, those left to default too, as JSON values."""
    kind = library(node.made)
    given = {key: checked(key, value, plan) for key, value in plan.arguments(node).items() if key not in IDLE}
    try:
        bound = inspect.signature(kind).bind(**given)
        bound.apply_defaults()
        refuse_odd(kind, bound.arguments)
        module = kind(**given)
    except Exception as error:
        raise plan.error(f"gives {node.made} arguments that do not suit it: {checkpoints.one_line(error)}") from error
    return module, {key: getattr(value, "__name__", value) for key, value in bound.arguments.items() if key not in IDLE}


def refuse_odd(kind: Any, arguments: dict[str, Any]) -> None:
    """Raise ValueError for what SpeechBrain takes as something else, or makes empty filters of."""
    for key, parameter in inspect.signature(kind).parameters.items():
        if isinstance(parameter.default, bool) and not isinstance(arguments[key], bool):
            raise ValueError(f"{key} must be true or false")
    if arguments.get("filter_shape", SHAPES[0]) not in SHAPES:
        raise ValueError(f"filter_shape must be one of {', '.join(SHAPES)}")
    if "f_min" in arguments:
        highest = arguments["f_max"]
        if not 0 <= arguments["f_min"] < (arguments["sample_rate"] / 2 if highest is None else highest):
            raise ValueError("f_min must be at least 0 and below f_max")


def checked(key: str, value: Any, plan: Hyperparams) -> Any:
    """An argument: a number, a text, a list of numbers, or an activation of torch's."""
    if isinstance(value, Tagged):
        module, _, name = value.made.removeprefix("!name:").rpartition(".")
        if not value.tag.startswith("!name:") or not module.startswith("torch.nn") or name not in ACTIVATIONS:
            raise plan.error(f"gives {value.made} as {key}, which is neither a number nor a known activation")
        if value.content:
            raise plan.error(f"gives the activation {name} arguments of its own, which are not known here")
        return getattr(nn, name)
    most = LARGE.get(key, LARGEST)
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, (int, float, str, type(None))) or (isinstance(entry, int) and abs(entry) > most):
            raise plan.error(f"gives a {key} that is neither a number up to {most} nor a list of such numbers")
    return value


def speaker_encoder(node: Tagged, plan: Hyperparams, source: Source, weights: Path | None) -> Upstream:
    features, front = constructed(part("compute_features", FBANK, plan), plan)
    if list(features.parameters()):
        raise plan.error(f"trains its {FBANK} (requires_grad), which is not known here; give a model with a fixed one")
    rate = plan.value("sample_rate")
    if rate is not None and rate != front["sample_rate"]:
        raise plan.error(f"says sample_rate {shown(rate)}, but its Fbank takes {front['sample_rate']}; make them agree")
    normalization, norm = normalized(plan, source)
    if not weights and weighed(lambda: constructed(node, plan)[0]) > MOST:
        raise plan.error(f"describes a network of more than {MOST:.0e} weights; get another")
    with torch.device("meta" if weights else "cpu"):  # nothing is allocated before it is known to fit the weights
        network, arguments = constructed(node, plan)
    if weights:
        fill(network, checkpoints.read(weights), source.reference)
    settings = {"network": node.made, "arguments": arguments, "features": front, "normalization": norm}
    try:
        return SpeakerEncoder(features, normalization, network, settings)
    except Exception as error:
        raise plan.error(f"gives parts that do not fit together: {checkpoints.one_line(error)}") from error


def part(key: str, known: str, plan: Hyperparams) -> Tagged:
    """The module that `modules` names by a key."""
    node = plan.section("modules").get(key)
    if not isinstance(node, Tagged) or node.made != known:
        found = node.made if isinstance(node, Tagged) else "nothing"
        raise plan.error(f"makes {key} of {found}, and only {known} is known here")
    return node


def normalized(plan: Hyperparams, source: Source) -> tuple[Normalization, dict[str, Any]]:
    """SpeechBrain's InputNormalization, with the statistics of training where it is global."""
    node = part("mean_var_norm", NORMALIZATION, plan)
    _, given = constructed(node, plan)
    if given["norm_type"] not in ("global", "sentence") or given["length_dim"] != 1:
        raise plan.error(f"normalises by {given['norm_type']}; known here are the norm_types global and sentence")
    settings = {key: given[key] for key in ("norm_type", "std_norm", "epsilon")}
    if given["norm_type"] == "sentence":
        return Normalization(given["std_norm"], given["epsilon"]), settings
    content = checkpoints.load(weights_of(node, plan, source))
    found = [content.get(key) if isinstance(content, dict) else None for key in ("glob_mean", "glob_std")]
    if not all(isinstance(each, Tensor) and each.ndim == 1 and bool(each.isfinite().all()) for each in found):
        raise plan.error("normalises with statistics of training, and their file holds no finite glob_mean, glob_std")
    return Normalization(given["std_norm"], given["epsilon"], *found), settings


def fill(network: nn.Module, state: checkpoints.StateDict, reference: str, idle: tuple[str, ...] = ()) -> None:
    """Put weights into a network; raises UpstreamError unless all arrive, but for those that begin as `idle` says."""
    checkpoints.refuse_unusable(state, reference)
    own = network.state_dict()
    told = misfits(
        [key for key in own if key not in state and not key.startswith(idle)],
        [key for key in state if key not in own and not key.startswith(idle)],
        [key for key in own if key in state and own[key].shape != state[key].shape],
    )
    if told:
        raise UpstreamError(f"weights of '{reference}' do not fit its {FILE}, {told}")
    fitting = {key: state[key].to(tensor.dtype) for key, tensor in own.items() if key in state}
    network.load_state_dict(fitting, strict=not idle, assign=any(tensor.is_meta for tensor in own.values()))


def fine_tuned(node: Tagged, plan: Hyperparams, source: Source, weights: Path | None) -> Upstream:
    """wav2vec 2.0 or its kin: SpeechBrain's weights, in the architecture of the model that they were tuned from."""
    arguments = plan.arguments(node)
    base = base_of(arguments, plan, source)
    config = huggingface.configuration(base.read_json("config.json") or {}, base.reference)
    settings = front_end(base, config.model_type)
    state = tuned(weights, huggingface.model_class(config.model_type), source.reference) if weights else None
    huggingface.refuse_larger(config, state, base.reference)
    model = huggingface.untrained(config)
    if state is not None:
        fill(model, state, source.reference, huggingface.UNUSED)
    plain = huggingface.wrapped(model, settings)
    if type(plain) is not WaveformEncoder:
        raise plan.error(f"wraps a model of type '{config.model_type}', and that is known to hf: only")
    upstream = FineTuned(model, plain.normalize, plain.sample_rate, arguments.get("output_norm") is True)
    upstream.origin = base.origin()
    return upstream


def base_of(arguments: dict[str, Any], plan: Hyperparams, source: Source) -> Source:
    """Where the configuration is: in a folder that the file names, beside the file, or in a repository it names."""
    named = [str(arguments[key]) for key in ("save_path", "source") if key in arguments]
    folders = [source.folder / name for name in named] if source.folder else []
    for candidate in [*(Source(printable(str(folder), 400), folder) for folder in folders), source]:
        if describes_a_model(candidate):
            return candidate
    try:
        found = locate(str(arguments.get("source", "")))
        found.find("config.json")
    except UpstreamError as error:
        advice = f"put its config.json and preprocessor_config.json beside {FILE}"
        raise plan.error(f"builds on the model '{arguments.get('source')}', which is not here; {advice}") from error
    return found


def describes_a_model(source: Source) -> bool:
    """Whether there is a configuration of transformers; config.json in SpeechBrain's own repositories is another."""
    try:
        return "model_type" in (source.read_json("config.json") or {})
    except UpstreamError:
        if source.folder is None:  # the hub is out of reach, and the file was not needed so far
            return False
        raise


def tuned(path: Path, kind: Any, reference: str) -> checkpoints.StateDict:
    """Weights by the names of transformers' bare model, which SpeechBrain's wrapper calls `model`."""
    state = checkpoints.renamed(checkpoints.read(path), lambda name: name.removeprefix("model."), reference)
    bare, strangers = huggingface.without_heads(state, kind)
    if strangers:
        raise UpstreamError(f"weights of '{reference}' do not fit its {FILE}, of no use: {listed(strangers)}")
    return checkpoints.renamed(bare, huggingface.present, reference)


class FineTuned(WaveformEncoder):
    """wav2vec 2.0 and its kin as SpeechBrain runs them: clips, where `normalize`, and outputs, where `output_norm`, are
    normalised by torch's layer norm over all of their values.

    The last layer is SpeechBrain's output; where outputs are normalised, so is every other layer.
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
