"""The segments of audio in each step of a pre-training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.audio import samples_at
from benchmark.errors import UserError
from benchmark.pretraining.segments import SegmentOrder, Share, batches
from benchmark.values import Clip, Stretch

RATE = 8_000
SAMPLES = 800  # most samples in a row
Labelled = Sequence[tuple[int, str | None, str | None]]  # per clip: number of samples, language, speaker


def clip(number: int, samples: int, rate: int = RATE, folder: Path = Path("/nowhere")) -> Clip:
    return Clip(str(number), "pool", {}, Stretch(str(folder / f"{number}.wav"), 0, samples, rate), "", "")


def segment_order(
    lengths: list[int],
    batch: int = 4,
    seed: int = 0,
    labels: Mapping[str, Sequence[Any]] | None = None,
    balanced: bool = True,
) -> SegmentOrder:
    return SegmentOrder(
        [clip(*each) for each in enumerate(lengths)], RATE, SAMPLES, batch, seed, labels or {}, balanced
    )


LENGTHS = st.lists(st.integers(200, 5000), min_size=1, max_size=9)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 3), st.integers(0, 40))
def test_a_step_is_the_same_whatever_was_asked_before(lengths: list[int], batch: int, seed: int, step: int) -> None:
    walked = segment_order(lengths, batch, seed)
    before = [walked.step(number) for number in range(step + 3)]
    asked = segment_order(lengths, batch, seed)
    assert [asked.step(number) for number in reversed(range(step, step + 3))] == before[step:][::-1]


@given(LENGTHS, st.integers(1, 12), st.integers(0, 3))
def test_each_epoch_has_each_clip_as_often_as_stretches_go_into_it(lengths: list[int], batch: int, seed: int) -> None:
    plan = segment_order(lengths, batch, seed)
    times = {f"/nowhere/{place}.wav": max(1, round(length / SAMPLES)) for place, length in enumerate(lengths)}
    assert len(plan) == sum(times.values())
    rows = [row.stretch.audio for number in range(3 * len(plan)) for row in plan.step(number)]
    for epoch in range(3):
        assert Counter(rows[epoch * len(plan) : (epoch + 1) * len(plan)]) == times


@given(LENGTHS, st.integers(0, 20))
def test_stretches_lie_within_their_clips_and_short_clips_are_whole(lengths: list[int], step: int) -> None:
    for _, row in segment_order(lengths).step(step):
        whole = lengths[int(Path(row.audio).stem)]
        assert row.samples == min(whole, SAMPLES)
        assert 0 <= row.first <= whole - row.samples


def test_stretches_begin_anywhere_in_a_long_clip() -> None:
    starts = [row.stretch.first for number in range(200) for row in segment_order([SAMPLES + 9]).step(number)]
    counts = Counter(starts)
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 2 * min(counts.values())


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))
def test_processes_and_parts_share_a_step_without_rest(world: int, parts: int, each: int, step: int) -> None:
    plan = segment_order([700, 800, 4000, 2400], batch=world * parts * each)
    shares = [plan.share(step, Share(rank, world, parts)) for rank in range(world)]
    assert all(len(rows) == each for own in shares for rows in own)
    assert Counter(row for own in shares for rows in own for row in rows) == Counter(plan.step(step))


def test_order_and_starts_follow_the_seed_and_differ_from_epoch_to_epoch() -> None:
    lengths = [900] * 40
    one, same, other = (segment_order(lengths, 40, seed).step(0) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    names = [[row.stretch.audio for row in segment_order(lengths, 40).step(number)] for number in range(3)]
    assert names[0] != names[1] != names[2]
    assert sorted(names[0]) == sorted(names[1])


@pytest.mark.parametrize("rate", [RATE, 16_000, 11_025, 44_100, 4_000])
def test_a_row_has_as_many_samples_at_any_rate_of_its_file(rate: int) -> None:
    plan = SegmentOrder([clip(0, 10 * rate, rate)], RATE, 801, 4, 0)
    for _, row in plan.step(0):
        assert 801 <= samples_at(row, RATE) <= 803
        assert row.first + row.samples <= 10 * rate


def test_the_mean_length_of_a_row_is_that_of_an_epoch() -> None:
    plan = segment_order([400, 2400], batch=4)
    assert plan.seconds == pytest.approx((0.05 + 3 * 0.1) / 4)


def test_the_order_that_shipped_checkpoints_were_trained_in_stays() -> None:
    plan = segment_order([500, 900, 800, 3000, 1700], batch=5, seed=3)
    assert [(row.clip, row.stretch.first) for row in plan.step(2)] == [
        (4, 393), (3, 1583), (3, 494), (1, 27), (4, 367)
    ]  # fmt: skip


VALUES = st.sampled_from([None, "a", "b", "c"])
LABELLED = st.lists(st.tuples(st.integers(200, 3000), VALUES, VALUES), min_size=1, max_size=9)


def labelled(clips: Labelled, batch: int = 4, seed: int = 0, **options: bool) -> SegmentOrder:
    labels = {"language": [each[1] for each in clips], "speaker": [each[2] for each in clips]}
    return segment_order([each[0] for each in clips], batch, seed, labels, **options)


def groups(plan: SegmentOrder, epochs: int) -> list[list[int]]:
    """Return the clips of each group in some epochs: the leader, then a clip that shares each of its labels."""
    stream = iter(row.clip for number in range(epochs * len(plan)) for row in plan.step(number))
    found = []
    for leader in islice(stream, epochs * len(plan)):
        alike = [leader, *(next(stream) for kind in plan.numbers if partners(plan, kind, leader))]
        found.append(alike)
        if sum(map(len, found)) >= epochs * len(plan):
            break
    return found


def partners(plan: SegmentOrder, kind: str, number: int) -> set[int]:
    own = plan.numbers[kind][number]
    return {other for other, each in enumerate(plan.numbers[kind]) if each == own != -1 and other != number}


@given(LABELLED, st.integers(1, 12), st.integers(0, 3))
def test_each_clip_of_an_epoch_is_followed_by_one_of_its_like_for_each_kind_of_label(
    clips: Labelled, batch: int, seed: int
) -> None:
    plan = labelled(clips, batch, seed)
    found = groups(plan, 2)
    leaders = Counter(group[0] for group in found)
    assert leaders == {number: 2 * max(1, round(each[0] / SAMPLES)) for number, each in enumerate(clips)}
    assert sum(map(len, found)) == 2 * len(plan)
    for leader, *others in found:
        shared = [kind for kind in plan.numbers if partners(plan, kind, leader)]
        assert all(other in partners(plan, kind, leader) for kind, other in zip(shared, others, strict=True))


@given(LABELLED, st.integers(1, 12), st.integers(0, 30))
def test_a_step_with_labels_is_the_same_whatever_was_asked_before(clips: Labelled, batch: int, step: int) -> None:
    walked = labelled(clips, batch)
    before = [walked.step(number) for number in range(step + 3)]
    asked = labelled(clips, batch)
    assert [asked.step(number) for number in reversed(range(step, step + 3))] == before[step:][::-1]


def test_all_others_of_its_like_follow_a_clip_equally_often() -> None:
    plan = labelled([(300, "a", None)] * 4 + [(300, "b", None)] * 2 + [(300, "c", None), (300, None, None)], 70)
    pairs = Counter(tuple(group) for group in groups(plan, 600))
    assert pairs.keys() == {(one, other) for one in range(4) for other in range(4) if one != other} | {
        (4, 5), (5, 4), (6,), (7,)
    }  # fmt: skip
    assert [pairs[each] for each in [(4, 5), (5, 4), (6,), (7,)]] == [600] * 4
    assert all(150 < number < 250 for pair, number in pairs.items() if pair[0] < 4)


def test_followers_are_drawn_anew_in_each_step_and_by_each_seed() -> None:
    clips = [(900, "a", "b")] * 50
    steps = [[row.clip for row in labelled(clips, 30, seed).step(number)] for seed in (0, 1) for number in (0, 1)]
    followers = [tuple(place for number, place in enumerate(step) if number % 3) for step in steps]
    assert len(set(followers)) == 4


def test_who_follows_says_nothing_of_where_its_stretch_begins() -> None:
    rows = labelled([(9000, "a", None)] * 100, 400).step(0)[1::2]
    found = np.corrcoef([row.clip for row in rows], [row.stretch.first for row in rows])
    assert abs(found[0, 1]) < 0.3


@given(LABELLED, st.integers(0, 9), st.booleans())
def test_no_label_is_another_clips(clips: Labelled, step: int, balanced: bool) -> None:
    plan = labelled(clips, 8, balanced=balanced)
    for kind, values in (("language", [each[1] for each in clips]), ("speaker", [each[2] for each in clips])):
        distinct = sorted({value for value in values if value is not None})
        for row in plan.step(step):
            assert row.stretch.audio == f"/nowhere/{row.clip}.wav"
            number = plan.numbers[kind][row.clip]
            assert (None if number == -1 else distinct[number]) == values[row.clip]


@given(LABELLED, st.integers(0, 9))
def test_labels_change_no_row_unless_batches_are_balanced(clips: Labelled, step: int) -> None:
    plain, unbalanced = segment_order([each[0] for each in clips]), labelled(clips, balanced=False)
    assert unbalanced.step(step) == plain.step(step)
    assert (unbalanced.seconds, len(unbalanced)) == (plain.seconds, len(plain))
    share = Share(1, 2, 2)
    assert unbalanced.share(step, share) == plain.share(step, share)
    without = segment_order([each[0] for each in clips], labels={"language": [None] * len(clips)})
    assert without.step(step) == plain.step(step), "without a label nobody has its like"


@given(LABELLED, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 30))
def test_processes_and_parts_share_a_balanced_step_in_runs(
    clips: Labelled, world: int, parts: int, each: int, step: int
) -> None:
    plan = labelled(clips, world * parts * each)
    shares = [plan.share(step, Share(rank, world, parts)) for rank in range(world)]
    runs = [shares[rank][part] for part in range(parts) for rank in range(world)]
    assert all(len(run) == each for run in runs)
    assert [row for run in runs for row in run] == plan.step(step)


def test_the_mean_length_of_a_balanced_row_is_what_is_heard() -> None:
    plan = labelled([(300, "a", None), (800, "a", "x"), (2500, "b", "x"), (400, None, "x"), (700, "c", None)], 10)
    heard = [row.stretch.samples / RATE for number in range(2000) for row in plan.step(number)]
    assert plan.seconds == pytest.approx(sum(heard) / len(heard), rel=0.005)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files with increasing samples, so that a sample identifies its file and position."""
    folder = tmp_path_factory.mktemp("crops")
    for number, length in enumerate(FILES):
        ramp = (np.arange(length) + 10_000 * number).astype(np.int16)
        soundfile.write(folder / f"{number}.wav", ramp, RATE)
    return folder


