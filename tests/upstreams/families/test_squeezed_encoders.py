"""SEW and SEW-D agree with transformers' hidden states on single, unpadded clips."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.upstreams.models import SMALL, build, hidden_states, padded, relative_error, save, waveform_extractor
from upstreams import create
from upstreams.contract.check import check_contract
from upstreams.families.squeezed_encoders import SqueezedEncoder

KINDS = ("sew", "sew-d")
CLOSE = 1e-4


def random_config(kind: str, chance: random.Random) -> dict[str, Any]:
    config: dict[str, Any] = SMALL | {
        "hidden_size": chance.choice([8, 16, 24]),
        "conv_dim": [8, 8, chance.choice([8, 12])],
        "conv_bias": chance.random() < 0.5,
        "feat_extract_norm": chance.choice(["group", "layer"]),
        "squeeze_factor": chance.choice([1, 2, 3]),
        "num_conv_pos_embeddings": chance.choice([3, 4, 7, 16]),
    }
    if kind == "sew-d":
        config |= {
            "max_position_embeddings": chance.choice([16, 512]),
            "position_buckets": chance.choice([-1, 4, 256]),
            "share_att_key": chance.random() < 0.5,
            "pos_att_type": chance.choice([["p2c", "c2p"], ["c2p"], ["p2c"]]),
            "norm_rel_ebd": chance.choice(["layer_norm", "none"]),
        }
    return config


def plain(model: Any, extractor: Any, clip: Tensor) -> Tensor:
    """Return the layers (T, L, D) of one clip by transformers alone."""
    values = torch.tensor(extractor(clip.numpy(), sampling_rate=16_000)["input_values"][0])
    return torch.stack(hidden_states(model, input_values=values[None]), dim=2)[0]


@pytest.mark.parametrize("trial", range(5))
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_has_the_librarys_hidden_states_alone_and_in_any_batch(kind: str, trial: int, tmp_path: Path) -> None:
    chance = random.Random(f"{kind} {trial}")
    torch.manual_seed(trial)
    model, extractor = build(kind, **random_config(kind, chance)), waveform_extractor(bool(trial % 2))
    upstream = create(save(model, extractor, tmp_path))
    first = upstream.window + 20 * 80  # the lengths cover every remainder of frames after squeezing
    lengths = [first, first + 80, first + 160, first + 4_001, upstream.window + 240]
    clips = [chance.choice([0.01, 0.3]) * torch.randn(length) for length in lengths]
    with torch.inference_mode():
        frames, counts = upstream(*padded(clips, extra=chance.choice([0, 777, 5_000])))
        for clip, row, count in zip(clips, frames, counts, strict=True):
            expected = plain(model, extractor, clip)
            assert relative_error(row[:count], expected) < CLOSE
            assert relative_error(row[:count], upstream(*padded([clip])).frames[0]) < CLOSE / 5
            assert not row[count:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_hop_and_window_include_the_squeezing(kind: str) -> None:
    model = build(kind, **SMALL, squeeze_factor=2)
    upstream = SqueezedEncoder(model, normalize=False, sample_rate=16_000).eval()
    assert upstream.hop == 2 * 5 * 4 * 4
    for samples in (upstream.window, upstream.window + upstream.hop - 1, upstream.window + upstream.hop, 3_333):
        unsqueezed = int(model._get_feat_extract_output_lengths(torch.tensor(samples)))
        assert int(upstream(*padded([torch.randn(samples)])).lengths) == unsqueezed // 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_itself_depends_on_padding_so_that_the_tests_above_can_fail(kind: str) -> None:
    torch.manual_seed(0)
    model = build(kind, **SMALL, feat_extract_norm="layer")
    clip = torch.randn(130 + 80 * 20)  # 21 frames: the last one does not fill a squeezed frame
    mask = torch.arange(8_000)[None] < len(clip)
    alone = hidden_states(model, input_values=clip[None])[-1][0]
    beside = torch.cat([clip, torch.zeros(8_000 - len(clip))])[None]
    together = hidden_states(model, input_values=beside, attention_mask=mask.long())[-1][0]
    assert relative_error(together[: len(alone), None], alone[:, None]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_holds(kind: str) -> None:
    torch.manual_seed(0)
    upstream = SqueezedEncoder(build(kind, **SMALL), normalize=True, sample_rate=16_000).eval()
    assert [finding for finding in check_contract(upstream) if not finding.ok] == []


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_weights_that_the_layers_depend_on(kind: str) -> None:
    torch.manual_seed(0)
    upstream = SqueezedEncoder(build(kind, **SMALL), normalize=True, sample_rate=16_000).train()
    upstream(*padded([torch.randn(2_000), torch.randn(3_000)])).frames.square().sum().backward()
    unreached = [name for name, tensor in upstream.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    unused = ("masked_spec_embed", "upsample.", "k_proj.bias", "key_proj.bias", "pos_key_proj.bias")
    assert [name for name in unreached if not any(part in name for part in unused)] == []


def test_settings_tell_architectures_apart_that_have_the_same_weights() -> None:
    one, other = (SqueezedEncoder(build("sew", **(SMALL | {"num_attention_heads": n})), True, 16_000) for n in (2, 4))
    assert one.settings() != other.settings()
    p2c, c2p = (build("sew-d", **SMALL, norm_rel_ebd="none", pos_att_type=[kind]) for kind in ("p2c", "c2p"))
    assert SqueezedEncoder(p2c, True, 16_000).settings() != SqueezedEncoder(c2p, True, 16_000).settings()
