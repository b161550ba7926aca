"""wav2vec 2.0 and its kin (HuBERT, WavLM, data2vec-audio, UniSpeech(-SAT), -Conformer) as transformers implements them.

Convolutions over the waveform, then a transformer. In the plain library a clip's features depend on its padding, by up
to a third where the first convolution is followed by a group norm over time. Here they do not: that norm gets each
clip's own statistics, and nothing beyond a clip's end reaches a convolution over frames.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from upstreams.base import Features, Upstream, valid

# transformers' WavLM gives torch a boolean mask beside a float one; torch says so on every first call.
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")

# What of a configuration changes features without being a weight's shape.
CONVOLUTIONS = ("conv_kernel", "conv_stride", "conv_bias", "feat_extract_norm", "feat_extract_activation")
POSITIONS = ("num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_pos_kernel_size", "conv_pos_batch_norm")
BLOCKS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "do_stable_layer_norm", "adapter_attn_dim")
BUCKETS = ("num_buckets", "max_bucket_distance", "left_max_position_embeddings", "right_max_position_embeddings")
ROTARY = ("position_embeddings_type", "rotary_embedding_base")
SEW = ("squeeze_factor", "feature_layer_norm_eps")
SEW_D = ("position_buckets", "max_position_embeddings", "share_att_key", "relative_attention", "pos_att_type")
OTHERS = ("model_type", "feat_proj_layer_norm", "norm_rel_ebd")
ARCHITECTURE = CONVOLUTIONS + POSITIONS + BLOCKS + BUCKETS + ROTARY + SEW + SEW_D + OTHERS


class WaveformEncoder(Upstream):
    """Layer 0 is the input of the first block; the last layer comes after the model's final norm.

    model: a transformers model without its head. normalize: whether clips get zero mean and unit variance first.
    """

    stable_name = "upstreams.waveform_encoders:WaveformEncoder"

    def __init__(self, model: Any, normalize: bool, sample_rate: int) -> None:
        super().__init__()
        config = model.config
        config.layerdrop = 0.0  # a dropped block would be missing among the layers
        fold_weight_norm(model)
        self.model, self.normalize, self.sample_rate = model, normalize, sample_rate
        self.hop = math.prod(config.conv_stride)
        self.window = receptive_field(config.conv_kernel, config.conv_stride)
        self.layers, self.dim = config.num_hidden_layers + 1, config.hidden_size

    def settings(self) -> dict[str, object]:
        return {"normalize": self.normalize, **architecture(self.model.config)}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        clean = self.prepare(waveforms, lengths)
        states = self.transform(self.project(self.convolve(clean, lengths)), lengths)
        return stacked(states, self.frame_lengths(lengths))

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Clips (B, S) cut to the longest, at least `window` samples, normalised over their own samples, then zeros."""
        size = int(lengths.max())
        mask = valid(lengths, size)
        clean = waveforms[:, :size].float().masked_fill(~mask, 0.0)
        if self.normalize:
            clean = standardized(clean, mask, lengths)
        return F.pad(clean, (0, max(self.window - size, 0)))

    def convolve(self, clean: Tensor, lengths: Tensor) -> Tensor:
        """(B, S) to (B, C, T)."""
        first, *others = self.model.feature_extractor.conv_layers
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            x = group_normed(first, clean, torch.clamp(lengths, min=self.window))
        else:
            x = first(clean[:, None])
        for layer in others:
            x = layer(x)
        return x

    def project(self, x: Tensor) -> Tensor:
        """(B, C, T) to the encoder's input (B, T, D)."""
        projected = self.model.feature_projection(x.transpose(1, 2))
        return projected[0] if isinstance(projected, tuple) else projected

    def transform(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Layers of (B, T, D) each."""
        return transformed(self.model.encoder, frames, self.frame_lengths(lengths))


def architecture(config: Any) -> dict[str, object]:
    """What of a configuration changes features without being a weight's shape."""
    content = config.to_dict()
    return {key: content[key] for key in ARCHITECTURE if key in content}


def transformed(encoder: Any, frames: Tensor, counts: Tensor) -> list[Tensor]:
    """Layers of (B, T, D) each, the last one as the encoder gives it: after its final norm, if it has one."""
    mask = needed(valid(counts, frames.shape[1]))
    with recorded(encoder.layers) as states, masked(leaks(encoder), mask), restored(encoder):
        output = encoder(frames, attention_mask=mask)
    states[-1] = output[0]  # in every release of transformers
    return states


def needed(mask: Tensor) -> Tensor | None:
    """None for a mask that hides nothing, as attention is quicker without."""
    return None if bool(mask.all()) else mask


def stacked(states: Sequence[Tensor], counts: Tensor) -> Features:
    """Layers of (B, T, D) each as features, zero beyond each clip's frames."""
    stack = torch.stack([state.float() for state in states], dim=2)
    return Features(stack.masked_fill_(~valid(counts, stack.shape[1])[:, :, None, None], 0.0), counts)


def fold_weight_norm(model: nn.Module) -> None:
    """Make normalised weights plain ones, as they are between two training steps, by torch's old hooks or its new ones.

    The norm would otherwise be taken anew in every forward pass, with last bits that depend on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for module in model.modules():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            for hook in [*module._forward_pre_hooks.values()]:
                if isinstance(hook, WeightNorm):
                    nn.utils.remove_weight_norm(module, hook.name)
    finally:
        torch.set_num_threads(before)


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame of stacked convolutions sees."""
    size = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        size = (size - 1) * stride + kernel
    return size


def standardized(clean: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """Each clip's samples (B, S) at zero mean and unit variance, as in Wav2Vec2FeatureExtractor; zeros elsewhere."""
    exact = exact_type(clean)
    mean = clean.sum(1, dtype=exact) / lengths
    centered = (clean - mean[:, None].to(clean.dtype)).masked_fill(~mask, 0.0)
    variance = centered.square().sum(1, dtype=exact) / lengths
    return centered * torch.rsqrt(variance + 1e-7)[:, None].to(clean.dtype)


def group_normed(layer: Any, clean: Tensor, lengths: Tensor) -> Tensor:
    """First convolution (B, 1, S) to (B, C, T) and its norm over each clip's own frames, then the activation.

    A channel is a linear function of short windows of the waveform, so its mean and variance follow from the windows'
    mean and covariance: the statistics cost next to nothing, and the padded frames never enter them.
    """
    conv, norm = layer.conv, layer.layer_norm
    with torch.autocast(clean.device.type, enabled=False):
        mean, covariance = window_moments(clean, lengths, conv.kernel_size[0], conv.stride[0])
        kernels = conv.weight[:, 0].to(mean.dtype)
        variance = ((kernels @ covariance) * kernels).sum(2)  # (B, C)
        scale = norm.weight * torch.rsqrt(variance.clamp(min=0) + norm.eps)
        # The norm removes any offset, and so it does the convolution's bias; without one, less is lost to rounding.
        offset = mean.mean(1, keepdim=True)
        shift = norm.bias - (mean - offset) @ kernels.T * scale
    x = F.conv1d((clean - offset.to(clean.dtype))[:, None], conv.weight, stride=conv.stride)
    return layer.activation(torch.addcmul(shift[:, :, None].to(x.dtype), x, scale[:, :, None].to(x.dtype)))


def window_moments(clean: Tensor, lengths: Tensor, size: int, hop: int) -> tuple[Tensor, Tensor]:
    """Mean (B, size) and covariance (B, size, size) of the windows that lie within each clip of (B, S)."""
    windows = clean.to(exact_type(clean)).unfold(1, size, hop)
    counts = (lengths - size) // hop + 1
    inside = valid(counts, windows.shape[1])[:, :, None]
    mean = (windows * inside).sum(1) / counts[:, None]
    centered = (windows - mean[:, None]) * inside
    return mean, centered.transpose(1, 2) @ centered / counts[:, None, None]


def exact_type(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def leaks(encoder: Any) -> list[nn.Module]:
    """Modules whose output (B, D, T) is convolved next, but is not zero beyond a clip's end."""
    if hasattr(encoder.layers[0], "conv_module"):  # Conformer blocks; their convolution of positions is never used
        return [block.conv_module.glu for block in encoder.layers]
    embedding = encoder.pos_conv_embed
    norm = getattr(embedding, "batch_norm", None)
    return [*getattr(embedding, "layers", [])] + ([norm] if norm is not None else [])


@contextmanager
def masked(modules: Sequence[nn.Module], mask: Tensor | None) -> Iterator[None]:
    """Zero the outputs (B, D, T) of modules where mask (B, T) is false; nothing where there is no mask."""

    def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if mask is None else output.masked_fill(~mask[:, None], 0.0)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(after).remove)
        yield


@contextmanager
def restored(encoder: Any) -> Iterator[None]:
    """Leaves nothing of one call to the next in an encoder's table of positions.

    Relative ones would grow with the longest clip, rotary ones stay in the precision of the last call of their length.
    """
    positions: Any = getattr(encoder, "embed_positions", None)
    table = getattr(positions, "pe", None)
    if hasattr(positions, "cached_sequence_length"):
        positions.cached_sequence_length = None
    try:
        yield
    finally:
        if table is not None:
            positions.pe = table


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the input of the first block and the output of every block, (B, T, D) each."""
    states: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        stack.callback(blocks[0].register_forward_pre_hook(before, with_kwargs=True).remove)
        for block in blocks:
            stack.callback(block.register_forward_hook(after).remove)
        yield states