FILES = [500, 900, 800, 3000, 1700]


def found(folder: Path, batch: int = 4) -> SegmentOrder:
    return SegmentOrder(
        [clip(number, length, folder=folder) for number, length in enumerate(FILES)], RATE, SAMPLES, batch, 3
    )


@pytest.mark.parametrize("readers", [1, 3])
def test_batches_hold_the_samples_of_their_rows_and_zeros(folder: Path, readers: int) -> None:
    plan = found(folder)
    made = list(batches(plan, 2, 7, Share(), readers))
    assert len(made) == 5
    for number, batch in enumerate(made, 2):
        for row, length, stretch in zip(
            batch.waveforms, batch.lengths.tolist(), (row.stretch for row in plan.step(number)), strict=True
        ):
            first = stretch.first + 10_000 * int(Path(stretch.audio).stem)
            assert length == stretch.samples
            expected = (np.arange(first, first + length)).astype(np.int16) / 32768
            assert torch.equal(row[:length].double(), torch.from_numpy(expected))
            assert not row[length:].any()


@pytest.mark.parametrize("balanced", [True, False])
def test_batches_hold_the_labels_of_their_rows(folder: Path, balanced: bool) -> None:
    clips = [clip(number, length, folder=folder) for number, length in enumerate(FILES)]
    labels: dict[str, list[Any]] = {"language": ["de", "fi", None, "de", "fi"], "cluster": [7, 7, 10, None, 10]}
    plan = SegmentOrder(clips, RATE, SAMPLES, 4, 3, labels, balanced)
    expected = {"language": [0, 1, -1, 0, 1], "cluster": [0, 0, 1, -1, 1]}
    for number, batch in enumerate(batches(plan, 0, 9, Share(), 2)):
        assert batch.labels.keys() == labels.keys()
        assert {each.dtype for each in batch.labels.values()} == {torch.int64}
        for kind, numbers in expected.items():
            assert batch.labels[kind].tolist() == [numbers[row.clip] for row in plan.step(number)]
    assert not next(batches(found(folder), 0, 1, Share(), 2)).labels


