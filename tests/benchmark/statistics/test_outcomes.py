"""From outcomes to samples: the values are the records' scores, and what does not belong together is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from benchmark.errors import UserError
from benchmark.records import Record, Results
from benchmark.statistics.outcomes import collect_outcomes, score_scale
from benchmark.statistics.resampling import FoldMeans
from benchmark.tables.ranking import board
from tests.benchmark.made import record
from tests.conftest import Finished

Rows = list[dict[str, str]]


def marks(right: str, cluster: str = "") -> Rows:
    """One row a letter: 1 is right, 0 wrong; cluster: a letter for each."""
    names = cluster or "".join(chr(97 + place) for place in range(len(right)))
    return [
        {"id": f"c{place}", "reference": "a", "prediction": "a" if mark == "1" else "b", "correct": str(mark == "1"),
         "cluster": f"speaker {names[place]}"}
        for place, mark in enumerate(right)
    ]  # fmt: skip


def told(pairs: Mapping[str, Rows]) -> tuple[list[Record], Any]:
    """A record for each upstream, with its outcomes and the score that these give."""
    records = [
        record(name, test=100 * np.mean([row["correct"] == "True" for row in rows]), clustered_by="speaker")
        for name, rows in pairs.items()
    ]
    rows = {each.id: pairs[each.upstream["name"]] for each in records}
    return records, lambda each: rows[each.id]


def test_values_of_every_kind_of_task_are_the_scores_of_their_records(finished: Finished) -> None:
    results = Results(finished.setup.results)
    for each in finished.outcome.records:
        found = collect_outcomes([each], results.outcomes)
        assert found.runs == [("fbank", each.seed)]
        assert score_scale(each.metric) * found.scores.values()[0] == pytest.approx(each.test[each.metric])
        assert found.unit == "speakers"
        assert found.scores.size == 3, "test speakers of the corpus of tones"


@pytest.mark.parametrize(
    ("task", "metrics"),
    [("words", ["accuracy", "micro_f1", "macro_f1", "uar"]), ("letters", ["wer", "cer"]), ("same", ["eer", "min_dcf"])],
)
def test_every_metric_of_a_head_can_be_had_from_its_outcomes(finished: Finished, task: str, metrics: list[str]) -> None:
    results = Results(finished.setup.results)
    each = next(each for each in finished.outcome.records if each.task["name"] == task)
    for metric in metrics:
        found = collect_outcomes([each.model_copy(update={"metric": metric})], results.outcomes)
        assert score_scale(metric) * found.scores.values()[0] == pytest.approx(each.test[metric])


def test_clips_of_one_cluster_are_one_and_older_outcomes_count_clip_by_clip() -> None:
    records, outcomes = told({"u": marks("1100", "aabb")})
    assert collect_outcomes(records, outcomes).scores.size == 2
    bare = [{key: value for key, value in row.items() if key != "cluster"} for row in outcomes(records[0])]
    old = [records[0].model_copy(update={"clustered_by": None})]
    found = collect_outcomes(old, lambda _: bare)
    assert (found.scores.size, found.unit) == (4, "clips")


@pytest.mark.parametrize(("label", "unit"), [("session", "sessions"), ("", "clips"), ("room", "values of room")])
def test_what_is_resampled_is_named(label: str, unit: str) -> None:
    records, outcomes = told({"u": marks("10")})
    assert collect_outcomes([records[0].model_copy(update={"clustered_by": label})], outcomes).unit == unit


def refusal(pairs: Mapping[str, Rows]) -> str:
    records, outcomes = told(pairs)
    with pytest.raises(UserError) as caught:
        collect_outcomes(records, outcomes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_clips_that_only_one_was_tested_on_are_named() -> None:
    assert "u and v on words were tested on different clips: c2 is in one test set only" in refusal(
        {"u": marks("10"), "v": marks("101")}
    )
    assert "the same ones in another order" in refusal({"u": marks("10"), "v": marks("10")[::-1]})


def test_a_clip_with_two_truths_is_named() -> None:
    other = [row | {"reference": "z"} for row in marks("10")]
    assert "tested with different labels: c0 has 'a' and 'z'" in refusal({"u": marks("10"), "v": other})


def test_a_record_that_its_outcomes_contradict_is_named() -> None:
    records, outcomes = told({"u": marks("1000")})
    wrong = [records[0].model_copy(update={"test": {"accuracy": 26.0}})]
    with pytest.raises(UserError, match=r"on words says accuracy 26.0, but its outcomes give 25; delete both"):
        collect_outcomes(wrong, outcomes)


def test_clusters_are_taken_from_whoever_tells_them_and_must_be_the_same_for_all() -> None:
    bare = [{key: value for key, value in row.items() if key != "cluster"} for row in marks("1100")]
    records, outcomes = told({"a_old": bare, "b_new": marks("1010", "aabb")})
    records[0] = records[0].model_copy(update={"clustered_by": None})
    found = collect_outcomes(records, outcomes)
    assert (found.scores.size, found.unit) == (2, "speakers")
    assert "u and v on words do not agree on which clips depend on each other" in refusal(
        {"u": marks("1010", "aabb"), "v": marks("1010", "abab")}
    )


def test_outcomes_that_are_empty_twice_there_or_lack_a_column_are_refused() -> None:
    with pytest.raises(UserError, match="are empty"):
        collect_outcomes([record()], lambda _: [])
    with pytest.raises(UserError, match="hold 'c0' twice"):
        collect_outcomes([record(test=50.0)], lambda _: [*marks("1"), *marks("0")])
    with pytest.raises(UserError, match=r"do not hold what accuracy needs \('correct'\)"):
        collect_outcomes([record()], lambda _: [{"id": "a", "reference": "x", "prediction": "x"}])


def test_folds_make_one_sample_whose_clusters_are_all_of_theirs() -> None:
    rows: dict[str, Sequence[Any]] = {"x": marks("1100", "aabb"), "y": marks("1000", "ccdd")}
    records = [record(fold=fold, test=test, clustered_by="speaker") for fold, test in (("x", 50.0), ("y", 25.0))]
    found = collect_outcomes(records, lambda each: rows[each.fold])
    assert isinstance(found.scores, FoldMeans)
    assert found.scores.size == 4
    assert found.scores.values() == pytest.approx([0.375])
    whole = board(records, lambda each: rows[each.fold])
    assert whole.table["fbank", "words"].value == 37.5
    assert whole.table["fbank", "words"].low < 37.5 < whole.table["fbank", "words"].high
    assert set(whole.jobs) == {each.id for each in records}


def test_every_metric_of_every_head_can_be_resampled_and_its_answers_told_apart() -> None:
    from benchmark.comparison.disagreements import LOSSES
    from benchmark.statistics.outcomes import SCORE_BUILDERS
    from downstreams import HEADS

    metrics = {metric for head in HEADS.values() for metric in head.metrics}
    assert metrics == set(SCORE_BUILDERS) == set(LOSSES)
