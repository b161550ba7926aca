"""Tests of comparisons: the choice of test, disagreements, the summary, and refused comparisons."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmark.comparison import summary
from benchmark.comparison.disagreements import disagreements_of
from benchmark.comparison.pairs import Pair, TaskComparison, compare_upstreams
from benchmark.engines.local import in_process
from benchmark.errors import UserError
from benchmark.records import Record, Results
from benchmark.reproduction.rerun import find_recorded_job
from benchmark.run import run
from benchmark.tasks import Task
from tests.benchmark.made import record
from tests.conftest import Bench, Finished

Rows = list[dict[str, str]]
Outcomes = Callable[[Record], Rows]


def marks(right: np.ndarray, speakers: int = 0) -> Rows:
    return [
        {"id": f"c{place}", "reference": "a", "prediction": "a" if mark else "b", "correct": str(bool(mark)),
         "cluster": f"speaker {place % speakers}" if speakers else f"clip c{place}"}
        for place, mark in enumerate(right)
    ]  # fmt: skip


def sides(**runs: list[Rows]) -> tuple[dict[str, list[Record]], Outcomes]:
    """Return records of upstreams with one run for each list of rows, and a function that returns these rows."""
    records: dict[str, list[Record]] = {}
    rows: dict[str, Rows] = {}
    for name, several in runs.items():
        for seed, outcomes in enumerate(several):
            test = 100 * float(np.mean([row["correct"] == "True" for row in outcomes]))
            run = record(name, seed=seed, test=test, clustered_by="speaker")
            records.setdefault(name, []).append(run)
            rows[run.id] = outcomes
    return records, lambda run: rows[run.id]


def only(pairs: list[Pair]) -> TaskComparison:
    (pair,) = pairs
    (task,) = pair.tasks
    return task


def discordant(gained: int, lost: int, both: int = 40) -> tuple[np.ndarray, np.ndarray]:
    first = np.array([1] * gained + [0] * lost + [1] * both, bool)
    return first, np.array([0] * gained + [1] * lost + [1] * both, bool)


@pytest.mark.parametrize(("gained", "lost"), [(12, 3), (5, 5), (40, 20), (1, 0)])
def test_single_labels_of_independent_clips_are_tested_exactly_on_discordant_pairs(gained: int, lost: int) -> None:
    first, second = discordant(gained, lost)
    task = only(compare_upstreams(*sides(a=[marks(first)], b=[marks(second)])))
    assert task.test == "McNemar, exact"
    assert task.p == pytest.approx(stats.binomtest(gained, gained + lost).pvalue)
    assert (task.disagreements.gained, task.disagreements.lost, task.disagreements.total) == (
        gained,
        lost,
        gained + lost + 40,
    )
    assert task.difference.value == pytest.approx(100 * (gained - lost) / task.disagreements.total)


def test_with_speakers_it_is_a_t_test_of_their_discordant_pairs() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 300)) < np.array([[0.8], [0.7]])
    task = only(compare_upstreams(*sides(a=[marks(first, 25)], b=[marks(second, 25)])))
    sums = np.array([(first.astype(int) - second)[speaker::25].sum() for speaker in range(25)])
    assert task.test == "McNemar over speakers"
    assert task.p == pytest.approx(stats.ttest_1samp(sums, 0).pvalue)
    assert (task.unit, task.clusters) == ("speakers", 25)


def test_with_seeds_disagreements_are_means_over_pairs_of_runs_and_their_spread_makes_it_less_sure() -> None:
    right = np.arange(200) < 150
    alike = only(compare_upstreams(*sides(a=[marks(right)] * 3, b=[marks(np.roll(right, 3))] * 3)))
    runs = [marks(np.arange(200) < share) for share in (100, 150, 199)]
    spread = only(compare_upstreams(*sides(a=runs, b=[marks(np.roll(right, 3))] * 3)))
    assert alike.disagreements.gained == alike.disagreements.lost == 3
    # Against 150 right clips rolled by 3: 50 fewer, 3 and 3, 49 more, where each run counts one third.
    assert spread.disagreements.lost - spread.disagreements.gained == pytest.approx(1 / 3)
    assert spread.difference.high - spread.difference.low > 10 * (alike.difference.high - alike.difference.low)
    assert (alike.first.seeds, alike.second.seeds) == (3, 3)


def test_holms_correction_is_over_all_tests_of_a_comparison() -> None:
    first, second = discordant(12, 3)
    third = discordant(14, 3, 38)[1]
    pairs = compare_upstreams(*sides(a=[marks(first)], b=[marks(second)], c=[marks(third)]))
    chances = [pair.tasks[0].p for pair in pairs]
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c")]
    low, high = sorted(chances)
    adjusted = sorted(pair.tasks[0].adjusted for pair in pairs)
    assert adjusted == pytest.approx([min(1, 2 * low), max(min(1, 2 * low), high)])


def changed(**fields: Any) -> Callable[[Record], Record]:
    return lambda each: each.model_copy(update=fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(protocol=7), "protocol, 1 and 7"),
        (changed(metric="uar", test={"uar": 50.0}), "metric, accuracy and uar"),
        (changed(task=record().task | {"epochs": 9}), "epochs, 3 and 9"),
        (changed(features="finetune"), "fine-tuning, False and True"),
        (changed(limit=5), "--limit, None and 5"),
        (changed(fold="x"), "folds"),
        (changed(selection="o" * 64), "the same, but their data differ in audio, labels or training clips"),
        (changed(test={"accuracy": None}), "b has no score there"),
    ],
)  # fmt: skip
def test_upstreams_with_different_protocols_are_not_compared(change: Callable[[Record], Record], message: str) -> None:
    records, outcomes = sides(a=[marks(np.ones(9, bool))], b=[marks(np.ones(9, bool))])
    with pytest.raises(UserError) as caught:
        compare_upstreams(records | {"b": [change(each) for each in records["b"]]}, outcomes)
    assert "a and b cannot be compared on words" in str(caught.value)
    assert message in str(caught.value)


def test_test_sets_of_other_clips_are_not_compared_and_a_clip_is_named() -> None:
    records, outcomes = sides(a=[marks(np.ones(9, bool))], b=[marks(np.ones(10, bool))])
    other = [each.model_copy(update={"selection": "o" * 64}) for each in records["b"]]
    with pytest.raises(UserError, match="a and b on words were tested on different clips: c9 is in one test set only"):
        compare_upstreams(records | {"b": other}, outcomes)


def test_upstreams_without_a_task_in_common_are_not_compared() -> None:
    records, outcomes = sides(a=[marks(np.ones(9, bool))])
    with pytest.raises(UserError, match=r"a and b have no task in common \(a on words; b on none\)"):
        compare_upstreams(records | {"b": []}, outcomes)


def compared(
    metric: str, higher: bool, difference: tuple[float, float, float], p: float, **fields: Any
) -> TaskComparison:
    records, outcomes = sides(a=[marks(np.ones(9, bool))] * 2, b=[marks(np.ones(9, bool))] * 2)
    task = only(compare_upstreams(records, outcomes))
    interval = task.difference._replace(value=difference[0], low=difference[1], high=difference[2])
    return task._replace(metric=metric, higher=higher, difference=interval, p=p, adjusted=p, **fields)


def test_the_sentence_says_what_can_and_what_cannot_be_concluded() -> None:
    tasks = [
        compared("accuracy", True, (5, 2, 8), 0.001, task="keywords"),
        compared("eer", False, (-3, -5, -1), 0.01, task="voices"),
        compared("wer", False, (4, 1, 7), 0.02, task="texts"),
        compared("micro_f1", True, (1, -2, 4), 0.4, task="moods"),
    ]
    sentence = summary.summary_sentence(Pair("mine", "theirs", tasks, []))
    assert sentence == (
        "mine is better than theirs on keywords (+5.0 [+2.0, +8.0] points of acc) and voices (-3.0 [-5.0, -1.0] points"
        " of EER); worse on texts (+4.0 [+1.0, +7.0] points of WER); which is better on moods (anything from -2.0 to"
        " +4.0 points of micro-F1 remains possible) cannot be said"
    )
    alike = compared("accuracy", True, (0, 0, 0), 1.0, task="tongues")
    assert summary.summary_sentence(Pair("mine", "theirs", [alike], [])) == (
        "which of mine and theirs is better on tongues (nothing differs) cannot be said"
    )
    unknown = compared("accuracy", True, (3, math.nan, math.nan), math.nan, task="tongues")
    assert "tongues (the test data are too few) cannot be said" in summary.summary_sentence(
        Pair("m", "t", [unknown], [])
    )
    lone = compared("accuracy", True, (3, 1, 5), 0.04, task="tongues")._replace(adjusted=0.2)
    assert summary.summary_sentence(Pair("mine", "theirs", [tasks[0], lone], [])).endswith(
        "; a difference on tongues (+3.0 [+1.0, +5.0] points of acc) would count by itself, but not with all tests of"
        " this comparison counted"
    )
    once = tasks[0].first._replace(seeds=1)
    sentence = summary.summary_sentence(Pair("mine", "theirs", [tasks[0]._replace(first=once, second=once)], []))
    assert "keywords (+5.0 [+2.0, +8.0] points of acc, for one seed)" in sentence
    assert sentence.endswith("; with one seed, how much another would change this is not known")
    untrained = [tasks[1]._replace(first=tasks[1].first._replace(seeds=0), second=tasks[1].second._replace(seeds=0))]
    assert "seed" not in summary.summary_sentence(Pair("mine", "theirs", untrained, []))


def test_a_verdict_needs_an_adjusted_p_below_five_percent() -> None:
    assert compared("accuracy", True, (5, 2, 8), 0.049).verdict == "better"
    assert compared("accuracy", True, (5, 2, 8), 0.051).verdict == "not resolved"
    assert compared("wer", False, (5, 2, 8), 0.001).verdict == "worse"
    assert compared("wer", False, (5, math.nan, math.nan), math.nan).verdict == "not resolved"


def test_disagreements_of_texts_tags_and_trials_are_by_errors_ranking_and_side_of_the_threshold() -> None:
    def outcomes_of(rows: Mapping[str, Rows]) -> Outcomes:
        return lambda each: rows[each.upstream["name"]]

    def text(edits: int) -> dict[str, str]:
        kinds = {"substitutions": edits, "deletions": 0, "insertions": 0, "hits": 3}
        return {"id": "t", "reference": "x y z", "hypothesis": "?" * edits} | {
            f"word_{kind}": str(count) for kind, count in kinds.items()
        }

    heard = [record(name, metric="wer", higher=False) for name in "ab"]
    result = disagreements_of("a", "b", heard, outcomes_of({"a": [text(1)], "b": [text(3)]}))
    assert (result.gained, result.lost, result.rows[0].first.loss, result.rows[0].second.loss) == (1, 0, 1, 3)

    def tagged(scores: str) -> dict[str, str]:
        return {"id": "g", "reference": "dog|rain", "prediction": "", "scores": scores}

    sounds = [record(name, metric="map") for name in "ab"]
    low = '{"dog": 1, "rain": -1, "wind": 2}'  # dog second, rain third: (1/2 + 2/3) / 2
    result = disagreements_of(
        "a", "b", sounds, outcomes_of({"a": [tagged(low)], "b": [tagged('{"dog": 3, "rain": 2, "wind": 1}')]})
    )
    assert (result.gained, result.lost) == (0, 1)
    assert result.rows[0].first.loss == pytest.approx(1 - (1 / 2 + 2 / 3) / 2)
    assert result.rows[0].second.loss == 0
    assert result.rows[0].first.text == "–"

    def trial(number: int, target: bool, score: float) -> dict[str, str]:
        return {"enroll": f"e{number}", "test": f"t{number}", "target": str(target), "score": str(score)}

    good = [trial(0, True, 0.9), trial(1, True, 0.8), trial(2, False, 0.2), trial(3, False, 0.1)]
    bad = [trial(0, True, 0.9), trial(1, True, 0.1), trial(2, False, 0.8), trial(3, False, 0.0)]
    voices = [record(name, metric="eer", higher=False) for name in "ab"]
    result = disagreements_of("a", "b", voices, outcomes_of({"a": good, "b": bad}))
    # a is right everywhere; at b's threshold, 0.8, a target is turned down and another trial accepted.
    assert (result.gained, result.lost, result.total) == (2, 0, 4)
    assert [row.reference for row in result.rows] == ["target", "non-target"]
    assert [(row.first.text, row.second.text) for row in result.rows] == [
        ("0.800, right", "0.100, wrong"),
        ("0.200, right", "0.800, wrong"),
    ]


@pytest.fixture(scope="module")
def two(finished: Finished, tasks: dict[str, Task], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a results folder with two upstreams on every kind of task of the corpus of tones."""
    setup = replace(finished.setup, results=tmp_path_factory.mktemp("two"))
    run(list(tasks.values()), ["fbank", "mfcc"], setup, in_process)
    return setup.results


