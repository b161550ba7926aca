"""A corpus of the user's own, in every form that the Hugging Face audiofolder convention has."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmark.data.folder import draw_splits, folder
from benchmark.errors import UserError
from benchmark.values import SplitTrial, Utterance
from tests.benchmark.sounds import write_clip, write_corpus, write_table


def utterances(root: Path) -> list[Utterance]:
    return [item for item in folder(root) if isinstance(item, Utterance)]


def trials(root: Path) -> list[SplitTrial]:
    return [item for item in folder(root) if isinstance(item, SplitTrial)]


def complaint(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(folder(root))
    message = str(caught.value)
    assert "\n" not in message
    assert message[:1].islower() or message.startswith(("/", "'")) or message[:1].isdigit()
    assert ". " not in message
    return message


ROWS: list[dict[str, Any]] = [
    {"file_name": "x/a.wav", "split": "training", "keyword": "yes", "speaker": 1, "age": 31.0},
    {"file_name": "x/b.wav", "split": "Dev", "keyword": "no", "speaker": 2, "age": None},
    {"file_name": "x/c.wav", "split": "test", "keyword": "yes", "speaker": 3, "age": 44.5},
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_same_table_in_any_format_is_the_same_corpus(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"metadata.{suffix}", ROWS)
    found = utterances(tmp_path)
    assert [(item.id, item.split, item.labels["keyword"], item.labels["speaker"]) for item in found] == [
        ("x/a.wav", "train", "yes", "1"),
        ("x/b.wav", "valid", "no", "2"),
        ("x/c.wav", "test", "yes", "3"),
    ]
    assert [item.audio for item in found] == [tmp_path / "x" / f"{name}.wav" for name in "abc"]
    assert [item.labels.get("age") for item in found][1:] == [None, "44.5"]
    assert [(item.start, item.duration) for item in found] == [(0.0, None)] * 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_may_be_given_itself_whatever_it_is_called(tmp_path: Path, suffix: str) -> None:
    table = write_table(tmp_path / "deep" / f"mine.{suffix}", ROWS)
    assert [item.audio for item in utterances(table)] == [tmp_path / "deep" / "x" / f"{name}.wav" for name in "abc"]


def test_a_table_in_each_split_folder_needs_no_split_column(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_table(tmp_path / split / "metadata.csv", [{"file_name": "a.wav", "id": split, "keyword": "yes"}])
    found = {item.id: item for item in utterances(tmp_path)}
    assert {name: item.split for name, item in found.items()} == {
        "train": "train",
        "validation": "valid",
        "test": "test",
    }
    assert found["validation"].audio == tmp_path / "validation" / "a.wav"


def test_split_folders_may_hold_files_of_the_same_name(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write_table(tmp_path / split / "metadata.csv", [{"file_name": "a.wav", "keyword": "yes"}])
    assert [item.id for item in utterances(tmp_path)] == ["test/a.wav", "train/a.wav", "validation/a.wav"]


def test_without_a_table_folders_are_labels(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        for label in ("cat", "dog"):
            write_clip(tmp_path / split / label / "one.flac")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not audio")
    found = utterances(tmp_path)
    assert [(item.id, item.split, item.labels) for item in found][:2] == [
        ("dev/cat/one.flac", "valid", {"label": "cat"}),
        ("dev/dog/one.flac", "valid", {"label": "dog"}),
    ]
    assert len(found) == 6
    assert {item.split for item in found} == {"train", "valid", "test"}


def test_start_and_end_cut_stretches_of_one_recording(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.wav", "start": "0.5", "end": "1.25", "split": "train"},
        {"file_name": "a.wav", "start": "1.25", "end": "", "split": "train"},
        {"file_name": "a.wav", "start": "", "end": "0.5", "split": "train"},
    ]
    write_table(tmp_path / "metadata.csv", rows)
    found = utterances(tmp_path)
    assert [(item.start, item.duration) for item in found] == [(0.5, 0.75), (1.25, None), (0.0, 0.5)]
    assert len({item.id for item in found}) == 3


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_of_labels_are_joined(tmp_path: Path, suffix: str) -> None:
    rows = [{"file_name": "a.wav", "split": "train", "tags": ["dog", "rain"]}]
    write_table(tmp_path / f"metadata.{suffix}", [*rows, {"file_name": "b.wav", "split": "train", "tags": []}])
    assert [item.labels for item in utterances(tmp_path)] == [{"tags": "dog|rain"}, {}]


def test_cells_are_text_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "\ufefffile_name,split,digit,text,truth\na.wav,train,007, NA ,True\nb.wav,train,1e3,null,nan\n",
        encoding="utf-8",
    )
    assert [item.labels for item in utterances(tmp_path)] == [
        {"digit": "007", "text": "NA", "truth": "True"},
        {"digit": "1e3", "text": "null", "truth": "nan"},
    ]


def test_rows_longer_than_the_header_are_refused_rather_than_shifted(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,split,keyword\na.wav,train,yes,\nb.wav,test,no,\n")
    assert "cannot read" in complaint(tmp_path)


def test_rows_shorter_than_the_header_have_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,split,keyword\na.wav,train\nb.wav,test,no\n")
    assert [item.labels for item in utterances(tmp_path)] == [{}, {"keyword": "no"}]


def test_blanks_around_names_and_cells_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        'file_name, split, keyword\r\na.wav, train, "yes, sir"\r\nb.wav, test ,no\r\n'
    )
    assert [(item.split, item.labels) for item in utterances(tmp_path)] == [
        ("train", {"keyword": "yes, sir"}),
        ("test", {"keyword": "no"}),
    ]


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('\ufeff{"file_name": "a.wav", "split": "test"}\n', encoding="utf-8")
    assert [item.id for item in utterances(tmp_path)] == ["a.wav"]


def test_tables_and_split_folders_are_known_in_capitals_too(tmp_path: Path) -> None:
    for split in ("Train", "VALIDATION", "test"):
        write_table(tmp_path / split / "metadata.csv", [{"file_name": "a.wav"}]).rename(
            tmp_path / split / "Metadata.CSV"
        )
    assert sorted(item.split for item in utterances(tmp_path)) == ["test", "train", "valid"]


def test_a_table_over_split_folders_keeps_their_splits(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", [{"file_name": f"{split}/a/x.wav"} for split in ("Train", "dev", "test")])
    assert [item.split for item in utterances(tmp_path)] == ["train", "valid", "test"]
    write_table(tmp_path / "metadata.csv", [{"file_name": "train/x.wav", "split": "test"}])
    assert [item.split for item in utterances(tmp_path)] == ["test"]


def test_linked_folders_are_searched_and_hidden_files_are_not(tmp_path: Path) -> None:
    write_clip(tmp_path / "elsewhere" / "cat" / "a.wav")
    root = tmp_path / "root"
    write_clip(root / "train" / "dog" / "b.WAV")
    (root / "train" / "dog" / "._b.wav").write_bytes(b"left by another system")
    (root / "test").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "dog" / "back").symlink_to(root)
    found = {item.id: (item.split, item.labels) for item in utterances(root)}
    assert found == {"test/cat/a.wav": ("test", {"label": "cat"}), "train/dog/b.WAV": ("train", {"label": "dog"})}


def test_drawn_splits_never_share_a_speaker_and_do_not_depend_on_order(tmp_path: Path) -> None:
    rows = [{"file_name": f"{n}.wav", "speaker": f"s{n % 30}", "keyword": "yes"} for n in range(120)]
    write_table(tmp_path / "one" / "metadata.csv", rows)
    random.Random(1).shuffle(rows)
    write_table(tmp_path / "two" / "metadata.csv", rows)
    one, two = ({item.id: item for item in utterances(tmp_path / name)} for name in ("one", "two"))
    assert {name: item.split for name, item in one.items()} == {name: item.split for name, item in two.items()}
    splits = {(item.labels["speaker"], item.split) for item in one.values()}
    assert len(splits) == 30
    assert sorted(split for _, split in splits) == ["test"] * 3 + ["train"] * 24 + ["valid"] * 3


def test_drawn_splits_stay_mostly_the_same_when_a_speaker_is_added() -> None:
    names = {f"s{number}" for number in range(100)}
    before, after = (draw_splits({name: name for name in some}) for some in (names, names | {"another"}))
    assert sum(before[name] != after[name] for name in names) <= 2


def test_without_speakers_clips_are_drawn_each_by_itself(tmp_path: Path) -> None:
    write_table(tmp_path / "metadata.csv", [{"file_name": f"{n}.wav", "keyword": "yes"} for n in range(20)])
    splits = [item.split for item in utterances(tmp_path)]
    assert sorted(set(splits)) == ["test", "train", "valid"]
    assert splits.count("train") == 16


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"path": "a.wav", "keyword": "yes"}], "has no column 'file_name' (it has: path, keyword)"),
        ([{"file_name": "", "keyword": "yes"}], "row 1 has an empty 'file_name'"),
        ([{"file_name": "a", "start": "soon", "split": "train"}], "row 1 has 'start' 'soon'"),
        ([{"file_name": "a", "start": "-1", "split": "train"}], "row 1 has 'start' '-1'"),
        ([{"file_name": "a", "end": "nan", "split": "train"}], "row 1 has 'end' 'nan'"),
        ([{"file_name": "a", "start": "2", "end": "1", "split": "train"}], "row 1 ends at 1.0 s, not after its start"),
        ([{"file_name": "a", "end": "0", "split": "train"}], "row 1 ends at 0.0 s, not after its start at 0.0 s"),
        (
            [{"file_name": "a", "split": "train"}, {"file_name": "b", "split": ""}],
            "1 of 2 rows have no split, 'b' first; give all a split or none",
        ),
        ([], "no recordings in"),
        ([{"file_name;split": "a.wav;train"}], "(it has: file_name;split); separate columns by commas"),
        ([{"file_name": "a\0b.wav", "split": "train"}], "row 1 has a broken 'file_name'"),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, rows: list[dict[str, str]], expected: str) -> None:
    if rows:
        write_table(tmp_path / "metadata.csv", rows)
    else:
        (tmp_path / "metadata.csv").write_text("file_name,keyword\n")
    assert expected in complaint(tmp_path)


def test_files_that_are_no_tables_are_explained(tmp_path: Path) -> None:
    assert "no corpus at" in complaint(tmp_path / "nowhere")
    (tmp_path / "table.xlsx").write_text("x")
    assert "is not a table of recordings" in complaint(tmp_path / "table.xlsx")
    for name, content in (("a.jsonl", b"{'a': 1"), ("a.parquet", b"PAR"), ("a.csv", b"\xff\xfe\x00,"), ("b.csv", b"")):
        (tmp_path / name).write_bytes(content)
        assert f"cannot read {tmp_path / name}" in complaint(tmp_path / name)
    (tmp_path / "ragged.csv").write_text("file_name,split\na.wav,train\nb.wav,train,yes,no\n")
    assert "cannot read" in complaint(tmp_path / "ragged.csv")
    (tmp_path / "list.jsonl").write_text('{"file_name": ["a.wav"]}\n')
    assert utterances(tmp_path / "list.jsonl")[0].id == "a.wav"
    (tmp_path / "none").mkdir()
    assert "no recordings in" in complaint(tmp_path / "none")


SPLIT = [{"file_name": f"{n}.wav", "split": "test", "speaker": f"s{n // 2}"} for n in range(4)]


def test_a_trial_list_may_be_a_table_or_plain_words(tmp_path: Path) -> None:
    write_corpus(tmp_path, SPLIT)
    (tmp_path / "trials.txt").write_text("1 0.wav 1.wav\n\n0 0.wav 2.wav\n")
    expected = [SplitTrial("test", "0.wav", "1.wav", True), SplitTrial("test", "0.wav", "2.wav", False)]
    assert trials(tmp_path) == expected
    rows = [{"enroll": "2.wav", "test": "3.wav", "target": "True", "split": "dev"}]
    write_table(tmp_path / "trials.csv", rows)
    assert trials(tmp_path) == [SplitTrial("valid", "2.wav", "3.wav", True)]
    (tmp_path / "trials.csv").write_text("enroll,test,target,split\n0.wav, 2.wav,nontarget\n")
    assert trials(tmp_path) == [SplitTrial("test", "0.wav", "2.wav", False)]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("trials.csv", "enroll,test\n0.wav,1.wav\n", "has no column 'target'"),
        ("trials.csv", "enroll,test,target\n0.wav,1.wav,2\n", "has target '2'; write 1 or 0"),
        ("trials.csv", "enroll,test,target\n0.wav,9.wav,1\n", "names utterance '9.wav', which is not in"),
        ("trials.txt", "1 0.wav\n", "must hold three words per line"),
        ("trials.txt", "1 0.wav \xe9.wav\n", "trials.txt; check that it is text in UTF-8"),
        ("trials.txt", "yes 0.wav 1.wav\n", "has target 'yes'"),
    ],
)
def test_a_wrong_trial_list_is_explained(tmp_path: Path, name: str, text: str, expected: str) -> None:
    write_corpus(tmp_path, SPLIT)
    (tmp_path / name).write_text(text, encoding="latin-1")
    assert expected in complaint(tmp_path)


def write_rows(root: Path, rows: list[dict[str, Any]]) -> None:
    root.mkdir(exist_ok=True)
    write_table(root / "metadata.csv", rows)


def test_without_validation_a_tenth_of_the_training_speakers_is_drawn(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{place}.wav", "split": "test" if place % 40 > 29 else "train", "speaker": f"s{place % 40}"}
        for place in range(400)
    ]
    write_rows(tmp_path, rows)
    by_split: dict[str, set[str]] = {}
    for item in utterances(tmp_path):
        by_split.setdefault(item.split, set()).add(item.labels["speaker"])
    assert {split: len(speakers) for split, speakers in by_split.items()} == {"train": 27, "valid": 3, "test": 10}
    assert not by_split["valid"] & by_split["train"]


def test_without_validation_clips_are_drawn_where_train_and_test_share_speakers(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{place}.wav", "split": "test" if place % 5 == 0 else "train", "speaker": f"s{place % 7}"}
        for place in range(350)
    ]
    write_rows(tmp_path, rows)
    valid = [item for item in utterances(tmp_path) if item.split == "valid"]
    assert len(valid) == 28
    assert len({item.labels["speaker"] for item in valid}) == 7


def test_pieces_of_one_recording_stay_in_one_split_wherever_the_corpus_lies(tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{place % 20}.wav", "start": float(place), "end": place + 1.0, "label": "x"}
        for place in range(200)
    ]
    drawn = []
    for root in (tmp_path / "here", tmp_path / "there"):
        write_rows(root, rows)
        drawn.append({item.id: item.split for item in utterances(root)})
        assert len({(item.audio.name, item.split) for item in utterances(root)}) == 20
    assert drawn[0] == drawn[1]
