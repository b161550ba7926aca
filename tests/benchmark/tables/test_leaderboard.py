"""Tests of the table: it is a pure function of the records, and test scores never affect a choice."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.records import Record
from benchmark.tables.leaderboard import choose_learning_rate, current_records, leaderboard
from tests.benchmark.made import record

SCORES = st.one_of(st.none(), st.floats(0, 100))
RATES = [1e-4, 1e-3, 1e-2]


@st.composite
def grids(draw: st.DrawFn) -> list[Record]:
    """Generate records of all jobs of some upstreams on some tasks, with random scores."""
    rates = draw(st.lists(st.sampled_from(RATES), min_size=1, unique=True))
    folds: list[str | None] = draw(st.sampled_from([[None], ["x", "y"]]))  # type: ignore[list-item]
    seeds = draw(st.integers(1, 2))
    return [
        record(upstream, task, lr, seed, draw(SCORES), draw(SCORES), higher=task != "texts", fold=fold)
        for upstream in "uv"
        for task in ("words", "texts")
        for lr in rates
        for seed in range(seeds)
        for fold in folds
    ]


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, where NaN equals NaN."""
    return repr(sorted(one.items())) == repr(sorted(other.items()))


@given(grids(), st.randoms(use_true_random=False))
def test_permuting_test_scores_never_changes_a_choice(records: list[Record], dice: random.Random) -> None:
    scores = [job.test for job in records]
    dice.shuffle(scores)
    shuffled = [job.model_copy(update={"test": score}) for job, score in zip(records, scores, strict=True)]
    before, after = leaderboard(records), leaderboard(shuffled)
    assert before.keys() == after.keys()
    for key in before:
        for name in ("lr", "edge", "seeds", "folds", "clips"):
            assert getattr(before[key], name) == getattr(after[key], name)
        assert repr(before[key].valid) == repr(after[key].valid)


