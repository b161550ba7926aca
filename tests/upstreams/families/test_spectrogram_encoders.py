"""Whisper and AST agree with transformers' feature extractors and encoders on single clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.upstreams.models import SMALL_AST, SMALL_WHISPER, build, padded, plain_stack, relative_error, save
from upstreams import create
from upstreams.base import UpstreamError
from upstreams.families.spectrogram_encoders import AT_ONCE, slaney_banks

CLOSE = 2e-5


def clips_of(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [0.1 * torch.randn(length) for length in lengths]


def whisper(folder: Path, bands: int = 80, seconds: int = 1, head: str = "Model") -> tuple[Any, Any, str]:
    import transformers

    torch.manual_seed(0)
    config = SMALL_WHISPER | {"num_mel_bins": bands, "max_source_positions": 50 * seconds}
    model = build("Whisper", head, **config)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)
    return model, extractor, save(model, extractor, folder)


def plain_whisper(encoder: Any, extractor: Any, clip: Tensor, stretch: int) -> Tensor:
    """Return the first S // 320 frames (T, L, D) of the stretches of a clip, each encoded by transformers alone."""
    stacks = []
    for start in range(0, len(clip), stretch):
        features = extractor(clip[start : start + stretch].numpy(), sampling_rate=16_000)["input_features"]
        values = torch.tensor(np.asarray(features))
        stacks.append(plain_stack(encoder.layers, encoder.layer_norm, lambda values=values: encoder(values))[0])
    return torch.cat(stacks)[: max(len(clip) // 320, 1)]


@pytest.mark.parametrize(("bands", "seconds"), [(80, 1), (128, 2), (23, 3)])
def test_whispers_layers_are_the_librarys_for_clips_of_any_length(bands: int, seconds: int, tmp_path: Path) -> None:
    model, extractor, reference = whisper(tmp_path, bands, seconds)
    upstream, stretch = create(reference), seconds * 16_000
    clips = clips_of(400, 100, stretch, stretch + 200, 2 * stretch + 5_000, 8_000)
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, extra=777))
        for row, count, clip in zip(frames, counts, clips, strict=True):
            expected = plain_whisper(model.encoder, extractor, clip, stretch)
            assert relative_error(row[:count], expected) < CLOSE
            assert relative_error(upstream(*padded([clip])).frames[0], expected) < CLOSE
            assert not row[count:].any()


def test_whispers_mel_filters_are_the_librarys() -> None:
    import transformers

    for bands, rate in ((80, 16_000), (128, 16_000), (40, 24_000)):
        filters = transformers.WhisperFeatureExtractor(feature_size=bands, sampling_rate=rate).mel_filters
        np.testing.assert_allclose(slaney_banks(bands, 400, rate).numpy(), filters, atol=1e-7)


@pytest.mark.parametrize("head", ["ForConditionalGeneration", "ForAudioClassification"])
def test_whispers_decoder_and_heads_are_left_out(head: str, tmp_path: Path) -> None:
    model, _, reference = whisper(tmp_path, head=head)
    upstream = create(reference)
    encoder = model.encoder if head == "ForAudioClassification" else model.model.encoder
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(upstream.state_dict()[f"encoder.{name}"], tensor)
    assert not any("decoder" in name for name, _ in upstream.named_parameters())


def test_front_ends_that_do_not_fit_the_encoder_are_refused(tmp_path: Path) -> None:
    import transformers

    _, _, reference = whisper(tmp_path)
    transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=30).save_pretrained(tmp_path)
    with pytest.raises(UpstreamError, match=r"max_source_positions in config\.json is 50"):
        create(reference)
    transformers.WhisperFeatureExtractor(feature_size=40, chunk_length=1).save_pretrained(tmp_path)
    with pytest.raises(UpstreamError, match="40 mel bands"):
        create(reference)


def ast(folder: Path, normalize: bool = True, head: str = "Model", **config: Any) -> tuple[Any, Any, str]:
    import transformers

    torch.manual_seed(0)
    model = build("AST", head, **(SMALL_AST | config))
    sizes = {"max_length": model.config.max_length, "num_mel_bins": model.config.num_mel_bins}
    extractor = transformers.ASTFeatureExtractor(**sizes, mean=-5.0, std=3.0, do_normalize=normalize)
    return model, extractor, save(model, extractor, folder)


