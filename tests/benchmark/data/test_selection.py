"""Clips are trained, validated and tested on only where that is fair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from benchmark.data import selection
from benchmark.data.selection import draw_trials, fold_values, select_clips
from benchmark.errors import UserError
from benchmark.tasks import Task
from benchmark.values import Clip, Manifest, Selection, SplitTrial, Stretch


def clip(id: str, split: str, problem: str = "", audio: str = "", **labels: str) -> Clip:
    return Clip(id, split, labels, Stretch(f"/{id}.wav", 0, 16_000, 16_000), audio or f"audio of {id}", problem)


def manifest(clips: Iterable[Clip], trials: Iterable[SplitTrial] = ()) -> Manifest:
    return Manifest("mine", "digest", list(clips), list(trials))


def task(target: str = "keyword", **fields: Any) -> Task:
    return Task(name="one", corpus="mine", target=target, head="classification", **fields)


def corpus(**counts: int) -> list[Clip]:
    """Clips with labels a, b, a, b, ..., each split with speakers of its own."""
    counts = {"train": 6, "valid": 4, "test": 4} | counts
    return [
        clip(f"{split}{n}", split, keyword="ab"[n % 2], speaker=f"{split}{n // 2}")
        for split, count in counts.items()
        for n in range(count)
    ]


def complaint(
    clips: Iterable[Clip], asked: Task | None = None, trials: Iterable[SplitTrial] = (), **options: Any
) -> str:
    options = {"judged_on": "labels"} | options
    with pytest.raises(UserError) as caught:
        select_clips(manifest(clips, trials), asked or task(), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    return message


def ids(chosen: Selection) -> dict[str, list[str]]:
    return {split: [each.id for each in clips] for split, clips in chosen.clips.items()}


def test_clips_with_the_target_come_by_split_in_the_order_of_the_corpus() -> None:
    others = [clip("x", "train", text="hello"), clip("y", "unlabelled", keyword="a"), clip("z", "test", problem="bad")]
    chosen = select_clips(manifest(corpus() + others), task(), "labels")
    assert ids(chosen) == {
        split: [f"{split}{n}" for n in range(count)] for split, count in (("train", 6), ("valid", 4), ("test", 4))
    }
    assert chosen.skipped == {}
    assert chosen.targets("valid", "keyword") == {"valid0": "a", "valid1": "b", "valid2": "a", "valid3": "b"}


def test_a_target_that_no_clip_has_is_answered_with_those_there_are() -> None:
    assert "no clip of corpus 'mine' has a label 'word'; it has: keyword, speaker" in complaint(corpus(), task("word"))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_an_empty_split_is_an_error(split: str) -> None:
    assert f"has no {split} clips with a label 'keyword'" in complaint(corpus(**{split: 0}))


def test_splits_of_other_names_are_named() -> None:
    assert "(splits with some: odd, test, valid)" in complaint(corpus(train=0, odd=3))


@pytest.mark.parametrize("pair", [("train", "valid"), ("train", "test"), ("valid", "test")])
def test_a_speaker_in_two_splits_is_a_leak_unless_the_task_allows_it(pair: tuple[str, str]) -> None:
    leak = [clip("leak0", pair[0], keyword="a", speaker="eve"), clip("leak1", pair[1], keyword="a", speaker="eve")]
    assert f"1 values of 'speaker' are in both {pair[0]} and {pair[1]}, 'eve' first" in complaint(corpus() + leak)
    allowed = select_clips(manifest(corpus() + leak), task(disjoint=None), "labels")
    assert sum(len(clips) for clips in allowed.clips.values()) == 16
    assert "'eve' first" not in complaint(corpus() + leak, task(disjoint="keyword2", target="x"))


def test_another_label_may_be_what_splits_must_not_share() -> None:
    rooms = [each._replace(labels={**each.labels, "room": "hall"}) for each in corpus()]
    select_clips(manifest(rooms), task(), "labels")
    assert "values of 'room'" in complaint(rooms, task(disjoint="room"))


@pytest.mark.parametrize("disjoint", ["speaker", None])
def test_the_same_audio_in_two_splits_is_always_a_leak(disjoint: str | None) -> None:
    twin = clip("twin", "test", keyword="a", speaker="new", audio="audio of train3")
    message = complaint([*corpus(), twin], task(disjoint=disjoint))
    assert "1 clips of test have the same audio as clips of train, 'twin' as 'train3' first" in message


def test_splits_may_be_kept_apart_by_several_labels() -> None:
    """Every clip's room is that of its split, but the last test clip's is one of training."""
    rooms = [each._replace(labels=each.labels | {"room": each.split}) for each in corpus()]
    both = task(disjoint=["speaker", "room"])
    assert both.disjoint == ("room", "speaker")
    select_clips(manifest(rooms), both, "labels")
    moved = [*rooms[:-1], rooms[-1]._replace(labels=rooms[-1].labels | {"room": "train"})]
    message = complaint(moved, both)
    assert "1 values of 'room' are in both train and test, 'train' first; split by room, or leave 'room' out" in message
    select_clips(manifest(moved), task(), "labels")
    spoken = [*rooms[:-1], rooms[-1]._replace(labels=rooms[-1].labels | {"speaker": "train0"})]
    assert "1 values of 'speaker' are in both train and test, 'train0' first" in complaint(spoken, both)


def test_one_of_several_people_in_a_clip_is_a_leak_too() -> None:
    leak = [clip("two", "train", keyword="a", speaker="adam | eve"), clip("one", "test", keyword="a", speaker="eve")]
    assert "1 values of 'speaker' are in both train and test, 'eve' first" in complaint(corpus() + leak)


def test_a_label_that_no_clip_has_keeps_nothing_apart_and_is_refused() -> None:
    for disjoint in ("sesion", ["sesion", "speaker"]):
        message = complaint(corpus(), task(disjoint=disjoint))
        assert "splits must not share values of 'sesion', but no clip of corpus 'mine' has such a label" in message
        assert "it has: keyword, speaker" in message
    nameless = [each._replace(labels={"keyword": each.labels["keyword"]}) for each in corpus()]
    select_clips(manifest(nameless), task(), "labels")


def test_audio_is_the_same_by_its_content_whatever_its_file() -> None:
    heard = [each._replace(content=f"what {each.id} sounds like") for each in corpus()]
    copy = heard[-1]._replace(content="what train3 sounds like")
    message = complaint([*heard[:-1], copy])
    assert "1 clips of test have the same audio as clips of train, 'test3' as 'train3' first" in message
    select_clips(manifest([*heard[:-1], copy._replace(content="what nobody heard")]), task(), "labels")


def test_the_content_is_part_of_no_digest() -> None:
    heard = [each._replace(content=f"what {each.id} sounds like") for each in corpus()]
    assert (
        select_clips(manifest(heard), task(), "labels").digest
        == select_clips(manifest(corpus()), task(), "labels").digest
    )


def test_the_same_audio_twice_in_one_split_is_no_leak() -> None:
    twin = clip("twin", "train", keyword="a", speaker="train1", audio="audio of train3")
    assert len(select_clips(manifest([*corpus(), twin]), task(), "labels").clips["train"]) == 7


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_label_never_seen_in_training_is_an_error_or_counted(split: str) -> None:
    strange = [clip("s", split, keyword="c", speaker=f"{split}9")]
    message = complaint(corpus() + strange)
    assert f"1 {split} clips have labels never seen in training, 's' with 'c' first" in message
    chosen = select_clips(manifest(corpus() + strange), task(), "labels", skip_bad=True)
    assert chosen.skipped == {f"{split} label unseen in training": 1}
    assert len(chosen.clips[split]) == 4
    assert len(select_clips(manifest(corpus() + strange), task(), "labels", closed=False).clips[split]) == 5


def test_of_several_labels_each_must_be_seen_and_blanks_around_them_do_not_matter() -> None:
    tags = [("train", "dog | cat"), ("train", "rain"), ("valid", "cat|rain"), ("test", "dog")]
    clips = [clip(f"{split}{n}", split, tags=text) for n, (split, text) in enumerate(tags)]
    assert ids(select_clips(manifest(clips), task("tags"), "labels"))["valid"] == ["valid2"]
    assert "with 'wind' first" in complaint([*clips, clip("w", "test", tags="dog|wind")], task("tags"))


def test_a_split_without_any_known_label_is_an_error_even_when_skipping() -> None:
    clips = [clip("a", "train", keyword="a"), clip("b", "valid", keyword="a"), clip("c", "test", keyword="c")]
    assert "no test clip has a label seen in training" in complaint(clips, skip_bad=True)


def test_bad_audio_stops_the_task_or_is_counted() -> None:
    bad = [clip("bad0", "train", "is an empty file", keyword="a"), clip("bad1", "test", "is odd", keyword="a")]
    message = complaint(corpus() + bad)
    assert "corpus 'mine': /bad0.wav is an empty file (and 1 more); repair or remove" in message
    chosen = select_clips(manifest(corpus() + bad), task(), "labels", skip_bad=True)
    assert chosen.skipped == {"bad audio": 2}
    assert ids(chosen) == ids(select_clips(manifest(corpus()), task(), "labels"))


def sessions(count: int = 5) -> list[Clip]:
    return [
        clip(f"c{n}", "whatever", keyword="ab"[n // count % 2], session=f"s{n % count}", speaker=f"s{n % count}{n % 2}")
        for n in range(count * 8)
    ]


def test_folds_take_turns_as_test_split_and_together_test_every_clip_once() -> None:
    clips = sessions()
    asked = task(folds="session")
    tested: Counter[str] = Counter()
    assert fold_values(manifest(clips), asked) == ["s0", "s1", "s2", "s3", "s4"]
    for fold, following in zip(["s0", "s1", "s2", "s3", "s4"], ["s1", "s2", "s3", "s4", "s0"], strict=True):
        chosen = select_clips(manifest(clips), asked, "labels", fold=fold)
        held = {split: {each.labels["session"] for each in part} for split, part in chosen.clips.items()}
        assert held == {"test": {fold}, "valid": {following}, "train": {f"s{n}" for n in range(5)} - {fold, following}}
        tested.update(ids(chosen)["test"])
    assert tested == Counter({each.id: 1 for each in clips})


def test_folds_need_at_least_three_values() -> None:
    with pytest.raises(UserError, match="folds by 'session' need at least 3 values, the corpus has 2"):
        fold_values(manifest(sessions(2)), task(folds="session"))
    assert fold_values(manifest(corpus()), task()) == [None]


def test_a_limit_takes_labels_in_turn_and_is_the_same_whatever_the_order() -> None:
    clips = [clip(f"t{n}", "train", keyword="a" if n < 50 else "bcd"[n % 3]) for n in range(80)]
    clips += [clip(f"{split}{n}", split, keyword="abcd"[n % 4]) for split in ("valid", "test") for n in range(40)]
    chosen = select_clips(manifest(clips), task(), "labels", limit=12)
    assert Counter(chosen.targets("train", "keyword").values()) == {"a": 3, "b": 3, "c": 3, "d": 3}
    assert {split: len(part) for split, part in chosen.clips.items()} == {"train": 12, "valid": 12, "test": 12}
    other = select_clips(manifest(reversed(clips)), task(), "labels", limit=12)
    assert {split: set(part) for split, part in ids(chosen).items()} == {
        split: set(part) for split, part in ids(other).items()
    }
    more = select_clips(manifest(clips), task(), "labels", limit=16)
    assert set(ids(chosen)["test"]) < set(ids(more)["test"])
    assert select_clips(manifest(clips), task(), "labels", limit=1000) == select_clips(
        manifest(clips), task(), "labels"
    )


def test_hours_of_training_are_a_part_that_takes_labels_in_turn_and_leaves_validation_and_test_whole() -> None:
    clips = [clip(f"t{n}", "train", keyword="a" if n < 50 else "bcd"[n % 3]) for n in range(80)]
    clips += [clip(f"{split}{n}", split, keyword="abcd"[n % 4]) for split in ("valid", "test") for n in range(40)]
    seconds = clips[0].seconds
    whole = select_clips(manifest(clips), task(), "labels")
    chosen = select_clips(manifest(clips), task(train_hours=12.5 * seconds / 3600), "labels")
    assert Counter(chosen.targets("train", "keyword").values()) == {"a": 3, "b": 3, "c": 3, "d": 3}
    assert all(chosen.clips[split] == whole.clips[split] for split in ("valid", "test"))
    other = select_clips(manifest(reversed(clips)), task(train_hours=12.5 * seconds / 3600), "labels")
    assert set(ids(other)["train"]) == set(ids(chosen)["train"])
    more = select_clips(manifest(clips), task(train_hours=20.5 * seconds / 3600), "labels")
    assert set(ids(chosen)["train"]) < set(ids(more)["train"])
    assert select_clips(manifest(clips), task(train_hours=80 * seconds / 3600), "labels").clips == whole.clips


def test_more_hours_than_there_are_and_less_than_a_clip_are_refused() -> None:
    clips = [clip(f"{split}{n}", split, keyword="ab"[n % 2]) for split in ("train", "valid", "test") for n in range(8)]
    with pytest.raises(UserError, match=r"train_hours is 10, but corpus 'mine' has .* h to train on"):
        select_clips(manifest(clips), task(train_hours=10), "labels")
    with pytest.raises(UserError, match="train_hours 1e-09 is less than its first clip"):
        select_clips(manifest(clips), task(train_hours=1e-9), "labels")


def test_a_limit_leaves_no_label_to_test_that_is_not_trained() -> None:
    trained = [clip(f"train{n}", "train", keyword=f"k{n}") for n in range(10)]
    others = [clip(f"{split}{n}", split, keyword=f"k{n}") for split in ("valid", "test") for n in range(3, 10)]
    chosen = select_clips(manifest(trained + others), task(), "labels", limit=5)
    known = set(chosen.targets("train", "keyword").values())
    assert len(known) == 5
    for split in ("valid", "test"):
        assert set(chosen.targets(split, "keyword").values()) == known - {"k0", "k1", "k2"}
    assert len(select_clips(manifest(trained + others), task(), "labels", closed=False, limit=5).clips["test"]) == 5
    assert "--limit 3 leaves no valid clip with a label of the training clips" in complaint(trained + others, limit=3)


VOICES = [
    clip(f"{split}{speaker}{n}", split, verify=f"{split}-{speaker}")
    for split in ("train", "valid", "test")
    for speaker in "xyz"
    for n in range(4)
]


def test_without_a_list_every_pair_of_a_small_split_is_a_trial() -> None:
    chosen = select_clips(manifest(VOICES), task("verify"), "trials")
    for split in ("valid", "test"):
        kinds = Counter(trial.target for trial in chosen.trials[split])
        assert kinds == {True: 3 * 6, False: 66 - 18}
        of = {each.id: each.labels["verify"] for each in VOICES}
        assert all(trial.target == (of[trial.enroll] == of[trial.test]) for trial in chosen.trials[split])
        assert len({frozenset(trial[1:3]) for trial in chosen.trials[split]}) == 66
        assert all(trial.enroll.startswith(split) and trial.test.startswith(split) for trial in chosen.trials[split])


def test_trials_are_drawn_the_same_whatever_the_order_and_no_more_than_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(selection, "DRAWN_TRIALS", 30)
    many = [clip(f"c{n}", "test", verify=f"s{n % 7}") for n in range(60)]
    drawn = draw_trials(many, "verify")
    assert Counter(trial.target for trial in drawn) == {True: 30, False: 30}
    assert drawn == draw_trials(many[::-1], "verify")


def test_trials_of_a_large_split_are_drawn_without_listing_every_pair() -> None:
    many = [clip(f"c{n:05d}", "test", verify=f"s{n % 400}") for n in range(4000)]
    drawn = draw_trials(many, "verify")
    kinds = Counter(trial.target for trial in drawn)
    assert kinds[True] == kinds[False] == selection.DRAWN_TRIALS
    assert len({frozenset(trial[1:3]) for trial in drawn}) == len(drawn)
    assert all(trial.enroll != trial.test for trial in drawn)
    assert all((int(trial.enroll[1:]) - int(trial.test[1:])) % 400 == 0 for trial in drawn if trial.target)
    assert drawn == draw_trials(many[::-1], "verify")


LISTED = [
    SplitTrial(split, f"{split}x0", f"{split}{speaker}1", speaker == "x")
    for split in ("valid", "test")
    for speaker in "xy"
]


def test_a_trial_list_is_taken_as_it_is_and_only_its_clips_are_encoded() -> None:
    chosen = select_clips(manifest(VOICES, LISTED), task("verify"), "trials")
    assert chosen.trials == {"valid": LISTED[:2], "test": LISTED[2:]}
    assert ids(chosen)["test"] == ["testx0", "testx1", "testy1"]
    assert len(chosen.clips["train"]) == 12


def test_trials_whose_clips_are_missing_are_an_error_or_counted() -> None:
    lost = SplitTrial("test", "testx0", "validx0", False)
    message = complaint(VOICES, task("verify"), [*LISTED, lost], judged_on="trials")
    assert "1 test trials name clips that are not in that split, 'validx0' first" in message
    chosen = select_clips(manifest(VOICES, [*LISTED, lost]), task("verify"), "trials", skip_bad=True)
    assert chosen.skipped == {"test trials without their clips": 1}
    assert chosen.trials["test"] == LISTED[2:]


FAULTS = {
    "of a clip with itself": ([("testx0", "testx0", True)], "compare a recording with itself, 'testx0' with 'testx0'"),
    "that contradict each other": (
        [("testx2", "testx3", True), ("testx3", "testx2", False)],
        "are listed both as target and as non-target, 'testx2' with 'testx3'",
    ),
    "that contradict labels": (
        [("testx2", "testy2", True)],
        "contradict the label 'verify', 'testx2' with 'testy2' first: target in the list, but labelled 'test-x' and"
        " 'test-y'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_trials_without_a_true_answer_are_an_error_or_counted(fault: str) -> None:
    wrong, told = FAULTS[fault]
    listed = [*LISTED, *(SplitTrial("test", *each) for each in wrong)]
    message = complaint(VOICES, task("verify"), listed, judged_on="trials")
    assert message.startswith(f"task 'one': {len(wrong)} test trials {told}")
    chosen = select_clips(manifest(VOICES, listed), task("verify"), "trials", skip_bad=True)
    assert chosen.skipped == {f"test trials {fault}": len(wrong)}
    assert chosen.trials["test"] == LISTED[2:]


def test_a_different_speaker_by_the_list_but_not_by_the_labels_is_an_error() -> None:
    wrong = SplitTrial("valid", "validx2", "validx3", False)
    message = complaint(VOICES, task("verify"), [*LISTED, wrong], judged_on="trials")
    assert "1 valid trials contradict the label 'verify', 'validx2' with 'validx3' first: non-target" in message


def test_a_trial_of_two_copies_of_one_recording_is_one_with_itself() -> None:
    copy = VOICES[-1]._replace(digest=VOICES[-2].digest)
    listed = [*LISTED, SplitTrial("test", VOICES[-2].id, copy.id, True)]
    message = complaint([*VOICES[:-1], copy], task("verify"), listed, judged_on="trials")
    assert f"1 test trials compare a recording with itself, {VOICES[-2].id!r} with {copy.id!r} first" in message
    drawn = select_clips(manifest([*VOICES[:-1], copy]), task("verify"), "trials").trials["test"]
    assert len(drawn) == 66 - 1
    assert {VOICES[-2].id, copy.id} not in [{trial.enroll, trial.test} for trial in drawn]


def test_the_same_question_with_the_same_answer_may_come_twice() -> None:
    listed = [*LISTED, LISTED[2], SplitTrial("test", LISTED[3].test, LISTED[3].enroll, LISTED[3].target)]
    chosen = select_clips(manifest(VOICES, listed), task("verify"), "trials")
    assert chosen.trials["test"] == listed[2:]
    assert chosen.skipped == {}


def test_trials_of_one_kind_only_are_an_error() -> None:
    alike = [*LISTED[:2], LISTED[2]]
    assert "test needs trials of both kinds" in complaint(VOICES, task("verify"), alike, judged_on="trials")
    once = [each for each in VOICES if each.split != "test" or each.id.endswith("0")]
    assert "test needs trials of both kinds" in complaint(once, task("verify"), judged_on="trials")


def test_a_limit_keeps_trials_of_both_kinds() -> None:
    chosen = select_clips(manifest(VOICES), task("verify"), "trials", limit=10)
    assert Counter(trial.target for trial in chosen.trials["test"]) == {True: 5, False: 5}
    assert len(chosen.clips["train"]) == 10
    single = select_clips(manifest(VOICES), task("verify"), "trials", limit=1)
    assert Counter(trial.target for trial in single.trials["test"]) == {True: 1, False: 1}


def test_verification_never_shares_a_speaker_between_splits_even_where_disjoint_is_null() -> None:
    leak = [clip("leak", "test", verify="train-x")]
    message = complaint(VOICES + leak, task("verify", disjoint=None), judged_on="trials")
    assert "1 speakers are in both train and test, 'train-x' first" in message


def test_the_digest_changes_with_labels_audio_split_and_trials_but_not_with_paths() -> None:
    def digest(clips: list[Clip], trials: list[SplitTrial] = LISTED) -> str:
        return select_clips(manifest(clips, trials), task("verify"), "trials").digest

    first, *rest = VOICES
    same = digest(VOICES)
    moved = first._replace(stretch=first.stretch._replace(audio="/elsewhere.wav"))
    assert digest([moved, *rest]) == same
    assert digest([first._replace(digest="other"), *rest]) != same
    assert digest([first._replace(id="other"), *rest]) != same
    assert digest([first._replace(labels={"verify": "train-y"}), *rest]) != same
    assert digest(VOICES, [*LISTED, SplitTrial("test", "testx0", "testz1", False)]) != same
    assert digest(VOICES, [*LISTED[:2], *LISTED[:1:-1]]) != same
