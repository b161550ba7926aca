from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import fftconvolve, welch

from benchmark.corpora import registered_corpora, tiny
from benchmark.corpora.synthesis import acoustics, events, rendering, speakers
from benchmark.corpora.synthesis.rendering import SyntheticClip, render_chunk
from benchmark.errors import UserError
from benchmark.values import SplitTrial, Utterance

CLIPS = tiny.tiny_clips()
POOL = tiny.tiny_pool_clips()
TARGETS = ("keyword", "language", "emotion", "event", "events", "text", "sid", "verify")


def one_of_each_kind() -> list[SyntheticClip]:
    first = {
        (clip.folder, len(clip.events)): clip for clip in reversed(CLIPS + POOL) if not clip.folder.endswith("valid")
    }
    silent = next(clip for clip in CLIPS if clip.labels.get("keyword") == "silence")
    return [*first.values(), silent]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, list[SyntheticClip]]:
    root, chosen = tmp_path_factory.mktemp("tiny"), one_of_each_kind()
    render_chunk((root, chosen))
    return root, chosen


def in_process(function, items):
    return [function(item) for item in items]


# What there is


def test_the_list_of_clips_is_the_same_in_every_process():
    code = (
        "import hashlib; from benchmark.corpora import tiny;"
        "everything = [tiny.tiny_clips(), tiny.tiny_pool_clips(), tiny.tiny_trials()];"
        "print(hashlib.sha256(repr(everything).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr([CLIPS, POOL, tiny.tiny_trials()]).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).strip() == here


def test_the_corpora_are_registered_with_what_makes_them():
    found = registered_corpora()
    assert found["tiny"].make is tiny.make_tiny
    assert found["tiny_pool"].make is tiny.make_tiny_pool
    assert "GPL-3" in found["tiny"].datasheet


def test_names_are_unique_and_files_too():
    assert max(Counter(clip.id for clip in CLIPS + POOL).values()) == 1
    assert max(Counter(clip.file for clip in CLIPS + POOL).values()) == 1


def test_the_generator_gives_every_clip_where_it_will_lie_and_every_trial(tmp_path):
    items = list(tiny.tiny(tmp_path))
    utterances = [item for item in items if isinstance(item, Utterance)]
    assert [item.id for item in utterances] == [clip.id for clip in CLIPS]
    assert utterances[0].audio == tmp_path / "recipe-1" / CLIPS[0].file
    assert [item for item in items if isinstance(item, SplitTrial)] == tiny.tiny_trials()


@pytest.mark.parametrize("target", TARGETS)
def test_the_datasheet_tells_how_many_clips_a_task_has(target):
    counts = Counter(clip.split for clip in CLIPS if target in clip.labels)
    assert set(counts) == set(tiny.SPLITS)
    sizes = " / ".join(str(counts[split]) for split in tiny.SPLITS)
    assert f"{target} {sizes}" in (tiny.tiny.__doc__ or "")


@pytest.mark.parametrize(
    ("target", "classes"),
    [("keyword", 12), ("language", 10), ("emotion", 4), ("event", 14), ("events", 14), ("sid", 66)],
)
def test_every_split_has_every_class(target, classes):
    found = defaultdict(set)
    for clip in CLIPS:
        found[clip.split].update(clip.labels.get(target, "").split("|"))
    for split in tiny.SPLITS:
        assert len(found[split] - {""}) == classes


def test_labels_say_what_the_recipe_makes():
    for clip in CLIPS + POOL:
        labels = clip.labels
        assert "|".join(clip.events) == labels.get("event", labels.get("events", ""))
        assert labels.get("speaker") == (clip.speech.speaker if clip.speech else None)
        if clip.speech:
            assert clip.speech.text == labels.get("text", clip.speech.text)
            assert clip.speech.language == labels.get("language", "en-us")
            assert clip.speech.style == labels.get("emotion", "neutral")
            assert labels.get("keyword", "unknown") in ("unknown", clip.speech.text)
        elif not clip.events:
            assert labels == {"keyword": "silence"}


def test_transcripts_are_short_lower_case_words():
    texts = [clip.labels["text"] for clip in CLIPS if "text" in clip.labels]
    assert {len(text.split()) for text in texts} == {3, 4, 5}
    assert {letter for text in texts for letter in text} <= set(" abcdefghijklmnopqrstuvwxyz")


# Who speaks


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "sid"])
def test_no_speaker_and_no_voice_is_in_two_splits_of_a_task(target):
    people, voices = defaultdict(set), defaultdict(set)
    for clip in CLIPS:
        if target in clip.labels and clip.speech:
            people[clip.split].add(clip.speech.speaker)
            voices[clip.split].add(speakers.make_speaker(clip.speech.speaker).variant)
    for found in (people, voices):
        assert sum(map(len, found.values())) == len(set().union(*found.values()))