def test_the_command_compares_lists_and_writes(two: Path, bench: Bench, tmp_path: Path) -> None:
    answer = bench("compare", "fbank", "mfcc", "--results", two, "--show", 3, "-o", tmp_path / "c.csv")
    assert answer.code == 0, answer.err
    rows = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text(encoding="utf-8"))))
    assert {row["task"] for row in rows} == {"words", "sounds", "same", "vector", "letters"}
    tests = {row["task"]: row["test"] for row in rows}
    assert tests["words"] == "McNemar over speakers"
    assert {tests[name] for name in ("sounds", "same", "vector", "letters")} == {"paired bootstrap over speakers"}
    for row in rows:
        assert float(row["first_value"]) - float(row["second_value"]) == pytest.approx(
            float(row["difference_value"]), abs=2e-4
        )
        assert f"{row['task']}: " in answer.out
    assert answer.out.splitlines()[-2].startswith(("fbank is ", "which of fbank and mfcc "))


def test_comparing_an_upstream_with_itself_finds_no_difference(two: Path, bench: Bench) -> None:
    answer = bench("compare", "fbank", "fbank", "--results", two, "--against", two)
    assert answer.code == 0
    assert answer.out.count("not resolved") == 5
    assert answer.out.count("+0.0 [+0.0, +0.0]") == 5
    assert answer.out.count("nothing differs") == 5
    assert "0 / 0 of" in answer.out


