"""Attention within bands, beside transformers' plain attention with a mask written out place by place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.upstreams.models import SMALL, build, hidden_states, padded, relative_error
from upstreams.base import UpstreamError
from upstreams.contract.check import check_contract
from upstreams.seeds.local_attention import Bands, check_bands, parse_bands
from upstreams.seeds.pms import Pms


def hubert(**config: Any) -> Any:
    torch.manual_seed(1)
    return build("hubert", **SMALL, **config)


def brute(model: Any, frames: Tensor, bands: Bands) -> list[Tensor]:
    """Layers (T, D) of one clip's frames (1, T, D) by eager attention, each row's keys picked one by one."""
    model.config._attn_implementation = "eager"
    encoder, size = model.encoder, frames.shape[1]
    norm = model.config.do_stable_layer_norm
    states = frames + encoder.pos_conv_embed(frames)
    states = states if norm else encoder.layer_norm(states)
    layers = [states[0]]
    for block, band in zip(encoder.layers, bands, strict=True):
        mask = torch.full((1, 1, size, size), float("-inf"))
        for query in range(size):
            for key in range(size):
                if band is None or -band <= key - query <= band:
                    mask[0, 0, query, key] = 0.0
        states = block(states, attention_mask=mask)
        states = states[0] if isinstance(states, tuple) else states
        layers.append(states[0])
    return [*layers[:-1], encoder.layer_norm(layers[-1])] if norm else layers


@pytest.mark.parametrize("bands", [(0, 3), (1, None), (5, 500), (0, 0)])
@pytest.mark.parametrize("large", [False, True])
def test_features_are_those_of_eager_attention_with_every_pair_written_out(bands: Bands, large: bool) -> None:
    options = {"do_stable_layer_norm": large, "feat_extract_norm": "layer" if large else "group"}
    model = hubert(**options)
    upstream = Pms(model, False, 16_000, bands).eval()
    clips = [torch.randn(3_000), torch.randn(1_111), torch.randn(400)]
    with torch.no_grad():
        frames, counts = upstream(*padded(clips, 300))
        for row, count, clip in zip(frames, counts.tolist(), clips, strict=True):
            alone = clip[None], torch.tensor([len(clip)])
            given = upstream.project(upstream.convolve(upstream.prepare(*alone), alone[1]))
            wanted = torch.stack(brute(model, given, bands), dim=1)
            model.config._attn_implementation = "sdpa"
            assert relative_error(row[:count], wanted) < 1e-5


def test_open_bands_give_what_transformers_gives() -> None:
    model = hubert()
    clip = torch.randn(1, 2_000)
    states = hidden_states(model, input_values=clip)
    with torch.no_grad():
        frames, _ = Pms(model, False, 16_000, (None, 500)).eval()(clip, torch.tensor([2_000]))
    assert relative_error(frames[0], torch.stack(states, dim=2)[0]) < 1e-5


def test_with_bands_it_keeps_the_contract_of_an_upstream() -> None:
    torch.manual_seed(2)
    model = build("hubert", **SMALL | {"conv_kernel": [10, 3, 3], "conv_stride": [5, 8, 8]})
    faults = [finding for finding in check_contract(Pms(model, True, 16_000, (1, 4)).eval()) if not finding.ok]
    assert faults == []


def test_a_frame_is_reached_by_what_lies_within_the_bands_only() -> None:
    upstream = Pms(hubert(), False, 16_000, (1, 2)).eval()
    frames = torch.randn(1, 40, 16, requires_grad=True)
    # Positions reach two frames, the blocks one and two more.
    upstream.transform(frames, torch.tensor([80 * 40 + 20]))[-1][0, 20].sum().backward()
    assert frames.grad is not None
    touched = frames.grad[0].abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == list(range(20 - 5, 20 + 5))  # an even kernel of positions is cut after its end


def test_bands_are_read_as_they_are_typed() -> None:
    assert parse_bands("6, 12,none", 3, "it") == (6, 12, None)
    assert parse_bands("none", 3, "it") == (None, None, None)
    assert parse_bands("4", 1, "it") == (4,)
    assert check_bands([3, None], 2, "it") == (3, None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("6,12", "has 3 layers and bands for 2; give one for each"),
        ("6", "has 3 layers and bands for 1"),
        ("6,12,many", "has the band 'many'; it is a number of frames"),
        ("6,12,-1", "has the band '-1'"),
        ("6,12,1.5", "has the band '1.5'"),
        ("6,12,", "has the band ''"),
        ("6,12,9999999", "has the band '9999999'"),
        ("6,12," + "9" * 5_000, r"has the band '9+\.\.\.'; it is"),
        ("6,12,٣", "has the band '٣'"),
    ],
)
def test_other_bands_are_refused(text: str, told: str) -> None:
    with pytest.raises(UpstreamError, match=told):
        parse_bands(text, 3, "it")


@pytest.mark.parametrize("bands", [[True, 1], [1.0, 2], "12", None, {"a": 1}, [[1], 2]])
def test_bands_of_another_kind_in_a_file_are_refused(bands: Any) -> None:
    with pytest.raises(UpstreamError, match="band"):
        check_bands(bands, 2, "it")
