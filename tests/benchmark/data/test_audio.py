"""Tests that audio files of every kind are inspected once, and that stretches of them are read exactly."""

from __future__ import annotations

import ctypes
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmark.data import audio
from benchmark.data.audio import inspect_audio, read_stretch, samples_at
from benchmark.values import Stretch


def wave(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def noise(samples: int, channels: int | None = None, seed: int = 0) -> np.ndarray:
    shape = samples if channels is None else (samples, channels)
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def whole(path: Path) -> Stretch:
    found = inspect_audio(str(path))
    assert found.problem == ""
    return Stretch(str(path), 0, found.samples, found.rate)


def test_a_sound_file_has_its_length_rate_and_digest_and_no_problem(tmp_path: Path) -> None:
    path = wave(tmp_path / "a.wav", noise(8000, 2), 8000)
    found = inspect_audio(str(path))
    assert found[:4] == (8000, 8000, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest(), "")


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    empty, text, header = tmp_path / "e.wav", tmp_path / "t.wav", tmp_path / "h.wav"
    empty.touch()
    text.write_text("This is not audio at all, but a story of some length about a dog.\n" * 9)
    wave(header, noise(0))
    nan = noise(4000)
    nan[3999] = np.nan
    infinite = noise(4000, 2)
    infinite[7, 1] = np.inf
    wave(tmp_path / "n.wav", nan, subtype="FLOAT")
    wave(tmp_path / "i.wav", infinite, subtype="FLOAT")
    wave(tmp_path / "s.wav", noise(399))
    problems = {name: inspect_audio(str(tmp_path / f"{name}.wav")).problem for name in "ethnisx"}
    assert problems["e"] == "is an empty file"
    assert problems["t"].startswith("is not readable audio (")
    assert problems["h"] == "holds no samples"
    assert "not finite numbers" in problems["n"]
    assert "not finite numbers" in problems["i"]
    assert problems["s"] == "is 0.0249 s long, shorter than 0.025 s"
    assert problems["x"] == "cannot be opened (No such file or directory)"
    assert "cannot be opened (Is a directory)" in inspect_audio(str(tmp_path)).problem
    assert inspect_audio(str(wave(tmp_path / "shortest.wav", noise(400)))).problem == ""


def test_a_bad_sample_in_a_late_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK", 1000)
    samples = noise(10_500)
    assert inspect_audio(str(wave(tmp_path / "good.wav", samples, subtype="FLOAT")))[::3] == (10_500, "")
    samples[10_400] = np.nan
    assert "not finite" in inspect_audio(str(wave(tmp_path / "bad.wav", samples, subtype="FLOAT"))).problem


def with_chunk(path: Path, source: Path) -> Path:
    """A wav file with a comment before its samples."""
    content = source.read_bytes()
    comment = b"LIST" + (20).to_bytes(4, "little") + b"INFOICMT" + (8).to_bytes(4, "little") + b"a cough\0"
    head, body = content[:12], content[12:]
    path.write_bytes(head[:4] + (len(content) - 8 + len(comment)).to_bytes(4, "little") + head[8:] + comment + body)
    return path


def test_the_same_audio_in_other_clothes_has_the_same_content(tmp_path: Path) -> None:
    plain = wave(tmp_path / "a.wav", noise(9000))
    samples = soundfile.read(plain, dtype="float32")[0]
    copies = [
        wave(tmp_path / "b.flac", samples),
        wave(tmp_path / "c.aiff", samples),
        wave(tmp_path / "d.wav", samples, subtype="PCM_24"),
        wave(tmp_path / "e.wav", samples, subtype="FLOAT"),
        wave(tmp_path / "f.wav", np.stack([samples, samples], 1)),
        with_chunk(tmp_path / "g.wav", plain),
    ]
    found = [inspect_audio(str(path)) for path in [plain, *copies]]
    assert {(each.samples, each.problem, each.content) for each in found} == {(9000, "", found[0].content)}
    assert len({each.digest for each in found}) == len(found)


def test_other_audio_has_another_content(tmp_path: Path) -> None:
    samples = noise(9000)
    one_off = samples.copy()
    one_off[8999] += 0.01
    others = [
        wave(tmp_path / "a.wav", samples),
        wave(tmp_path / "b.wav", samples, 8000),
        wave(tmp_path / "c.wav", one_off),
        wave(tmp_path / "d.wav", samples[:-1]),
        wave(tmp_path / "e.wav", np.append(samples, 0)),
        wave(tmp_path / "f.wav", samples[::-1]),
        wave(tmp_path / "g.wav", noise(9000, 2)),
    ]
    found = [inspect_audio(str(path)) for path in others]
    assert all(each.problem == "" for each in found)
    assert len({each.content for each in found}) == len(others)


def test_the_content_does_not_depend_on_the_blocks_it_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wave(tmp_path / "a.wav", noise(10_500, 3))
    before = inspect_audio(str(path)).content
    monkeypatch.setattr(audio, "BLOCK", 997)
    assert inspect_audio(str(path)).content == before


def test_silence_is_silence_whatever_the_sign_of_zero(tmp_path: Path) -> None:
    zeros = [wave(tmp_path / f"{sign}.wav", np.full(4000, sign * 0.0, np.float32), subtype="FLOAT") for sign in (1, -1)]
    assert zeros[0].read_bytes() != zeros[1].read_bytes()
    assert inspect_audio(str(zeros[0])).content == inspect_audio(str(zeros[1])).content


def test_files_without_samples_have_no_content(tmp_path: Path) -> None:
    (tmp_path / "e.wav").touch()
    (tmp_path / "t.wav").write_text("no audio")
    wave(tmp_path / "h.wav", noise(0))
    assert [inspect_audio(str(tmp_path / f"{name}.wav")).content for name in "ethx"] == [""] * 4


def test_a_truncated_file_is_as_long_as_what_is_left_of_it(tmp_path: Path) -> None:
    path = wave(tmp_path / "a.wav", noise(16_000))
    before = soundfile.read(path, dtype="float32")[0]
    path.write_bytes(path.read_bytes()[: 44 + 2 * 6000])
    assert len(read_stretch(whole(path), 16_000)) == 6000
    np.testing.assert_array_equal(read_stretch(whole(path), 16_000), before[:6000])
    flac = wave(tmp_path / "a.flac", noise(160_000))
    flac.write_bytes(flac.read_bytes()[:9000])
    found = inspect_audio(str(flac))
    assert found.problem or found.samples == len(read_stretch(Stretch(str(flac), 0, found.samples, found.rate), 16_000))


def test_channels_are_averaged(tmp_path: Path) -> None:
    stereo = noise(5000, 2)
    path = wave(tmp_path / "a.wav", stereo, subtype="FLOAT")
    np.testing.assert_allclose(read_stretch(whole(path), 16_000), stereo.mean(1), atol=1e-7)
    six = noise(5000, 6)
    np.testing.assert_allclose(
        read_stretch(whole(wave(tmp_path / "b.wav", six, subtype="FLOAT")), 16_000), six.mean(1), atol=1e-7
    )


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("samples", [1300, 7777, 44_101])
def test_odd_rates_give_the_length_that_was_planned(tmp_path: Path, rate: int, samples: int) -> None:
    stretch = whole(wave(tmp_path / "a.wav", noise(samples), rate))
    found = read_stretch(stretch, 16_000)
    assert found.dtype == np.float32
    assert len(found) == samples_at(stretch, 16_000) == int(np.ceil(samples * 16_000 / rate))


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 48_000])
def test_resampling_keeps_a_tone_where_and_when_it_was(tmp_path: Path, rate: int) -> None:
    times = np.arange(rate) / rate
    path = wave(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * times), rate, "FLOAT")
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(read_stretch(whole(path), 16_000)[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff"])
def test_a_stretch_is_what_lies_there_in_the_whole_file(tmp_path: Path, suffix: str) -> None:
    path = wave(tmp_path / f"a.{suffix}", noise(20_000))
    everything, rate = soundfile.read(path, dtype="float32")
    assert len(everything) == inspect_audio(str(path)).samples
    for first, count in ((0, 400), (1234, 5000), (19_000, 1000)):
        part = read_stretch(Stretch(str(path), first, count, rate), rate)
        np.testing.assert_allclose(part, everything[first : first + count], atol=1e-6)


def tone(hertz: float, samples: int, rate: int) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_a_stretch_of_a_compressed_file_is_what_decoding_all_of_it_gives(
    tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rate = 44_100
    dice = np.random.default_rng(1)
    bursts = [tone(dice.uniform(100, 3000), dice.integers(2000, 13_000), rate) for _ in range(40)]
    path = tmp_path / f"a.{suffix}"
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        for burst in bursts:
            file.write(np.pad(burst, (0, 14_700 - len(burst))))
    everything = soundfile.read(path, dtype="float32")[0]
    for first in range(0, len(everything) - 4000, 3001):
        part = read_stretch(Stretch(str(path), first, 4000, rate), rate)
        np.testing.assert_allclose(part, everything[first : first + 4000], atol=1e-4)
    assert capfd.readouterr().err == ""


def test_readers_at_work_at_once_leave_stderr_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = wave(tmp_path / "a.mp3", noise(60_000))
    stretches = [Stretch(str(path), first, 400, 16_000) for first in range(1000, 50_000, 500)]
    with ThreadPoolExecutor(4) as readers:
        list(readers.map(lambda stretch: read_stretch(stretch, 16_000), stretches))
    library = ctypes.CDLL(None)
    library.fputs(b"still heard", ctypes.c_void_p.in_dll(library, "stderr"))
    assert capfd.readouterr().err == "still heard"


def test_reading_gives_memory_of_its_own(tmp_path: Path) -> None:
    stretch = whole(wave(tmp_path / "a.wav", noise(5000)))
    once = read_stretch(stretch, 16_000)
    once[:] = 0
    assert read_stretch(stretch, 16_000).any()
