"""Every kind of task, from audio to the table, on a corpus of tones."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_curve

from benchmark.engines.local import ProcessPool, in_process
from benchmark.environment import commit, machine_facts
from benchmark.records import Record, Results
from benchmark.run import Outcome, run, threads
from benchmark.tables.leaderboard import Board
from benchmark.tables.report import leaderboard_frame
from benchmark.tasks import Task
from benchmark.values import Card, Engine, Setup
from tests.benchmark.encoders import write_encoder
from tests.conftest import Finished


@pytest.fixture
def setup(home: Path, tones: Path, tmp_path: Path) -> Setup:
    return Setup(home, tmp_path / "results", (("tones", str(tones)),))


def changed(task: Task, **fields: Any) -> Task:
    return Task(**{**task.model_dump(), **fields})


def value(outcome: Outcome, upstream: str, task: str) -> float:
    assert outcome.failures == []
    return outcome.table[upstream, task].value


def ran(task: Task, upstream: str, setup: Setup, engine: Engine = in_process) -> Outcome:
    outcome = run([task], [upstream], setup, engine)
    assert outcome.failures == []
    return outcome


@pytest.mark.parametrize(
    ("task", "chance", "least"),
    [("words", 25.0, 60.0), ("sounds", 57.0, 80.0), ("same", 50.0, 30.0), ("vector", 50.0, 35.0), ("letters", 100, 60)],
)
def test_every_kind_of_head_learns_well_above_chance(
    finished: Finished, task: str, chance: float, least: float
) -> None:
    cell = finished.outcome.table["fbank", task]
    score = value(finished.outcome, "fbank", task)
    assert (score > least > chance) if cell.higher else (score < least < chance)


def test_there_is_a_record_for_every_point_of_every_grid(finished: Finished, tasks: dict[str, Task]) -> None:
    found = Counter((record.task["name"], record.lr, record.seed) for record in finished.outcome.records)
    expected = [
        (task.name, lr, seed)
        for task in tasks.values()
        if task.head != "cosine"
        for lr in task.lr
        for seed in task.seeds
    ]
    assert found == Counter([*expected, ("same", None, 0)])
    assert finished.outcome.trained == len(found)
    assert Results(finished.setup.results).read_all() == (
        sorted(finished.outcome.records, key=lambda record: (record.task["name"], record.id)),
        [],
    )


def test_a_record_tells_all_that_is_needed(finished: Finished, tasks: dict[str, Task]) -> None:
    for record in finished.outcome.records:
        task = tasks[record.task["name"]]
        assert sum(record.layer_weights) == pytest.approx(1, abs=1e-4)
        assert record.versions.keys() >= {"python", "torch", "numpy"}
        assert record.seconds.keys() == {"fit", "test"}
        assert record.clips["train"] > 0
        assert record.cost["macs_per_second"] == pytest.approx(257 * 80 * 498 / 5, rel=1e-3)
        assert record.cost["real_time_factor"] > 0
        assert record.upstream.keys() == Card.__annotations__.keys() - {"cost", "origin"}
        assert (record.diverged, record.skipped, record.limit, record.fold) == (False, {}, None, None)
        assert (record.layer, record.skip_bad, record.commit) == (None, False, commit())
        assert record.machine == machine_facts("cpu")
        assert record.threads == {"heads": 1, "encoder": torch.get_num_threads()}
        assert record.contents.keys() == {"audio", "labels", "trials"}
        points = [(lr, seed, None) for lr in task.lr for seed in task.seeds]
        assert record.beside == ([(None, 0, None)] if task.head == "cosine" else points)
        if task.head != "cosine":
            assert 1 <= record.epoch <= len(record.curve) <= task.epochs
            best = record.curve[record.epoch - 1][1]
            scores = [score for _, score in record.curve if score is not None]
            assert best == (max(scores) if record.higher else min(scores))
            assert record.valid[record.metric] == pytest.approx(best)


def test_outcomes_tell_which_clips_depend_on_each_other(finished: Finished, tones: Path) -> None:
    with (tones / "metadata.csv").open(newline="") as file:
        speakers = {row["file_name"]: row["speaker"] for row in csv.DictReader(file)}
    assert len(speakers) == 12 * 25
    for record in finished.outcome.records:
        rows = Results(finished.setup.results).outcomes(record)
        for row in rows:
            if record.task["target"] == "verify":
                sides = {side: row[f"{side}_cluster"] for side in ("enroll", "test")}
                assert sides == {side: f"verify {speakers[row[side]]}" for side in sides}
            else:
                assert row["cluster"] == f"speaker {speakers[row['id']]}"
        assert record.clustered_by == ("verify" if record.task["target"] == "verify" else "speaker")


def losses_of(record: Record) -> list[float]:
    return [math.nan if loss is None else loss for loss, _ in record.curve]


def outcomes(finished: Finished, task: str) -> list[tuple[Record, list[dict[str, str]]]]:
    results = Results(finished.setup.results)
    own = [record for record in finished.outcome.records if record.task["name"] == task]
    assert own
    return [(record, results.outcomes(record)) for record in own]


def test_accuracy_and_f1_can_be_recomputed_from_the_outcomes(finished: Finished) -> None:
    for record, rows in outcomes(finished, "words"):
        truth, said = [row["reference"] for row in rows], [row["prediction"] for row in rows]
        assert len(rows) == record.clips["test"] == 24
        right = [row["correct"] == "True" for row in rows]
        assert right == [one == other for one, other in zip(truth, said, strict=True)]
        assert record.test["accuracy"] == pytest.approx(100 * np.mean(right))
        assert record.test["macro_f1"] == pytest.approx(100 * f1_score(truth, said, average="macro", zero_division=0))
        assert record.test["uar"] == pytest.approx(100 * recall_score(truth, said, average="macro", zero_division=0))


def test_average_precision_can_be_recomputed_from_the_outcomes(finished: Finished) -> None:
    for record, rows in outcomes(finished, "sounds"):
        scores = [json.loads(row["scores"]) for row in rows]
        each = [
            average_precision_score(
                [name in row["reference"].split("|") for row in rows], [one[name] for one in scores]
            )
            for name in scores[0]
        ]
        assert record.test["map"] == pytest.approx(100 * np.mean(each), abs=1e-3)


def edits(reference: Sequence[str], said: Sequence[str]) -> int:
    row = list(range(len(said) + 1))
    for i, one in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (one != other))
    return row[-1]


def test_error_rates_can_be_recomputed_from_the_outcomes(finished: Finished) -> None:
    for record, rows in outcomes(finished, "letters"):
        pairs = [(row["reference"], row["hypothesis"]) for row in rows]
        words = sum(edits(one.split(), other.split()) for one, other in pairs)
        assert record.test["wer"] == pytest.approx(100 * words / sum(len(one.split()) for one, _ in pairs))
        letters = sum(edits(one, other) for one, other in pairs)
        assert record.test["cer"] == pytest.approx(100 * letters / sum(len(one) for one, _ in pairs))


@pytest.mark.parametrize("task", ["same", "vector"])
def test_equal_error_rates_can_be_recomputed_from_the_outcomes(finished: Finished, task: str) -> None:
    for record, rows in outcomes(finished, task):
        truth = [row["target"] == "True" for row in rows]
        assert len(rows) == record.trials["test"]
        false, true, _ = roc_curve(truth, [float(row["score"]) for row in rows], drop_intermediate=False)
        crossing = np.argmin(np.abs(false - (1 - true)))
        near = 50 * (false[crossing] + 1 - true[crossing])
        assert record.test["eer"] == pytest.approx(near, abs=100 / min(sum(truth), len(truth) - sum(truth)))


@pytest.mark.parametrize(("name", "epochs", "nearly"), [("words", 12, 0.01), ("letters", 5, 0.1)])
def test_stored_features_and_the_upstream_run_live_teach_the_same(
    name: str, epochs: int, nearly: float, tasks: dict[str, Task], setup: Setup
) -> None:
    # Clips whose numbers of frames are equal are told apart by their samples when live: their batches differ a little.
    curves = []
    for features in ("frames", "live"):
        task = changed(tasks[name], lr=[1e-2], seeds=[0], epochs=epochs, features=features)
        record = ran(task, "fbank", replace(setup, results=setup.results / features)).records[0]
        assert record.features == features
        curves.append(losses_of(record))
    assert curves[0][-1] < 0.5 * curves[0][0]
    np.testing.assert_allclose(curves[0], curves[1], rtol=nearly, atol=nearly)


def test_frames_too_large_for_the_budget_are_never_stored(tasks: dict[str, Task], setup: Setup, tmp_path: Path) -> None:
    small = replace(setup, home=tmp_path / "home", budget=1e-6)
    outcome = ran(changed(tasks["letters"], epochs=1), "fbank", small)
    assert outcome.records[0].features == "live"
    assert not list((tmp_path / "home").glob("features/*"))


def test_folds_are_one_cell_and_every_clip_is_tested_once(tasks: dict[str, Task], setup: Setup) -> None:
    outcome = ran(changed(tasks["words"], folds="session", epochs=5, lr=[1e-2]), "fbank", setup)
    cell = outcome.table["fbank", "words"]
    assert (cell.folds, cell.seeds, cell.clips) == (4, 2, 96)
    tested = [
        row["id"] for record in outcome.records if record.seed == 0 for row in Results(setup.results).outcomes(record)
    ]
    assert len(tested) == len(set(tested)) == 96


def test_fine_tuning_changes_the_upstream_and_learns_more_than_a_frozen_one(
    tasks: dict[str, Task], setup: Setup, tmp_path: Path
) -> None:
    name = write_encoder(tmp_path / "mine.py")
    losses = {}
    for features in ("live", "finetune"):
        task = changed(tasks["words"], features=features, lr=[3e-3], seeds=(0,), epochs=6)
        record = ran(task, name, replace(setup, results=tmp_path / features)).records[0]
        assert record.features == features
        losses[features] = losses_of(record)[-1]
    assert losses["finetune"] < 0.9 * losses["live"]


def test_a_table_is_the_same_with_one_worker_of_two_threads_and_two_of_one(
    tasks: dict[str, Task], tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    chosen = [changed(tasks["words"], epochs=4), tasks["same"], changed(tasks["letters"], epochs=4)]
    tables, used = [], []
    for name, engine, count in (("one", in_process, 2), ("two", ProcessPool(2), 1)):
        setup = Setup(tmp_path / name / "home", tmp_path / name / "results", (("tones", str(tones)),))
        with threads(count):
            outcome = run(chosen, ["fbank"], setup, engine)
        assert outcome.failures == []
        tables.append(
            (
                outcome.table,
                leaderboard_frame(Board(outcome.table, {}, [])).to_csv(),
                [record.curve for record in outcome.records],
            )
        )
        used.append([record.threads for record in outcome.records])
    assert tables[0] == tables[1]
    assert {counts["heads"] for counts in used[0] + used[1]} == {1}
    assert [{counts["encoder"] for counts in some} for some in used] == [{2}, {1}]


def test_nothing_is_done_twice(finished: Finished, tasks: dict[str, Task]) -> None:
    def contents() -> dict[Path, tuple[int, bytes]]:
        files = [path for path in finished.setup.results.rglob("*") if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = contents()
    outcome = run(list(tasks.values()), ["fbank"], finished.setup, in_process)
    assert outcome.trained == 0
    assert outcome.table == finished.outcome.table
    assert contents() == before


def test_widening_a_sweep_keeps_old_records_and_trains_only_what_is_new(tasks: dict[str, Task], setup: Setup) -> None:
    narrow = changed(tasks["words"], lr=[1e-2], seeds=[0])
    first = ran(narrow, "fbank", setup)
    before = {path: path.read_bytes() for path in setup.results.rglob("*") if path.is_file()}
    wider = ran(changed(narrow, lr=[1e-2, 1e-3], seeds=[0, 1]), "fbank", setup)
    assert (first.trained, wider.trained) == (1, 3)
    assert {path: path.read_bytes() for path in before} == before
    assert len(wider.records) == 4
    assert wider.table["fbank", "words"].seeds == 2
    fresh = ran(changed(narrow, lr=[1e-2, 1e-3], seeds=[0, 1]), "fbank", replace(setup, results=setup.results / "new"))
    for one, other in zip(wider.records, fresh.records, strict=True):
        assert (one.id, one.lr, one.seed) == (other.id, other.lr, other.seed)
        assert one.valid[one.metric] == pytest.approx(other.valid[other.metric], abs=5)
    assert ran(narrow, "fbank", setup).trained == 0


def test_skipped_clips_are_counted_in_the_record_and_the_table(
    tasks: dict[str, Task], setup: Setup, tmp_path: Path
) -> None:
    from tests.benchmark.sounds import labelled, write_corpus

    rows = labelled({"train": ["a", "b"] * 3, "valid": ["a", "b", "a", "b"], "test": ["a", "b", "c", "a"]})
    root = write_corpus(tmp_path / "bad", rows)
    (root / "train0.wav").write_bytes(b"")
    task = changed(tasks["words"], corpus="bad", epochs=2, seeds=[0], lr=[1e-2])
    mine = replace(setup, data=(("bad", str(root)),), skip_bad=True)
    outcome = ran(task, "fbank", mine)
    (record,) = outcome.records
    assert record.skipped == {"bad audio": 1, "test label unseen in training": 1}
    assert record.clips == {"train": 5, "valid": 4, "test": 3}
    assert outcome.table["fbank", "words"].skipped == 2


def test_a_limit_is_marked_only_where_it_left_something_out(tasks: dict[str, Task], setup: Setup) -> None:
    task = changed(tasks["words"], epochs=2, seeds=[0], lr=[1e-2])
    limited = ran(task, "fbank", replace(setup, limit=8))
    assert limited.records[0].clips == {"train": 8, "valid": 8, "test": 8}
    assert limited.table["fbank", "words"].limit == 8
    generous = ran(task, "fbank", replace(setup, limit=1000))
    assert generous.table["fbank", "words"].limit is None
    full = ran(task, "fbank", setup)
    assert full.trained == 0
    assert full.table == generous.table


def test_a_head_that_diverges_is_recorded_as_such_and_never_chosen(tasks: dict[str, Task], setup: Setup) -> None:
    task = changed(tasks["letters"], lr=[1e-2, 1e30], epochs=2, clip=1e30)
    outcome = ran(task, "fbank", setup)
    assert [record.diverged for record in outcome.records] == [False, True]
    assert outcome.records[1].valid[outcome.records[1].metric] is None
    assert outcome.table["fbank", "letters"].lr == 1e-2