@given(grids(), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(records: list[Record], dice: random.Random) -> None:
    shuffled = dice.sample(records, len(records))
    assert same(leaderboard(records), leaderboard(shuffled))


@given(grids())
def test_a_cell_is_the_mean_over_seeds_of_the_rate_that_is_best_on_validation(records: list[Record]) -> None:
    for (upstream, task), cell in leaderboard(records).items():
        jobs = [job for job in records if (job.upstream["name"], job.task["name"]) == (upstream, task)]
        chosen = [job for job in jobs if job.lr == cell.lr]
        valid = {}
        for lr in {job.lr for job in jobs}:
            scores = [job.valid["accuracy"] for job in jobs if job.lr == lr]
            if all(score is not None for score in scores):
                valid[lr] = math.fsum(score for score in scores if score is not None) / len(scores)
        if not valid:
            assert math.isnan(cell.value)
            assert math.isnan(cell.valid)
            continue
        best = max(valid.values()) if cell.higher else min(valid.values())
        assert valid[cell.lr] == pytest.approx(best, abs=1e-9)
        tests = [job.test["accuracy"] for job in chosen]
        if all(score is not None for score in tests):
            assert cell.value == pytest.approx(statistics.mean(score for score in tests if score is not None))
        else:
            assert math.isnan(cell.value)


@given(st.floats(0, 100), st.booleans(), st.permutations(RATES))
def test_a_rate_that_diverged_is_never_chosen_when_another_finished(
    score: float, higher: bool, rates: list[float]
) -> None:
    records = [record(lr=rates[0], valid=score, higher=higher)]
    records += [record(lr=rate, valid=None, test=100.0 if higher else 0.0, higher=higher) for rate in rates[1:]]
    assert leaderboard(records)["fbank", "words"].lr == rates[0]


@pytest.mark.parametrize(("best", "edge"), [(0, True), (1, False), (2, True)])
def test_a_choice_at_the_edge_of_the_grid_is_marked(best: int, edge: bool) -> None:
    records = [record(lr=lr, valid=90.0 if place == best else 50.0) for place, lr in enumerate(RATES)]
    assert leaderboard(records)["fbank", "words"].edge is edge


def test_a_grid_of_one_rate_has_no_edge() -> None:
    assert not leaderboard([record()])["fbank", "words"].edge
    assert not leaderboard([record(lr=None)])["fbank", "words"].edge


def test_equal_rates_are_settled_for_the_lower_one_and_unfinished_ones_come_last() -> None:
    assert choose_learning_rate({1e-2: [5.0], 1e-3: [5.0], 1e-4: [4.0]}, higher=True) == 1e-3
    assert choose_learning_rate({1e-2: [5.0, 5.0], 1e-3: [9.0]}, higher=True) == 1e-2
    assert choose_learning_rate({1e-2: [5.0, 5.0], 1e-3: [1.0]}, higher=False) == 1e-2
    assert choose_learning_rate({1e-2: [5.0, math.nan], 1e-3: [1.0, 1.0]}, higher=True) == 1e-3


def test_spread_is_over_seeds_after_averaging_folds() -> None:
    scores = {("x", 0): 10.0, ("y", 0): 20.0, ("x", 1): 40.0, ("y", 1): 30.0}
    cell = leaderboard([record(fold=fold, seed=seed, test=test) for (fold, seed), test in scores.items()])
    assert cell["fbank", "words"].value == 25.0
    assert cell["fbank", "words"].spread == pytest.approx(statistics.stdev([15.0, 35.0]))
    assert cell["fbank", "words"][7:10] == (2, 2, 12)
    assert leaderboard([record()])["fbank", "words"].spread is None


def test_one_seed_without_a_test_score_makes_the_cell_unknown_and_breaks_nothing() -> None:
    cell = leaderboard([record(seed=0, test=50.0), record(seed=1, test=None)])["fbank", "words"]
    assert math.isnan(cell.value)
    assert cell.spread is None or math.isnan(cell.spread)


def test_an_upstream_and_a_task_that_never_met_have_no_cell() -> None:
    table = leaderboard([record("u", "words"), record("v", "texts")])
    assert set(table) == {("u", "words"), ("v", "texts")}


def test_the_latest_run_counts_and_a_full_one_before_a_limited_one() -> None:
    old = record(test=1.0, created="2026-01-01T00:00:00+00:00", corpus="old")
    new = record(test=2.0, created="2026-02-01T00:00:00+00:00", corpus="new")
    limited = record(test=3.0, created="2026-03-01T00:00:00+00:00", limit=5)
    assert current_records([new, old]) == [new]
    assert current_records([limited, old, new]) == [new]
    assert current_records([limited]) == [limited]
    assert leaderboard([old, limited, new])["fbank", "words"].value == 2.0


def test_the_run_asked_for_counts_even_if_another_was_made_later() -> None:
    old = record(id="a", created="2026-01-01T00:00:00+00:00", card={"fingerprint": "old"})
    new = record(id="b", created="2026-02-01T00:00:00+00:00")
    limited = record(id="c", created="2026-03-01T00:00:00+00:00", limit=5)
    assert current_records([old, new, limited], {"a"}) == [old]
    assert current_records([old, new, limited], {"c"}) == [new]


@pytest.mark.parametrize(
    "change",
    [
        {"card": {"fingerprint": "other"}},
        {"card": {"precision": "bf16"}},
        {"features": "live"},
        {"limit": 7},
        {"corpus": "other"},
        {"settings": {"epochs": 9}},
    ],
)
def test_runs_that_differ_in_anything_but_the_grid_are_never_averaged(change: dict[str, Any]) -> None:
    one, other = record(seed=0, test=10.0), record(seed=1, test=90.0, **change)
    assert leaderboard([one, other])["fbank", "words"].value in (10.0, 90.0)


def test_jobs_of_one_run_written_at_different_times_belong_together() -> None:
    widened = [record(lr=1e-3, valid=10.0), record(lr=1e-2, valid=20.0, created="2027-01-01T00:00:00+00:00")]
    cell = leaderboard(widened)["fbank", "words"]
    assert (cell.lr, cell.edge) == (1e-2, True)
