"""Contrasts: values against the formula, errors against independent implementations, coverage by simulation."""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from benchmark.claims.contrasts import (
    Contrast,
    contrast_interval,
    make_contrast,
    point_gain,
    point_reduction,
    relative_gain,
    relative_reduction,
    verdict_word,
)
from benchmark.comparison.pairs import compare_upstreams
from benchmark.records import Record
from benchmark.statistics.intervals import Interval
from benchmark.statistics.outcomes import Row, TaskOutcomes, collect_outcomes
from benchmark.statistics.resampling import Ratios, TrialErrors
from downstreams.metrics import eer
from tests.benchmark.made import record

FIRST, SECOND = ["a-0", "a-1", "a-2"], ["b-0", "b-1", "b-2"]


def outcomes_of(
    marks: NDArray[np.float64], owners: list[str], sizes: NDArray[np.float64] | None = None, closed: bool = True
) -> TaskOutcomes:
    """Outcomes of two systems; marks: (2, K, N) by system, pre-training seed and clip; owners: N speakers."""
    names = sorted(set(owners))
    places = np.array([names.index(owner) for owner in owners])
    rows = marks.reshape(-1, marks.shape[-1])
    sums = np.stack([np.bincount(places, row, len(names)) for row in rows])
    totals = np.bincount(places, np.ones(len(owners)) if sizes is None else sizes, len(names)).astype(float)
    runs = [(f"{system}-{seed}", 0) for system in "ab" for seed in range(marks.shape[1])]
    return TaskOutcomes(runs, Ratios(sums, totals, closed), "speakers", names)


def contrast_of(*tasks: TaskOutcomes, draws: int = 2000) -> Contrast:
    seeds = len(tasks[0].runs) // 2
    return make_contrast(tasks, FIRST[:seeds], SECOND[:seeds], draws)


def paired(rng: np.random.Generator, clips: int, clusters: int, seeds: int) -> tuple[NDArray[np.float64], list[str]]:
    """Correct predictions at random: the first system's more often, some speakers and clips harder than others."""
    owners = rng.integers(0, clusters, clips)
    hard = rng.normal(0, 0.7, clusters)[owners] + rng.normal(0, 0.7, clips)
    right = hard + rng.normal(0, 0.7, (2, seeds, clips)) + np.array([0.4, 0.0])[:, None, None] > 0
    return right.astype(float), [f"speaker {owner}" for owner in owners]


@pytest.fixture(scope="module")
def two_tasks() -> list[tuple[NDArray[np.float64], list[str]]]:
    rng = np.random.default_rng(3)
    return [paired(rng, 300, 40, 3), paired(rng, 150, 150, 3)]


Marks = list[tuple[NDArray[np.float64], list[str]]]


def test_values_are_those_of_the_formula(two_tasks: Marks) -> None:
    contrast = contrast_of(*(outcomes_of(*task) for task in two_tasks))
    a, b = (np.array([marks[system].mean() for marks, _ in two_tasks]) for system in (0, 1))
    assert contrast_interval(contrast, point_gain).value == pytest.approx(100 * np.mean(a - b))
    assert contrast_interval(contrast, relative_gain).value == pytest.approx(100 * np.mean((a - b) / b))
    assert contrast_interval(contrast, point_reduction).value == pytest.approx(100 * np.mean(b - a))
    assert contrast_interval(contrast, relative_reduction).value == pytest.approx(100 * np.mean((b - a) / b))


def test_scores_of_a_checkpoint_are_averaged_over_its_probe_seeds(two_tasks: Marks) -> None:
    """Six runs of two checkpoints each, as two pre-training seeds with three probe seeds."""
    marks, owners = two_tasks[0]
    single = outcomes_of(marks, owners)
    runs = [("a-0", 0), ("a-0", 1), ("a-1", 0), ("b-0", 0), ("b-0", 1), ("b-1", 0)]
    contrast = make_contrast([single._replace(runs=runs)], ["a-0", "a-1"], ["b-0", "b-1"])
    rates = 100 * marks.mean(-1)
    by_checkpoint = [(side[0] + side[1]) / 4 + side[2] / 2 for side in rates]
    interval = contrast_interval(contrast, point_gain)
    assert interval.value == pytest.approx(by_checkpoint[0] - by_checkpoint[1])
    pairs_of = [(side[0] + side[1]) / 2 - side[2] for side in rates]
    assert interval.seeds <= abs(pairs_of[0] - pairs_of[1]) / 2 + 1e-9