def plain_ast(model: Any, extractor: Any, clip: Tensor) -> Tensor:
    """Return all time steps (T, L, D) of the model: the mean over frequency of the patches at each time."""
    config = model.config
    values = torch.tensor(np.asarray(extractor(clip.numpy(), sampling_rate=16_000)["input_values"]))
    blocks = model.layers if hasattr(model, "layers") else model.encoder.layer
    tokens = plain_stack(blocks, model.layernorm, lambda: model(values))[0][2:]
    times = (config.max_length - config.patch_size) // config.time_stride + 1
    return torch.stack([tokens[t::times].mean(0) for t in range(times)])


CONFIGS = [
    {},
    {"time_stride": 16, "frequency_stride": 16, "max_length": 100, "num_mel_bins": 64},
    {"time_stride": 5, "max_length": 70, "num_mel_bins": 128},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_asts_layers_are_the_librarys_for_clips_it_can_hold(config: dict, normalize: bool, tmp_path: Path) -> None:
    model, extractor, reference = ast(tmp_path, normalize, **config)
    upstream, longest = create(reference), 400 + 160 * (model.config.max_length - 1)
    clips = clips_of(400, upstream.window, upstream.window + upstream.hop, longest - 1_000, longest)
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, extra=777))
        for row, count, clip in zip(frames, counts, clips, strict=True):
            expected = plain_ast(model, extractor, clip)
            assert relative_error(row[:count], expected[:count]) < CLOSE
            assert not row[count:].any()
        assert counts.tolist()[:3] == [1, 1, 2]
        assert int(counts[-1]) == len(expected)


def test_longer_clips_go_through_ast_in_stretches_whose_frames_are_evenly_spaced(tmp_path: Path) -> None:
    model, extractor, reference = ast(tmp_path)
    upstream, clip = create(reference), clips_of(40_000)[0]
    short = clips_of(7_000)[0]
    with torch.inference_mode():
        frames, counts = upstream(*padded([short, clip]))
        per_stretch = upstream.frames_per_stretch
        for number in range(-(-int(counts[1]) // per_stretch)):
            piece = frames[1, number * per_stretch : min((number + 1) * per_stretch, int(counts[1]))]
            # The extractor truncates its input, so a stretch is the clip from the first sample of the stretch on.
            expected = plain_ast(model, extractor, clip[number * per_stretch * upstream.hop :])
            assert relative_error(piece, expected[: len(piece)]) < CLOSE
        assert int(counts[1]) == (40_000 - upstream.window) // upstream.hop + 1


def test_asts_classifier_is_left_out_and_its_extractor_must_fit(tmp_path: Path) -> None:
    import transformers

    model, _, reference = ast(tmp_path, head="ForAudioClassification")
    weights = create(reference).state_dict()
    for name, tensor in model.audio_spectrogram_transformer.state_dict().items():
        assert torch.equal(weights[f"model.{name}"], tensor)
    transformers.ASTFeatureExtractor(max_length=1024, num_mel_bins=32).save_pretrained(tmp_path)
    with pytest.raises(UpstreamError, match="1024 frames of 32 bands"):
        create(reference)


@pytest.mark.parametrize("family", [whisper, ast])
def test_training_keeps_all_layers_and_gradients_reach_the_first(family: Any, tmp_path: Path) -> None:
    upstream = create(family(tmp_path)[2])
    upstream.train()
    frames = upstream(*padded(clips_of(9_000, 5_000))).frames
    assert frames.shape[2] == upstream.layers
    frames.square().sum().backward()
    projection = upstream.encoder.conv1 if family is whisper else upstream.model.embeddings.patch_embeddings.projection
    assert bool(projection.weight.grad.any())


@pytest.mark.parametrize("family", [whisper, ast])
def test_bfloat16_autocast_stays_near_float32(family: Any, tmp_path: Path) -> None:
    upstream, batch = create(family(tmp_path)[2]), padded(clips_of(9_000, 5_000))
    with torch.inference_mode():
        expected = upstream(*batch).frames
        with torch.autocast("cpu", torch.bfloat16):
            frames = upstream(*batch).frames
    assert frames.dtype == torch.float32
    assert relative_error(frames[0], expected[0]) < 0.1


@pytest.mark.parametrize("family", [whisper, ast])
def test_a_batch_of_many_short_clips_is_encoded_a_few_stretches_at_a_time(family: Any, tmp_path: Path) -> None:
    upstream = create(family(tmp_path)[2])
    sizes: list[int] = []
    inner = getattr(upstream, "encoder", None) or upstream.model
    inner.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    clips = clips_of(*range(3_000, 12_500, 500))
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips))
        assert sum(sizes) >= len(clips) > max(sizes) == AT_ONCE
        for row, count, clip in zip(frames, counts, clips, strict=True):
            assert relative_error(row[:count], upstream(*padded([clip])).frames[0]) < CLOSE
