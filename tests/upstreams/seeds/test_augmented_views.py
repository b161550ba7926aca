"""Views held against torch's own interpolation and against their formulas, clip by clip."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upstreams.seeds.augmented_views import (
    mix,
    random_integers,
    random_scales,
    randomly_mixed,
    randomly_resized,
    resize,
    view_segments,
)

LENGTHS = torch.tensor([161, 161, 90, 40, 3, 1])


def spectrograms(lengths: Tensor = LENGTHS, bands: int = 64) -> Tensor:
    """(B, bands, M) of noise, NaN beyond each clip's end."""
    torch.manual_seed(0)
    mel = torch.randn(len(lengths), bands, int(lengths.max()) + 5)
    for clip, length in zip(mel, lengths, strict=True):
        clip[:, length:] = float("nan")
    return mel


def plain_resize(clip: Tensor, top: int, height: int, left: int, width: int) -> Tensor:
    """What torch makes of a part of a canvas with the clip (bands, M) in its middle; left is counted from the clip."""
    bands, frames = clip.shape
    spare = int(1.5 * frames) - frames
    canvas = F.pad(clip, (spare // 2, spare - spare // 2))
    left += spare // 2
    part = canvas[top : top + height, left : left + width]
    return F.interpolate(part[None, None], size=(bands, frames), mode="bicubic", align_corners=True)[0, 0]


def test_resizing_is_torchs_on_each_clips_own_canvas() -> None:
    mel = spectrograms()
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        heights = torch.randint(1, 65, LENGTHS.shape, generator=generator)
        canvas = (1.5 * LENGTHS).long()
        widths = (torch.rand(LENGTHS.shape, generator=generator) * canvas).long().clamp(min=1)
        tops = (torch.rand(LENGTHS.shape, generator=generator) * (65 - heights)).long()
        lefts = (torch.rand(LENGTHS.shape, generator=generator) * (canvas - widths + 1)).long()
        lefts -= (canvas - LENGTHS) // 2
        found = resize(mel, LENGTHS, tops, heights, lefts, widths)
        for clip, own, length, *part in zip(
            found, mel, LENGTHS.tolist(), *(each.tolist() for each in (tops, heights, lefts, widths)), strict=True
        ):
            torch.testing.assert_close(clip[:, :length], plain_resize(own[:, :length], *part), rtol=1e-4, atol=2e-5)
            assert not clip[:, length:].any()


def test_a_part_that_is_the_whole_clip_stays_as_it_is() -> None:
    mel, none = spectrograms(), torch.zeros_like(LENGTHS)
    found = resize(mel, LENGTHS, none, none + 64, none, LENGTHS)
    torch.testing.assert_close(found, mel.nan_to_num(), rtol=1e-5, atol=1e-5)


def test_random_parts_stay_in_their_clip_and_differ() -> None:
    mel = spectrograms(torch.full((40,), 50)) * 0 + 1
    views = randomly_resized(mel, torch.full((40,), 50))
    assert bool(views.isfinite().all())
    assert not views[:, :, 50:].any()
    silence = (views[:, :, :50].abs() < 1e-6).any(1).float().mean(1)  # what the canvas adds
    assert 0.05 < float(silence.mean()) < 0.4
    assert len(silence.unique()) > 10
    ends = [views[:, :, place].abs().amax(1) < 1e-6 for place in (0, 49)]
    assert all(5 <= int(silent.sum()) <= 35 for silent in ends)


def test_scales_are_drawn_from_their_whole_range() -> None:
    torch.manual_seed(0)
    drawn = random_scales(torch.zeros(20_000))
    assert 0.6 <= float(drawn.min()) < 0.601
    assert 1.499 < float(drawn.max()) <= 1.5
    assert float(drawn.mean()) == pytest.approx(1.05, abs=0.01)


def test_drawn_numbers_stay_below_their_limits_and_reach_all_of_them() -> None:
    torch.manual_seed(0)
    assert sorted(random_integers(torch.full((1000,), 7)).unique().tolist()) == [*range(7)]
    assert not random_integers(torch.ones(1000, dtype=torch.long)).any()


def test_mixing_adds_energies_at_the_shift() -> None:
    mel, lengths = spectrograms(torch.tensor([10, 6])), torch.tensor([10, 6])
    shares = torch.tensor([0.3, 0.1])
    found = mix(mel, lengths, torch.tensor([1, 0]), shares, torch.tensor([-2, 4]))
    long, short = mel[0].exp(), mel[1].exp()
    torch.testing.assert_close(found[0, :, 2:8].exp(), 0.7 * long[:, 2:8] + 0.3 * short[:, :6])
    assert torch.equal(found[0, :, :2], mel[0, :, :2])
    assert torch.equal(found[0, :, 8:10], mel[0, :, 8:10])
    torch.testing.assert_close(found[1, :, :6].exp(), 0.9 * short[:, :6] + 0.1 * long[:, 4:10])


def test_each_clip_is_mixed_with_another_one_up_to_the_largest_share() -> None:
    torch.manual_seed(0)
    levels = torch.arange(200) * 10.0  # so far apart that a share of any other one shows
    mel = levels[:, None, None].expand(-1, 4, 8)
    found = randomly_mixed(mel, torch.full((200,), 8), 0.4)
    changed = (found - mel)[:, 0, 0]
    quieter = changed[changed < 0].exp()  # 1 - share, where the other one is too quiet to show
    louder = (changed[changed > 2] / 10).ceil() * 10 - changed[changed > 2]  # -log(share)
    assert len(quieter) + len(louder) == 200
    shares = torch.cat([1 - quieter, (-louder).exp()])
    assert 0.0 < float(shares.min()) < 0.02
    assert 0.38 < float(shares.max()) <= 0.4
    assert torch.equal(found[:, :1, :1].expand_as(found), found)


def test_a_clip_alone_is_not_mixed() -> None:
    mel = spectrograms(LENGTHS[:1])
    assert randomly_mixed(mel, LENGTHS[:1], 0.4) is mel


def test_shorter_clips_lie_anywhere_within_longer_ones() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([8, 3])
    starts, ends = set(), set()
    for _ in range(100):
        mel = torch.zeros(2, 1, 8)
        mel[1] = 5.0
        touched = randomly_mixed(mel, lengths, 0.4)[0, 0].nonzero()[:, 0].tolist()
        starts.add(touched[0])
        ends.add(touched[-1])
        assert len(touched) == 3
    assert starts == {0, 1, 2, 3, 4, 5}
    assert ends == {2, 3, 4, 5, 6, 7}


def test_segments_are_stretches_of_their_clips() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([100] * 500 + [30])
    ramp = torch.arange(120.0).expand(501, 120)
    found, kept = view_segments(ramp, lengths, 40)
    assert kept.tolist() == [40] * 500 + [30]
    starts = found[:, 0]
    assert torch.equal(found[:500] - starts[:500, None], torch.arange(40.0).expand(500, 40))
    assert sorted(starts[:500].unique().tolist()) == [*range(61)]
    assert found[500, :30].tolist() == [*range(30)]


def test_segments_longer_than_every_clip_are_the_clips() -> None:
    waveforms = torch.randn(2, 50)
    found, kept = view_segments(waveforms, torch.tensor([50, 20]), 80)
    assert kept.tolist() == [50, 20]
    assert torch.equal(found[0], waveforms[0])
    assert torch.equal(found[1, :20], waveforms[1, :20])


def test_the_same_seed_gives_the_same_views() -> None:
    mel, lengths = spectrograms(), LENGTHS
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(randomly_resized(randomly_mixed(mel, lengths, 0.4), lengths))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert math.isfinite(float(views[0].sum()))