def test_packed_results_compare_report_and_rerun_as_before(two: Path, bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(two, folder)
    commands = [["compare", "fbank", "mfcc", "--results", folder], ["report", "--results", folder]]
    before = [bench(*command) for command in commands]
    board = (folder / "leaderboard.csv").read_bytes()
    packed = bench("pack", "--results", folder)
    assert packed.code == 0
    assert f"{len(Results(two).read_all()[0])} records are packed in {folder}" in packed.out
    assert not (folder / "runs").exists()
    assert [bench(*command) for command in commands] == before
    assert (folder / "leaderboard.csv").read_bytes() == board
    (job, *_) = [one for one in Results(two).read_all()[0] if one.task["name"] == "letters"]
    recorded = find_recorded_job(job.id, folder)
    assert recorded == find_recorded_job(str(Results(two).path("letters", job.upstream["name"], job.id)), folder)
    empty = bench("pack", "--results", tmp_path / "empty")
    assert empty.code == 2
    assert "no records in" in empty.complaint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fbank"], "a comparison needs at least two upstreams"),
        (["fbank", "mfc"], "did you mean 'mfcc'?"),
        (["fbank", "fbank"], "'fbank' is named twice"),
        (["fbank", "mfcc", "--task", "word"], "no records of fbank on task 'word'; did you mean 'words'?"),
        (["fbank", "nothing_like"], "no records of upstream 'nothing_like' in "),
        (["fbank", "mfcc", "-o", "c.tex"], "a comparison is written as CSV"),
    ],
)
def test_mistakes_end_in_one_sentence(two: Path, bench: Bench, arguments: list[str], message: str) -> None:
    answer = bench("compare", *arguments, "--results", two)
    assert answer.code == 2
    assert message in answer.complaint


