"""Residual x-vectors behind hyperion's features, from its checkpoints or this project's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upstreams.base import UpstreamError, valid
from upstreams.families.hyperion_features import BANDS, HyperionMel, speech, without_mean
from upstreams.families.residual_xvector import STAGES, ResidualXVector, Shape
from upstreams.pretraining.masking import gathered
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable, shown
from upstreams.safety.strict_loading import DEPTHS, fitting

IN, OUT = "encoder_net.in_block.conv.weight", "classif_net.fc_blocks.0.linear.weight"
PREFIXES = ("module.", "backbone.")  # before the encoder's names, one after the other
LEFT_OVER = ("head.", "classif_net.output.", "n_averaged")  # of training
CAPPED = "bench.capped"  # in our own files: whether activations end at 6
ACTIVATIONS = {"relu": False, "relu6": True}
CONFIGURED: Mapping[str, tuple[Any, ...]] = {  # what hyperion's model_cfg may say of a network that is built here
    "class_name": ("ResNetXVector",),
    "resnet_type": ("lresnet34", "lresnet18", "resnet34", "resnet18"),
    "in_channels": (1,),
    "in_feats": (BANDS,),
    "in_kernel_size": (3,),
    "in_stride": (1, 2),
    "groups": (1,),
    "do_maxpool": (False,),
    "in_norm": (False,),
    "norm_layer": (None, "batch-norm"),
    "head_norm_layer": (None, "batch-norm"),
    "norm_before": (True,),
    "use_norm": (True,),
    "replace_stride_with_dilation": (None, [False] * 3),
    "proj_feats": (None,),
    "num_embed_layers": (1,),
    "embed_layer": (0,),
}


class HyperionNetwork(ResidualXVector):
    """The x-vector network behind hyperion's features; weights have the names of its backbone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.mel = HyperionMel()

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel frames (B, T, 80) without their mean, and how many are valid (B,)."""
        mel, frames = self.mel(waveforms, lengths)
        return without_mean(mel, frames), frames

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings (B, dim) of the frames that hold sound; in training of all, so that a batch stays even."""
        mel, frames = self.features(waveforms, lengths)
        if not self.training:
            kept = speech(waveforms, lengths)
            frames = kept.sum(1)
            mel = gathered(mel, kept, int(frames.max()))[0]
            mel = mel.masked_fill(~valid(frames, mel.shape[1])[:, :, None], 0.0)
        return self.embedding(mel, frames)


def network_of(checkpoint: str | Path, random: bool = False) -> HyperionNetwork:
    """The network in a checkpoint of hyperion's or ours, or only its architecture with random weights.

    Raises UpstreamError for a file that is missing, broken, of another model, or whose weights do not all arrive.
    """
    path, reference = checkpoints.expanded(str(checkpoint)), printable(str(checkpoint))
    content = checkpoints.load(path)
    configured = content.get("model_cfg") if isinstance(content, dict) else None
    if configured is not None:
        capped = capped_in(configured, reference)
        content = content.get("model_teacher_state_dict", content.get("model_state_dict"))
    state = checkpoints.renamed(checkpoints.tensors_only(content, path), bare, reference)
    if configured is None:
        told = state.pop(CAPPED, torch.tensor(1))
        if told.numel() != 1 or told.item() not in (0, 1):
            raise UpstreamError(f"{CAPPED} of '{reference}' is neither 0 nor 1; make it anew by bench pretrain dino")
        capped = bool(told)
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(LEFT_OVER)}
    shape = shape_in(weights, capped, reference)
    weights = fitting(weights, lambda: ResidualXVector(shape), "DINO's x-vector", reference)
    network = HyperionNetwork(shape)
    if not random:
        network.load_state_dict(weights)
    return network


def bare(name: str) -> str:
    """A weight's name without what training in parallel and DINO put before it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def capped_in(configured: Any, reference: str) -> bool:
    """Whether a network of this configuration ends its activations at 6; raises UpstreamError where it is of
    one that is not built here.

    What is not said is taken to be as `CONFIGURED` has it: the weights have to fit.
    """
    if not isinstance(configured, dict):
        raise UpstreamError(f"model_cfg of '{reference}' is {shown(configured)}; it must name the parts of a network")
    for key, allowed in CONFIGURED.items():
        if key in configured and shown(configured[key]) not in map(shown, allowed):
            raise unknown(key, configured[key], allowed, reference)
    pool = part(configured.get("pool_net"), "pool_type", "mean+stddev")
    if pool != "mean+stddev":
        raise unknown("pool_net", pool, ("mean+stddev",), reference)
    name = part(configured.get("hid_act"), "name", "relu")
    if name not in ACTIVATIONS:
        raise unknown("hid_act", name, tuple(ACTIVATIONS), reference)
    return ACTIVATIONS[name]


def part(told: Any, key: str, usual: str) -> str:
    """The name of a part of a network, which stands alone or among its arguments."""
    found = told.get(key, usual) if isinstance(told, dict) else told
    return usual if told is None else found if isinstance(found, str) else shown(found)


def unknown(key: str, value: Any, allowed: tuple[Any, ...], reference: str) -> UpstreamError:
    told = printable(value) if isinstance(value, str) else shown(value)
    known = " or ".join(map(str, allowed))
    return UpstreamError(f"model_cfg of '{reference}' has {key} {told}, which is not built here; it may be {known}")


def shape_in(weights: Mapping[str, Tensor], capped: bool, reference: str) -> Shape:
    """Shapes that the weights in a checkpoint speak of; raises UpstreamError where they are of no such network."""
    first, last = weights.get(IN, torch.empty(0)), weights.get(OUT, torch.empty(0))
    found = [re.match(r"encoder_net\.layer([1-4])\.([0-9]+)\.", name) for name in weights]
    blocks = tuple(len({each[2] for each in found if each and each[1] == str(n + 1)}) for n in range(STAGES))
    if first.ndim == 4 and last.ndim == 2 and len(first) and all(depth in DEPTHS for depth in blocks):
        for stride in CONFIGURED["in_stride"]:
            shape = Shape(len(first), blocks, len(last), BANDS, stride, capped)
            if last.shape[1] == 2 * shape.width and shape.dim:
                return shape
    raise UpstreamError(
        f"'{reference}' holds no residual x-vector of {BANDS} bands, mean and standard deviation; give a checkpoint of "
        "hyperion's recipe dinossl.v1 or of bench pretrain dino"
    )


def exported(network: ResidualXVector) -> dict[str, Tensor]:
    """Weights by hyperion's names, and what they do not say, as `network_of` reads them."""
    weights = {f"{PREFIXES[1]}{name}": tensor for name, tensor in network.state_dict().items()}
    return {**weights, CAPPED: torch.tensor(int(network.shape.capped))}
