"""A job can be run again from its record: the result is identical, or the message names what has changed."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy import stats

from benchmark.engines.local import in_process
from benchmark.records import Record, Results
from benchmark.reproduction.agreement import (
    RecordedJob,
    Rerun,
    agreement_sentence,
    environment_differences,
    identical,
    score_within_interval,
)
from benchmark.reproduction.rerun import read_recorded_job, recorded_setup, rerun_job
from benchmark.run import run, threads
from benchmark.tasks import Task
from benchmark.values import Setup
from tests.benchmark.encoders import write_encoder
from tests.benchmark.made import record
from tests.benchmark.sounds import labelled, write_corpus, write_tones
from tests.conftest import Bench, Finished


def paths(results: Path, task: str = "*") -> list[Path]:
    found = sorted(results.glob(f"runs/{task}/*/*.json"))
    assert found
    return found


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def again(path: Path, setup: Setup) -> Rerun:
    recorded = read_recorded_job(path)
    return rerun_job(recorded, recorded_setup(recorded.record, setup.home, setup.data, "auto"))


def edited(path: Path, folder: Path, **fields: Any) -> Path:
    """Return the path of an edited copy of a record, with its outcomes and the records beside it."""
    copy = folder / "runs" / "task" / "upstream"
    shutil.copytree(path.parent, copy)
    content = json.loads(path.read_text())
    (copy / path.name).write_text(json.dumps(content | fields))
    return copy / path.name


def ran(task: Task, upstream: str, setup: Setup) -> list[Record]:
    outcome = run([task], [upstream], setup, in_process)
    assert outcome.failures == []
    return outcome.records


@pytest.mark.parametrize("task", ["words", "sounds", "same", "vector", "letters"])
def test_every_kind_of_job_gives_the_same_bits_again(
    task: str, finished: Finished, bench: Bench, tones: Path, home: Path
) -> None:
    path = paths(finished.setup.results, task)[-1]
    before = contents(finished.setup.results)
    answer = bench("rerun", path, "--data", f"tones={tones}", "--home", home)
    assert answer.code == 0, answer.err
    then = read_recorded_job(path)
    scores = 2 * len(then.record.test)
    assert (
        f"identical to the last bit: {scores} scores, the epoch and {len(then.outcomes or [])} outcomes" in answer.out
    )
    assert "differ" not in answer.out
    assert contents(finished.setup.results) == before


def test_features_made_anew_and_other_threads_than_the_callers_give_the_same_bits(
    finished: Finished, tmp_path: Path
) -> None:
    path = paths(finished.setup.results, "words")[0]
    with threads(3):
        result = again(path, replace(finished.setup, home=tmp_path))
        assert torch.get_num_threads() == 3
    assert identical(result)
    assert result.now.record.threads == result.then.record.threads
    assert result.now.record.threads["heads"] == 1
    assert list(tmp_path.glob("features/*/*.npy"))


def test_a_batched_job_is_trained_beside_those_it_was_trained_with(
    tasks: dict[str, Task], finished: Finished, tmp_path: Path
) -> None:
    setup = replace(finished.setup, results=tmp_path / "results")
    narrow = tasks["words"].model_copy(update={"lr": (1e-2,), "seeds": (0,), "epochs": 4})
    ran(narrow, "fbank", setup)
    every = ran(narrow.model_copy(update={"lr": (1e-2, 1e-1), "seeds": (0, 1)}), "fbank", setup)
    beside = {(each.lr, each.seed): sorted(each.beside) for each in every}
    assert beside[1e-2, 0] == [(1e-2, 0, None)]
    assert beside[1e-2, 1] == beside[1e-1, 0] == [(1e-2, 1, None), (1e-1, 0, None), (1e-1, 1, None)]
    for path in paths(setup.results):
        result = again(path, setup)
        assert identical(result)
        assert result.now.record.beside == result.then.record.beside


def test_an_older_record_that_does_not_name_its_company_is_trained_beside_those_written_with_it(
    finished: Finished, tmp_path: Path
) -> None:
    path = paths(finished.setup.results, "words")[1]
    older = {"beside": [], "threads": {}, "machine": {}, "commit": "", "contents": {}, "clustered_by": None}
    copy = edited(path, tmp_path, **older)
    result = again(copy, finished.setup)
    assert result.now.record.beside == read_recorded_job(path).record.beside
    assert len(result.now.record.beside) == 4
    assert identical(result)
    assert environment_differences(result) == ["commit, machine, threads not recorded then"]


@pytest.mark.parametrize("fields", [{"folds": "session"}, {"features": "live"}, {"features": "frames"}])
def test_folds_and_features_are_as_they_were(
    fields: dict[str, Any], tasks: dict[str, Task], finished: Finished, tmp_path: Path
) -> None:
    task = Task(**{**tasks["words"].model_dump(), "epochs": 2, "lr": [1e-2], "seeds": [0], **fields})
    setup = replace(finished.setup, results=tmp_path / "results", limit=12)
    made = ran(task, "fbank", setup)
    assert len(made) == (4 if "folds" in fields else 1)
    assert all(each.limit == 12 for each in made)
    result = again(Results(setup.results).path("words", "fbank", made[-1].id), setup)
    assert identical(result)
    now = result.now.record
    assert (now.fold, now.features, now.limit) == (made[-1].fold, made[-1].features, 12)


@pytest.mark.parametrize("has_field", [True, False])
def test_what_was_left_out_is_left_out_again_also_where_an_older_record_does_not_say_that_it_was_asked_for(
    has_field: bool, tasks: dict[str, Task], finished: Finished, tmp_path: Path
) -> None:
    rows = labelled({"train": ["a", "b"] * 3, "valid": ["a", "b", "a", "b"], "test": ["a", "b", "c", "a"]})
    root = write_corpus(tmp_path / "bad", rows)
    setup = replace(finished.setup, results=tmp_path / "results", data=(("bad", str(root)),), skip_bad=True)
    ran(tasks["words"].model_copy(update={"corpus": "bad", "epochs": 2}), "fbank", setup)
    path = paths(setup.results)[0]
    assert read_recorded_job(path).record.skip_bad
    result = again(path if has_field else edited(path, tmp_path / "copy", skip_bad=False), setup)
    assert identical(result)
    assert result.now.record.skipped == {"test label unseen in training": 1}


def test_a_probe_of_a_layer_and_a_tuned_upstream_are_done_again(
    tasks: dict[str, Task], finished: Finished, tmp_path: Path
) -> None:
    name = write_encoder(tmp_path / "mine.py")
    short = tasks["words"].model_copy(update={"epochs": 2, "lr": (1e-2,)})
    setup = replace(finished.setup, results=tmp_path / "results", home=tmp_path / "home")
    ran(short, name, replace(setup, per_layer=True))
    ran(short.model_copy(update={"features": "finetune", "name": "tuned", "seeds": (0,)}), name, setup)
    layers = {}
    for path in paths(setup.results):
        result = again(path, setup)
        assert identical(result), agreement_sentence(result)
        layers[result.now.record.id] = result.now.record.layer
    assert sorted(layers.values(), key=str) == [0, 0, 1, 1, None, None, None]


def changed_corpus(change: str, folder: Path) -> Path:
    """Return a copy of the corpus of tones with one change."""
    root = write_tones(folder)
    if change == "audio":
        path = root / "audio" / "s00_keyword_0.wav"
        waveform, rate = soundfile.read(path)
        soundfile.write(path, 0.5 * waveform, rate)
        return root
    rows = list(csv.DictReader((root / "metadata.csv").open(newline="")))
    row = next(row for row in rows if row["file_name"] == "audio/s03_keyword_0.wav")
    row.update({"keyword": "up"} if change == "labels" else {"verify": "s07", "speaker": "s07"})
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.mark.parametrize(
    ("change", "task", "named"),
    [("audio", "words", "audio"), ("labels", "words", "labels"), ("who speaks", "same", "labels and trials")],
)
def test_changed_data_is_refused_by_name(
    change: str, task: str, named: str, finished: Finished, bench: Bench, home: Path, tmp_path: Path
) -> None:
    root = changed_corpus(change, tmp_path / "tones")
    path = paths(finished.setup.results, task)[0]
    answer = bench("rerun", path, "--data", f"tones={root}", "--home", home)
    assert answer.code == 2
    assert answer.complaint == (
        f"bench: the {named} of corpus 'tones' are not those of the record; rerun needs the data it was run on, such as"
        " --data tones=PATH"
    )
    older = edited(path, tmp_path / "copy", contents={})
    message = bench("rerun", older, "--data", f"tones={root}", "--home", home).complaint
    assert "the audio, labels or trials of corpus 'tones' are not" in message


def test_a_changed_upstream_is_refused_by_name(
    tasks: dict[str, Task], finished: Finished, bench: Bench, tones: Path, tmp_path: Path
) -> None:
    name = write_encoder(tmp_path / "mine.py")
    setup = replace(finished.setup, results=tmp_path / "results", home=tmp_path / "home")
    (made,) = ran(tasks["same"], name, setup)
    code = tmp_path / "mine.py"
    code.write_text(code.read_text().replace("self.second = nn.Linear(16, 16)", "self.second = nn.Linear(16, 16, 0)"))
    common = ["--data", f"tones={tones}", "--home", setup.home, "--results", setup.results]
    answer = bench("rerun", made.id, *common)
    assert answer.code == 2
    assert f"the weights or the code of upstream {name!r} are not those of the record: fingerprint" in answer.complaint
    assert made.upstream["fingerprint"][:12] in answer.complaint
    code.unlink()
    assert bench("rerun", made.id, *common).code == 2


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"protocol": 0}, "the record is of protocol 0, but this version runs protocol 1"),
        ({"seed": 7, "beside": []}, "does not follow from what its record holds"),
        ({"fold": "monday"}, "corpus 'tones' has no fold 'monday' any more"),
    ],
)
def test_records_that_are_not_of_this_version_or_were_edited_are_refused(
    fields: dict[str, Any], complaint: str, finished: Finished, bench: Bench, tones: Path, home: Path, tmp_path: Path
) -> None:
    copy = edited(paths(finished.setup.results, "words")[0], tmp_path, **fields)
    answer = bench("rerun", copy, "--data", f"tones={tones}", "--home", home)
    assert answer.code == 2
    assert complaint in answer.complaint


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"colour": "red"}, "task 'words' of the record is not one that this version knows"),
        ({"epochs": 3}, "does not follow from what its record holds"),
        ({"train_hours": None}, "task 'words' is not that of the record: it differs in"),
    ],
)
def test_a_task_that_is_not_as_it_was_is_refused_by_name(
    settings: dict[str, Any], complaint: str, finished: Finished, tmp_path: Path
) -> None:
    path = paths(finished.setup.results, "words")[0]
    task = json.loads(path.read_text())["task"] | settings
    if "train_hours" in settings:
        del task["train_hours"], task["clip"]  # as if this version had more keys than that of the record
    copy = edited(path, tmp_path, task=task)
    with pytest.raises(Exception, match=complaint):
        again(copy, finished.setup)


def test_another_score_and_another_environment_are_both_told(
    finished: Finished, bench: Bench, tones: Path, home: Path, tmp_path: Path
) -> None:
    path = paths(finished.setup.results, "words")[-1]
    then = read_recorded_job(path).record
    faked = {
        "test": then.test | {"accuracy": 1.0},
        "versions": then.versions | {"torch": "0.4.1", "jax": "1"},
        "machine": then.machine | {"processor": "Z80"},
        "commit": "c" * 40,
        "device": "abacus, 2 cores",
    }
    answer = bench("rerun", edited(path, tmp_path, **faked), "--data", f"tones={tones}", "--home", home)
    assert answer.code == 1
    message, environment = answer.out.splitlines()[-2:]
    assert message == f"test accuracy is {then.test['accuracy']:.6g}, outside the interval of the recorded 1"
    (row,) = [line for line in answer.out.splitlines() if "differs" in line]
    assert row.replace("│", " ").split()[:3] == ["test", "accuracy", "1"]
    assert "device abacus, 2 cores then, " in environment
    assert "commit cccccccccccc then, " in environment
    assert f"torch 0.4.1 then, {then.versions['torch']} now" in environment
    assert "jax 1 then, none now" in environment
    assert f"processor Z80 then, {then.machine['processor']} now" in environment
    assert "threads" not in environment


def test_a_score_that_differs_within_its_interval_is_no_failure(
    finished: Finished, bench: Bench, tones: Path, home: Path, tmp_path: Path
) -> None:
    path = paths(finished.setup.results, "words")[-1]
    then = read_recorded_job(path).record
    score = then.test["accuracy"]
    assert score is not None
    near = edited(path, tmp_path, test=then.test | {"accuracy": math.nextafter(score, 0)})
    answer = bench("rerun", near, "--data", f"tones={tones}", "--home", home)
    assert answer.code == 0
    assert "within the interval of the recorded" in answer.out
    assert repr(math.nextafter(score, 0)) in answer.out, "the two can be told apart"
    assert "differences in the environment: " in answer.out


def test_outcomes_tell_what_scores_do_not(finished: Finished) -> None:
    path = paths(finished.setup.results, "same")[0]
    recorded = read_recorded_job(path)
    assert recorded.outcomes is not None
    moved = [dict(row) for row in recorded.outcomes]
    moved[3]["score"] = repr(math.nextafter(float(moved[3]["score"]), 0))
    result = Rerun(RecordedJob(recorded.record, moved), recorded)
    assert not identical(result)
    assert agreement_sentence(result).endswith(f"; 1 of {len(moved)} outcomes differ")
    assert agreement_sentence(result).startswith("the same score, test eer ")
    bare = [{name: value for name, value in row.items() if "cluster" not in name} for row in recorded.outcomes]
    assert identical(Rerun(RecordedJob(recorded.record, bare), recorded)), "older outcomes have no clusters"
    assert identical(Rerun(recorded._replace(outcomes=None), recorded))
    assert "its outcomes are lost" in agreement_sentence(Rerun(recorded._replace(outcomes=None), recorded))


def test_the_interval_is_that_of_the_recorded_score() -> None:
    rows = [{"id": f"c{n}", "cluster": f"clip {n}", "correct": str(n % 4 > 0)} for n in range(400)]
    then = record(test=75.0)
    ends = [end for end in np.arange(60, 90, 0.1) if score_within_interval(then, rows, record(test=float(end)))]
    wilson = stats.binomtest(300, 400).proportion_ci(method="wilson")
    assert (min(ends), max(ends)) == pytest.approx((100 * wilson.low, 100 * wilson.high), abs=0.15)
    assert not score_within_interval(then, rows, record(test=None))
    assert not score_within_interval(then, None, record(test=75.0))
    assert not score_within_interval(record(test=74.0), rows, record(test=75.0)), "its outcomes say otherwise"
