"""Tests that a corpus is inspected once, and that later only changed files are inspected again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from benchmark.data.manifest import prepare_manifest
from benchmark.engines.local import ProcessPool
from benchmark.errors import UserError
from benchmark.files import digest
from benchmark.values import Manifest
from tests.benchmark.sounds import labelled, write_clip, write_corpus, write_table

ROWS = labelled({"train": ["a", "b", "a"], "valid": ["a", "b"], "test": ["a", "b"]})


class Watched:
    """An engine that notes the titles of its work and the items of each."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], title: str = "", weight: Any = None
    ) -> list[Any]:
        todo = list(items)
        self.items += todo
        return [function(item) for item in todo]


def looked_over(root: Path, home: Path) -> tuple[Manifest, list[str]]:
    engine = Watched()
    manifest = prepare_manifest("mine", home, {"mine": str(root)}, engine)
    return manifest, [Path(path).name for chunk in engine.items for path in chunk]


def test_a_corpus_that_did_not_change_is_not_looked_over_again(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, read = looked_over(root, tmp_path / "home")
    assert sorted(read) == sorted(row["file_name"] for row in ROWS)
    again, read = looked_over(root, tmp_path / "home")
    assert read == []
    assert again == first


def test_only_a_changed_file_is_looked_over_again_and_the_digest_changes(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    write_clip(root / "train0.wav", seed=99)
    os.utime(root / "train0.wav", (1, 1))
    second, read = looked_over(root, tmp_path / "home")
    assert read == ["train0.wav"]
    assert second.digest != first.digest
    changed = [clip.id for clip, before in zip(second.clips, first.clips, strict=True) if clip != before]
    assert changed == ["train0.wav"]


def test_touching_a_file_without_changing_it_keeps_the_digest(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    os.utime(root / "train0.wav", (1, 1))
    second, read = looked_over(root, tmp_path / "home")
    assert read == ["train0.wav"]
    assert second == first


def test_a_changed_label_changes_the_digest_without_reading_audio(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    for column, value in (("keyword", "b"), ("split", "test"), ("id", "other")):
        write_table(root / "metadata.csv", [{**ROWS[0], column: value}, *ROWS[1:]])
        second, read = looked_over(root, tmp_path / "home")
        assert (second.digest != first.digest, read) == (True, [])


def test_moving_a_corpus_keeps_its_digest(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    shutil.move(root, tmp_path / "elsewhere")
    moved, read = looked_over(tmp_path / "elsewhere", tmp_path / "home")
    assert moved.digest == first.digest
    assert len(read) == len(ROWS)
    assert all(clip.stretch.audio.startswith(str(tmp_path / "elsewhere")) for clip in moved.clips)


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmark.data.manifest.CHUNK", 3)
    root = write_corpus(tmp_path / "mine", ROWS)
    one = prepare_manifest("mine", tmp_path / "one", {"mine": str(root)})
    two = prepare_manifest("mine", tmp_path / "two", {"mine": str(root)}, ProcessPool(2))
    assert one == two


@pytest.mark.parametrize("content", ["", "[]", "null", '{"signature": '])
def test_a_damaged_manifest_is_made_anew(tmp_path: Path, content: str) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    kept = next((tmp_path / "home" / "manifests").iterdir())
    kept.write_text(content)
    again, read = looked_over(root, tmp_path / "home")
    assert again == first
    assert len(read) == len(ROWS)


def test_a_manifest_of_an_older_format_is_made_anew(tmp_path: Path) -> None:
    """As it was before contents were noted: clips and inspections are a value shorter, and no format is named."""
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    kept = next((tmp_path / "home" / "manifests").iterdir())
    old = json.loads(kept.read_text())
    del old["format"]
    old["manifest"][2] = [clip[:6] for clip in old["manifest"][2]]
    old["inspections"] = {path: [stamp, found[:4]] for path, (stamp, found) in old["inspections"].items()}
    kept.write_text(json.dumps(old | {"signature": "of an older format"}))
    again, read = looked_over(root, tmp_path / "home")
    assert sorted(read) == sorted(row["file_name"] for row in ROWS)
    assert again == first
    assert all(len(clip.content) == 32 for clip in again.clips)


def test_digests_are_of_the_bytes_as_they_always_were_and_contents_of_what_is_heard(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    first, _ = looked_over(root, tmp_path / "home")
    for clip in first.clips:
        code = hashlib.blake2b((root / clip.id).read_bytes(), digest_size=16).hexdigest()
        assert clip.digest == digest([code, 0, 4800])[:32]
    described = [[clip.id, clip.split, clip.labels, clip.digest] for clip in first.clips]
    assert first.digest == digest([described, []])
    samples, rate = soundfile.read(root / "train0.wav", dtype="float32")
    soundfile.write(root / "train0.wav", samples, rate, subtype="FLOAT")
    second, _ = looked_over(root, tmp_path / "home")
    assert [clip.content for clip in second.clips] == [clip.content for clip in first.clips]
    assert second.digest != first.digest


def test_stretches_of_one_file_are_clips_with_digests_of_their_own(tmp_path: Path) -> None:
    write_clip(tmp_path / "mine" / "a.wav", seconds=2.0, rate=8000)
    cuts = [("0", "0.5"), ("0.5", "1"), ("1.5", ""), ("0.50001", "1"), ("1.99", "2.04"), ("1", "2.3"), ("2.5", "")]
    rows = [{"file_name": "a.wav", "start": start, "end": end, "split": "train", "k": "v"} for start, end in cuts]
    write_table(tmp_path / "mine" / "metadata.csv", rows)
    manifest, read = looked_over(tmp_path / "mine", tmp_path / "home")
    assert read == ["a.wav"]
    assert [clip.stretch[1:3] for clip in manifest.clips[:4]] == [(0, 4000), (4000, 4000), (12000, 4000), (4000, 4000)]
    digests = [clip.digest for clip in manifest.clips[:4]]
    assert len(set(digests)) == 3
    assert digests[1] == digests[3]
    problems = [clip.problem for clip in manifest.clips]
    assert problems[:4] == [""] * 4
    assert "shorter than 0.025 s" in problems[4]
    assert problems[5] == "ends at 2.300 s, but its file is 2.000 s long"
    assert "shorter than 0.025 s" in problems[6]


def test_bad_audio_is_noted_and_loses_nothing(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", ROWS)
    (root / "train0.wav").write_bytes(b"")
    (root / "valid0.wav").unlink()
    soundfile.write(root / "test0.wav", np.full(999, np.nan, np.float32), 16_000, subtype="FLOAT")
    manifest, _ = looked_over(root, tmp_path / "home")
    bad = {clip.id: clip.problem for clip in manifest.clips if clip.problem}
    assert sorted(bad) == ["test0.wav", "train0.wav", "valid0.wav"]
    assert len(manifest.clips) == len(ROWS)
    write_clip(root / "valid0.wav", seed=5)
    manifest, read = looked_over(root, tmp_path / "home")
    assert read == ["valid0.wav"]
    assert "valid0.wav" not in [clip.id for clip in manifest.clips if clip.problem]


def test_ids_that_come_twice_and_corpora_that_do_not_exist_are_explained(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "mine", [*ROWS, ROWS[0]])
    with pytest.raises(UserError, match=r"corpus 'mine' has 1 ids more than once, 'train0.wav' first; make each"):
        looked_over(root, tmp_path / "home")
    with pytest.raises(UserError, match=r"--data mine=/nowhere: there is no such folder or file"):
        prepare_manifest("mine", tmp_path / "home", {"mine": "/nowhere"})
    with pytest.raises(UserError, match=r"corpus 'fsdd' needs its folder: add --data fsdd=FOLDER"):
        prepare_manifest("fsdd", tmp_path / "home", {})
    with pytest.raises(UserError, match=r"no corpus 'fsd'; did you mean 'fsdd'\? .*--data fsd=FOLDER"):
        prepare_manifest("fsd", tmp_path / "home", {})


def test_fsdd_has_its_official_test_split_and_one_for_validation(tmp_path: Path) -> None:
    for index in (0, 4, 5, 9, 10, 49):
        for digit in "07":
            write_clip(tmp_path / "fsdd" / "recordings" / f"{digit}_theo_{index}.wav", seed=index, rate=8000)
    manifest = prepare_manifest("fsdd", tmp_path / "home", {"fsdd": str(tmp_path / "fsdd")})
    splits = {clip.id: clip.split for clip in manifest.clips}
    assert splits == {
        f"{digit}_theo_{index}": split
        for digit in "07"
        for index, split in ((0, "test"), (4, "test"), (5, "valid"), (9, "valid"), (10, "train"), (49, "train"))
    }
    assert manifest.clips[0].labels == {"keyword": "0", "speaker": "theo"}
    write_clip(tmp_path / "fsdd" / "recordings" / "0_theo_x.wav")
    with pytest.raises(UserError, match=r"0_theo_x.wav"):
        prepare_manifest("fsdd", tmp_path / "home", {"fsdd": str(tmp_path / "fsdd")})
    with pytest.raises(UserError, match="no FSDD recordings in"):
        prepare_manifest("fsdd", tmp_path / "home", {"fsdd": str(tmp_path)})