def test_padding_is_zero_whatever_was_in_memory(folder: Path) -> None:
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory with NaN
    try:
        assert not any(batch.waveforms.isnan().any() for batch in batches(found(folder), 0, 9, Share(), 2))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("memory", "ahead"), [(1 << 30, 3), (4 * 4 * SAMPLES * 2, 2), (0, 1)])
def test_so_many_batches_are_read_ahead_as_memory_has_room_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int, ahead: int
) -> None:
    monkeypatch.setattr("benchmark.pretraining.segments.READ_AHEAD_BYTES", memory)
    plan = found(folder)
    asked: list[int] = []
    monkeypatch.setattr(
        plan, "share", lambda number, share: asked.append(number) or SegmentOrder.share(plan, number, share)
    )
    feed = batches(plan, 0, 9, Share(), 2)
    next(feed)
    feed.close()
    assert asked == list(range(1 + ahead))


def test_a_process_reads_its_parts_of_each_step_in_turn(folder: Path) -> None:
    share = Share(rank=1, world=2, parts=2)
    plan = found(folder, batch=8)
    lengths = [batch.lengths.tolist() for batch in batches(plan, 0, 3, share, 2)]
    assert lengths == [[row.stretch.samples for row in rows] for step in range(3) for rows in plan.share(step, share)]


def test_nothing_is_read_on_after_the_last_batch_that_is_asked_for(folder: Path) -> None:
    feed = batches(found(folder), 0, 10**9, Share(), 2)
    assert len(list(islice(feed, 3))) == 3
    feed.close()
    assert list(feed) == []


@pytest.mark.parametrize(
    ("content", "message"), [(None, "can no longer be read"), (b"no audio", "can no longer be read"), (b"", "can no")]
)
def test_a_file_that_is_lost_on_the_way_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "0.wav").write_bytes(content)
    plan = SegmentOrder([clip(0, 900, folder=tmp_path)], RATE, SAMPLES, 2, 0)
    with pytest.raises(UserError, match=rf"{tmp_path}/0\.wav {message}"):
        list(batches(plan, 0, 1, Share(), 2))


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "0.wav", np.zeros(300, np.int16), RATE)
    plan = SegmentOrder([clip(0, 500, folder=tmp_path)], RATE, SAMPLES, 2, 0)
    with pytest.raises(UserError, match="shorter than it was"):
        list(batches(plan, 0, 1, Share(), 2))
