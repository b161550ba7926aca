"""What splits must not share is found, told in one sentence, and stops a run; nothing is chosen on test."""

from __future__ import annotations

import ast
import csv
import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from benchmark import run as harness
from benchmark.data.inspection import corpus_notes, duplicate_clips, label_contradictions, task_errors
from benchmark.data.leaks import shared_audio
from benchmark.data.manifest import prepare_manifest
from benchmark.engines.local import in_process
from benchmark.plan import fixed_settings
from benchmark.records import Record
from benchmark.tasks import Task
from benchmark.values import Clip, Manifest, Setup, SplitTrial, Stretch
from tests.benchmark.sounds import RATE, write_clip, write_corpus, write_table
from tests.conftest import Bench

LEAST = 400  # samples of the shortest clip
Rows = list[dict[str, str]]


def clip(id: str, split: str = "train", first: int = 0, samples: int = 4000, content: str = "", **labels: str) -> Clip:
    return Clip(id, split, labels, Stretch(f"{id}.wav", first, samples, RATE), f"bytes of {id}", "", content or id)


def manifest(*clips: Clip, trials: tuple[SplitTrial, ...] = ()) -> Manifest:
    return Manifest("mine", "digest", list(clips), list(trials))


def task(**fields: Any) -> Task:
    return Task(**{"name": "one", "corpus": "mine", "target": "keyword", "head": "classification"} | fields)


stretches = st.lists(
    st.builds(
        lambda number, first, samples, content: clip(str(number), "", first, samples, content),
        st.integers(),
        st.integers(0, 3000),
        st.integers(LEAST, 2500),
        st.sampled_from("xy"),
    ),
    max_size=8,
)


@given(stretches, stretches)
def test_every_clip_that_shares_audio_is_found_with_one_that_it_shares_it_with(
    ours: list[Clip], theirs: list[Clip]
) -> None:
    def common(one: Clip, other: Clip) -> int:
        return len({*range(*span(one))} & {*range(*span(other))}) if one.content == other.content else 0

    def span(clip: Clip) -> tuple[int, int]:
        return clip.stretch.first, clip.stretch.first + clip.stretch.samples

    found = shared_audio(ours, theirs)
    guilty = [each for each in theirs if any(common(one, each) >= LEAST for one in ours)]
    assert [each.second for each in found] == guilty
    assert all(each.first in ours and each.samples == common(each.first, each.second) for each in found)
    for each in found:
        twins = [one for one in ours if span(one) == span(each.second) and one.content == each.second.content]
        assert each.first == twins[0] if twins else span(each.first) != span(each.second)


def test_a_long_stretch_is_seen_behind_the_short_ones_that_begin_within_it() -> None:
    long, *short = [clip("long", samples=9000, content="x")] + [
        clip(f"short{n}", first=1000 * n, samples=LEAST, content="x") for n in range(1, 6)
    ]
    late = clip("late", "test", first=8000, samples=2000, content="x")
    for ours in ([long, *short], [*short, long]):
        assert shared_audio(ours, [late]) == [(long, late, 1000)]
    assert shared_audio(short, [late]) == []


def test_of_several_copies_the_first_is_named() -> None:
    ours = [clip(id, content="x") for id in ("b", "a", "c")]
    (found,) = shared_audio(ours, [clip("copy", "test", content="x")])
    assert found.first == ours[0]


def test_neighbours_whose_ends_were_rounded_apart_share_nothing() -> None:
    one, other = clip("a", first=0, samples=4100, content="x"), clip("b", first=4000, samples=4000, content="x")
    assert shared_audio([one], [other]) == []
    assert shared_audio([one._replace(stretch=one.stretch._replace(samples=4400))], [other])[0].samples == LEAST


def test_a_plain_label_to_keep_apart_leaves_a_task_as_it_was() -> None:
    assert fixed_settings(task(disjoint="session"))["disjoint"] == "session"
    assert fixed_settings(task())["disjoint"] == "speaker"
    assert task(disjoint=["session"]) == task(disjoint="session")
    assert task(disjoint=["speaker", "session", "speaker"]) == task(disjoint=("session", "speaker"))
    assert Task(**task(disjoint=["speaker", "session"]).model_dump(mode="json")).apart == ("session", "speaker")
    assert task(disjoint=[]).disjoint is None
    assert task(target="speaker", disjoint=["speaker", "session"]).apart == ("session",)


