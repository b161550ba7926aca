"""Compares log-mel features, mean normalisation and voice activity detection with the outputs of hyperion's code.

`data/dino.npz` holds the outputs of hyperion (branch persephone-dino) for the pseudo-random clips of
`tests.upstreams.dino_drawn`: every ninth log-mel frame, without dither, before and after mean normalisation, and the
mask of speech frames.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.upstreams.dino_drawn import CLIPS, drawn, drawn_clip, stored
from upstreams.families.hyperion_features import HyperionMel, clip_speech_frames, speech_frames, without_mean


@pytest.mark.parametrize("seconds", CLIPS)
def test_log_mel_energies_are_hyperions(seconds: float):
    clip = drawn_clip(seconds)
    mel, frames = HyperionMel(dither=0.0)(clip[None], torch.tensor([len(clip)]))
    assert frames.tolist() == [mel.shape[1]]
    np.testing.assert_allclose(
        mel[0, ::9], stored[f"mel {seconds}"], atol=2e-3
    )  # energies near 0 have large rounding errors
    np.testing.assert_allclose(mel[0, ::9].exp(), np.exp(stored[f"mel {seconds}"]), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("seconds", CLIPS)
def test_the_mean_over_301_frames_is_removed_as_hyperion_does(seconds: float):
    clip = drawn_clip(seconds)
    mel, frames = HyperionMel(dither=0.0)(clip[None], torch.tensor([len(clip)]))
    np.testing.assert_allclose(without_mean(mel, frames)[0, ::9], stored[f"normalised {seconds}"], atol=2e-3)


@pytest.mark.parametrize("frames", [300, 301, 302, 451, 700])
def test_the_mean_equals_that_of_a_plain_loop_at_any_length(frames: int):
    mel = torch.from_numpy(np.random.RandomState(frames).standard_normal((frames, 3))).float()
    rest = mel - mel.mean(0)
    expected = rest.clone()
    if frames > 301:
        for t in range(frames):
            near = [abs(p) if p < frames else 2 * (frames - 1) - p for p in range(t - 149, t + 151)]
            expected[t] -= rest[near].sum(0) / 301
    torch.testing.assert_close(without_mean(mel[None], torch.tensor([frames]))[0], expected, atol=1e-5, rtol=0)


def test_padding_changes_neither_features_nor_their_mean():
    short, long = drawn_clip(CLIPS[1]), drawn_clip(CLIPS[3])
    waveforms = torch.full((2, len(long) + 77), float("nan"))
    waveforms[0, : len(short)], waveforms[1, : len(long)] = short, long
    lengths = torch.tensor([len(short), len(long)])
    mel, frames = HyperionMel()(waveforms, lengths)
    normalized = without_mean(mel, frames)
    for row, clip in enumerate((short, long)):
        alone = without_mean(*HyperionMel()(clip[None], torch.tensor([len(clip)])))[0]
        assert len(alone) == frames[row]
        torch.testing.assert_close(normalized[row, : len(alone)], alone, atol=1e-4, rtol=0)
        assert not normalized[row, len(alone) :].any()


def test_dither_adds_the_expected_energy_of_noise_of_one_step():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 640_000, generator=generator) / 32_767
    measured = HyperionMel(dither=0.0)(noise, torch.tensor([640_000]))[0].exp().mean(1)
    expected = HyperionMel()(torch.zeros(1, 800), torch.tensor([800]))[0].exp().mean(1)
    np.testing.assert_allclose(measured, expected, rtol=0.06)


@pytest.mark.parametrize("seconds", CLIPS)
def test_speech_frames_are_those_of_hyperion(seconds: float):
    clip, expected = drawn_clip(seconds), stored[f"speech {seconds}"]
    mask = speech_frames(clip[None], torch.tensor([len(clip)]))[0].numpy()
    np.testing.assert_array_equal(mask, expected if expected.any() else ~expected)


@pytest.mark.parametrize(("samples", "hyperions"), [(400, "011"), (560, "0111"), (640, "0111"), (720, "01111")])
def test_speech_frames_are_those_of_hyperion_in_clips_shorter_than_the_window(samples: int, hyperions: str):
    swelling = drawn(f"short {samples} 1", samples) * torch.linspace(1, 0, samples) ** 20 * 0.1
    mask = speech_frames(swelling.flip(0)[None], torch.tensor([samples]))[0]
    assert "".join(str(int(frame)) for frame in mask) == hyperions


def test_a_silent_clip_keeps_all_its_frames():
    assert speech_frames(torch.zeros(1, 8000), torch.tensor([8000])).all()
    assert not clip_speech_frames(np.zeros(8000, dtype=np.float32)).any()


def test_speech_frames_of_a_clip_do_not_depend_on_the_batch():
    clips = [drawn_clip(seconds) for seconds in CLIPS]
    lengths = torch.tensor([len(clip) for clip in clips])
    masks = speech_frames(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0), lengths)
    for row, clip in enumerate(clips):
        alone = speech_frames(clip[None], lengths[row : row + 1])[0]
        assert torch.equal(masks[row, : len(alone)], alone)
        assert not masks[row, len(alone) :].any()


@pytest.mark.parametrize("samples", [400, 480, 560, 640, 720, 800, 880])
def test_the_speech_mask_of_a_short_clip_has_one_value_per_frame(samples: int):
    clip = 0.3 * torch.sin(torch.arange(samples) * 0.3)
    frames = HyperionMel()(clip[None], torch.tensor([samples]))[0].shape[1]
    assert speech_frames(clip[None], torch.tensor([samples])).shape == (1, frames) == (1, (samples + 80) // 160)