def test_identification_knows_all_its_speakers_from_clips_shared_with_verification():
    owners = defaultdict(set)
    for clip in CLIPS:
        if "sid" in clip.labels:
            owners[clip.split].add(clip.labels["sid"])
            assert ("verify" in clip.labels) == (clip.split == "train")
    assert owners["train"] == owners["valid"] == owners["test"]


@pytest.mark.parametrize(("split", "people", "each"), [("train", 60, 12), ("valid", 20, 8), ("test", 30, 10)])
def test_verification_has_enough_speakers_and_clips(split, people, each):
    counts = Counter(clip.labels["verify"] for clip in CLIPS if clip.split == split and "verify" in clip.labels)
    assert len(counts) >= people
    assert min(counts.values()) >= each


def test_trials_ask_about_two_clips_of_their_split_and_know_the_answer():
    owners = {(clip.split, clip.id): clip.labels["verify"] for clip in CLIPS if "verify" in clip.labels}
    trials = tiny.tiny_trials()
    for trial in trials:
        assert trial.enroll != trial.test
        assert trial.target == (owners[trial.split, trial.enroll] == owners[trial.split, trial.test])
    assert len({frozenset((trial.enroll, trial.test)) for trial in trials}) == len(trials)
    assert Counter((trial.split, trial.target) for trial in trials) == {
        ("valid", True): 672, ("valid", False): 672, ("test", True): 1800, ("test", False): 1800,
    }  # fmt: skip


def test_speakers_of_the_pool_are_not_in_tiny():
    theirs = {clip.speech.speaker for clip in CLIPS if clip.speech}
    counts = Counter(clip.speech.speaker for clip in POOL if clip.speech)
    assert not theirs & set(counts)
    assert len(counts) == 150
    assert min(counts.values()) >= 8
    assert {clip.split for clip in POOL} == {"pool"}
    sounds = {
        (person.variant, person.tract, person.prosody) for person in map(speakers.make_speaker, [*theirs, *counts])
    }
    assert len(sounds) == len(theirs) + len(counts)


def test_the_pool_has_no_voice_of_validation_or_test():
    unseen = {*speakers.VARIANTS["valid"], *speakers.VARIANTS["test"]}
    assert not unseen & {speakers.make_speaker(clip.speech.speaker).variant for clip in POOL if clip.speech}


# What it sounds like


def test_audio_is_the_same_bytes_in_any_order_chunk_and_process(made, tmp_path):
    root, chosen = made
    backwards = chosen[::-1]
    for start in range(0, len(backwards), 7):
        render_chunk((tmp_path, backwards[start : start + 7]))
    for clip in chosen:
        assert (root / clip.file).read_bytes() == (tmp_path / clip.file).read_bytes(), clip.id


def test_a_clip_sounds_the_same_from_a_process_with_other_threads_and_folder(made, tmp_path, monkeypatch):
    root, chosen = made
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    render_chunk((Path("here"), chosen[:2]))
    assert [(tmp_path / "here" / clip.file).read_bytes() for clip in chosen[:2]] == [
        (root / clip.file).read_bytes() for clip in chosen[:2]
    ]


def test_no_two_clips_sound_the_same(made):
    root, chosen = made
    assert len({(root / clip.file).read_bytes() for clip in chosen}) == len(chosen)