def test_copies_within_a_split_are_told_and_those_of_other_splits_are_not() -> None:
    clips = [clip("a", content="x"), clip("b", content="x"), clip("c", content="x"), clip("d", first=9, content="x")]
    clips += [clip("e", "test", content="x"), clip("f", "test"), clip("g", "test", content="y")]
    clips += [clip("h", "test", content="y")]
    assert [[each.id for each in group] for group in duplicate_clips(manifest(*clips))] == [["a", "b", "c"], ["g", "h"]]
    told = corpus_notes(manifest(*clips))
    assert told == [
        "3 clips have the audio of another clip of their split, 'b' that of 'a' first; it counts more than once"
    ]
    assert corpus_notes(manifest(*clips[3:6])) == []


def test_trials_that_come_twice_are_told_in_either_order() -> None:
    listed = [
        SplitTrial("test", "a", "b", True),
        SplitTrial("valid", "b", "a", True),
        SplitTrial("test", "a", "c", False),
    ]
    assert corpus_notes(manifest(trials=tuple(listed))) == []
    twice = [*listed, SplitTrial("test", "b", "a", True)]
    assert corpus_notes(manifest(trials=tuple(twice))) == [
        "1 trials repeat another one, 'b' with 'a' first; it counts twice"
    ]


def test_copies_with_another_label_are_a_fault_of_the_task_that_reads_it() -> None:
    said = {"a": {"keyword": "yes", "tags": "dog|cat"}, "b": {"keyword": "no", "tags": "cat | dog"}}
    clips = [clip(id, content="x", **labels) for id, labels in said.items()]
    (told,) = label_contradictions(manifest(*clips), [task(), task(name="two", target="tags"), task(target="text")])
    assert "task 'one': 1 clips of train have the same audio as others but another label" in told
    assert "'b' with 'no' as 'a' with 'yes' first" in told
    assert label_contradictions(manifest(clips[0], clips[1]._replace(labels={"keyword": "yes"})), [task()]) == []
    assert label_contradictions(manifest(clips[0], clips[1]._replace(split="valid")), [task()]) == []
    sessions = task(folds="session")
    assert len(label_contradictions(manifest(clips[0], clips[1]._replace(split="valid")), [sessions])) == 1


def test_bad_audio_hides_no_other_fault(tmp_path: Path) -> None:
    clips = [clip(f"{split}{n}", split, keyword="ab"[n]) for split in ("train", "valid", "test") for n in (0, 1)]
    bad = clip("bad", keyword="a")._replace(problem="is an empty file")
    assert task_errors(manifest(*clips, bad), [task()], tmp_path) == []
    strange = clip("strange", "test", keyword="c")
    (told,) = task_errors(manifest(*clips, bad, strange), [task()], tmp_path)
    assert "1 test clips have labels never seen in training, 'strange' with 'c' first" in told


def test_without_a_task_splits_still_share_no_audio(tmp_path: Path) -> None:
    clips = [clip("a", content="x"), clip("b", "test", content="x"), clip("c", "other", content="x")]
    (told,) = task_errors(manifest(*clips), [], tmp_path)
    assert told.startswith("corpus 'mine': 1 clips of test have the same audio as clips of train, 'b' as 'a' first")
    assert task_errors(manifest(clips[0], clips[2]), [], tmp_path) == []


PROTOCOL = """
tasks:
  words: {corpus: mine, target: keyword, head: classification, lr: [1e-3], seeds: [0], epochs: 1,
          disjoint: [speaker, session]}
  same: {corpus: mine, target: voice, head: cosine}
"""


