"""Ranks, ties and points follow paired intervals, and nothing that is missing is made up."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.records import Record
from benchmark.tables.leaderboard import Board
from benchmark.tables.ranking import board, borda_points, leaderboard_records
from tests.benchmark.made import record

Rows = list[dict[str, str]]


def rows(right: Sequence[bool], speakers: int = 20) -> Rows:
    return [
        {"id": f"c{place}", "reference": "a", "prediction": "a" if mark else "b", "correct": str(bool(mark)),
         "cluster": f"speaker {place % speakers}"}
        for place, mark in enumerate(right)
    ]  # fmt: skip


class World:
    """Upstreams with skills of their own, tested on the same clips."""

    def __init__(self, skills: dict[str, float], tasks: Sequence[str] = ("words",), seeds: int = 2) -> None:
        self.rows: dict[str, Rows] = {}
        self.records: list[Record] = []
        for task in tasks:
            hard = np.random.default_rng([len(task)]).random(400)
            for name, skill in skills.items():
                for seed in range(seeds):
                    luck = np.random.default_rng([hash_of(name), seed, len(task)]).normal(0, 0.05, 400)
                    self.add(name, task, seed, hard + luck < skill)

    def add(self, name: str, task: str, seed: int, right: np.ndarray) -> None:
        each = record(name, task, seed=seed, test=100 * float(np.mean(right)), clustered_by="speaker")
        self.records.append(each)
        self.rows[each.id] = rows(list(right))

    def board(self) -> Board:
        return board(self.records, lambda each: self.rows[each.id])


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def test_ranks_count_those_that_are_shown_to_be_better() -> None:
    found = World({"best": 0.9, "good": 0.6, "alike": 0.6, "bad": 0.2}).board()
    ranks = {name: cell.rank for (name, _), cell in found.table.items()}
    assert ranks == {"best": 1, "good": 2, "alike": 2, "bad": 4}
    assert [name for (name, _), cell in found.table.items() if cell.best] == ["best"]


def test_with_a_tie_at_the_top_none_is_best() -> None:
    found = World({"good": 0.6, "alike": 0.6, "bad": 0.2}).board()
    assert not any(cell.best for cell in found.table.values())
    assert not World({"alone": 0.6}).board().table["alone", "words"].best


def test_bordas_points_are_for_those_that_are_beaten_and_halves_for_ties() -> None:
    found = World({"best": 0.9, "good": 0.6, "alike": 0.6, "bad": 0.2}, ["words", "sounds"]).board()
    assert found.borda == {"best": 6, "good": 3, "alike": 3, "bad": 0}
    assert found.shared == ["sounds", "words"]


def test_points_are_over_the_tasks_that_all_rows_share_and_a_missing_cell_stays_missing() -> None:
    world = World({"best": 0.9, "bad": 0.2}, ["words", "sounds"])
    world.records = [each for each in world.records if (each.upstream["name"], each.task["name"]) != ("bad", "sounds")]
    found = world.board()
    assert found.shared == ["words"]
    assert found.borda == {"best": 1, "bad": 0}
    assert ("bad", "sounds") not in found.table
    world.records = [each for each in world.records if (each.upstream["name"], each.task["name"]) != ("bad", "words")]
    world.add("bad", "other", 0, np.ones(400, bool))
    assert (world.board().borda, world.board().shared) == ({}, [])


def test_upstreams_on_another_test_set_have_intervals_but_no_rank_among_the_others() -> None:
    world = World({"one": 0.9, "other": 0.6})
    odd = World({"odd": 0.5})
    world.records += [each.model_copy(update={"selection": "o" * 64}) for each in odd.records]
    world.rows |= odd.rows
    cell = world.board().table["odd", "words"]
    assert cell.rank is None
    assert math.isfinite(cell.low)
    assert world.board().table["one", "words"].rank == 1
    assert world.board().shared == []


def test_lost_outcomes_leave_a_score_without_interval_or_rank_and_the_others_as_they_are() -> None:
    world = World({"one": 0.9, "other": 0.6})

    def outcomes(each: Record) -> Rows:
        if each.upstream["name"] == "one":
            raise FileNotFoundError(each.id)
        return world.rows[each.id]

    found = board(world.records, outcomes)
    lost, kept = found.table["one", "words"], found.table["other", "words"]
    assert math.isnan(lost.low)
    assert lost.rank is None
    assert lost.value == pytest.approx(90, abs=6)
    assert kept.rank == 1
    assert math.isfinite(kept.low)
    assert found.problems == (
        "one on words: no interval, because outcomes are missing or damaged; delete their records and run it again",
    )


def test_a_cell_without_an_interval_is_told_with_its_reason() -> None:
    world = World({"one": 0.9, "other": 0.6})
    for id, several in world.rows.items():
        world.rows[id] = [{**row, "cluster": "speaker 1"} for row in several]
    world.records = [each.model_copy(update={"clustered_by": "speaker"}) for each in world.records]
    found = world.board()
    assert found.problems == ("one, other on words: no interval, because all test clips are of one speaker",)
    assert all(math.isnan(cell.low) and cell.clusters == 1 for cell in found.table.values())
    folds = [record("one", fold=fold, seed=seed) for fold, seed in (("a", 0), ("a", 1), ("b", 0))]
    (problem,) = board(folds, lambda each: rows([True] * 40)).problems
    assert problem == "one on words: no interval, because a seed lacks a fold; finish it by the same bench run"


def test_outcomes_that_contradict_a_record_leave_their_task_without_intervals_and_others_as_they_are() -> None:
    world = World({"one": 0.9, "other": 0.6}, ["words", "sounds"])
    wrong = next(each for each in world.records if each.task["name"] == "words")
    world.rows[wrong.id] = [{**row, "correct": "False"} for row in world.rows[wrong.id]]
    found = world.board()
    assert len(found.problems) == 1
    assert f"record {wrong.id} of " in found.problems[0]
    assert all(math.isnan(found.table[name, "words"].low) for name in ("one", "other"))
    assert found.table["one", "sounds"].best
    assert found.shared == ["sounds"]


def test_a_diverged_upstream_takes_no_part() -> None:
    world = World({"one": 0.9, "other": 0.6})
    world.records.append(record("lost", valid=None, test=None))
    world.rows[world.records[-1].id] = []
    found = world.board()
    assert math.isnan(found.table["lost", "words"].low)
    assert found.table["one", "words"].best


def test_probes_of_single_layers_and_other_learning_rates_have_no_part_in_a_cell() -> None:
    world = World({"one": 0.9, "other": 0.6})
    before = world.board()
    others = [
        *(record("one", lr=1e-4, seed=seed, valid=10.0, test=99.0) for seed in (0, 1)),
        record("other", valid=99.0, test=99.0, layer=1, id="by layer"),
    ]
    own = {each.id for each in world.records}
    world.records += others
    world.rows["by layer"] = rows([True] * 396 + [False] * 4)
    after = world.board()
    assert told(after) == told(before)
    assert {each.id for each in leaderboard_records(world.records, after.table)} == own == set(after.jobs)


def test_probes_of_single_layers_have_intervals_of_their_own() -> None:
    world = World({"one": 0.9, "other": 0.6})
    for layer, skill in enumerate((0.5, 0.7)):
        right = np.random.default_rng(layer).random(400) < skill
        each = record("one", layer=layer, id=f"layer {layer}", test=100 * float(right.mean()), clustered_by="speaker")
        world.records.append(each)
        world.rows[each.id] = rows(list(right))
    found = world.board()
    cells = [found.layers[layer]["one", "words"] for layer in (0, 1)]
    assert [cell.value for cell in cells] == [each.test["accuracy"] for each in world.records[-2:]]
    assert all(cell.low < cell.value < cell.high for cell in cells)
    assert ("other", "words") not in found.layers[0]
    assert "layer 0" not in found.jobs


def told(found: Board) -> dict[tuple[str, str], list[float | None]]:
    return {key: [cell.value, cell.low, cell.high, cell.rank] for key, cell in found.table.items()}


@settings(max_examples=25)
@given(st.lists(st.floats(0.1, 0.9), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(skills: list[float], dice: random.Random) -> None:
    world = World({f"u{place}": skill for place, skill in enumerate(skills)})
    before = world.board()
    dice.shuffle(world.records)
    after = world.board()
    assert after.borda == before.borda
    assert told(after) == told(before)


@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_all_points_of_a_task_add_up_to_its_pairs(count: int, dice: random.Random) -> None:
    names = [f"u{place}" for place in range(count)]
    order = {name: dice.randrange(4) for name in names}
    beaten = {(name, "t"): {other for other in names if order[other] < order[name]} for name in names}
    total, shared = borda_points({(name, "t"): None for name in names}, beaten)
    assert shared == ["t"]
    assert sum(total.values()) == count * (count - 1) / 2
    assert sorted(names, key=lambda name: -total[name])[0] in [
        name for name in names if order[name] == max(order.values())
    ]
