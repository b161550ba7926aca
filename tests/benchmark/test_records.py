"""Records and their outcomes are written once and read back as they were."""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmark import packed
from benchmark.errors import UserError
from benchmark.records import Record, Results, load_record, outcomes_path, slug
from tests.benchmark.made import record


def key(each: object) -> tuple[str, str, str]:
    return each.task["name"], each.upstream["name"], each.id  # type: ignore[attr-defined]


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    results = Results(tmp_path)
    cost = {"parameters": 94_371_584, "macs_per_second": 7.1734e9, "real_time_factor": 0.125, "threads": 2}
    written = record(
        valid=None, test=1 / 3, skipped={"bad audio": 2}, fold="session é", limit=4, cost=cost, origin={"a": "b"}
    )
    assert not results.has(*key(written))
    results.write(written, [])
    assert results.has(*key(written))
    assert results.read([key(written), ("words", "fbank", "absent")]) == [written]
    assert results.read_all() == ([written], [])
    assert results.outcomes(written) == []
    assert results.read([key(written)])[0].model_dump()["cost"] == cost
    assert '"parameters": 94371584,' in results.path(*key(written)).read_text()


def test_a_record_from_before_costs_were_recorded_is_read(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(record(), [])
    path = results.path(*key(record()))
    content = json.loads(path.read_text())
    del content["cost"], content["origin"]
    path.write_text(json.dumps(content))
    assert results.read_all() == ([record()], [])


LATER = ("layer", "clustered_by", "beside", "skip_bad", "commit", "machine", "threads", "contents")


def test_a_record_from_before_layers_clusters_and_machines_were_recorded_is_read(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(record(), [])
    path = results.path(*key(record()))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in LATER}))
    (old,) = results.read_all()[0]
    assert old == record()
    assert [getattr(old, name) for name in LATER] == [None, None, [], False, "", {}, {}, {}]


def test_what_a_record_tells_of_its_company_and_its_machine_comes_back(tmp_path: Path) -> None:
    told = record(
        layer=2, clustered_by="speaker", beside=[(None, 0, None), (1e-3, 1, 2)], skip_bad=True, commit="a" * 40 + "+",
        machine={"cores": "2"}, threads={"heads": 1, "encoder": 4}, contents={"audio": "b"},
    )  # fmt: skip
    Results(tmp_path).write(told, [])
    assert Results(tmp_path).read_all() == ([told], [])
    assert Results(tmp_path).find(told.id) == [told]
    assert Results(tmp_path).find("*") == []


def test_outcomes_keep_texts_numbers_and_structures(tmp_path: Path) -> None:
    rows = [
        {"id": 'a,"b"\n', "reference": "", "score": 1 / 3, "correct": True, "scores": {"b": 1.5, "a": 2}},
        {"id": "ü", "reference": "x|y", "score": -12345.678901, "correct": False, "scores": {}},
    ]
    results = Results(tmp_path)
    results.write(record(), rows)
    found = results.outcomes(record())
    assert [row["id"] for row in found] == ['a,"b"\n', "ü"]
    assert [float(row["score"]) for row in found] == [1 / 3, -12345.678901]
    assert [row["correct"] for row in found] == ["True", "False"]
    assert found[0]["scores"] == '{"a": 2, "b": 1.5}'