def rows() -> Rows:
    """Two clips of each of two people in each split; who is of "voice" is in no task but `same`."""
    return [
        {
            "file_name": f"{split}-{person}{n}.wav", "split": split, "keyword": "ab"[n], "voice": f"{split}-{person}",
            "speaker": f"{split}-{person}", "session": f"{split} day",
        }
        for split in ("train", "valid", "test")
        for person in ("p", "q")
        for n in (0, 1)
    ]  # fmt: skip


def another(table: Rows, name: str, **cells: str) -> Rows:
    """With one more clip, in test unless said otherwise."""
    last = {"split": "test", "keyword": "a", "speaker": "new", "session": "new day", "voice": "test-p"}
    return [*table, {"file_name": name, **last, **cells}]


def nothing(root: Path, table: Rows) -> Rows:
    return another(table, "new.wav")


def flac_copy(root: Path, table: Rows) -> Rows:
    samples, rate = soundfile.read(root / "train-p0.wav", dtype="int16")
    soundfile.write(root / "new.flac", samples, rate)
    return another(table, "new.flac")


def renamed_copy(root: Path, table: Rows) -> Rows:
    shutil.copy(root / "valid-q1.wav", root / "new.wav")
    return another(table, "new.wav")


def speaker(root: Path, table: Rows) -> Rows:
    return another(table, "new.wav", speaker="train-q")


def session(root: Path, table: Rows) -> Rows:
    return another(table, "new.wav", session="train day")


def stretch(root: Path, table: Rows) -> Rows:
    write_clip(root / "long.wav", seconds=2.0, seed=99)
    table = another(table, "long.wav", split="train", speaker="other", voice="train-p", start="0", end="1.1")
    return another(table, "long.wav", start="1", end="2")


def cut_of_a_copy(root: Path, table: Rows) -> Rows:
    """A whole file in training, and a piece of its copy in test."""
    table = another(table, "long.wav", split="train", speaker="other", voice="train-p")
    samples, rate = soundfile.read(write_clip(root / "long.wav", seconds=2.0, seed=99), dtype="float32")
    soundfile.write(root / "again.wav", np.stack([samples, samples], 1), rate, subtype="PCM_24")
    return another(table, "again.wav", start="0.5", end="1.25")


def unseen(root: Path, table: Rows) -> Rows:
    return another(table, "new.wav", keyword="c")


def missing_id(root: Path, table: Rows) -> Rows:
    write_table(root / "trials.csv", [{"enroll": "test-p0.wav", "test": "gone.wav", "target": "1"}])
    return table


def wrong_split(root: Path, table: Rows) -> Rows:
    write_table(root / "trials.csv", [{"enroll": "test-p0.wav", "test": "valid-p0.wav", "target": "0"}])
    return table


def itself(root: Path, table: Rows) -> Rows:
    write_table(root / "trials.csv", [{"enroll": "test-p0.wav", "test": "test-p0.wav", "target": "1"}])
    return table


def mislabelled(root: Path, table: Rows) -> Rows:
    write_table(root / "trials.csv", [{"enroll": "test-p0.wav", "test": "test-q0.wav", "target": "1"}])
    return table


Plant = Callable[[Path, Rows], Rows]
PLANTED: dict[Plant, str] = {
    flac_copy: "1 clips of test have the same audio as clips of train, 'new.flac' as 'train-p0.wav' first",
    renamed_copy: "1 clips of test have the same audio as clips of valid, 'new.wav' as 'valid-q1.wav' first",
    speaker: "1 values of 'speaker' are in both train and test, 'train-q' first",
    session: "1 values of 'session' are in both train and test, 'train day' first",
    stretch: "1 clips of test overlap clips of train, 'long.wav#1-2' with 'long.wav#0-1.1' first by 0.100 s",
    cut_of_a_copy: "1 clips of test overlap clips of train, 'again.wav#0.5-1.25' with 'long.wav' first by 0.750 s",
    unseen: "1 test clips have labels never seen in training, 'new.wav' with 'c' first",
    missing_id: "a trial names utterance 'gone.wav', which is not in",
    wrong_split: "1 test trials name clips that are not in that split, 'valid-p0.wav' first",
    itself: "1 test trials compare a recording with itself, 'test-p0.wav' with 'test-p0.wav' first",
    mislabelled: "1 test trials contradict the label 'voice', 'test-p0.wav' with 'test-q0.wav' first: target in",
}