def test_the_papers_relative_figures_are_those_that_they_report() -> None:
    # Table 2 of Gong et al. (2022), patches: 400 masked, and from scratch; the abstract cuts it to 60.9 %.
    first = np.array([31.0, 88.8, 98.0, 96.0, 64.3, 59.6])
    second = np.array([14.8, 41.9, 92.6, 87.2, 30.1, 51.9])
    assert relative_gain(first, second).value == pytest.approx(60.96, abs=0.01)
    # Wan et al. (2022) and Cho et al. (2022): 8.27 % WER is 13.7 % below 9.58 %, 1.89 % EER is 57 % below 4.38 %.
    assert relative_reduction(np.array([8.27]), np.array([9.58])).value == pytest.approx(13.7, abs=0.05)
    assert relative_reduction(np.array([1.89]), np.array([4.38])).value == pytest.approx(56.8, abs=0.05)


@pytest.mark.parametrize("function", [point_gain, point_reduction, relative_gain, relative_reduction])
def test_derivatives_are_those_of_small_changes(function) -> None:  # type: ignore[no-untyped-def]
    first, second = np.array([0.6, 0.3, 0.8]), np.array([0.5, 0.4, 0.7])
    statistic = function(first, second)
    for task in range(3):
        step = 1e-6 * np.eye(3)[task]
        by_first = (function(first + step, second).value - function(first - step, second).value) / 2e-6
        by_second = (function(first, second + step).value - function(first, second - step).value) / 2e-6
        assert statistic.by_first[task] == pytest.approx(by_first, rel=1e-5)
        assert statistic.by_second[task] == pytest.approx(by_second, rel=1e-5)


