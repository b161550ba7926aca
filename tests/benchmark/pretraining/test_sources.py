"""The audio that pre-training uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark.engines.local import in_process
from benchmark.errors import UserError
from benchmark.pretraining.sources import TrainingAudio, load_training_audio
from tests.benchmark.sounds import write_clip, write_corpus, write_table


def pool(corpus: object, home: Path, skip_bad: bool = False, only: str | None = None, **data: object) -> TrainingAudio:
    return load_training_audio(
        str(corpus), home, {name: str(path) for name, path in data.items()}, in_process, skip_bad, only
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio at several folder depths and sample rates, in folders named like splits, beside other files."""
    root = tmp_path_factory.mktemp("audio")
    for seed, name in enumerate(["b.wav", "a.flac", "train/x.wav", "test/deep/y.wav", "test/z.ogg", ".hidden.wav"]):
        write_clip(root / name, seed=seed, rate=16_000 if name == "b.wav" else 8_000)
    (root / "notes.txt").write_text("no audio")
    write_table(root / "metadata.csv", [{"file_name": "b.wav", "keyword": "yes"}])
    return root


def test_a_folder_gives_all_its_audio_at_any_depth_and_no_labels(folder: Path, tmp_path: Path) -> None:
    found = pool(folder, tmp_path)
    assert [clip.id for clip in found.clips] == ["a.flac", "b.wav", "test/deep/y.wav", "test/z.ogg", "train/x.wav"]
    assert not any(clip.labels for clip in found.clips)
    assert found.hours == pytest.approx(5 * 0.3 / 3600)
    assert str(found) == f"split pool of {folder}, 5 clips, 0.00 h"


def test_a_folder_is_looked_over_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pool(folder, tmp_path)
    monkeypatch.setattr("benchmark.data.manifest.inspect_audio", lambda path: pytest.fail(f"{path} was read again"))
    assert pool(folder, tmp_path) == first
    assert len(list((tmp_path / "manifests").iterdir())) == 1


