"""Models of the size that people use, against transformers; slow, since each has 94 million weights."""

from __future__ import annotations

import pytest
import torch

from tests.upstreams.models import padded, plain_stack, relative_error
from upstreams import create

NAMES = ("wav2vec2_base", "hubert_base", "wavlm_base", "data2vec_audio_base", "unispeech_sat_base")


@pytest.mark.slow  # a minute for each model
@pytest.mark.parametrize("name", NAMES)
def test_base_models_give_the_librarys_layers_alone_and_in_a_batch(name: str) -> None:
    upstream = create(f"{name}@random")
    model = next(module for module in upstream.modules() if hasattr(module, "config"))
    dice = torch.Generator().manual_seed(1)
    clips = [torch.randn(length, generator=dice) * 0.1 for length in (16_000, 40_123, 9_999)]
    with torch.inference_mode():
        frames, lengths = upstream(*padded(clips, extra=5_000))
        for clip, row, length in zip(clips, frames, lengths.tolist(), strict=True):
            values = clip
            if upstream.settings()["normalize"]:
                values = (clip - clip.mean()) / torch.sqrt(clip.var(unbiased=False) + 1e-7)
            plain = plain_stack(model.encoder.layers, None, lambda values=values: model(values[None]))[0]
            assert relative_error(row[:length], plain) < 1e-4