def planted(plant: Plant, folder: Path) -> list[Any]:
    """Options of a corpus with that leak, and of the tasks on it."""
    root = write_corpus(folder / "mine", rows())
    write_corpus(root, plant(root, rows()))
    protocol = folder / "mine.yaml"
    protocol.write_text(PROTOCOL, encoding="utf-8")
    return ["--data", f"mine={root}", "--protocol", protocol, "--home", folder / "home"]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_leak_is_told_by_every_command_and_nothing_is_recorded(
    bench: Bench, tmp_path: Path, plant: Plant
) -> None:
    options, results = planted(plant, tmp_path), tmp_path / "results"
    told = PLANTED[plant]
    for command in (("data", "prepare", "mine"), ("data", "check", "mine")):
        answer = bench(*command, *options)
        assert answer.code == 2
        assert [line for line in answer.err.splitlines() if line.startswith("bench: ") and told in line], answer.err
        assert "Traceback" not in answer.err
    answer = bench("run", "fbank", *options, "--results", results, "--device", "cpu")
    assert answer.code == 2
    assert told in answer.complaint
    assert [path for path in results.rglob("*") if path.is_file()] == []


def test_without_a_leak_the_same_corpus_is_prepared_checked_and_run(bench: Bench, tmp_path: Path) -> None:
    options, results = planted(nothing, tmp_path), tmp_path / "results"
    assert bench("data", "prepare", "mine", *options).code == 0
    answer = bench("data", "check", "mine", *options)
    assert (answer.code, "bench: " in answer.err) == (0, False)
    assert "mine: no problems; checked the audio of 13 clips and the splits of 2 tasks" in answer.out
    assert bench("run", "fbank", *options, "--results", results, "--device", "cpu").code == 0
    assert len(list(results.glob("runs/*/*/*.json"))) == 2