def test_the_digest_follows_names_and_audio_but_not_the_place(tmp_path: Path) -> None:
    digests = []
    for place, name, seed in [("one", "a", 0), ("two", "a", 0), ("three", "b", 0), ("four", "a", 1)]:
        write_clip(tmp_path / place / f"{name}.wav", seed=seed)
        digests.append(pool(tmp_path / place, tmp_path / "home").digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_only_the_training_part_of_a_corpus_with_splits_is_used(tones: Path, tmp_path: Path) -> None:
    found = pool("tones", tmp_path, tones=tones)
    assert found.split == "train"
    assert {clip.split for clip in found.clips} == {"train"}
    assert len(found.clips) > 50


def test_a_pool_goes_before_a_training_part_and_is_used_alone(tmp_path: Path) -> None:
    rows = [{"file_name": f"{split}.wav", "split": split} for split in ("train", "pool", "valid", "test")]
    for seed, row in enumerate(rows):
        write_clip(tmp_path / row["file_name"], seed=seed)
    write_table(tmp_path / "metadata.csv", rows)
    assert [clip.id for clip in pool("mine", tmp_path / "home", mine=tmp_path).clips] == ["pool.wav"]


def test_a_corpus_of_tests_alone_is_refused(tmp_path: Path) -> None:
    rows = [{"file_name": f"{split}.wav", "split": split} for split in ("valid", "test")]
    for seed, row in enumerate(rows):
        write_clip(tmp_path / row["file_name"], seed=seed)
    write_table(tmp_path / "metadata.csv", rows)
    with pytest.raises(UserError, match=r"no audio to pre-train on in mine.*it has test, valid"):
        pool("mine", tmp_path / "home", mine=tmp_path)


def test_bad_files_are_named_or_left_out_and_counted(tmp_path: Path) -> None:
    write_clip(tmp_path / "good.wav")
    write_clip(tmp_path / "short.wav", seconds=0.01)
    (tmp_path / "empty.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"empty.wav is an empty file \(and 1 more\); .*--skip-bad"):
        pool(tmp_path, tmp_path / "home")
    found = pool(tmp_path, tmp_path / "home", skip_bad=True)
    assert [clip.id for clip in found.clips] == ["good.wav"]
    assert [name for name, _ in found.left_out] == ["empty.wav", "short.wav"]
    assert str(found).endswith("1 clips, 0.00 h, 2 left out")
    (tmp_path / "good.wav").unlink()
    with pytest.raises(UserError, match=r"empty\.wav is an empty file"):
        pool(tmp_path, tmp_path / "home", skip_bad=True)


def test_folders_without_audio_and_what_is_no_corpus_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text("file_name\n")
    with pytest.raises(UserError, match=r"no audio in .*empty"):
        pool(tmp_path / "empty", tmp_path / "home")
    with pytest.raises(UserError, match=r"did you mean 'tiny_pool'.*give a folder"):
        pool("tiny_pol", tmp_path / "home")
    with pytest.raises(UserError, match=r"file.csv is a file; give a folder"):
        pool(tmp_path / "file.csv", tmp_path / "home")


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Clips of split "pool" with some labels, one of another split with one more label, and an empty file."""
    rows = [
        {"file_name": "a.wav", "split": "pool", "speaker": "x", "language": "de"},
        {"file_name": "b.wav", "split": "pool", "speaker": "y", "language": ""},
        {"file_name": "c.wav", "split": "pool", "speaker": "", "language": "fi"},
        {"file_name": "d.wav", "split": "pool", "speaker": "", "language": ""},
        {"file_name": "e.wav", "split": "test", "speaker": "x", "language": "de", "emotion": "glad"},
    ]
    write_corpus(tmp_path / "spoken", rows)
    (tmp_path / "spoken" / "d.wav").write_bytes(b"")
    return tmp_path / "spoken"


def test_labels_are_those_of_the_clips_in_their_order(spoken: Path, tmp_path: Path) -> None:
    found = pool("mine", tmp_path, skip_bad=True, mine=spoken)
    assert found.kinds == ["language", "speaker"]
    assert found.labels("language") == ["de", None, "fi"]
    assert found.labels("speaker") == ["x", "y", None]
    assert found.labels("emotion") == [None] * 3


def test_the_digest_of_labels_follows_the_kinds_and_each_label(spoken: Path, tmp_path: Path) -> None:
    found = pool("mine", tmp_path, skip_bad=True, mine=spoken)
    assert found.digest_of(["speaker", "language"]) == found.digest_of(["language", "speaker"])
    first = found.clips[0]
    changed = found._replace(clips=[first._replace(labels={**first.labels, "speaker": "z"}), *found.clips[1:]])
    assert changed.digest == found.digest
    kinds: list[list[str]] = [["speaker"], ["language"], ["language", "speaker"]]
    digests = [each.digest_of(names) for each in (found, changed) for names in kinds]
    assert len(set(digests)) == 5, "the languages alone are the same"


def test_only_clips_with_a_label_are_taken_when_asked_for_and_the_others_counted(spoken: Path, tmp_path: Path) -> None:
    found = pool("mine", tmp_path, only="speaker", mine=spoken)
    assert [clip.id for clip in found.clips] == ["a.wav", "b.wav"], "and nobody minds that another is empty"
    assert (found.only, found.without, found.left_out) == ("speaker", 2, [])
    assert str(found) == "split pool of mine, 2 clips with a label 'speaker' (2 have none), 0.00 h"


def test_a_label_that_no_clip_of_the_pool_has_is_told_with_those_there_are(
    spoken: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no clip of mine has a label 'emotion', .* it has language, speaker$"):
        pool("mine", tmp_path, only="emotion", mine=spoken)
    message = r"which --only requires; it has no labels; to use those in a folder's metadata\.csv"
    with pytest.raises(UserError, match=message):
        pool(folder, tmp_path, only="speaker")