def test_the_error_by_clips_is_that_of_scipys_paired_bootstrap() -> None:
    marks, _ = paired(np.random.default_rng(0), 80, 10, 2)
    first, second = marks.mean(1)
    scipys = stats.bootstrap(
        (first, second), lambda a, b, axis: 100 * (a - b).mean(axis), paired=True, vectorized=True, n_resamples=9999,
        method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    alone = outcomes_of(marks, [f"clip {number:02d}" for number in range(80)])
    error = contrast_interval(contrast_of(alone), point_gain).clips
    assert error == pytest.approx(float(scipys.standard_error) * math.sqrt(80 / 79), rel=0.03)
    assert error == pytest.approx(100 * float((first - second).std(ddof=1)) / math.sqrt(80), rel=0.03)


def test_the_error_of_a_relative_gain_is_that_of_a_naive_bootstrap_over_speakers(two_tasks: Marks) -> None:
    """Tasks share speakers 0 to 39, who are drawn together."""
    rng, values = np.random.default_rng(1), []
    names = sorted({owner for _, owners in two_tasks for owner in owners})
    places = [np.array([names.index(owner) for owner in owners]) for _, owners in two_tasks]
    for _ in range(1500):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        rates = [
            (marks.mean(1) * weight[at]).sum(-1) / weight[at].sum()
            for (marks, _), at in zip(two_tasks, places, strict=True)
        ]
        values.append(100 * np.mean([first / second - 1 for first, second in rates]))
    contrast = contrast_of(*(outcomes_of(*task) for task in two_tasks))
    assert contrast_interval(contrast, relative_gain).clips == pytest.approx(np.std(values), rel=0.08)


def test_the_bootstrap_of_several_tasks_agrees_with_the_closed_form(two_tasks: Marks) -> None:
    closed, drawn = (
        contrast_of(*(outcomes_of(*task, closed=closed) for task in two_tasks), draws=10_000)
        for closed in (True, False)
    )
    for function in (point_gain, relative_gain):
        first, second = (contrast_interval(contrast, function) for contrast in (closed, drawn))
        assert first.clips == pytest.approx(second.clips, rel=0.04)


def test_speakers_whom_tasks_share_are_drawn_together() -> None:
    marks, owners = paired(np.random.default_rng(5), 200, 30, 1)
    once = outcomes_of(marks, owners)
    shared = contrast_interval(contrast_of(once, once), point_gain).clips
    others = outcomes_of(marks, [f"other {owner}" for owner in owners])
    assert shared == pytest.approx(contrast_interval(contrast_of(once), point_gain).clips, rel=1e-6)
    assert contrast_interval(contrast_of(once, others), point_gain).clips == pytest.approx(
        shared / math.sqrt(2), rel=0.05
    )


def test_the_error_by_seeds_is_the_spread_of_pairs_beyond_that_of_the_clips(two_tasks: Marks) -> None:
    """Seeds that differ by a lot: the luck of the clips is then next to nothing."""
    marks, owners = two_tasks[0]
    marks = marks.copy()
    marks[0, 0], marks[0, 1] = 1.0, 0.0  # the first system with its first seed is always right, with its second never
    by_seed = 100 * (marks[0] - marks[1]).mean(-1)
    seeds = contrast_interval(contrast_of(outcomes_of(marks, owners)), point_gain).seeds
    assert seeds == pytest.approx(stats.sem(by_seed), rel=0.01)
    assert seeds < stats.sem(by_seed)


def test_the_interval_is_welchs_with_the_degrees_of_freedom_of_both_errors(two_tasks: Marks) -> None:
    marks, owners = two_tasks[0]
    interval = contrast_interval(contrast_of(outcomes_of(marks, owners)), point_gain)
    sizes = np.unique(owners, return_counts=True)[1]
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    spread = stats.sem(100 * (marks[0] - marks[1]).mean(-1)) ** 2
    total = interval.clips**2 + interval.seeds**2
    freedom = max(2.0, total**2 / (interval.clips**4 / (effective - 1) + spread**2 / 2))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    assert interval.high - interval.value == pytest.approx(half)
    assert interval.value - interval.low == pytest.approx(half)


def test_an_interval_that_is_not_known_shows_nothing() -> None:
    right = np.stack([np.ones((2, 5)), np.zeros((2, 5))])
    one_speaker = contrast_of(outcomes_of(right, ["a"] * 5))
    assert verdict_word(contrast_interval(one_speaker, point_gain), 2) == "not resolved"
    never_right = contrast_of(outcomes_of(right, list("abcde")))
    assert verdict_word(contrast_interval(never_right, relative_gain), 2) == "not resolved"


def test_the_interval_decides() -> None:
    assert verdict_word(Interval(1.0, 0.1, 1.9, 0.1, 0.1), 3) == "shown"
    assert verdict_word(Interval(1.0, -0.1, 2.1, 0.1, 0.1), 3) == "not resolved"
    assert verdict_word(Interval(-1.0, -1.9, -0.1, 0.1, 0.1), 3) == "opposite"
    assert verdict_word(Interval(1.0, 0.1, 1.9, 0.1, 0.1), 1) == "shown for one seed"
    assert verdict_word(Interval(1.0, math.nan, math.nan, 0.1, 0.1), 1) == "not resolved"


def test_systems_with_equal_predictions_differ_by_nothing(two_tasks: Marks) -> None:
    same = contrast_of(*(outcomes_of(marks[[0, 0]], owners) for marks, owners in two_tasks))
    interval = contrast_interval(same, point_gain)
    assert interval[:3] == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert verdict_word(interval, 3) == "not resolved"


# One interval for the same two checkpoints, whoever asks.


def test_a_claim_on_one_task_with_one_seed_has_the_interval_of_bench_compare() -> None:
    rng, rows, records = np.random.default_rng(0), {}, {}
    for name, level in (("a-0", 0.7), ("b-0", 0.5)):
        for seed in range(3):
            right = rng.random(120) < level
            one = record(name, seed=seed, test=100 * float(right.mean()), clustered_by="speaker")
            rows[one.id] = [
                {"id": f"c{clip}", "reference": "a", "prediction": "a", "correct": str(bool(mark)),
                 "cluster": f"speaker {clip % 20}"}
                for clip, mark in enumerate(right)
            ]  # fmt: skip
            records.setdefault(name, []).append(one)
    assert_as_compared(records, rows, point_gain, 1.0)


def test_a_claim_on_equal_error_rates_has_the_interval_of_bench_compare() -> None:
    rng, rows, records = np.random.default_rng(1), {}, {}
    enroll, test = pairs(12, 4)
    for name, skill in (("a-0", 2.0), ("b-0", 1.0)):
        for seed in range(2):
            scores = rng.normal(skill * (enroll // 4 == test // 4), 1.0)
            truth = enroll // 4 == test // 4
            rate = 100 * eer(scores, truth).rate
            one = record(name, seed=seed, valid=9.0, test=rate, metric="eer", higher=False, clustered_by="speaker")
            rows[one.id] = [
                {"enroll": f"c{e}", "test": f"c{t}", "target": str(bool(same)), "score": repr(float(score)),
                 "enroll_cluster": f"speaker {e // 4}", "test_cluster": f"speaker {t // 4}"}
                for e, t, same, score in zip(enroll, test, truth, scores, strict=True)
            ]  # fmt: skip
            records.setdefault(name, []).append(one)
    assert_as_compared(records, rows, point_reduction, -1.0)


def assert_as_compared(records: dict[str, list[Record]], rows: dict[str, list[Row]], function, sign: float) -> None:  # type: ignore[no-untyped-def]
    outcomes = lambda one: rows[one.id]  # noqa: E731
    (pair,) = compare_upstreams(records, outcomes)
    expected = pair.tasks[0].difference.scaled(sign)
    collected = collect_outcomes([one for several in records.values() for one in several], outcomes)
    interval = contrast_interval(make_contrast([collected], ["a-0"], ["b-0"]), function)
    assert interval == pytest.approx(expected, rel=1e-12)
    assert interval.low < interval.value < interval.high


# Coverage.


@pytest.mark.parametrize(("seeds", "by_seed"), [(3, 0.05), (3, 0.1), (2, 0.1)])
def test_the_true_difference_lies_in_95_of_100_intervals(seeds: int, by_seed: float) -> None:
    """52 speakers with 8 clips: speakers, clips and seeds drawn anew each time, as hard as the embedded corpus."""
    rng, worlds, speakers, clips = np.random.default_rng(7), 1500, 52, 8
    by_system, by_clip, luck = 0.4, 0.8, 0.5
    owners = [f"{number // clips:02d}" for number in range(speakers * clips)]
    deviation = math.sqrt(1 + by_system**2 + by_clip**2 + luck**2 + by_seed**2)
    truth = 100 * (NormalDist().cdf(0.5 / deviation) - 0.5)
    hits = 0
    for _ in range(worlds):
        hard = rng.normal(0, 1, speakers) + rng.normal(0, by_system, (2, 1, speakers))
        skill = np.array([0.5, 0.0])[:, None, None] + rng.normal(0, by_seed, (2, seeds, 1))
        level = np.repeat(hard, clips, -1) + rng.normal(0, by_clip, speakers * clips) + skill
        right = level + rng.normal(0, luck, level.shape) > 0
        interval = contrast_interval(contrast_of(outcomes_of(right.astype(float), owners)), point_gain)
        hits += interval.low <= truth <= interval.high
    assert 0.935 <= hits / worlds <= 0.98


def test_the_true_difference_of_word_error_rates_lies_in_95_of_100_intervals() -> None:
    rng, worlds, speakers, clips = np.random.default_rng(5), 1500, 52, 8
    owners = [f"{number // clips:02d}" for number in range(speakers * clips)]
    hits = 0
    for _ in range(worlds):
        hard = np.repeat(rng.gamma(4, 1 / 4, speakers) * rng.gamma(25, 1 / 25, (2, 1, speakers)), clips, -1)
        luck = rng.gamma(100, 1 / 100, (2, 3, 1))
        words = rng.integers(3, 6, speakers * clips).astype(float)
        errors = rng.poisson(np.array([0.25, 0.3])[:, None, None] * hard * luck * words).astype(float)
        interval = contrast_interval(contrast_of(outcomes_of(errors, owners, words)), point_reduction, bounded=False)
        hits += interval.low <= 5 <= interval.high
    assert 0.935 <= hits / worlds <= 0.98


@cache
def pairs(speakers: int, clips: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The two clips of all trials of one speaker, and of as many of two; `clips` of each speaker follow one another."""
    every = list(combinations(range(speakers * clips), 2))
    same = [pair for pair in every if pair[0] // clips == pair[1] // clips]
    other = [pair for pair in every if pair[0] // clips != pair[1] // clips]
    chosen = np.random.default_rng(0).choice(len(other), len(same), replace=False)
    enroll, test = np.array(same + [other[place] for place in chosen]).T
    return enroll, test


SKILL, VOICE, RECORDING, PAIR, SEED = (1.6, 1.3), (0.4, 0.25), (0.4, 0.2), (0.3, 0.15), 0.05


def trials(rng: np.random.Generator, speakers: int, clips: int, seeds: int) -> TaskOutcomes:
    """Scores of two systems that depend on both speakers, both clips and the pair, partly alike for both systems."""
    enroll, test = pairs(speakers, clips)
    a, b = enroll // clips, test // clips

    def effects(shares: tuple[float, float], count: int) -> NDArray[np.float64]:
        return shares[0] * rng.normal(size=(1, 1, count)) + shares[1] * rng.normal(size=(2, 1, count))

    voices, recordings = effects(VOICE, speakers), effects(RECORDING, speakers * clips)
    scores = voices[..., a] + voices[..., b] + recordings[..., enroll] + recordings[..., test] + effects(PAIR, len(a))
    scores = scores + (np.array(SKILL)[:, None, None] + SEED * rng.normal(size=(2, seeds, 1))) * (a == b)
    runs = [(f"{system}-{seed}", 0) for system in "ab" for seed in range(seeds)]
    errors = TrialErrors(a, b, speakers, a == b, scores.reshape(-1, len(a)), "eer")
    return TaskOutcomes(runs, errors, "speakers", [f"speaker {number:02d}" for number in range(speakers)])


def test_both_speakers_of_a_trial_count() -> None:
    """With speakers who differ, resampling trials as if they were independent would give too narrow intervals."""
    task = trials(np.random.default_rng(6), 30, 6, 1)
    count = len(task.scores.truth)  # type: ignore[attr-defined]
    apart = task._replace(
        scores=task.scores._replace(enroll=np.arange(count), test=np.arange(count), size=count),  # type: ignore[attr-defined]
        clusters=[f"trial {number:04d}" for number in range(count)],
    )
    narrow = contrast_interval(contrast_of(apart, draws=1000), point_reduction)
    assert contrast_interval(contrast_of(task, draws=1000), point_reduction).clips > 1.2 * narrow.clips


def test_the_true_difference_of_equal_error_rates_lies_in_95_of_100_intervals() -> None:
    """Scores of targets and of others are normal here."""
    rng, worlds, hits = np.random.default_rng(8), 400, 0
    voice, recording, pair = (math.hypot(*shares) for shares in (VOICE, RECORDING, PAIR))
    rest = 2 * recording**2 + pair**2
    spread = math.sqrt(2 * voice**2 + rest) + math.sqrt((2 * voice) ** 2 + rest)  # one speaker's voice counts twice
    better, worse = (NormalDist().cdf(-skill / math.hypot(spread, SEED)) for skill in SKILL)
    for _ in range(worlds):
        interval = contrast_interval(contrast_of(trials(rng, 30, 4, 2), draws=200), point_reduction)
        hits += interval.low <= 100 * (worse - better) <= interval.high
    assert 0.93 <= hits / worlds <= 0.995