def test_another_test_set_is_refused_by_name(two: Path, bench: Bench, tmp_path: Path) -> None:
    records, _ = Results(two).read_all()
    other = Results(tmp_path)
    for job in records:
        if job.upstream["name"] == "mfcc" and job.task["name"] == "words":
            rows = Results(two).outcomes(job)[1:]
            right = 100 * float(np.mean([row["correct"] == "True" for row in rows]))
            scores = job.test | {"accuracy": right}
            other.write(job.model_copy(update={"selection": "o" * 64, "test": scores}), rows)
    answer = bench("compare", "fbank", "mfcc", "--results", two, "--against", tmp_path, "--task", "words")
    assert answer.code == 2
    assert "tested on different clips: " in answer.complaint


@pytest.mark.parametrize("fault", ["missing", "cut off", "no gzip"])
def test_outcomes_that_are_missing_or_damaged_are_named_and_reports_go_on_without_them(
    two: Path, bench: Bench, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(two, folder)
    path = sorted((folder / "runs" / "same" / "mfcc").glob("*.csv.gz"))[0]
    content = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(content[: len(content) // 2] if fault == "cut off" else b"no gzip at all")
    answer = bench("compare", "fbank", "mfcc", "--results", folder)
    assert answer.code == 2
    assert "the outcomes of mfcc on same (" in answer.complaint
    assert "are missing or damaged" in answer.complaint
    report = bench("report", "--results", folder)
    assert report.code == 0
    assert "mfcc on same: no interval, because outcomes are missing or damaged; delete" in report.complaint