def test_preparing_reads_no_audio_twice_and_keeps_the_manifest_of_a_corpus_that_leaks(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, opened, open_it = planted(flac_copy, tmp_path), list[str](), soundfile.SoundFile

    def noted(path: str) -> soundfile.SoundFile:
        opened.append(path)
        return open_it(path)

    monkeypatch.setattr(soundfile, "SoundFile", noted)
    assert bench("data", "prepare", "mine", *options).code == 2
    assert sorted(opened) == sorted(str(path) for path in (tmp_path / "mine").iterdir() if path.suffix != ".csv")
    assert len(list((tmp_path / "home" / "manifests").iterdir())) == 1
    assert bench("data", "prepare", "mine", *options).code == 2
    assert len(opened) == len(rows()) + 1


def test_copies_within_a_split_are_told_by_both_commands_but_refused_by_none(bench: Bench, tmp_path: Path) -> None:
    def copy(root: Path, table: Rows) -> Rows:
        shutil.copy(root / "test-p0.wav", root / "new.wav")
        return another(table, "new.wav")

    options = planted(copy, tmp_path)
    for command in ("prepare", "check"):
        answer = bench("data", command, "mine", *options)
        assert (answer.code, "bench: " in answer.err) == (0, False)
        assert "mine: 1 clips have the audio of another clip of their split, 'new.wav' that of 'test-p0.wav'" in (
            " ".join(answer.out.split())
        )


def test_copies_with_another_label_are_told_by_both_commands(bench: Bench, tmp_path: Path) -> None:
    def copy(root: Path, table: Rows) -> Rows:
        shutil.copy(root / "test-p0.wav", root / "new.wav")
        return another(table, "new.wav", keyword="b")

    options = planted(copy, tmp_path)
    for command, code in (("prepare", 0), ("check", 2)):
        answer = bench("data", command, "mine", *options)
        assert answer.code == code
        assert "'new.wav' with 'b' as 'test-p0.wav' with 'a' first" in answer.complaint


def shuffled(tones: Path, folder: Path, seed: int) -> Path:
    """The corpus of tones with the labels of its test split dealt out anew, each kind among the clips that have it."""
    folder.mkdir()
    (folder / "audio").symlink_to(tones / "audio")
    with open(tones / "metadata.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    dice = np.random.default_rng(seed)
    for kind in ("keyword", "verify", "tags"):
        places = [place for place, row in enumerate(table) if row["split"] == "test" and row[kind]]
        dealt = [table[place][kind] for place in dice.permutation(places)]
        for place, label in zip(places, dealt, strict=True):
            table[place][kind] = label
    write_table(folder / "metadata.csv", table)
    return folder


def chosen(records: list[Record]) -> dict[Any, Any]:
    """All that a run settles before it looks at the test split."""
    return {
        (record.task["name"], record.lr, record.seed): (
            record.valid, record.epoch, record.curve, record.diverged, record.layer_weights, record.clips
        )
        for record in records
    }  # fmt: skip


def test_labels_of_test_change_test_scores_and_nothing_else(
    tones: Path, tasks: dict[str, Task], home: Path, tmp_path: Path
) -> None:
    asked = [tasks[name] for name in ("words", "sounds", "same")]
    outcomes = []
    for seed, root in enumerate([tones, *(shuffled(tones, tmp_path / f"tones{seed}", seed) for seed in (1, 2))]):
        setup = Setup(home, tmp_path / f"results{seed}", (("tones", str(root)),))
        outcomes.append(harness.run(asked, ["fbank"], setup, in_process))
    first, *others = outcomes
    scores = {(record.task["name"], record.lr, record.seed): record.test for record in first.records}
    assert len(scores) == 4 + 2 + 1
    for other in others:
        assert chosen(other.records) == chosen(first.records)
        assert not {record.id for record in other.records} & {record.id for record in first.records}
        for key, cell in first.table.items():
            settled = (other.table[key].lr, other.table[key].valid, other.table[key].edge)
            assert settled == (cell.lr, cell.valid, cell.edge)
            assert other.table[key].value != cell.value


HOLDERS = ("sets", "references", "predictions")  # of values by split


def nodes(tree: ast.AST, kind: type[Any]) -> Iterator[Any]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def test_nothing_of_the_test_split_is_passed_to_training() -> None:
    """`fit_heads` gets train and valid by name of what holds all splits, and of the sweep what no split is part of."""
    tree = ast.parse(inspect.getsource(harness))
    (call,) = [node for node in nodes(tree, ast.Call) if ast.unparse(node.func).split(".")[-1] == "fit_heads"]
    held = [ast.unparse(node.slice) for node in nodes(call, ast.Subscript) if ast.unparse(node.value) in HOLDERS]
    assert sorted(set(held)) == ["'train'", "'valid'"]
    assert len(held) == sum(node.id in HOLDERS for node in nodes(call, ast.Name))
    assert "test" not in [node.value for node in nodes(call, ast.Constant)]
    read = {node.attr for node in nodes(call, ast.Attribute) if ast.unparse(node.value) == "sweep"}
    assert read <= {"jobs", "features", "task"}
    whole = [ast.unparse(node.func) for node in nodes(call, ast.Call) if "sweep" in map(ast.unparse, node.args)]
    assert set(whole) == {"_feature_shape"}
    shape = ast.parse(inspect.getsource(harness._feature_shape))
    assert {node.attr for node in nodes(shape, ast.Attribute) if ast.unparse(node.value) == "sweep"} == {
        "card", "head", "features"
    }  # fmt: skip


def test_training_takes_no_test_split() -> None:
    from downstreams.base import Head
    from downstreams.train import fit_heads

    assert {"train", "valid"} < set(inspect.signature(fit_heads).parameters)
    for function in (fit_heads, Head.__init__, Head.select):
        assert not [name for name in inspect.signature(function).parameters if "test" in name]


def test_a_prepared_corpus_keeps_what_its_audio_sounds_like(tones: Path, tmp_path: Path) -> None:
    once, again = (prepare_manifest("tones", tmp_path, {"tones": str(tones)}) for _ in range(2))
    assert again == once
    assert len({each.content for each in once.clips}) == len(once.clips) == 300
