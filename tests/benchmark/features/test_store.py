"""What is stored is what the upstream gives, each clip once, and the same whoever wrote it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.audio import read_stretch
from benchmark.data.manifest import prepare_manifest
from benchmark.engines.local import ProcessPool, in_process
from benchmark.features import extraction, store
from benchmark.features.datasets import AudioSet, FeatureSet, batch_order
from benchmark.features.descriptions import describe
from benchmark.features.extraction import extraction_bytes, layout, length_batches, make_extraction
from benchmark.features.store import extract_features, missing_shards, shard_path
from benchmark.values import Card, Clip, Extraction, Setup, Stretch
from tests.benchmark.encoders import write_encoder
from tests.benchmark.sounds import write_clip, write_table
from upstreams import create


@pytest.fixture(scope="module")
def clips(tones: Path, home: Path) -> list[Clip]:
    return prepare_manifest("tones", home, {"tones": str(tones)}).clips


@pytest.fixture(scope="module")
def card(home: Path) -> Card:
    return describe("fbank", Setup(home, home))


def stored(wanted: Extraction, home: Path) -> Iterator[tuple[Clip, np.ndarray]]:
    """Every clip with its rows, read from the files alone."""
    for shard in layout(wanted):
        values = np.load(shard_path(wanted, shard, home))
        at = 0
        for clip, count in zip(shard.clips, shard.counts, strict=True):
            yield clip, values[at : at + count]
            at += count
        assert at == len(values)


def alone(upstream: Any, clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    waveform = torch.from_numpy(read_stretch(clip.stretch, upstream.sample_rate))
    return waveform[None], torch.tensor([len(waveform)])


@pytest.mark.parametrize("name", ["fbank", "mfcc"])
def test_stored_summaries_are_those_of_single_clips(name: str, clips: list[Clip], tmp_path: Path) -> None:
    setup = Setup(tmp_path, tmp_path)
    wanted = make_extraction(describe(name, setup), "summary", clips[::7])
    assert extract_features([wanted], setup) == {}
    upstream = create(name)
    found = {clip.id: value for clip, value in stored(wanted, tmp_path)}
    assert sorted(found) == sorted(clip.id for clip in clips[::7])
    with torch.inference_mode():
        for clip in clips[::7]:
            expected = upstream.summarize(*alone(upstream, clip)).numpy()
            assert found[clip.id].dtype == np.float32
            np.testing.assert_allclose(found[clip.id], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_stored_frames_are_those_of_single_clips_in_half_precision(
    clips: list[Clip], card: Card, tmp_path: Path
) -> None:
    setup = Setup(tmp_path, tmp_path)
    wanted = make_extraction(card, "frames", clips[::7])
    assert extract_features([wanted], setup) == {}
    upstream = create("fbank")
    with torch.inference_mode():
        for clip, value in stored(wanted, tmp_path):
            frames, lengths = upstream(*alone(upstream, clip))
            assert value.dtype == np.float16
            assert len(value) == lengths.item()
            np.testing.assert_allclose(value, frames[0].numpy(), rtol=2**-10, atol=2e-4)


@pytest.mark.parametrize("rate", [8000, 22_050])
def test_upstreams_of_other_rates_get_audio_of_theirs(rate: int, tmp_path: Path) -> None:
    made_at = [8000, 11_025, 16_000, 44_100, 48_000]
    for number, own in enumerate(made_at):
        write_clip(tmp_path / "mine" / f"{own}.wav", seconds=0.025 + 0.11 * number, seed=number, rate=own)
    rows = [{"file_name": f"{own}.wav", "split": "train", "label": "x"} for own in made_at]
    write_table(tmp_path / "mine" / "metadata.csv", rows)
    setup = Setup(tmp_path / "home", tmp_path)
    chosen = prepare_manifest("mine", setup.home, {"mine": str(tmp_path / "mine")}).clips
    assert [clip.problem for clip in chosen] == [""] * 5
    name = write_encoder(tmp_path / "mine.py", rate=rate)
    wanted = [make_extraction(describe(name, setup), view, chosen) for view in ("frames", "summary")]
    assert extract_features(wanted, setup) == {}
    found = sum(path.stat().st_size for path in (setup.home / "features").rglob("*.npy"))
    assert found == sum(extraction_bytes(each) for each in wanted)
    upstream = create(name)
    for clip, value in stored(wanted[0], setup.home):
        waveform, length = alone(upstream, clip)
        with torch.inference_mode():
            frames, count = upstream(waveform, length)
        assert (len(value), upstream.sample_rate) == (count.item(), rate)
        np.testing.assert_allclose(value, frames[0].numpy(), rtol=2**-10, atol=1e-3)


def test_planned_bytes_are_those_on_disk(
    clips: list[Clip], card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_layouts", {})
    monkeypatch.setattr(extraction, "SHARD_SECONDS", 20.0)
    setup = Setup(tmp_path, tmp_path)
    for view in ("summary", "frames"):
        wanted = make_extraction(card, view, clips)
        planned = store.bytes_missing(wanted, tmp_path)
        assert planned == extraction_bytes(wanted) > 0
        extract_features([wanted], setup)
        shards = sorted(store.extraction_folder(wanted, tmp_path).glob("*.npy"))
        assert len(shards) == len(layout(wanted)) > 2
        assert sum(path.stat().st_size for path in shards) == planned
        assert store.bytes_missing(wanted, tmp_path) == 0
        assert store.hours_missing(wanted, tmp_path) == 0
        lost = shards[1].stat().st_size
        shards[1].unlink()
        assert store.bytes_missing(wanted, tmp_path) == lost
        assert [shard.number for shard in missing_shards(wanted, tmp_path)] == [1]


def test_only_shards_that_are_missing_or_damaged_are_written_again(
    clips: list[Clip], card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_layouts", {})
    monkeypatch.setattr(extraction, "SHARD_SECONDS", 10.0)
    monkeypatch.setattr(extraction, "batch_seconds", lambda parameters: 10.0)
    setup = Setup(tmp_path, tmp_path)
    wanted = make_extraction(card, "summary", clips)
    extract_features([wanted], setup)
    shards = sorted(store.extraction_folder(wanted, tmp_path).glob("*.npy"))
    contents = [path.read_bytes() for path in shards]
    shards[0].unlink()
    shards[0].with_name(f".{shards[0].name}.1.partial").write_bytes(b"half")
    shards[1].write_bytes(contents[1][:-1])
    shards[2].write_bytes(b"\0" * len(contents[2]))  # as a power cut may leave it
    times = [path.stat().st_mtime_ns for path in shards[3:]]
    extract_features([wanted], setup)
    assert len(shards) > 3
    assert [path.read_bytes() for path in shards] == contents
    assert [path.stat().st_mtime_ns for path in shards[3:]] == times


def test_two_workers_write_the_same_bytes_as_one(
    clips: list[Clip], card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_layouts", {})
    monkeypatch.setattr(extraction, "SHARD_SECONDS", 60.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    contents = []
    for name, engine in (("one", in_process), ("two", ProcessPool(2))):
        wanted = [make_extraction(card, view, clips) for view in ("summary", "frames")]
        assert extract_features(wanted, Setup(tmp_path / name, tmp_path), engine) == {}
        files = sorted((tmp_path / name / "features").rglob("*.npy"))
        contents.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files})
    assert len(contents[0]) > 4
    assert contents[0] == contents[1]


def test_the_key_of_features_depends_on_content_and_not_on_names(clips: list[Clip], card: Card) -> None:
    key = make_extraction(card, "summary", clips).key
    moved = [clip._replace(stretch=clip.stretch._replace(audio="/x"), labels={}, split="") for clip in clips]
    assert make_extraction(card._replace(name="other"), "summary", moved).key == key
    others = [
        make_extraction(card._replace(fingerprint="other"), "summary", clips),
        make_extraction(card._replace(precision="bf16"), "summary", clips),
        make_extraction(card, "frames", clips),
        make_extraction(card, "summary", clips[1:]),
        make_extraction(card, "summary", [clips[0]._replace(digest="other"), *clips[1:]]),
    ]
    assert len({key, *(other.key for other in others)}) == 6


def made(seconds: list[float]) -> list[Clip]:
    return [
        Clip(f"c{n}", "train", {}, Stretch("", 0, round(length * 16_000), 16_000), f"d{n}", "")
        for n, length in enumerate(seconds)
    ]


@given(st.lists(st.floats(0.03, 70), min_size=1, max_size=60), st.sampled_from([0, 5_000_000]))
def test_batches_are_bounded_and_hold_each_clip_once_whatever_the_order(seconds: list[float], parameters: int) -> None:
    card = Card("x", "f", "fp32", 16_000, 160, 400, 1, 4, 1, 4, parameters)
    wanted = make_extraction(card, "frames", made(seconds))
    shards = layout(wanted)
    assert Counter(clip.id for shard in shards for clip in shard.clips) == Counter(clip.id for clip in wanted.clips)
    for shard in shards:
        for batch in shard.batches:
            padded = max(clip.seconds for clip in batch) * len(batch)
            assert len(batch) == 1 or padded <= extraction.batch_seconds(parameters)
        assert len(shard.batches) == 1 or shard.seconds <= max(extraction.SHARD_SECONDS, sum(seconds) / 1000)
    assert layout(wanted._replace(clips=wanted.clips[::-1])) == shards


def test_batches_of_like_lengths_waste_little() -> None:
    dice = np.random.default_rng(0)
    clips = sorted(made(list(dice.uniform(0.5, 8, 2000))), key=lambda clip: clip.stretch.samples)
    found = list(length_batches(clips, 60.0))
    padded = sum(max(clip.seconds for clip in batch) * len(batch) for batch in found)
    assert padded < 1.05 * sum(clip.seconds for clip in clips)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=300), st.integers(1, 40), st.none() | st.integers(1, 9))
def test_every_clip_comes_once_in_batches_of_the_size_asked_for(
    lengths: list[int], batch: int, epoch: int | None
) -> None:
    found = batch_order(np.array(lengths), batch, epoch)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    assert sorted(map(len, found), reverse=True)[:-1] == [batch] * (len(found) - 1)
    again = batch_order(np.array(lengths), batch, epoch)
    assert all((one == two).all() for one, two in zip(found, again, strict=True))


def test_epochs_are_shuffled_differently_and_evaluation_is_in_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 500)
    first, second = (np.concatenate(batch_order(lengths, 8, epoch)) for epoch in (1, 2))
    assert (first == second).mean() < 0.1
    assert {tuple(sorted(places)) for places in batch_order(lengths, 8, 1)} != {
        tuple(sorted(places)) for places in batch_order(lengths, 8, 2)
    }
    assert (np.diff(lengths[np.concatenate(batch_order(lengths, 8, None))]) >= 0).all()
    equal = np.concatenate(batch_order(np.ones(500, int), 8, 1))
    assert abs(np.corrcoef(equal, np.arange(500))[0, 1]) < 0.2


def test_shuffled_batches_hold_clips_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(100, 1000, 5000)
    padded = sum(lengths[places].max() * len(places) for places in batch_order(lengths, 16, 3))
    assert padded < 1.15 * lengths.sum()


@pytest.mark.parametrize("kind", ["summary", "frames", "audio"])
def test_a_set_gives_each_clip_once_with_its_label_and_its_own_features(
    kind: str, clips: list[Clip], card: Card, home: Path
) -> None:
    chosen = [clip for clip in clips if "keyword" in clip.labels and clip.split == "train"]
    upstream = create("fbank")
    wanted = make_extraction(card, "summary" if kind == "audio" else kind, chosen)
    extract_features([wanted], Setup(home, home))
    data: Any = AudioSet(chosen, "keyword", 7, card)
    if kind != "audio":
        data = FeatureSet(wanted, chosen, "keyword", 7, home)
    by_id = {clip.id: clip for clip in chosen}
    assert len(data) == len(chosen) == len(data.ids)
    assert dict(zip(data.ids, data.targets, strict=True)) == {clip.id: clip.labels["keyword"] for clip in chosen}
    for epoch in (None, 1):
        seen: Counter[str] = Counter()
        for batch in data.batches(epoch):
            seen.update(batch.ids)
            assert batch.targets == [by_id[id].labels["keyword"] for id in batch.ids]
            clip = by_id[batch.ids[-1]]
            waveform, length = alone(upstream, clip)
            with torch.inference_mode():
                frames, count = upstream(waveform, length)
                summary = upstream.summarize(waveform, length)
            if kind == "summary":
                assert batch.lengths is None
                torch.testing.assert_close(batch.inputs[-1], summary[0], rtol=1e-4, atol=1e-3)
                continue
            expected = waveform[0] if kind == "audio" else frames[0]
            assert batch.lengths[-1] == (length if kind == "audio" else count)
            torch.testing.assert_close(batch.inputs[-1, : len(expected)], expected, rtol=1e-3, atol=1e-3)
            assert not batch.inputs[-1, len(expected) :].any()
        assert seen == Counter(list(by_id))


def test_features_that_do_not_fit_the_disk_are_refused_before_anything_is_written(
    clips: list[Clip], card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = store.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(store.UserError, match=r"GB of features do not fit into the 0.00 GB free at .*another --home"):
        extract_features([make_extraction(card, "frames", clips)], Setup(tmp_path, tmp_path))
    assert not list(tmp_path.rglob("*.npy"))
