"""wav2vec 2.0, HuBERT, WavLM, data2vec-audio, UniSpeech(-SAT) and wav2vec 2.0 Conformer from transformers.

These models have convolutions over the waveform and then a transformer. In transformers, the features of a clip depend
on its padding, by up to a third where a group norm over time follows the first convolution. Here they do not: the norm
uses the statistics of each clip alone, and convolutions over frames see zeros after the end of a clip.
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

# WavLM in transformers passes a boolean mask and a float mask to torch, which warns at the first call.
warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask and attn_mask")

# Settings of a configuration that change features but not the shape of a weight.
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
    """Layer 0 is the input of the first block; the last layer is the output of the model after its final norm.

    model: a transformers model without its head. normalize: whether each clip is first normalised to zero mean and unit
    variance.
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
        return {"normalize": self.normalize, **architecture_settings(self.model.config)}

    def forward(self, waveforms: Tensor, lengths: Tensor) -> Features:
        clean = self.prepare(waveforms, lengths)
        states = self.transform(self.project(self.convolve(clean, lengths)), lengths)
        return stack_layers(states, self.frame_lengths(lengths))

    def prepare(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Return clips (B, S) cut to the longest one, normalised if `normalize`, zero after their ends.

        S is at least `window`.
        """
        size = int(lengths.max())
        mask = valid(lengths, size)
        clean = waveforms[:, :size].float().masked_fill(~mask, 0.0)
        if self.normalize:
            clean = standardized_waveforms(clean, mask, lengths)
        return F.pad(clean, (0, max(self.window - size, 0)))

    def convolve(self, clean: Tensor, lengths: Tensor) -> Tensor:
        """Apply the convolutional feature extractor to waveforms (B, S); the result is (B, C, T)."""
        first, *others = self.model.feature_extractor.conv_layers
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            x = group_normed(first, clean, torch.clamp(lengths, min=self.window))
        else:
            x = first(clean[:, None])
        for layer in others:
            x = layer(x)
        return x

    def project(self, x: Tensor) -> Tensor:
        """Project the output (B, C, T) of the convolutions to the input (B, T, D) of the transformer."""
        projected = self.model.feature_projection(x.transpose(1, 2))
        return projected[0] if isinstance(projected, tuple) else projected

    def transform(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Return the layers of the transformer, (B, T, D) each."""
        return transformer_states(self.model.encoder, frames, self.frame_lengths(lengths))


def architecture_settings(config: Any) -> dict[str, object]:
    """Return the settings of a configuration that change features but not the shape of a weight."""
    content = config.to_dict()
    return {key: content[key] for key in ARCHITECTURE if key in content}


def transformer_states(encoder: Any, frames: Tensor, counts: Tensor) -> list[Tensor]:
    """Return the layers, (B, T, D) each; the last one is the output of the encoder after its final norm, if any."""
    mask = mask_if_padded(valid(counts, frames.shape[1]))
    with (
        collect_states(encoder.layers) as states,
        mask_outputs(modules_to_mask(encoder), mask),
        preserve_positions(encoder),
    ):
        output = encoder(frames, attention_mask=mask)
    states[-1] = output[0]  # in every release of transformers
    return states


def mask_if_padded(mask: Tensor) -> Tensor | None:
    """Return the mask, or None if it hides nothing, because attention is faster without a mask."""
    return None if bool(mask.all()) else mask


def stack_layers(states: Sequence[Tensor], counts: Tensor) -> Features:
    """Stack layers of (B, T, D) each into features that are zero after the last frame of each clip."""
    stack = torch.stack([state.float() for state in states], dim=2)
    return Features(stack.masked_fill_(~valid(counts, stack.shape[1])[:, :, None, None], 0.0), counts)


def fold_weight_norm(model: nn.Module) -> None:
    """Replace weights under weight norm, by torch's hooks or its parametrizations, with the plain weights.

    Otherwise every forward pass computes the norm again, and its last bits depend on the number of threads.
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
    """Return the receptive field, in samples, of one output frame of stacked convolutions."""
    size = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        size = (size - 1) * stride + kernel
    return size


def standardized_waveforms(clean: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
    """Normalise each clip of (B, S) to zero mean and unit variance as Wav2Vec2FeatureExtractor does, zero elsewhere."""
    exact = statistics_dtype(clean)
    mean = clean.sum(1, dtype=exact) / lengths
    centered = (clean - mean[:, None].to(clean.dtype)).masked_fill(~mask, 0.0)
    variance = centered.square().sum(1, dtype=exact) / lengths
    return centered * torch.rsqrt(variance + 1e-7)[:, None].to(clean.dtype)


def group_normed(layer: Any, clean: Tensor, lengths: Tensor) -> Tensor:
    """Apply the first convolution to waveforms (B, S), its group norm over each clip's frames, and the activation.

    The result is (B, C, T). A channel is a linear function of short windows of the waveform, so its mean and variance
    follow from the mean and covariance of the windows. This is cheap, and padded frames do not enter the statistics.
    """
    conv, norm = layer.conv, layer.layer_norm
    with torch.autocast(clean.device.type, enabled=False):
        mean, covariance = window_moments(clean, lengths, conv.kernel_size[0], conv.stride[0])
        kernels = conv.weight[:, 0].to(mean.dtype)
        variance = ((kernels @ covariance) * kernels).sum(2)  # (B, C)
        scale = norm.weight * torch.rsqrt(variance.clamp(min=0) + norm.eps)
        # The norm removes any offset, including the bias of the convolution; without one the rounding error is smaller.
        offset = mean.mean(1, keepdim=True)
        shift = norm.bias - (mean - offset) @ kernels.T * scale
    x = F.conv1d((clean - offset.to(clean.dtype))[:, None], conv.weight, stride=conv.stride)
    return layer.activation(torch.addcmul(shift[:, :, None].to(x.dtype), x, scale[:, :, None].to(x.dtype)))


def window_moments(clean: Tensor, lengths: Tensor, size: int, hop: int) -> tuple[Tensor, Tensor]:
    """Return the mean (B, size) and covariance (B, size, size) of the windows inside each clip of (B, S)."""
    windows = clean.to(statistics_dtype(clean)).unfold(1, size, hop)
    counts = (lengths - size) // hop + 1
    inside = valid(counts, windows.shape[1])[:, :, None]
    mean = (windows * inside).sum(1) / counts[:, None]
    centered = (windows - mean[:, None]) * inside
    return mean, centered.transpose(1, 2) @ centered / counts[:, None, None]


def statistics_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def modules_to_mask(encoder: Any) -> list[nn.Module]:
    """Return the modules whose output (B, D, T) goes into a convolution but is not zero after the end of a clip."""
    if hasattr(encoder.layers[0], "conv_module"):  # Conformer blocks; their positional convolution is never used
        return [block.conv_module.glu for block in encoder.layers]
    embedding = encoder.pos_conv_embed
    norm = getattr(embedding, "batch_norm", None)
    return [*getattr(embedding, "layers", [])] + ([norm] if norm is not None else [])


@contextmanager
def mask_outputs(modules: Sequence[nn.Module], mask: Tensor | None) -> Iterator[None]:
    """While active, set the outputs (B, D, T) of modules to zero where mask (B, T), if there is one, is false."""

    def masked(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if mask is None else output.masked_fill(~mask[:, None], 0.0)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(masked).remove)
        yield


@contextmanager
def preserve_positions(encoder: Any) -> Iterator[None]:
    """Restore an encoder's table of position embeddings afterwards, so that one call does not affect the next.

    Otherwise a table of relative positions grows with the longest clip, and rotary positions keep the precision of the
    last call with the same length.
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
def collect_states(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect the input of the first block and the output of every block, (B, T, D) each."""
    states: list[Tensor] = []

    def append_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def append_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        stack.callback(blocks[0].register_forward_pre_hook(append_input, with_kwargs=True).remove)
        for block in blocks:
            stack.callback(block.register_forward_hook(append_output).remove)
        yield states
