"""Noise and reverberation: levels, selection of clips, sources, and independence of everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from upstreams.base import UpstreamError, valid
from upstreams.pretraining.augmentation import (
    RATE,
    Folder,
    Sources,
    add_background_noise,
    add_reverberation,
    augmented,
    fast_fft_size,
    power_law_noise,
    room_filters,
    room_impulse_responses,
)


def clips(number: int, samples: int) -> Tensor:
    return 0.1 * torch.from_numpy(np.random.RandomState(0).standard_normal((number, samples))).float()


def decibels(power: Tensor) -> Tensor:
    return 10 * power.log10()


def test_noise_is_between_0_and_18_db_below_each_clip():
    clean = clips(200, 8000)
    torch.manual_seed(0)
    rest = add_background_noise(clean, torch.full((200,), 8000)) - clean
    below = decibels(clean.square().mean(1) / rest.square().mean(1))
    assert 0 <= below.min() < 1
    assert 17 < below.max() <= 18.001


def test_noise_is_measured_on_what_is_there_of_a_clip():
    clean, lengths = clips(20, 8000), torch.full((20,), 2000)
    clean = clean.masked_fill(~valid(lengths, 8000), 0.0)
    torch.manual_seed(0)
    rest = add_background_noise(clean, lengths) - clean
    below = decibels(clean[:, :2000].square().mean(1) / rest[:, :2000].square().mean(1))
    assert not rest[:, 2000:].any()
    assert -0.001 <= below.min() <= below.max() <= 18.001


def test_reverberation_is_the_convolution_with_a_room_as_loud_as_before():
    clean, rooms = clips(3, 5000), room_impulse_responses(3, RATE // 2)
    output = add_reverberation(clean, torch.full((3,), 5000), lambda number, size: rooms)
    for row in range(3):
        heard = np.convolve(clean[row].double(), rooms[row].double())[:5000]
        expected = heard * np.abs(clean[row].numpy()).mean() / np.abs(heard).mean()
        np.testing.assert_allclose(output[row], expected, atol=1e-5)


def test_rooms_answer_with_a_click_and_a_decaying_tail():
    torch.manual_seed(0)
    rooms = room_impulse_responses(300, 8000)
    early, late = (rooms[:, part].square().sum(1) for part in (slice(800, 1600), slice(6000, 6800)))
    assert rooms.shape == (300, 8000)
    assert (rooms[:, 0] > 0.3).all()
    assert (early > 10 * late).all()


def test_rooms_tails_fall_by_60_db_in_a_tenth_to_six_tenths_of_a_second_0_to_12_db_below_the_click(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        "upstreams.pretraining.augmentation.room_filters", lambda number, size: torch.eye(1, size).expand(number, -1)
    )
    torch.manual_seed(0)
    rooms = room_impulse_responses(400, RATE // 2)
    torch.testing.assert_close(rooms[:, 0], torch.ones(400))
    below = -decibels(rooms[:, 1:].square().sum(1))
    assert -0.01 < below.min() < 0.5
    assert 11.5 < below.max() < 12.01
    early, late = (decibels(rooms[:, at : at + 400].square().mean(1)) for at in (1, 801))
    seconds = 60 / ((early - late) / 0.05)  # time in which the tail falls by 60 dB
    assert 0.09 < seconds.min() < 0.12
    assert 0.5 < seconds.quantile(0.95) < 0.7


def test_rooms_colour_by_a_few_decibels_and_delay_nothing():
    torch.manual_seed(0)
    filters = room_filters(2000, 4000)
    gains = 20 * torch.fft.rfft(filters).abs().log10()
    assert abs(float(gains.mean())) < 0.1
    assert 2.8 < float(gains[:, 0].std()) < 3.2
    assert (gains.diff().abs() < 0.2).all()
    energy = filters.square()
    assert (energy[:, :200].sum(1) > 0.999 * energy.sum(1)).all()
    assert torch.equal(filters.abs().argmax(1), torch.zeros(2000, dtype=torch.int64))


def test_coloured_noise_has_less_at_high_frequencies():
    torch.manual_seed(0)
    spectra = torch.fft.rfft(power_law_noise(300, 8000)).abs()
    assert spectra.shape == (300, 4001)
    slopes = (spectra[:, 2000:4000].mean(1) / spectra[:, 200:400].mean(1)).log() / torch.tensor(10.0).log()
    assert -0.9 < slopes.min() < -0.65
    assert -0.2 < slopes.max() < 0.1


def test_a_share_of_the_clips_is_left_as_it_is():
    clean = clips(400, 400)
    torch.manual_seed(0)
    output = augmented(clean, torch.full((400,), 400))
    same = (output == clean).all(1).float().mean()
    assert abs(float(same) - 0.55 * 0.3) < 0.06
    assert torch.equal(clean, clips(400, 400))


def test_what_lies_beyond_a_clip_is_ignored_and_becomes_silence():
    lengths = torch.tensor([8000, 3000] * 10)
    clean = clips(20, 8000)
    dirty = clean.masked_fill(~valid(lengths, 8000), float("nan"))
    torch.manual_seed(1)
    one = augmented(clean, lengths)
    torch.manual_seed(1)
    other = augmented(dirty, lengths)
    assert torch.equal(one, other)
    assert not one.masked_select(~valid(lengths, 8000)).any()


def test_torchs_generator_decides_all():
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(augmented(clips(16, 4000), torch.full((16,), 4000)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_silence_stays_finite():
    torch.manual_seed(0)
    assert augmented(torch.zeros(20, 4000), torch.full((20,), 4000)).isfinite().all()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 400, 24_000, 32_001])
def test_quick_sizes_are_a_little_larger(size: int):
    assert size <= fast_fft_size(size) <= 1.13 * size + 1


def written(folder: Path, name: str, samples: np.ndarray, rate: int = RATE) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    soundfile.write(folder / name, samples, rate, subtype="FLOAT")


def test_sounds_of_a_folder_are_drawn_at_random_places(tmp_path: Path):
    written(tmp_path, "long/a.wav", np.arange(4000) / 4000)
    written(tmp_path, "b.wav", -np.ones((30, 2)))
    (tmp_path / "notes.txt").write_text("none")
    folder = Folder(str(tmp_path), "noises")
    torch.manual_seed(0)
    output = folder.noises(40, 100)
    short = (output == -1).all(1)
    assert output.shape == (40, 100)
    assert 0 < short.sum() < 40
    steps = output[~short].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 4000), atol=1e-5, rtol=0)
    assert len(output[~short, 0].unique()) > 5


def test_rooms_of_a_folder_begin_at_their_loudest_sample(tmp_path: Path):
    written(tmp_path, "a.wav", np.array([0.0, 0.1, -0.5, 0.25, 0.1]))
    folder = Folder(str(tmp_path), "rooms")
    np.testing.assert_allclose(folder.rooms(1, 6)[0], [1, -0.5, -0.2, 0, 0, 0], atol=1e-6)
    torch.manual_seed(0)
    heard = augmented(clips(8, 4000), torch.full((8,), 4000), Sources(rooms=folder.rooms, noises=folder.rooms))
    assert heard.isfinite().all()


def test_a_folders_digest_tells_its_files(tmp_path: Path):
    written(tmp_path, "a.wav", np.ones(30))
    before = Folder(str(tmp_path), "noises").digest()
    assert before == Folder(str(tmp_path), "rooms").digest()
    written(tmp_path, "b.wav", np.ones(30))
    assert before != Folder(str(tmp_path), "noises").digest()


@pytest.mark.parametrize("path", ["nowhere", "~nobody-of-this-name/noises", "a" * 5000, "a\0b", __file__])
def test_what_is_no_folder_is_told(path: str):
    with pytest.raises(UpstreamError, match=r"noises of dino is '.*', which is no folder"):
        Folder(path, "noises")


@pytest.mark.parametrize("option", ["noises", "rooms"])
def test_what_cannot_be_used_is_told_before_a_training_begins(tmp_path: Path, option: str):
    with pytest.raises(UpstreamError, match=r"in which there is no \.wav"):
        Folder(str(tmp_path), option)
    written(tmp_path, "a.wav", np.ones(30))
    (tmp_path / "b.wav").write_bytes(b"no sound")
    with pytest.raises(UpstreamError, match=rf"b.wav' in {option} of dino is not readable audio; take it out"):
        Folder(str(tmp_path), option)
    written(tmp_path, "b.wav", np.ones(30), 8000)
    with pytest.raises(UpstreamError, match="8000 samples per second; resample the folder to 16000"):
        Folder(str(tmp_path), option)
    written(tmp_path, "b.wav", np.zeros(0))
    with pytest.raises(UpstreamError, match=r"b.wav' .* is empty; take it out"):
        Folder(str(tmp_path), option)
    (tmp_path / "b.wav").unlink()
    assert Folder(str(tmp_path), option).files == [tmp_path / "a.wav"]


def test_what_turns_out_to_be_of_no_use_is_told_when_it_is_drawn(tmp_path: Path):
    written(tmp_path, "a.wav", np.zeros(30))
    folder = Folder(str(tmp_path), "rooms")
    with pytest.raises(UpstreamError, match="is silent; take it out"):
        folder.rooms(1, 10)
    assert not folder.noises(1, 10).any()
    written(tmp_path, "a.wav", np.full(30, np.nan))
    for draw in (folder.rooms, folder.noises):
        with pytest.raises(UpstreamError, match=r"a.wav' in rooms of dino is not readable audio"):
            draw(1, 10)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UpstreamError, match=r"a.wav' in rooms of dino is not readable audio"):
        folder.noises(1, 10)


def test_a_compressed_file_that_ends_too_soon_is_told(tmp_path: Path):
    soundfile.write(tmp_path / "a.flac", 0.1 * np.random.RandomState(0).standard_normal(160_000), RATE)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[: len(content) // 3])
    folder = Folder(str(tmp_path), "noises")
    with pytest.raises(UpstreamError, match=r"a.flac' in noises of dino is not readable audio"):
        folder.noises(100, 1000)
