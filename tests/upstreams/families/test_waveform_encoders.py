"""wav2vec 2.0 and related models agree with transformers' forward pass on single, unpadded clips."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.upstreams.models import KINDS, SMALL, build, padded, plain_stack, relative_error, save, waveform_extractor
from upstreams import create
from upstreams.base import fingerprint
from upstreams.contract.check import check_contract
from upstreams.contract.probe_signals import weights_digest
from upstreams.families.waveform_encoders import WaveformEncoder, fold_weight_norm, receptive_field, window_moments

CLOSE = 1e-4  # tolerance of the contract in float32, relative to the largest value of a layer
OURS = 2e-5  # tolerance between two results of this project


def plain(model: Any, extractor: Any, clip: Tensor) -> Tensor:
    """Return the layers (T, L, D) of one clip by transformers alone."""
    values = torch.tensor(extractor(clip.numpy(), sampling_rate=16_000)["input_values"][0])
    last = getattr(model.config, "do_stable_layer_norm", False) or "conformer" in model.config.model_type
    norm = model.encoder.layer_norm if last else None
    return plain_stack(model.encoder.layers, norm, lambda: model(values[None]))[0]


def random_config(kind: str, chance: random.Random) -> dict[str, Any]:
    """Return a random architecture with unusual strides, kernels, heads and norms."""
    depth = chance.randint(1, 5)
    strides = [chance.randint(1, 4) for _ in range(depth)]
    strides[0] *= max(1, 40 // math.prod(strides))
    heads, groups = chance.choice([1, 2, 4]), chance.choice([1, 2, 4])
    config: dict[str, Any] = {
        "hidden_size": 4 * heads * chance.randint(1, 3),
        "num_attention_heads": heads,
        "num_hidden_layers": chance.randint(1, 4),
        "intermediate_size": chance.choice([8, 37]),
        "hidden_act": chance.choice(["gelu", "relu", "gelu_new", "silu"]),
        "feat_extract_activation": chance.choice(["gelu", "relu"]),
        "conv_dim": [chance.choice([4, 8, 12]) for _ in range(depth)],
        "conv_kernel": [chance.choice([1, 2, 3, 5, 10]) for _ in range(depth)],
        "conv_stride": strides,
        "conv_bias": chance.random() < 0.5,
        "num_conv_pos_embeddings": chance.choice([3, 4, 5, 16, 19]),
        "num_conv_pos_embedding_groups": groups if heads % groups == 0 else 1,
        "layer_norm_eps": chance.choice([1e-5, 1e-3]),
        "layerdrop": 0.5,
    }
    if kind == "data2vec-audio":
        return config | {
            "conv_pos_kernel_size": chance.choice([3, 4, 7]),
            "num_conv_pos_embeddings": chance.randint(1, 5),
        }
    config["feat_extract_norm"] = chance.choice(["group", "layer"])
    if kind == "wav2vec2-conformer":
        config["position_embeddings_type"] = chance.choice(["rotary", "relative", "relative", None])
        sizes = {"conv_depthwise_kernel_size": chance.choice([1, 3, 31]), "max_source_positions": 20}
        return config | sizes | {"rotary_embedding_base": chance.choice([100, 10_000])}
    config["do_stable_layer_norm"] = chance.random() < 0.5
    if kind == "hubert":
        config |= {"conv_pos_batch_norm": chance.random() < 0.5, "feat_proj_layer_norm": chance.random() < 0.5}
    if kind == "wavlm":
        buckets, distance = chance.choice([(8, 30), (32, 800), (320, 800)])
        config |= {"num_buckets": buckets, "max_bucket_distance": distance}
    if kind == "wav2vec2" and config["do_stable_layer_norm"]:
        config["adapter_attn_dim"] = chance.choice([None, 3])
    return config


@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_has_the_librarys_layers_alone_and_in_any_batch(kind: str, trial: int, tmp_path: Path) -> None:
    chance = random.Random(f"{kind} {trial}")
    torch.manual_seed(trial)
    model, extractor = build(kind, **random_config(kind, chance)), waveform_extractor(bool(trial % 2))
    upstream = create(save(model, extractor, tmp_path))
    shortest = upstream.window + 2 * upstream.hop  # transformers' group norm refuses a single frame
    lengths = [shortest, shortest + chance.randint(0, 500), shortest + 4_000, shortest + 9_001]
    chance.shuffle(lengths)
    clips = [chance.choice([0.01, 0.3]) * torch.randn(n) + chance.choice([0.0, 0.1]) for n in lengths]
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, extra=chance.choice([0, 777, 5_000])))
        for clip, row, count in zip(clips, frames, counts, strict=True):
            expected = plain(model, extractor, clip)
            assert relative_error(row[:count], expected) < CLOSE
            assert not row[count:].any()
            alone = upstream(*padded([clip])).frames[0]
            assert relative_error(alone, expected) < CLOSE
            assert relative_error(row[:count], alone) < OURS


@pytest.mark.parametrize("kind", ["wavlm", "wav2vec2-conformer"])
def test_the_contract_holds(kind: str) -> None:
    torch.manual_seed(0)
    upstream = WaveformEncoder(build(kind, **SMALL), normalize=True, sample_rate=16_000).eval()
    assert [finding for finding in check_contract(upstream) if not finding.ok] == []


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_clips_shorter_than_the_receptive_field_are_the_same_alone_and_in_a_batch(kind: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build(kind, **SMALL, feat_extract_norm=norm)
    upstream = WaveformEncoder(model, normalize=True, sample_rate=16_000).eval()
    short = [torch.randn(n) for n in (10, upstream.window - 1, upstream.window)]
    with torch.inference_mode():
        frames, counts = upstream(*padded([*short, torch.randn(5_000)]))
        assert counts.tolist()[:3] == [1, 1, 1]
        for row, clip in zip(frames, short, strict=False):
            assert relative_error(row[:1], upstream(*padded([clip])).frames[0]) < OURS


def test_the_stack_is_that_of_the_librarys_hidden_states_up_to_the_final_norm(tmp_path: Path) -> None:
    model, extractor = (
        build("wavlm", **SMALL, do_stable_layer_norm=True, feat_extract_norm="layer"),
        waveform_extractor(),
    )
    upstream, clip = create(save(model, extractor, tmp_path)), torch.randn(3_000)
    with torch.no_grad():
        output = model(clip[None], output_hidden_states=True)
        frames = upstream(*padded([clip])).frames[0]
    for layer in range(upstream.layers - 1):
        torch.testing.assert_close(frames[:, layer], output.hidden_states[layer][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(frames[:, -1], output.last_hidden_state[0], atol=1e-5, rtol=1e-4)


def test_plain_group_norm_models_do_depend_on_padding_so_that_the_tests_above_can_fail() -> None:
    torch.manual_seed(0)
    model = build("wav2vec2", **SMALL, feat_extract_norm="group")
    clip = torch.randn(4_000)
    mask = torch.arange(8_000)[None] < 4_000
    with torch.no_grad():
        alone = model(clip[None]).last_hidden_state[0]
        beside = model(torch.cat([clip, torch.zeros(4_000)])[None], attention_mask=mask.long()).last_hidden_state[0]
    assert relative_error(beside[: len(alone), None], alone[:, None]) > 0.01


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_plain_conformers_depend_on_padding_so_that_the_tests_above_can_fail(positions: str) -> None:
    torch.manual_seed(0)
    model = build("wav2vec2-conformer", **SMALL, feat_extract_norm="layer", position_embeddings_type=positions)
    clip, mask = torch.randn(4_000), torch.arange(8_000)[None] < 4_000
    with torch.no_grad():
        alone = model(clip[None]).last_hidden_state[0]
        beside = model(torch.cat([clip, torch.zeros(4_000)])[None], attention_mask=mask.long()).last_hidden_state[0]
    assert relative_error(beside[: len(alone), None], alone[:, None]) > 1e-3


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_conformers_keep_no_positions_of_longer_clips_or_lower_precision(positions: str) -> None:
    torch.manual_seed(0)
    config = SMALL | {"position_embeddings_type": positions, "max_source_positions": 5}
    upstream = WaveformEncoder(build("wav2vec2-conformer", **config), normalize=True, sample_rate=16_000).eval()
    clip = padded([torch.randn(3_000)])
    with torch.inference_mode():
        before, expected = weights_digest(upstream), upstream(*clip).frames
        with torch.autocast("cpu", torch.bfloat16):
            upstream(*clip)
        upstream(*padded([torch.randn(9_000)]))
        assert torch.equal(upstream(*clip).frames, expected)
    assert weights_digest(upstream) == before
    upstream(*clip).frames.sum().backward()  # a table created in inference mode would raise an error here


def test_first_layer_statistics_are_those_of_the_windows_of_each_clip() -> None:
    waveforms, lengths = torch.randn(3, 400), torch.tensor([400, 50, 10])
    mean, covariance = window_moments(waveforms, lengths, 10, 5)
    for row, length, clip_mean, clip_covariance in zip(waveforms, lengths, mean, covariance, strict=True):
        windows = torch.stack([row[t : t + 10] for t in range(0, int(length) - 9, 5)]).double()
        torch.testing.assert_close(clip_mean, windows.mean(0))
        torch.testing.assert_close(clip_covariance, torch.cov(windows.T, correction=0).reshape(10, 10))


def test_hop_and_window_follow_from_the_convolutions() -> None:
    assert receptive_field([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]) == 400
    upstream = WaveformEncoder(build("hubert", **SMALL), normalize=False, sample_rate=16_000).eval()
    for samples in (upstream.window, upstream.window + upstream.hop - 1, upstream.window + upstream.hop, 3_333):
        count = int(upstream(*padded([torch.randn(samples)])).lengths)
        assert count == int(upstream.model._get_feat_extract_output_lengths(samples))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "conformer" not in kind])  # conformers have batch norms
def test_fine_tuning_reaches_every_weight_and_never_drops_a_layer(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SMALL | {"layerdrop": 0.9, "mask_time_prob": 0.5, "mask_time_length": 2, "hidden_dropout": 0.0}
    no_dropout = {"attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    upstream = create(save(build(kind, **config, **no_dropout), waveform_extractor(True), tmp_path))
    batch = padded([torch.randn(2_000), torch.randn(3_000)])
    reference = upstream(*batch).frames
    upstream.train()
    for _ in range(3):  # without dropout, training mode changes nothing: no block is dropped and no frame masked
        torch.testing.assert_close(upstream(*batch).frames, reference)
    upstream(*batch).frames.square().sum().backward()
    unreached = [name for name, tensor in upstream.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert all("masked_spec_embed" in name or name.endswith("k_proj.bias") for name in unreached)


@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "data2vec-audio"])
def test_bfloat16_autocast_stays_near_float32_with_and_without_padding(kind: str) -> None:
    torch.manual_seed(0)
    upstream = WaveformEncoder(build(kind, **SMALL), normalize=True, sample_rate=16_000).eval()
    clips = [1e-3 * torch.randn(3_000) + 0.5, torch.randn(2_000)]
    with torch.inference_mode():
        expected = upstream(*padded(clips)).frames
        with torch.autocast("cpu", torch.bfloat16):
            frames = upstream(*padded(clips)).frames
            assert relative_error(upstream(*padded(clips[:1])).frames[0], expected[0]) < 0.1
    assert frames.dtype == torch.float32
    assert relative_error(frames[0], expected[0]) < 0.1
    assert not torch.equal(frames, expected)


def test_settings_tell_architectures_apart_that_have_the_same_weights() -> None:
    one = WaveformEncoder(build("hubert", **SMALL), normalize=True, sample_rate=16_000)
    other = WaveformEncoder(build("hubert", **(SMALL | {"hidden_act": "relu"})), normalize=True, sample_rate=16_000)
    raw = WaveformEncoder(build("hubert", **SMALL), normalize=False, sample_rate=16_000)
    assert one.settings() != other.settings()
    assert one.settings() != raw.settings()


def test_the_fingerprint_does_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    folder = save(build("hubert", "Model", **SMALL), waveform_extractor(), tmp_path)
    before, prints = torch.get_num_threads(), set()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            prints.add(fingerprint(create(folder)))
    finally:
        torch.set_num_threads(before)
    assert len(prints) == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_normalised_weights_of_old_and_new_torch_become_plain_ones(norm: Any) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(norm(nn.Conv1d(3, 4, 5), dim=2), nn.Sequential(norm(nn.Linear(4, 4))))
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.mul_(1.7)
    clip = torch.randn(2, 3, 8)
    expected = layers(clip)
    fold_weight_norm(layers)
    assert sorted(layers.state_dict()) == ["0.bias", "0.weight", "1.0.bias", "1.0.weight"]
    assert torch.equal(layers(clip), expected)
    assert not layers[0]._forward_pre_hooks
