"""Clips that depend on each other are one cluster, whatever tells it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from benchmark.data.clusters import clusters_of, with_clusters
from benchmark.tasks import Task
from benchmark.values import Clip, Stretch

WORDS = Task(name="words", corpus="tones", target="keyword", head="classification")
VERIFY = Task(name="same", corpus="tones", target="verify", head="cosine")


def clip(id: str, audio: str = "", code: str = "", **labels: str) -> Clip:
    """A test clip of a file and of audio of its own, unless they are given."""
    return Clip(id, "test", labels, Stretch(audio or f"{id}.wav", 0, 100, 100), code or f"audio of {id}", "")


def changed(task: Task, **fields: Any) -> Task:
    return task.model_copy(update=fields)


def test_what_splits_must_not_share_decides_before_speaker_and_session() -> None:
    clips = [clip("a", speaker="s1", session="x", room="r1"), clip("b", speaker="s2", session="x", room="r1")]
    assert clusters_of(clips, changed(WORDS, disjoint="room"), "labels") == ("room", {"a": "room r1", "b": "room r1"})
    assert clusters_of(clips, WORDS, "labels") == ("speaker", {"a": "speaker s1", "b": "speaker s2"})
    assert clusters_of(clips, changed(WORDS, disjoint="file"), "labels")[0] == "speaker", "no clip has such a label"
    assert clusters_of(clips, changed(WORDS, disjoint=None), "labels")[0] == "speaker"
    nobody = [clip("a", session="x"), clip("b", session="x")]
    assert clusters_of(nobody, WORDS, "labels") == ("session", {"a": "session x", "b": "session x"})


def test_of_several_labels_that_splits_must_not_share_the_coarsest_decides() -> None:
    clips = [clip("a", speaker="s1", room="r1"), clip("b", speaker="s2", room="r1"), clip("c", speaker="s3", room="r2")]
    both = changed(WORDS, disjoint=("room", "speaker"))
    assert clusters_of(clips, both, "labels")[0] == "room"
    apart = [clip("a", speaker="s1", room="r1"), clip("b", speaker="s1", room="r2"), clip("c", speaker="s1", room="r2")]
    assert clusters_of(apart, both, "labels")[0] == "speaker"
    assert clusters_of(apart, changed(WORDS, disjoint=("file", "room")), "labels")[0] == "room", "none has a file"


def test_what_is_asked_for_is_no_cluster_of_labels_but_is_one_of_trials() -> None:
    clips = [clip("a", speaker="s1", session="x", verify="s1"), clip("b", speaker="s1", session="y", verify="s1")]
    assert clusters_of(clips, changed(WORDS, target="speaker"), "labels")[0] == "session"
    assert clusters_of(clips, VERIFY, "trials") == ("verify", {"a": "verify s1", "b": "verify s1"})
    assert clusters_of(clips, changed(VERIFY, target="speaker"), "trials")[0] == "speaker"


def test_without_labels_stretches_of_one_file_and_equal_audio_are_one_cluster() -> None:
    clips = [
        clip("a", "one.wav", "A"),
        clip("b", "two.wav", "B"),
        clip("c", "three.wav", "C"),
        clip("d", "two.wav", "D"),
        clip("e", "four.wav", "C"),
        clip("f", "four.wav", "B"),
    ]
    by, clusters = clusters_of(clips, WORDS, "labels")
    assert by == ""
    assert clusters == {"a": "clip a", **dict.fromkeys("bcdef", "clip b")}, "b joins d and f, f joins e, e joins c"


def test_copies_that_sound_alike_are_one_cluster_and_clips_whose_sound_is_not_known_are_not() -> None:
    clips = [clip("a")._replace(content="x"), clip("b"), clip("c")._replace(content="x"), clip("d")]
    clusters = clusters_of(clips, WORDS, "labels")[1]
    assert clusters == {"a": "clip a", "b": "clip b", "c": "clip a", "d": "clip d"}


def test_clips_without_the_label_stand_for_their_files_and_are_taken_for_no_speaker() -> None:
    clips = [clip("a", speaker="s1"), clip("b", "x.wav"), clip("c", "x.wav"), clip("d", speaker="s1")]
    by, clusters = clusters_of(clips, WORDS, "labels")
    assert by == "speaker"
    assert clusters == {"a": "speaker s1", "b": "clip b", "c": "clip b", "d": "speaker s1"}
    strange = [clip("a", clip="b"), clip("b")]
    assert len(set(clusters_of(strange, changed(WORDS, disjoint="clip"), "labels")[1].values())) == 2
    longer = [clip("a", **{"clip a": "b"}), clip("a b")]
    assert len(set(clusters_of(longer, changed(WORDS, disjoint="clip a"), "labels")[1].values())) == 2


def reached(clips: list[Clip], start: Clip) -> set[str]:
    """Ids that can be walked to over equal files and equal audio, the slow way."""
    found = {start.id}
    while True:
        linked = [
            each.id
            for each in clips
            if any(
                other.id in found and (each.stretch.audio == other.stretch.audio or each.digest == other.digest)
                for other in clips
            )
        ]
        if set(linked) == found:
            return found
        found = set(linked)


@given(st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("UVWXYZ")), min_size=1, max_size=9))
def test_files_and_audio_join_clips_as_far_as_one_can_walk(pairs: list[tuple[str, str]]) -> None:
    clips = [clip(f"id{number}", file, code) for number, (file, code) in enumerate(pairs)]
    _, clusters = clusters_of(clips, WORDS, "labels")
    assert clusters.keys() == {each.id for each in clips}
    for each in clips:
        assert {id for id, name in clusters.items() if name == clusters[each.id]} == reached(clips, each)


def test_outcomes_get_the_clusters_of_their_clips_and_keep_the_rest() -> None:
    clusters = {"a": "speaker s1", "b": "speaker s2"}
    assert with_clusters([{"id": "b", "correct": True}], clusters) == [
        {"id": "b", "correct": True, "cluster": "speaker s2"}
    ]
    assert with_clusters([{"enroll": "a", "test": "b", "score": 0.5}], clusters) == [
        {"enroll": "a", "test": "b", "score": 0.5, "enroll_cluster": "speaker s1", "test_cluster": "speaker s2"}
    ]
    assert with_clusters([], clusters) == []
