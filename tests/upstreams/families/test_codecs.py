"""EnCodec and Mimi agree with transformers on single clips, in their codes and their hidden states."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.upstreams.models import build, padded, refusal_message, relative_error, save
from upstreams import create
from upstreams.base import Upstream, UpstreamError, fingerprint
from upstreams.contract.check import check_contract
from upstreams.families.codecs import codec_upstream

CLOSE = 1e-5
SMALL = {"hidden_size": 16, "num_filters": 2, "upsampling_ratios": [5, 3, 2], "codebook_size": 16}
STEREO = {"audio_channels": 2, "normalize": True, "norm_type": "time_group_norm"}
MUSIC = {"use_causal_conv": False, "sampling_rate": 32_000, "use_conv_shortcut": False}
ENCODECS: dict[str, dict[str, Any]] = {
    "causal": {},
    "not causal": MUSIC,
    "stereo": STEREO,
    "zeros": {"pad_mode": "constant"},
}
SMALL_MIMI = SMALL | {
    "num_hidden_layers": 3,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 3,
    "upsample_groups": 16,
    "sliding_window": 7,
}
LENGTHS = (600, 1_199, 1, 3_007, 29, 600, 30)


def codec(kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    small = SMALL if kind == "Encodec" else SMALL_MIMI
    model = build(kind, **small | config)
    for name, buffer in model.named_buffers():
        if name.endswith(("embed", "embed_sum")):
            buffer.normal_()
    return model


def settings_of(model: Any) -> dict[str, Any]:
    return {"sampling_rate": model.config.sampling_rate, "feature_size": model.config.audio_channels}


def upstream_of(model: Any) -> Upstream:
    """Return the upstream of a copy of the model, because building an upstream changes the model."""
    duplicate = type(model)(copy.deepcopy(model.config))
    duplicate.load_state_dict(model.state_dict())
    return codec_upstream(duplicate, settings_of(model)).eval()


def saved(model: Any, folder: Path) -> str:
    import transformers

    return save(model, transformers.EncodecFeatureExtractor(**settings_of(model)), folder)


def clips_of(*lengths: int) -> list[Tensor]:
    torch.manual_seed(1)
    return [0.1 * torch.randn(length) for length in lengths]


def as_input(clip: Tensor, model: Any) -> Tensor:
    return clip.expand(1, model.config.audio_channels, -1)


@pytest.mark.parametrize("name", ENCODECS)
@torch.inference_mode()
def test_encodecs_latents_are_those_that_the_library_quantises(name: str) -> None:
    model = codec("Encodec", **ENCODECS[name])
    clips = clips_of(
        *[length for length in LENGTHS if name != "stereo" or length > 30]
    )  # torch's norm over time refuses a single frame
    frames, counts = upstream_of(model)(*padded(clips, extra=55))
    for row, count, clip in zip(frames, counts, clips, strict=True):
        codes = model.encode(as_input(clip, model), bandwidth=24.0).audio_codes[0]
        assert torch.equal(model.quantizer.encode(row[:count, 0].T[None], 24.0).transpose(0, 1), codes)
        if not model.config.normalize:
            expected = model.encoder(as_input(clip, model))[0].T[:, None]
            assert relative_error(row[:count], expected) < CLOSE


@pytest.mark.parametrize("causal", [True, False])
@torch.inference_mode()
def test_mimis_layers_are_the_librarys_hidden_states(causal: bool) -> None:
    model = codec("Mimi", use_causal_conv=causal)
    clips = clips_of(*LENGTHS)
    frames, counts = upstream_of(model)(*padded(clips, extra=55))
    for row, count, clip in zip(frames, counts, clips, strict=True):
        sound = as_input(clip, model)
        codes = model.encode(sound).audio_codes
        try:
            states = model.encode(sound, output_hidden_states=True).hidden_states
        except TypeError:  # transformers before 5.21
            embedded = model.encoder(sound).transpose(1, 2)
            states = model.encoder_transformer(embedded, output_hidden_states=True).hidden_states
        assert relative_error(row[:count], torch.stack(states, dim=2)[0]) < CLOSE
        downsample = model.downsample if hasattr(model, "downsample") else model.encoder.downsample
        latents = downsample(row[None, :count, -1].transpose(1, 2))
        assert torch.equal(model.quantizer.encode(latents).transpose(0, 1), codes)


@pytest.mark.parametrize(("kind", "config"), [("Encodec", {}), ("Encodec", MUSIC), ("Encodec", STEREO), ("Mimi", {})])
def test_codecs_keep_the_contract(kind: str, config: dict[str, Any]) -> None:
    assert not [finding for finding in check_contract(upstream_of(codec(kind, **config))) if not finding.ok]


@pytest.mark.parametrize(("kind", "config"), [("Encodec", {}), ("Encodec", MUSIC), ("Mimi", {})])
@torch.inference_mode()
def test_a_frame_is_counted_for_every_hop_that_a_clip_has_begun(kind: str, config: dict[str, Any]) -> None:
    model = codec(kind, **config)
    upstream = upstream_of(model)
    for samples in (*range(1, 95), 24_000, 24_001):
        promised = int(upstream.frame_lengths(torch.tensor([samples])))
        assert upstream.encode(torch.zeros(1, samples)).shape[1] == promised == -(-samples // 30)


@pytest.mark.parametrize("kind", ["Encodec", "Mimi"])
def test_decoder_and_quantiser_are_no_part_of_a_codecs_identity(kind: str) -> None:
    model = codec(kind)
    before = fingerprint(upstream_of(model))
    for part in (model.decoder, model.quantizer):
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.data.zero_()
    assert fingerprint(upstream_of(model)) == before
    next(model.encoder.parameters()).data.add_(1e-3)
    assert fingerprint(upstream_of(model)) != before


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Encodec", {"pad_mode": "constant"}),
        ("Encodec", {"normalize": True}),
        ("Mimi", {"sliding_window": 5}),
        ("Mimi", {"norm_eps": 1e-3}),
        ("Mimi", {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    ],
)
@torch.inference_mode()
def test_settings_that_change_features_change_the_fingerprint(kind: str, change: dict[str, Any]) -> None:
    model, other = codec(kind), codec(kind, **change)
    other.load_state_dict(model.state_dict())
    clip = padded(clips_of(2_000))
    one, two = upstream_of(model), upstream_of(other)
    assert not torch.equal(one(*clip).frames, two(*clip).frames)
    assert fingerprint(one) != fingerprint(two)


@pytest.mark.parametrize("kind", ["Encodec", "Mimi"])
@torch.inference_mode()
def test_saved_codecs_load_by_path(kind: str, tmp_path: Path) -> None:
    model = codec(kind)
    upstream, clip = create(saved(model, tmp_path)), padded(clips_of(1_001))
    assert fingerprint(upstream) == fingerprint(upstream_of(model))
    assert torch.equal(upstream(*clip).frames, upstream_of(model)(*clip).frames)


def rewritten(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@torch.inference_mode()
def test_weight_norm_under_its_former_names_is_the_same(tmp_path: Path) -> None:
    reference = saved(codec("Encodec"), tmp_path)
    before = fingerprint(create(reference))
    former = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}

    def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        for new, old in former.items():
            state = {name.replace(new, old): tensor for name, tensor in state.items()}
        return state

    rewritten(tmp_path, renamed)
    assert "encoder.layers.0.conv.weight_g" in load_file(tmp_path / "model.safetensors")
    assert fingerprint(create(reference)) == before


@pytest.mark.parametrize("kind", ["Encodec", "Mimi"])
def test_missing_and_surplus_weights_of_the_encoder_are_named(kind: str, tmp_path: Path) -> None:
    reference, lost = saved(codec(kind), tmp_path), "layers.0.conv.bias"
    rewritten(tmp_path, lambda state: {name: tensor for name, tensor in state.items() if name != f"encoder.{lost}"})
    assert lost in refusal_message(reference)
    saved(codec(kind), tmp_path)
    rewritten(tmp_path, lambda state: state | {"encoder.layers.99.conv.bias": torch.zeros(2)})
    assert "layers.99.conv.bias" in refusal_message(reference)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampling_rate": 16_000}, "sampling_rate 16000"),
        ({"sampling_rate": None}, "sampling_rate None"),
        ({"sampling_rate": [24_000]}, "24000"),
        ({"feature_size": 2}, "feature_size 2"),
        ({"chunk_length_s": 1.0}, "chunks of 1.0 s"),
    ],
)
def test_front_ends_that_do_not_suit_the_model_are_refused(change: dict[str, Any], words: str) -> None:
    model = codec("Encodec")
    with pytest.raises(UpstreamError, match=words.replace("[", r"\[")):
        codec_upstream(model, settings_of(model) | change)


def test_codecs_that_encode_overlapping_chunks_are_refused() -> None:
    model = codec("Encodec", chunk_length_s=1.0, overlap=0.01, **STEREO)
    with pytest.raises(UpstreamError, match="overlapping chunks of"):
        codec_upstream(model, settings_of(model))


def test_a_mimi_without_its_encoder_is_refused() -> None:
    model = codec("Mimi")
    model.encoder = None
    with pytest.raises(UpstreamError, match="no encoder"):
        codec_upstream(model, settings_of(model))
