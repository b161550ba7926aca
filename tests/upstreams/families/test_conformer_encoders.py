"""Wav2Vec2-BERT agrees with transformers' feature extractor and hidden states on single clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.upstreams.models import (
    SMALL_BERT,
    build,
    hidden_states,
    mel_extractor,
    padded,
    refusal_message,
    relative_error,
    save,
)
from upstreams import create
from upstreams.base import fingerprint
from upstreams.contract.check import check_contract
from upstreams.contract.probe_signals import weights_digest

CLOSE = 1e-4
POSITIONS = ["relative_key", "relative", "rotary", None]


def bert(folder: Path, bands: int = 23, **config: Any) -> tuple[Any, Any, str]:
    torch.manual_seed(0)
    model = build("wav2vec2-bert", **(SMALL_BERT | {"feature_projection_input_dim": 2 * bands} | config))
    extractor = mel_extractor(bands)
    return model, extractor, save(model, extractor, folder)


def plain(model: Any, extractor: Any, clip: Tensor) -> Tensor:
    """Return the layers (T, L, D) of one clip by transformers alone, without the frames that its mask hides."""
    inputs = {key: torch.tensor(np.asarray(x)) for key, x in extractor(clip.numpy(), sampling_rate=16_000).items()}
    stack = torch.stack(hidden_states(model, **inputs), dim=2)[0]
    return stack[: int(inputs["attention_mask"].sum())]


def clips_of(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [0.1 * torch.randn(length) for length in lengths]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("bands", [23, 80])
def test_a_clip_has_the_librarys_hidden_states_alone_and_in_any_batch(
    positions: str | None, bands: int, tmp_path: Path
) -> None:
    sizes = {"left_max_position_embeddings": 5, "right_max_position_embeddings": 2, "max_source_positions": 20}
    model, extractor, reference = bert(tmp_path, bands, position_embeddings_type=positions, **sizes)
    upstream = create(reference)
    clips = clips_of(1_040, 1_199, 1_200, 5_040, 5_200, 16_000)  # even and odd numbers of mel frames
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, extra=777))
        for clip, row, count in zip(clips, frames, counts, strict=True):
            expected = plain(model, extractor, clip)
            assert relative_error(row[:count], expected) < CLOSE
            assert relative_error(row[:count], upstream(*padded([clip])).frames[0]) < CLOSE / 5
            assert not row[count:].any()


def test_the_mel_front_end_is_the_librarys(tmp_path: Path) -> None:
    _, extractor, reference = bert(tmp_path)
    upstream = create(reference)
    for clip in (*clips_of(560, 5_040, 5_200), torch.cat([clips_of(3_000)[0], torch.zeros(2_000)])):
        inputs = extractor(clip.numpy(), sampling_rate=16_000)
        count = int(np.asarray(inputs["attention_mask"]).sum())
        mel = upstream.log_mel(clip[None], torch.tensor([len(clip)]))[0]
        np.testing.assert_allclose(mel[:count].numpy(), inputs["input_features"][0][:count], atol=2e-4)


def test_filters_follow_the_sampling_rate(tmp_path: Path) -> None:
    import transformers

    model = build("wav2vec2-bert", **SMALL_BERT)
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=23, num_mel_bins=23, sampling_rate=8_000)
    upstream = create(save(model, extractor, tmp_path))
    assert (upstream.sample_rate, upstream.hop, upstream.window) == (8_000, 320, 560)
    np.testing.assert_allclose(upstream.spectrum.banks.numpy(), extractor.mel_filters, atol=1e-5)


def test_the_contract_holds(tmp_path: Path) -> None:
    upstream = create(bert(tmp_path, position_embeddings_type="relative", max_source_positions=5)[2])
    assert [finding for finding in check_contract(upstream) if not finding.ok] == []


@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_no_positions_are_kept_of_longer_clips_or_lower_precision(positions: str, tmp_path: Path) -> None:
    upstream = create(bert(tmp_path, position_embeddings_type=positions, max_source_positions=5)[2])
    clip = padded(clips_of(8_000))
    with torch.inference_mode():
        before, expected = weights_digest(upstream), upstream(*clip).frames
        upstream(*padded(clips_of(20_000)))
        with torch.autocast("cpu", torch.bfloat16):
            upstream(*clip)
        assert torch.equal(upstream(*clip).frames, expected)
    assert weights_digest(upstream) == before


def test_precision_below_single_never_reaches_the_mel_front_end(tmp_path: Path) -> None:
    upstream, clip = create(bert(tmp_path)[2]), clips_of(9_000)[0]
    with torch.inference_mode():
        plain_mel = upstream.log_mel(clip[None], torch.tensor([9_000]))
        expected = upstream(*padded([clip])).frames
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(upstream.log_mel(clip[None], torch.tensor([9_000])), plain_mel)
            frames = upstream(*padded([clip])).frames
    assert frames.dtype == torch.float32
    assert relative_error(frames[0], expected[0]) < 0.1
    assert not torch.equal(frames, expected)


def test_short_clips_and_silence_are_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    upstream = create(bert(tmp_path)[2])
    clips = [*clips_of(100, 559, 560), torch.zeros(3_000)]
    with torch.inference_mode():
        frames, counts = upstream(*padded([*clips, *clips_of(9_000)]))
        assert counts.tolist()[:4] == [1, 1, 1, 8]
        for row, count, clip in zip(frames, counts, clips, strict=False):
            alone = upstream(*padded([clip])).frames[0]
            assert bool(alone.isfinite().all())
            assert relative_error(row[:count], alone) < CLOSE / 5


def test_training_keeps_all_layers_and_gradients_reach_the_first(tmp_path: Path) -> None:
    upstream = create(bert(tmp_path, layerdrop=0.9)[2]).train()
    frames = upstream(*padded(clips_of(9_000, 5_000))).frames
    assert frames.shape[2] == upstream.layers
    frames.square().sum().backward()
    assert bool(upstream.model.feature_projection.projection.weight.grad.any())


@pytest.mark.parametrize("between", [False, True])
def test_an_adapter_after_the_last_layer_is_left_out(between: bool, tmp_path: Path) -> None:
    config = {"add_adapter": True, "use_intermediate_ffn_before_adapter": between}
    model, extractor, reference = bert(tmp_path, **config)
    upstream, clip = create(reference), clips_of(8_000)[0]
    assert not any("adapter" in name or "intermediate_ffn" in name for name, _ in upstream.named_parameters())
    with torch.inference_mode():
        assert relative_error(upstream(*padded([clip])).frames[0], plain(model, extractor, clip)) < CLOSE


def test_how_positions_are_cut_off_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for left, right in ((5, 2), (4, 3)):  # the number of weights is the same
        config = {"left_max_position_embeddings": left, "right_max_position_embeddings": right}
        prints.add(fingerprint(create(bert(tmp_path, **config)[2])))
    assert len(prints) == 2


def test_front_ends_that_do_not_fit_the_encoder_are_refused(tmp_path: Path) -> None:
    import transformers

    _, _, reference = bert(tmp_path)
    mel_extractor(40).save_pretrained(tmp_path)
    assert "joins 2 frames of 40 mel bands" in refusal_message(reference)
    transformers.SeamlessM4TFeatureExtractor(num_mel_bins=46, stride=1).save_pretrained(tmp_path)
    assert "joins 1 frames of 46 mel bands, but it must join 2" in refusal_message(reference)