def test_files_are_16_khz_16_bit_mono_of_the_length_told(made):
    root, chosen = made
    for clip in chosen:
        found = soundfile.info(root / clip.file)
        assert (found.samplerate, found.subtype, found.channels) == (16_000, "PCM_16", 1)
        if clip.seconds:
            assert found.frames == 16_000 * clip.seconds
        else:
            assert 0.7 < found.duration < 4


def test_level_is_within_three_decibels_unless_peaks_would_clip(made):
    root, chosen = made
    for clip in chosen:
        samples, _ = soundfile.read(root / clip.file)
        peak, level = np.abs(samples).max(), 10 * np.log10(np.mean(samples**2))
        assert peak < 0.985
        assert level < -21.9
        assert level > -25.1 or peak > 0.975, clip.id


def run_python(code: str) -> str:
    return subprocess.check_output([sys.executable, "-c", code], text=True)


def test_every_voice_says_the_same_in_every_process():
    code = (
        "import hashlib; from benchmark.corpora.synthesis import espeak, speakers;"
        "voices = [f'en-us+{name}' for part in speakers.VARIANTS.values() for name in part];"
        "spoken = [espeak.speak('she has it', voice, espeak.Prosody(200, 50, 50))[0] for voice in voices];"
        "print([hashlib.md5(samples).hexdigest() for samples in spoken])"
    )
    spoken = run_python(code)
    assert spoken == run_python(code)
    assert len(set(spoken.split())) == sum(map(len, speakers.VARIANTS.values()))


def test_digits_are_read_in_the_language_of_the_voice():
    code = (
        "from benchmark.corpora.synthesis.espeak import Prosody, speak; p = Prosody(160, 50, 50);"
        "words = {'de': 'sieben', 'fr': 'sept', 'en-us': 'seven', 'fi': 'seitsemän'};"
        "print([speak('7', k, p)[0].tobytes() == speak(word, k, p)[0].tobytes() for k, word in words.items()],"
        "      speak('7', 'de', p)[0].tobytes() == speak('sept', 'de', p)[0].tobytes())"
    )
    assert run_python(code) == "[True, True, True, True] False\n"


def test_every_sound_event_is_finite_and_heard_at_both_lengths():
    assert len(events.EVENTS) == 14
    for name in events.EVENTS:
        for length in (16_000, 64_000):
            signal = events.event_sound(name, length, speakers.random_generator(name))
            assert signal.shape == (length,)
            assert np.isfinite(signal).all()
            assert acoustics.loudness(signal) == pytest.approx(1.0)


# Acoustics, against scipy


def test_filtering_by_the_spectrum_of_a_room_is_convolution():
    rng = np.random.default_rng(0)
    signal, size = rng.standard_normal(5000), 800
    impulse = acoustics.room_response(size, rng, reverberation=0.1, wetness=0.5)
    response = np.fft.rfft(impulse, 2 * (len(acoustics.response_grid(5000, size)) - 1))
    found = acoustics.apply_responses(signal, response, tail=size)
    np.testing.assert_allclose(found, fftconvolve(signal, impulse)[:5000], atol=1e-9)


def test_an_equaliser_gives_a_tone_its_gain():
    time = np.arange(16_000) / 16_000
    signal = np.sin(2 * np.pi * 800 * time)
    gains = np.array([0.0, 0.0, 6.0, 0.0, 0.0, 0.0])
    louder = acoustics.apply_responses(signal, acoustics.equaliser(acoustics.response_grid(16_000), gains))
    ratio = acoustics.loudness(louder[2000:-2000]) / acoustics.loudness(signal[2000:-2000])
    assert 20 * np.log10(ratio) == pytest.approx(6.0, abs=0.1)


def test_noise_has_the_slope_asked_for():
    noise = acoustics.coloured_noise(160_000, np.random.default_rng(0), slope=1.5)
    frequencies, power = welch(noise, 16_000, nperseg=1024)
    heard = (frequencies > 200) & (frequencies < 6000)
    assert np.polyfit(np.log(frequencies[heard]), np.log(power[heard]), 1)[0] == pytest.approx(-1.5, abs=0.1)


