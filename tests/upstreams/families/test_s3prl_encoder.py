"""Tests of frame rates with artificial models that s3prl does not include."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.upstreams.s3prl_speech import encoded, sound
from upstreams.base import UpstreamError
from upstreams.contract.check import check_contract
from upstreams.families.s3prl_encoder import S3prl, fill_frames


class Fake(nn.Module):
    """A model whose layers, of the given hops and widths, are sums over windows."""

    def __init__(self, hops: tuple[int, ...], widths: tuple[int, ...], window: int = 400) -> None:
        super().__init__()
        self.hops, self.widths, self.window = hops, widths, window

    def get_downsample_rates(self, key: str) -> list[int]:
        return list(self.hops)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        sizes = zip(self.hops, self.widths, strict=True)
        return {"hidden_states": [self.layer(torch.stack(wavs), hop, width) for hop, width in sizes]}

    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        return clips.unfold(1, self.window, hop).sum(2, keepdim=True).expand(-1, -1, width)


class Centred(Fake):
    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        return super().layer(nn.functional.pad(clips, (self.window // 2, self.window // 2)), hop, width)


class InWindows(Fake):
    """A model with nine frames per started second although its hop implies ten, as in SSAST."""

    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        whole = nn.functional.pad(clips, (0, -clips.shape[1] % 16_000))
        frames = whole.unflatten(1, (-1, 16_000)).unfold(2, 1_600, 1_600)[:, :, :9].flatten(1, 2)
        return frames.sum(2, keepdim=True)[:, : -(-clips.shape[1] // hop)].expand(-1, -1, width)


class OfTheBatch(Fake):
    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        return super().layer(clips - clips.mean(), hop, width)


def contract(expert: nn.Module) -> list[str]:
    return [finding.detail for finding in check_contract(S3prl(expert, {}).eval()) if not finding.ok]


def test_layers_with_lower_rates_are_repeated_to_the_highest() -> None:
    upstream, clip = S3prl(Fake((320, 640), (3, 3)), {}), sound(16_000)
    frames = encoded(upstream, clip)
    assert (upstream.hop, upstream.window, upstream.layers, len(frames)) == (320, 400, 2, 49)
    assert torch.equal(frames[:-1:2, 1], frames[1::2, 1])
    assert torch.equal(frames[::2, 1], frames[::2, 0])
    assert not torch.equal(frames[:-1:2, 0], frames[1::2, 0])
    assert contract(Fake((320, 640), (3, 3))) == []


def test_rates_that_are_no_multiples_and_widths_that_differ_are_refused() -> None:
    with pytest.raises(UpstreamError, match="its layers have 33 and 49 frames for one second"):
        S3prl(Fake((320, 480), (3, 3)), {})
    with pytest.raises(UpstreamError, match="its layers are 3 and 5 wide"):
        S3prl(Fake((320, 320), (3, 5)), {})


def test_the_frame_that_centring_adds_is_dropped() -> None:
    upstream = S3prl(Centred((160,), (3,)), {})
    assert upstream.window == 1
    assert [len(encoded(upstream, sound(samples))) for samples in (15_999, 16_000, 16_001)] == [100, 100, 101]
    assert contract(Centred((160,), (3,))) == []


def test_models_that_see_a_clip_in_windows_have_their_last_frame_repeated_as_in_s3prl() -> None:
    upstream = S3prl(InWindows((1_600,), (3,)), {})
    frames = encoded(upstream, sound(32_000))
    assert (upstream.window, len(frames)) == (1, 20)
    assert torch.equal(frames[18:], frames[17:18].expand(2, -1, -1))
    assert not torch.equal(frames[16], frames[17])


class Costly(Fake):
    """A model that multiplies a matrix with every second of a clip; `drops`: it drops half of the loud frames."""

    def __init__(self, drops: bool) -> None:
        super().__init__((160,), (3,))
        self.matrix, self.drops, self.seen = torch.ones(3, 3), drops, 0

    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        frames = super().layer(clips, hop, width) @ self.matrix
        self.seen += bool(frames.any()) * frames.shape[1]
        return frames[:, ::2] if self.drops and not frames.any() else frames


def test_frames_are_counted_without_computing_them_unless_that_changes_how_many_there_are() -> None:
    usual, odd = Costly(drops=False), Costly(drops=True)
    assert S3prl(usual, {}).window == S3prl(odd, {}).window == 400
    assert odd.seen > 2 * usual.seen


def test_frames_of_windowed_models_are_counted_only_a_few_times() -> None:
    for hop, window in ((1_600, 1), (320, 400)):
        expert, calls = (InWindows if window == 1 else Fake)((hop,), (3,)), []
        expert.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        assert (S3prl(expert, {}).window, len(calls) <= 12) == (window, True)


class Windy(Fake):
    """A model with a constant frame rate at first, and no further frames later."""

    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        return super().layer(clips[:, :24_000], hop, width)


def test_a_frame_rate_that_ends_early_is_not_taken_for_another_rate() -> None:
    upstream = S3prl(Windy((160,), (3,)), {})
    assert (upstream.hop, upstream.window) == (160, 1)


class Broken(Fake):
    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        return super().layer(clips, hop, width) / 0.0


def test_a_model_with_features_that_are_not_finite_is_refused() -> None:
    with pytest.raises(UpstreamError, match="features for noise are NaN or infinite"):
        S3prl(Broken((160,), (3,)), {})


class Sparse(Fake):
    def get_downsample_rates(self, key: str) -> list[int]:
        return [10**7]


def test_a_hop_of_minutes_is_refused_before_it_is_tried() -> None:
    with pytest.raises(UpstreamError, match="its declared hop is 10000000"):
        S3prl(Sparse((160,), (3,)), {})


class Random(Fake):
    def layer(self, clips: Tensor, hop: int, width: int) -> Tensor:
        return super().layer(clips, hop, width) + 0 * (random.random() + np.random.rand())


def test_a_model_leaves_global_random_generators_unchanged() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    encoded(S3prl(Random((160,), (3,)), {}), sound(8_000))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_frame_rate_far_from_the_declared_one_is_refused() -> None:
    with pytest.raises(UpstreamError, match="it gives 9 frames for one second, but its declared hop is 320"):
        S3prl(InWindows((320,), (3,)), {})


def test_a_single_frame_is_reported_in_the_singular() -> None:
    with pytest.raises(UpstreamError, match="it gives 1 frame, but its frame rate implies 5"):
        fill_frames(torch.zeros(1, 1, 2, 3), 5)


def test_a_model_with_norms_over_the_batch_gets_one_clip_at_a_time() -> None:
    assert not S3prl(OfTheBatch((160,), (3,)), {}).together
    assert contract(OfTheBatch((160,), (3,))) == []


@pytest.mark.parametrize("window", [1, 77, 159, 400, 465, 560, 2_800])
def test_any_window_is_found(window: int) -> None:
    assert S3prl(Fake((320,), (1,), window), {}).window == window
