"""SEW and SEW-D (Wu et al., 2022) as transformers implements them: transformers at a fraction of their input's rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upstreams.base import valid
from upstreams.families.waveform_encoders import WaveformEncoder, needed, receptive_field, recorded


class SqueezedEncoder(WaveformEncoder):
    """Layers are the input of the first block and the output of each, at the blocks' own, squeezed rate.

    What follows them, upsampling back to the rate of the convolutions, is left out.
    """

    stable_name = "upstreams.squeezed_encoders:SqueezedEncoder"

    def __init__(self, model: Any, normalize: bool, sample_rate: int) -> None:
        super().__init__(model, normalize, sample_rate)
        config = model.config
        self.factor = config.squeeze_factor
        self.unsqueezed = self.hop, self.window
        kernels, strides = [*config.conv_kernel, self.factor], [*config.conv_stride, self.factor]
        self.hop, self.window = self.hop * self.factor, receptive_field(kernels, strides)

    def project(self, x: Tensor) -> Tensor:
        x = self.model.layer_norm(x.transpose(1, 2))
        if self.model.project_features:
            x = self.model.feature_projection(x)
        return self.model.feature_dropout(x)

    def transform(self, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        hop, window = self.unsqueezed
        size, counts = frames.shape[1], self.frame_lengths(lengths)
        own = (torch.clamp(lengths, min=self.window) - window) // hop + 1
        clean = frames.masked_fill(~valid(own, size)[:, :, None], 0.0)
        mask = valid(counts, size // self.factor).repeat_interleave(self.factor, dim=1)
        mask = F.pad(mask, (0, size - mask.shape[1]), value=bool(mask.all()))
        encoder = self.model.encoder
        blocks = encoder.encoder.layer if hasattr(encoder, "encoder") else encoder.layers
        with recorded(blocks) as states, fed(encoder.pos_conv_embed, clean.transpose(1, 2)):
            encoder(clean.clone(), attention_mask=needed(mask))
        return states


@contextmanager
def fed(module: nn.Module, x: Tensor) -> Iterator[None]:
    """Lets a module see `x` whatever it is called with.

    The library would cut a clip's last frame off here where it is too few for a squeezed one, but only in a batch.
    """
    handle = module.register_forward_pre_hook(lambda _, __: (x,))
    try:
        yield
    finally:
        handle.remove()