def test_noise_is_added_at_the_ratio_asked_for_to_the_part_that_sounds():
    signal = np.pad(np.sin(np.arange(8000.0)), (8000, 16_000))
    noise = acoustics.add_noise(signal, np.random.default_rng(0), (6.0, 6.0)) - signal
    ratio = 20 * np.log10(np.std(signal[8000:16_000]) / np.std(noise))
    assert ratio == pytest.approx(6.0, abs=0.1)


def test_a_sound_is_placed_whole_or_cut_to_length():
    rng, sound = np.random.default_rng(0), np.arange(1.0, 11.0)
    longer = acoustics.place_at_random(sound, 30, rng)
    assert longer.shape == (30,)
    assert longer[longer > 0].tolist() == sound.tolist()
    assert np.ptp(np.flatnonzero(longer)) == 9
    shorter = acoustics.place_at_random(sound, 4, rng)
    assert shorter.tolist() == list(np.arange(shorter[0], shorter[0] + 4))


# Making it


def test_the_process_that_speaks_holds_no_torch():
    code = "import sys, benchmark.corpora.synthesis.rendering; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_making_goes_on_with_what_is_missing(made, tmp_path):
    chosen = made[1][:6]
    render_chunk((tmp_path, chosen[:4]))
    before = {clip.id: (tmp_path / clip.file).stat().st_mtime_ns for clip in chosen[:4]}
    asked: list[SyntheticClip] = []

    def engine(function, items):
        items = list(items)
        asked.extend(clip for _, clips in items for clip in clips)
        return in_process(function, items)

    rendering.render_missing(tmp_path, chosen, engine)
    assert asked == chosen[4:]
    assert {clip.id: (tmp_path / clip.file).stat().st_mtime_ns for clip in chosen[:4]} == before
    assert all((tmp_path / clip.file).exists() for clip in chosen)


def test_making_hands_out_every_clip_once_in_chunks_of_seconds(tmp_path):
    handed: list[tuple[Path, list[SyntheticClip]]] = []
    tiny.make_tiny(tmp_path, lambda function, items: handed.extend(items) or [])
    assert [clip for _, clips in handed for clip in clips] == CLIPS
    assert max(len(clips) for _, clips in handed) <= rendering.CHUNK


def test_a_killed_run_leaves_whole_files_and_nothing_running(tmp_path):
    code = (
        "from pathlib import Path; from benchmark.corpora import tiny;"
        f"tiny.make_tiny(Path({str(tmp_path)!r}), lambda function, items: [function(item) for item in items])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    wait_for(lambda: len(wavs(tmp_path)) > 30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # the clip at work may be finished; in this time an orphan would make fifty
    files = wavs(tmp_path)
    time.sleep(0.5)
    assert wavs(tmp_path) == files
    assert len(files) < len(CLIPS)
    assert {soundfile.info(path).frames for path in files} == {16_000}


def wavs(root: Path) -> list[Path]:
    return list(root.rglob("*.wav"))


def wait_for(happened, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_killed_run_left_half_written_is_cleared_away_later(tmp_path):
    clip = one_of_each_kind()[0]
    folder = (tmp_path / clip.file).parent
    folder.mkdir(parents=True)
    stale, fresh = folder / ".a.wav.1.partial", folder / ".b.wav.2.partial"
    for partial in (stale, fresh):
        partial.write_bytes(b"RIFF")
    os.utime(stale, (time.time() - 600,) * 2)
    rendering.render_missing(tmp_path, [clip], lambda function, items: [])
    assert not stale.exists()
    assert fresh.exists()


def test_a_voice_that_is_missing_is_told_in_one_sentence(tmp_path):
    clip = SyntheticClip("odd", "train", seconds=1.0, speech=speakers.Speech("one", "no-such", "task-train-001"))
    with pytest.raises(UserError, match="cannot say 'one' in voice 'no-such") as caught:
        render_chunk((tmp_path, [clip]))
    assert "\n" not in str(caught.value)
    assert not wavs(tmp_path)


def test_a_system_without_fork_is_told_so(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(UserError, match="Linux or macOS"):
        render_chunk((tmp_path, []))
