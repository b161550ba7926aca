"""SEW and SEW-D (Wu et al., 2022) as transformers implements them: transformer blocks at a reduced frame rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import valid
from upstreams.families.waveform_encoders import WaveformEncoder, collect_states, mask_if_padded, receptive_field


class SqueezedEncoder(WaveformEncoder):
    """Layer 0 is the input of the first block, layer n the output of block n, at the squeezed frame rate of the blocks.

    The upsampling to the rate of the convolutions, which follows the blocks, is left out.
    """

    stable_name = "upstreams.squeezed_encoders:SqueezedEncoder"

    def __init__(self, model: Any, normalize: bool, sample_rate: int) -> None:
        super().__init__(model, normalize, sample_rate)
        config = model.config
        self.factor = config.squeeze_factor
        self.unsqueezed_grid = self.hop, self.window
        kernels, strides = [*config.conv_kernel, self.factor], [*config.conv_stride, self.factor]
        self.hop, self.window = self.hop * self.factor, receptive_field(kernels, strides)

    def project(self, x: Tensor) -> Tensor:
        x = self.model.layer_norm(x.transpose(1, 2))
        if self.model.project_features:
            x = self.model.feature_projection(x)
        return self.model.feature_dropout(x)

    def transform(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        hop, window = self.unsqueezed_grid
        size, counts = frames.shape[1], self.frame_lengths(lengths)
        input_counts = (torch.clamp(lengths, min=self.window) - window) // hop + 1
        clean = frames.masked_fill(~valid(input_counts, size)[:, :, None], 0.0)
        mask = valid(counts, size // self.factor).repeat_interleave(self.factor, dim=1)
        mask = F.pad(mask, (0, size - mask.shape[1]), value=bool(mask.all()))
        encoder = self.model.encoder
        blocks = encoder.encoder.layer if hasattr(encoder, "encoder") else encoder.layers
        with collect_states(blocks) as states, replaced_input(encoder.pos_conv_embed, clean.transpose(1, 2)):
            encoder(clean.clone(), attention_mask=mask_if_padded(mask))
        return states


@contextmanager
def replaced_input(module: nn.Module, x: Tensor) -> Iterator[None]:
    """While active, pass `x` to a module in place of the input that it is called with.

    transformers drops the last input frames of a clip here if they do not fill a squeezed frame, but only in a batch.
    """
    handle = module.register_forward_pre_hook(lambda _, __: (x,))
    try:
        yield
    finally:
        handle.remove()
