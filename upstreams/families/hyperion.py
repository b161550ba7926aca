"""Residual x-vector networks on hyperion's features, from checkpoints of hyperion or of this project."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upstreams.base import UpstreamError, valid
from upstreams.families.hyperion_features import BANDS, HyperionMel, speech_frames, without_mean
from upstreams.families.residual_xvector import STAGES, ResidualXVector, Shape
from upstreams.pretraining.masking import gather_masked
from upstreams.safety import checkpoints
from upstreams.safety.allow_list import printable, short_repr
from upstreams.safety.strict_loading import DEPTHS, strictly_loaded

IN, OUT = "encoder_net.in_block.conv.weight", "classif_net.fc_blocks.0.linear.weight"
PREFIXES = ("module.", "backbone.")  # prefixes of the encoder's names in checkpoints, in this order
LEFT_OVER = ("head.", "classif_net.output.", "n_averaged")  # weights that only training needs
CAPPED = "bench.capped"  # entry of this project's checkpoints: 1 if activations are ReLU6, 0 if ReLU
ACTIVATIONS = {"relu": False, "relu6": True}
CONFIGURED: Mapping[str, tuple[Any, ...]] = {  # supported values in hyperion's model_cfg
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
    """The x-vector network on hyperion's features; its weights have the names of hyperion's backbone."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.mel = HyperionMel()

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean-normalised log-mel frames (B, T, 80) and the number of valid ones (B,)."""
        mel, frames = self.mel(waveforms, lengths)
        return without_mean(mel, frames), frames

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return embeddings (B, dim) of the frames that contain sound; in training, all frames count."""
        mel, frames = self.features(waveforms, lengths)
        if not self.training:
            mask = speech_frames(waveforms, lengths)
            frames = mask.sum(1)
            mel = gather_masked(mel, mask, int(frames.max()))[0]
            mel = mel.masked_fill(~valid(frames, mel.shape[1])[:, :, None], 0.0)
        return self.embedding(mel, frames)


def network_of(checkpoint: str | Path, random: bool = False) -> HyperionNetwork:
    """Return the network in a checkpoint of hyperion or of this project, or its architecture with random weights.

    Raises UpstreamError if the file is missing or broken, holds another model, or its weights do not all fit.
    """
    path, reference = checkpoints.expanded_path(str(checkpoint)), printable(str(checkpoint))
    content = checkpoints.load_checkpoint(path)
    configured = content.get("model_cfg") if isinstance(content, dict) else None
    if configured is not None:
        capped = caps_activations(configured, reference)
        content = content.get("model_teacher_state_dict", content.get("model_state_dict"))
    state = checkpoints.renamed(checkpoints.tensors_only(content, path), backbone_name, reference)
    if configured is None:
        entry = state.pop(CAPPED, torch.tensor(1))
        if entry.numel() != 1 or entry.item() not in (0, 1):
            raise UpstreamError(f"{CAPPED} of '{reference}' is neither 0 nor 1; make it anew by bench pretrain dino")
        capped = bool(entry)
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(LEFT_OVER)}
    shape = network_shape(weights, capped, reference)
    weights = strictly_loaded(weights, lambda: ResidualXVector(shape), "DINO's x-vector", reference)
    network = HyperionNetwork(shape)
    if not random:
        network.load_state_dict(weights)
    return network


def backbone_name(name: str) -> str:
    """Return a weight's name without the prefixes added by parallel training and by DINO."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def caps_activations(configured: Any, reference: str) -> bool:
    """Return whether activations are ReLU6; raises UpstreamError if the configuration is not supported.

    Settings that are absent are assumed to be supported, because the weights must fit the network anyway.
    """
    if not isinstance(configured, dict):
        raise UpstreamError(
            f"model_cfg of '{reference}' is {short_repr(configured)}; it must name the parts of a network"
        )
    for key, allowed in CONFIGURED.items():
        if key in configured and short_repr(configured[key]) not in map(short_repr, allowed):
            raise unknown_setting(key, configured[key], allowed, reference)
    pool = part_name(configured.get("pool_net"), "pool_type", "mean+stddev")
    if pool != "mean+stddev":
        raise unknown_setting("pool_net", pool, ("mean+stddev",), reference)
    name = part_name(configured.get("hid_act"), "name", "relu")
    if name not in ACTIVATIONS:
        raise unknown_setting("hid_act", name, tuple(ACTIVATIONS), reference)
    return ACTIVATIONS[name]


def part_name(setting: Any, key: str, default: str) -> str:
    """Return the name of a part of a network, which is the setting itself or its entry `key`."""
    name = setting.get(key, default) if isinstance(setting, dict) else setting
    return default if setting is None else name if isinstance(name, str) else short_repr(name)


def unknown_setting(key: str, value: Any, allowed: tuple[Any, ...], reference: str) -> UpstreamError:
    text = printable(value) if isinstance(value, str) else short_repr(value)
    supported = " or ".join(map(str, allowed))
    return UpstreamError(f"model_cfg of '{reference}' has {key} {text}, which is not supported; it may be {supported}")


def network_shape(weights: Mapping[str, Tensor], capped: bool, reference: str) -> Shape:
    """Infer the architecture from the weights in a checkpoint; raises UpstreamError if they are of another network."""
    first, last = weights.get(IN, torch.empty(0)), weights.get(OUT, torch.empty(0))
    matches = [re.match(r"encoder_net\.layer([1-4])\.([0-9]+)\.", name) for name in weights]
    blocks = tuple(len({match[2] for match in matches if match and match[1] == str(n + 1)}) for n in range(STAGES))
    if first.ndim == 4 and last.ndim == 2 and len(first) and all(depth in DEPTHS for depth in blocks):
        for stride in CONFIGURED["in_stride"]:
            shape = Shape(len(first), blocks, len(last), BANDS, stride, capped)
            if last.shape[1] == 2 * shape.width and shape.dim:
                return shape
    raise UpstreamError(
        f"'{reference}' holds no residual x-vector of {BANDS} bands, mean and standard deviation; give a checkpoint of "
        "hyperion's recipe dinossl.v1 or of bench pretrain dino"
    )


def network_state(network: ResidualXVector) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint that `network_of` reads: weights by hyperion's names, and CAPPED."""
    weights = {f"{PREFIXES[1]}{name}": tensor for name, tensor in network.state_dict().items()}
    return {**weights, CAPPED: torch.tensor(int(network.shape.capped))}