def test_the_same_outcomes_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Results(tmp_path / name).write(record(), [{"id": "a", "score": 0.5}])
    one, two = (next((tmp_path / name).rglob("*.gz")).read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_record_that_would_hold_nan_is_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        Results(tmp_path).write(record(test=float("nan")).model_copy(update={"test": {"accuracy": float("nan")}}), [])
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_failure_lies_beside_its_record_until_that_is_written(tmp_path: Path) -> None:
    results = Results(tmp_path)
    done = record()
    paths = results.fail("words", "fbank", [done.id, "other"], "it broke\n")
    assert [path.read_text() for path in paths] == ["it broke\n"] * 2
    assert paths[0].parent == results.path(*key(done)).parent
    assert not results.has(*key(done))
    results.write(done, [])
    assert [path.exists() for path in paths] == [False, True]


def test_strange_files_are_told_apart_and_left_alone(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(record(), [])
    strange = tmp_path / "runs" / "words" / "fbank" / "zz.json"
    for content in ("{}", "not json", '{"id": "x", "unknown": 1}'):
        strange.write_text(content)
        assert results.read_all() == ([record()], [strange])
        assert load_record(strange) is None
        assert strange.read_text() == content
    (strange.parent / ".zz.json.12.partial").write_text("{")
    assert results.read_all() == ([record()], [strange])


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_damaged_record_is_not_done_and_can_be_made_anew(tmp_path: Path, content: str) -> None:
    results = Results(tmp_path)
    results.write(record(), [])
    results.path(*key(record())).write_text(content)
    assert not results.has(*key(record()))
    results.write(record(), [])
    assert results.has(*key(record()))


def test_a_folder_that_cannot_be_written_to_is_told_of_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Results(tmp_path / "new" / "folder").prepare()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as where a disk is mounted to be read only
    with pytest.raises(PermissionError):
        Results(tmp_path).prepare()


def test_a_record_knows_no_other_fields() -> None:
    with pytest.raises(ValidationError):
        record(colour="red")


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=60) | st.sampled_from(
    ["fbank", "fbank@random", "hf:/a/b", "hf:/a_b", "hf_/a_b", "./mine.py:f", "mine.py_f", "..", ".", "a" * 300, "A"]
)


@given(NAMES, NAMES)
def test_different_names_have_different_folders_and_none_leaves_its_place(one: str, other: str) -> None:
    for name in (one, other):
        assert "/" not in slug(name)
        assert slug(name) not in ("", ".", "..")
        assert not slug(name).startswith(".")
        assert len(slug(name).encode()) < 120
    assert (slug(one) == slug(other)) == (one == other)


def test_plain_names_are_their_own_folders() -> None:
    for name in ("fbank", "fbank_cmvn", "wav2vec2-base@random", "tiny_asr", "v1.2"):
        assert slug(name) == name


# Packed results.


def packed_results(folder: Path) -> tuple[Results, list[Record]]:
    """Results of three jobs, one of them without rows, and of outcomes with different columns, in the packed form."""
    results = Results(folder)
    some = [
        record(upstream="fbank", seed=1),
        record(upstream="hf:/a/b", task="trials", metric="eer", id="of trials"),
        record(upstream="fbank", seed=2, lr=None),
    ]
    results.write(
        some[0], [{"id": 'ä,"\n', "reference": "", "score": 1 / 3}, {"id": "b", "reference": "x", "score": 2}]
    )
    results.write(some[1], [{"enroll": "a", "test": "b", "target": True, "score": -0.5, "test_cluster": "s"}])
    results.write(some[2], [])
    return results, some


def contents(results: Results) -> dict[str, list[dict[str, str]]]:
    return {one.id: results.outcomes(one) for one in results.read_all()[0]}


def test_packed_results_are_a_few_files_and_read_as_before(tmp_path: Path) -> None:
    results, some = packed_results(tmp_path)
    before, outcomes = results.read_all(), contents(results)
    assert results.pack() == (3, [])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "outcomes/trials.parquet", "outcomes/words.parquet", "records.jsonl",
    ]  # fmt: skip
    for again in (results, Results(tmp_path)):
        assert again.read_all() == before
        assert contents(again) == outcomes
        assert all(again.has(*key(one)) for one in some)
        assert again.read(map(key, some)) == some
        assert again.find(some[1].id) == [some[1]]
    assert results.pack() == (3, [])
    assert contents(results) == outcomes


def test_packing_again_adds_new_records_and_keeps_old_ones(tmp_path: Path) -> None:
    results, some = packed_results(tmp_path)
    results.pack()
    new = record(upstream="mfcc", seed=3)
    results.write(new, [{"id": "b", "reference": "x", "score": 3, "cluster": "s"}])
    results.write(some[0], [{"id": "other", "reference": "", "score": 4}])  # made anew: the file of its own counts
    expected = contents(results)
    assert expected[some[0].id] == [{"id": "other", "reference": "", "score": "4"}]
    assert results.pack() == (4, [])
    assert contents(Results(tmp_path)) == expected


