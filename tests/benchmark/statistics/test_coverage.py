"""By simulation: intervals hold the truth in 95 of 100 test sets, tests alarm in 5 of 100 where nothing differs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from benchmark.comparison.pairs import compare_upstreams
from benchmark.records import Record
from benchmark.statistics.intervals import holm, mcnemar, mean_interval, paired_difference, score_distribution
from benchmark.statistics.resampling import FoldMeans, MeanPrecisions, Ratios, RunScores, TrialErrors
from tests.benchmark import worlds
from tests.benchmark.made import record

Make = Callable[[np.random.Generator], RunScores]


def coverage(make: Make, truth: float, worlds_: int, draws: int = 200, runs: int = 1, bounded: bool = True) -> float:
    """Of how many test sets the interval holds the truth."""
    held = 0
    for number in range(worlds_):
        found = mean_interval(
            score_distribution(make(np.random.default_rng([number, 7])), draws, number), list(range(runs)), bounded
        )
        held += found.low <= truth <= found.high
    return held / worlds_


def long_run(make: Make, tests: int = 6) -> float:
    return float(np.mean([make(np.random.default_rng([number, 8])).values()[0] for number in range(tests)]))


WITHIN = (0.93, 0.97)


@pytest.mark.parametrize(
    ("world", "least"),
    [
        ({}, 0.93),
        ({"by_speaker": 0.0}, 0.93),
        ({"level": 3.5}, 0.93),
        ({"speakers": 12, "clips": 40}, 0.93),
        ({"unequal": 0.7}, 0.93),
        ({"unequal": 1.1}, 0.93),
        ({"speakers": 10, "unequal": 0.7}, 0.93),
    ],
    ids=["speakers", "independent clips", "near 100 %", "few", "unequal", "very unequal", "few and unequal"],
)
def test_accuracy(world: dict[str, float], least: float) -> None:
    truth = worlds.share(**{name: value for name, value in world.items() if name in ("level", "by_speaker")})
    found = coverage(partial(worlds.answers, **world), truth, 3000)  # type: ignore[arg-type]
    assert least <= found <= WITHIN[1]


@pytest.mark.parametrize(("by_seed", "noise"), [(0.0, 0.2), (0.0, 1.0), (0.3, 1.0)])
def test_accuracy_over_seeds(by_seed: float, noise: float) -> None:
    make = partial(worlds.answers, seeds=3, by_seed=by_seed, noise=noise)
    found = coverage(make, worlds.share(by_seed=by_seed, noise=noise), 3000, runs=3)
    assert WITHIN[0] <= found <= WITHIN[1]


def test_accuracy_over_three_seeds_that_differ_far_more_than_clips_is_a_little_too_sure() -> None:
    found = coverage(
        partial(worlds.answers, seeds=3, by_seed=0.6, noise=0.5), worlds.share(by_seed=0.6, noise=0.5), 3000, runs=3
    )
    assert 0.90 <= found <= 0.94


def test_accuracy_of_one_seed_is_too_sure_where_seeds_differ() -> None:
    """Which is why the tables say of what there is one seed alone."""
    assert coverage(partial(worlds.answers, by_seed=0.3), worlds.share(by_seed=0.3), 1000) < 0.9


def folded(rng: np.random.Generator) -> FoldMeans:
    """Five sessions of two speakers, as IEMOCAP has."""
    parts = [worlds.answers(rng, speakers=2, clips=60, by_speaker=0.4) for _ in range(5)]
    return FoldMeans(parts, [np.array([2 * fold, 2 * fold + 1]) for fold in range(5)], 10)


def test_accuracy_over_folds() -> None:
    assert WITHIN[0] <= coverage(folded, worlds.share(by_speaker=0.4), 1000) <= WITHIN[1]


def test_word_error_rate() -> None:
    for unequal in (0.0, 0.7):
        make = partial(worlds.transcripts, unequal=unequal)
        assert WITHIN[0] <= coverage(make, 0.2, 1000, bounded=False) <= WITHIN[1]


@pytest.mark.parametrize("average", ["macro_f1", "uar"])
def test_macro_f1_and_unweighted_recall(average: str) -> None:
    make = partial(worlds.labels, average=average)
    truth = long_run(partial(make, speakers=20_000))
    assert WITHIN[0] <= coverage(make, truth, 1000) <= WITHIN[1]


def test_mean_average_precision() -> None:
    assert WITHIN[0] <= coverage(worlds.tags, long_run(partial(worlds.tags, clips=100_000)), 600) <= WITHIN[1]


def test_equal_error_rate() -> None:
    truth = long_run(partial(worlds.trials, speakers=400, others=40_000), 20)
    few = partial(worlds.trials, targets=20, others=800)
    assert WITHIN[0] <= coverage(few, truth, 500, 150) <= WITHIN[1]


def test_minimal_detection_cost() -> None:
    """With a list long enough for it to be told at all: 40 speakers, 16 000 trials."""
    make = partial(worlds.trials, rate="min_dcf", targets=200, others=8000, apart=3.5, by_speaker=0.3, by_pair=0.2)
    truth = long_run(partial(make, speakers=400, targets=45, others=100_000), 10)
    assert WITHIN[0] <= coverage(make, truth, 200, 120) <= WITHIN[1]


def trial_bootstrap(sample: TrialErrors, rng: np.random.Generator, draws: int = 30) -> float:
    """Standard deviation as if trials did not depend on each other."""
    places = np.arange(len(sample.truth))
    alone = sample._replace(enroll=places, test=places, size=len(places))
    weights = np.stack(
        [np.bincount(rng.integers(0, len(places), len(places)), minlength=len(places)) for _ in range(draws)]
    )
    return float(alone.resampler()(weights).std())


def test_drawing_trials_alone_would_miss_the_equal_error_rate_most_of_the_time() -> None:
    make = partial(worlds.trials, speakers=40, targets=100, others=4000)
    truth = long_run(partial(worlds.trials, speakers=400, others=40_000), 20)
    held = 0
    for number in range(30):
        rng = np.random.default_rng([number, 9])
        sample = make(rng)
        held += abs(sample.values()[0] - truth) < 1.96 * trial_bootstrap(sample, rng)
    assert held / 30 < 0.7


def alarms(
    make: Callable[[np.random.Generator], tuple[RunScores, list[list[int]]]], times: int, draws: int = 200
) -> float:
    """How often two systems with the same truth are said to differ."""
    said = 0
    for number in range(times):
        sample, columns = make(np.random.default_rng([number, 11]))
        said += paired_difference(score_distribution(sample, draws, number), *columns).p < 0.05
    return said / times


def equally_good(
    rng: np.random.Generator, seeds: int, by_seed: float = 0.0, **world: float
) -> tuple[RunScores, list[list[int]]]:
    """Two systems whose runs are all drawn alike, tested on the same clips."""
    sample = worlds.answers(rng, seeds=2 * seeds, by_seed=by_seed, **world)  # type: ignore[arg-type]
    return sample, [list(range(seeds)), list(range(seeds, 2 * seeds))]


def same_twice(
    rng: np.random.Generator, make: Callable[..., TrialErrors | MeanPrecisions]
) -> tuple[RunScores, list[list[int]]]:
    """Two systems with noise of their own about the same scores."""
    sample = make(rng)
    scores = np.stack([sample.scores[0] + 0.7 * rng.normal(size=sample.scores[0].shape) for _ in range(2)])
    return sample._replace(scores=scores), [[0], [1]]


@pytest.mark.parametrize(
    ("seeds", "by_seed", "world"),
    [
        (1, 0.0, {}), (3, 0.0, {}), (3, 0.4, {}), (1, 0.0, {"unequal": 1.1}), (1, 0.0, {"speakers": 6}),
        (3, 0.2, {"speakers": 10, "unequal": 0.7}),
    ],
)  # fmt: skip
def test_two_equally_good_checkpoints_are_told_apart_in_five_of_a_hundred_at_most(
    seeds: int, by_seed: float, world: dict[str, float]
) -> None:
    assert alarms(partial(equally_good, seeds=seeds, by_seed=by_seed, **world), 2000) <= 0.055


@pytest.mark.parametrize(("seeds", "most"), [(3, 0.08), (5, 0.055)])
def test_a_checkpoint_with_one_seed_is_seldom_told_from_an_equal_one_with_several(seeds: int, most: float) -> None:
    def make(rng: np.random.Generator) -> tuple[RunScores, list[list[int]]]:
        sample = worlds.answers(rng, seeds=seeds + 1, by_seed=0.2)
        return sample, [list(range(seeds)), [seeds]]

    assert alarms(make, 2000) <= most


def test_few_speakers_are_enough_to_see_a_large_difference() -> None:
    said = 0
    for number in range(300):
        rng = np.random.default_rng([number, 15])
        first, second = worlds.answers(rng, speakers=6, level=2.5), worlds.answers(rng, speakers=6, level=0.0)
        sample = Ratios(np.concatenate([first.marks, second.marks]), first.sizes)
        said += paired_difference(score_distribution(sample), [0], [1]).p < 0.05
    assert said / 300 > 0.7


def test_exact_mcnemar_alarms_in_five_of_a_hundred_at_most() -> None:
    said = 0
    for number in range(2000):
        right = np.random.default_rng(number).random((2, 300)) < 0.8
        gained, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
        said += mcnemar(gained, lost) < 0.05
    assert 0.02 < said / 2000 <= 0.05


def test_two_equally_good_recognisers_and_verifiers_are_seldom_told_apart() -> None:
    def words(rng: np.random.Generator) -> tuple[RunScores, list[list[int]]]:
        sizes = rng.integers(30, 80, 40).astype(float)
        rates = rng.gamma(4, 0.05, 40)
        return Ratios(rng.poisson(sizes * rates, (2, 40)).astype(float), sizes), [[0], [1]]

    assert alarms(words, 2000) <= 0.06
    assert alarms(partial(same_twice, make=partial(worlds.trials, targets=20, others=800)), 300, 150) <= 0.06
    assert alarms(partial(same_twice, make=partial(worlds.tags, clips=400)), 300, 120) <= 0.06


def test_over_ten_tasks_holms_method_keeps_the_alarms_of_all_together_below_five_of_a_hundred() -> None:
    families = 0
    for number in range(400):
        chances = []
        for task in range(10):
            sample, columns = equally_good(np.random.default_rng([number, task, 12]), 1)
            chances.append(paired_difference(score_distribution(sample), *columns).p)
        families += min(holm(chances)) < 0.05
    assert families / 400 <= 0.06


def test_a_difference_that_is_there_is_found_the_surer_the_larger_it_is() -> None:
    def power(gain: float) -> float:
        said = 0
        for number in range(300):
            rng = np.random.default_rng([number, 13])
            hard = rng.normal(0, 0.8, (50, 1)) + rng.normal(0, 1, (50, 12))
            right = np.array([1.2 + gain, 1.2])[:, None, None] + hard + rng.normal(0, 1, (2, 50, 12)) > 0
            sample = Ratios(right.sum(-1).astype(float), np.full(50, 12.0))
            said += paired_difference(score_distribution(sample), [0], [1]).p < 0.05
        return said / 300

    small, middle, large = (power(gain) for gain in (0.0, 0.2, 0.45))
    assert small <= 0.08
    assert 0.35 < middle < 0.85
    assert large > 0.97


def test_whole_comparisons_of_equally_good_checkpoints_seldom_conclude_anything() -> None:
    """From records with outcomes to verdicts: four tasks, three seeds that differ, thirty speakers."""
    said = 0
    for number in range(150):
        records, rows = equal_checkpoints(np.random.default_rng([number, 14]))
        (pair,) = compare_upstreams(records, lambda each, rows=rows: rows[each.id])  # type: ignore[misc]
        said += any(each.verdict != "not resolved" for each in pair.tasks)
    assert said / 150 <= 0.06


def equal_checkpoints(rng: np.random.Generator) -> tuple[dict[str, list[Record]], dict[str, list[dict[str, str]]]]:
    records: dict[str, list[Record]] = {"a": [], "b": []}
    rows: dict[str, list[dict[str, str]]] = {}
    for task in ("one", "two", "three", "four"):
        hard = np.repeat(rng.normal(0, 0.8, 30), 10) + rng.normal(0, 1, 300)
        for name, some in records.items():
            for seed in range(3):
                right = 1 + rng.normal(0, 0.2) + hard + rng.normal(0, 1, 300) > 0
                each = record(name, task, seed=seed, test=100 * float(right.mean()), clustered_by="speaker")
                some.append(each)
                rows[each.id] = [
                    {"id": str(clip), "reference": "x", "prediction": "x" if mark else "y", "correct": str(bool(mark)),
                     "cluster": f"speaker {clip // 10}"}
                    for clip, mark in enumerate(right)
                ]  # fmt: skip
    return records, rows