def test_packed_files_are_the_same_bytes_whatever_the_order_of_packing(tmp_path: Path) -> None:
    for name in ("at once", "in steps"):
        results, some = Results(tmp_path / name), [record(seed=seed) for seed in range(3)]
        for one in some if name == "at once" else reversed(some):
            results.write(one, [{"id": "a", "score": float(one.seed)}])
            if name == "in steps":
                results.pack()
        results.pack()
    for file in ("records.jsonl", "outcomes/words.parquet"):
        assert (tmp_path / "at once" / file).read_bytes() == (tmp_path / "in steps" / file).read_bytes()


def test_what_cannot_be_packed_stays_as_it_is_and_is_named(tmp_path: Path) -> None:
    results, some = packed_results(tmp_path)
    strange = results.path("words", "fbank", "strange")
    strange.write_text("not json")
    lost = results.path(*key(some[1]))
    outcomes_path(lost).write_bytes(b"damaged")
    assert results.pack() == (2, [lost, strange])
    assert strange.read_text() == "not json"
    assert results.read_all() == ([some[1], some[0], some[2]], [strange])


def test_a_record_in_a_file_of_another_name_takes_no_other_records_place(tmp_path: Path) -> None:
    results, some = packed_results(tmp_path)
    older = some[0].model_copy(update={"protocol": 0})
    path = results.path("words", "fbank", "0000")
    path.write_text(older.model_dump_json())
    assert results.read_all() == ([some[1], older, some[0], some[2]], [])
    assert results.pack() == (3, [path])
    assert results.read_all() == ([some[1], older, some[0], some[2]], [])


def test_a_damaged_line_is_named_and_never_lost(tmp_path: Path) -> None:
    results, _ = packed_results(tmp_path)
    results.pack()
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text() + '{"id": "from a later version"}\n')
    kept, strange = results.read_all()
    assert len(kept) == 3
    assert [one.name for one in strange] == ["records.jsonl:4"]
    results.write(record(seed=9), [])
    with pytest.raises(UserError, match=r"records.jsonl:4 is not a record that this version can read; mend or delete"):
        results.pack()
    assert "from a later version" in path.read_text()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet" * 100])
def test_damaged_packed_outcomes_are_an_error_and_not_other_outcomes(tmp_path: Path, content: bytes) -> None:
    results, some = packed_results(tmp_path)
    results.pack()
    (tmp_path / "outcomes" / "words.parquet").write_bytes(content)
    with pytest.raises(OSError, match="damaged"):
        results.outcomes(some[0])
    (tmp_path / "outcomes" / "words.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        results.outcomes(some[0])
    assert results.outcomes(some[1])[0]["enroll"] == "a"


def test_an_interrupted_packing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before the records are written, and before the single files are deleted."""
    for name in ("write_lines", "write_task_outcomes"):
        results, _ = packed_results(tmp_path / name)
        expected = contents(results)
        with monkeypatch.context() as patch:
            patch.setattr(packed, name, raise_interrupt)
            with pytest.raises(KeyboardInterrupt):
                results.pack()
        assert contents(Results(tmp_path / name)) == expected
        assert results.pack() == (3, [])
        assert contents(Results(tmp_path / name)) == expected


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.fixed_dictionaries({"id": TEXTS, "reference": TEXTS}, optional={"cluster": TEXTS}), max_size=5))
def test_packed_outcomes_of_any_text_come_back(rows: list[dict[str, str]]) -> None:
    full = [{"cluster": "", **row} for row in rows]
    with TemporaryDirectory() as folder:
        path = packed.parquet_path(Path(folder), "words/fbank/a")
        packed.write_task_outcomes(path, {"words/fbank/a": full, "words/fbank/b": [{"other": "x"}]})
        assert packed.read_outcomes(Path(folder), "words/fbank/a") == full
        assert packed.read_task_outcomes(path) == {"words/fbank/a": full, "words/fbank/b": [{"other": "x"}]}
