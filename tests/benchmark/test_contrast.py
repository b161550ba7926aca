"""Contrasts: values against the formula, errors against independent implementations, coverage by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from benchmark.contrast import Interval, Paired, difference, draw, gain, interval


def paired(rng: np.random.Generator, clips: int, clusters: int, seeds: int, name: str = "speaker") -> Paired:
    """Answers at random: the first system right more often, some speakers and clips harder than others."""
    owners = rng.integers(0, clusters, clips)
    hard = rng.normal(0, 0.7, clusters)[owners] + rng.normal(0, 0.7, clips)
    right = hard + rng.normal(0, 0.7, (2, seeds, clips)) + np.array([0.4, 0.0])[:, None, None] > 0
    return Paired([f"{name}{owner}" for owner in owners], right.astype(float))


@pytest.fixture(scope="module")
def two_tasks() -> list[Paired]:
    rng = np.random.default_rng(3)
    return [paired(rng, 300, 40, 3), paired(rng, 150, 150, 3, "clip")]


def test_values_are_those_of_the_formula(two_tasks: list[Paired]) -> None:
    drawn = draw(two_tasks, draws=50)
    a, b = (np.array([task.right[system].mean() for task in two_tasks]) for system in (0, 1))
    assert interval(drawn, difference).value == pytest.approx(100 * np.mean(a - b))
    assert interval(drawn, gain).value == pytest.approx(100 * np.mean((a - b) / b))
    assert interval(drawn.only(1), difference).value == pytest.approx(100 * (a[1] - b[1]))


def test_the_papers_relative_gain_is_what_gong_and_others_report() -> None:
    # Table 2 of Gong et al. (2022), patches: 400 masked, and from scratch; the abstract cuts it to 60.9 %.
    first = np.array([31.0, 88.8, 98.0, 96.0, 64.3, 59.6])
    second = np.array([14.8, 41.9, 92.6, 87.2, 30.1, 51.9])
    assert float(gain(first, second)) == pytest.approx(60.96, abs=0.01)


def test_the_error_by_clips_is_that_of_scipys_paired_bootstrap() -> None:
    task = paired(np.random.default_rng(0), 80, 10**6, 2)  # nearly every clip a cluster of its own
    task = Paired([f"clip{number}" for number in range(80)], task.right)
    first, second = task.right.mean(1)
    scipys = stats.bootstrap(
        (first, second), lambda a, b, axis: 100 * (a - b).mean(axis), paired=True, vectorized=True, n_resamples=9999,
        method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    found = interval(draw([task]), difference).clips
    assert found == pytest.approx(float(scipys.standard_error) * math.sqrt(80 / 79), rel=0.03)
    assert found == pytest.approx(100 * float((first - second).std(ddof=1)) / math.sqrt(80), rel=0.03)


def test_the_error_by_clips_counts_speakers_not_clips(two_tasks: list[Paired]) -> None:
    """Against the linearised variance of a ratio with clusters (Cochran, 1977), for a difference and for a gain."""
    task = two_tasks[0]
    a, b = task.right.mean((1, 2))
    each_difference = task.right[0].mean(0) - task.right[1].mean(0) - (a - b)
    each_gain = (task.right[0].mean(0) - a) / b - a / b**2 * (task.right[1].mean(0) - b)
    drawn = draw([task])
    names = sorted(set(task.clusters))
    for statistic, each in ((difference, each_difference), (gain, each_gain)):
        sums = np.array([each[[name == owner for owner in task.clusters]].sum() for name in names])
        error = 100 * math.sqrt(len(names) * sums.var(ddof=1)) / len(task.clusters)
        assert interval(drawn, statistic).clips == pytest.approx(error, rel=0.06)
    alone = task._replace(clusters=[str(number) for number in range(len(task.clusters))])
    assert interval(draw([task._replace(clusters=task.clusters)]), difference).clips != pytest.approx(
        interval(draw([alone]), difference).clips, rel=0.02
    )


def test_speakers_whom_tasks_share_are_drawn_together() -> None:
    task = paired(np.random.default_rng(5), 200, 30, 1)
    shared = interval(draw([task, task]), difference).clips
    apart = interval(draw([task, task._replace(clusters=[f"other {name}" for name in task.clusters])]), difference)
    assert shared == pytest.approx(interval(draw([task]), difference).clips, rel=1e-6)
    assert apart.clips == pytest.approx(shared / math.sqrt(2), rel=0.05)


def test_the_error_by_seeds_of_a_difference_is_the_spread_of_its_values(two_tasks: list[Paired]) -> None:
    by_seed = [100 * np.mean([np.subtract(*task.right[:, seed].mean(-1)) for task in two_tasks]) for seed in range(3)]
    assert interval(draw(two_tasks, draws=50), difference).seeds == pytest.approx(stats.sem(by_seed))


def test_the_interval_is_welchs_with_the_degrees_of_freedom_of_both_errors(two_tasks: list[Paired]) -> None:
    found = interval(draw([two_tasks[0]]), difference)
    clusters = len(set(two_tasks[0].clusters))
    freedom = (found.clips**2 + found.seeds**2) ** 2 / (found.clips**4 / (clusters - 1) + found.seeds**4 / 2)
    half = stats.t.ppf(0.975, freedom) * math.hypot(found.clips, found.seeds)
    assert found.high - found.value == pytest.approx(half)
    assert found.value - found.low == pytest.approx(half)


def test_with_one_seed_only_the_clips_count() -> None:
    found = interval(draw([paired(np.random.default_rng(0), 100, 100, 1)]), difference)
    assert math.isnan(found.seeds)
    assert 1.9 < (found.high - found.value) / found.clips < 2.1


def test_an_interval_that_cannot_be_had_shows_nothing() -> None:
    one_speaker = Paired(["a"] * 5, np.stack([np.ones((2, 5)), np.zeros((2, 5))]))
    assert interval(draw([one_speaker], draws=50), difference).verdict == "not resolved"
    never_right = Paired(list("abcde"), np.stack([np.ones((2, 5)), np.zeros((2, 5))]))
    assert interval(draw([never_right], draws=50), gain).verdict == "not resolved"


def test_the_interval_decides() -> None:
    assert Interval(1.0, 0.1, 1.9, 0.1, 0.1).verdict == "shown"
    assert Interval(1.0, -0.1, 2.1, 0.1, 0.1).verdict == "not resolved"
    assert Interval(-1.0, -1.9, -0.1, 0.1, 0.1).verdict == "opposite"
    assert Interval(1.0, 0.1, 1.9, 0.1, math.nan).verdict == "shown for one seed"
    assert Interval(1.0, -0.1, 2.1, 0.1, math.nan).verdict == "not resolved"


def test_systems_that_answer_alike_differ_by_nothing(two_tasks: list[Paired]) -> None:
    same = [task._replace(right=task.right[[0, 0]]) for task in two_tasks]
    assert interval(draw(same, draws=50), difference)[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("seeds", "by_seed"), [(3, 0.05), (3, 0.1), (5, 0.1)])
def test_the_true_difference_lies_in_95_of_100_intervals(seeds: int, by_seed: float) -> None:
    """52 speakers with 8 clips: speakers, clips and seeds drawn anew each time, as hard as the embedded corpus."""
    rng, worlds, speakers, clips = np.random.default_rng(7), 2500, 52, 8
    by_arm, by_clip, luck = 0.4, 0.8, 0.5
    owners = [str(number // clips) for number in range(speakers * clips)]
    deviation = math.sqrt(1 + by_arm**2 + by_clip**2 + luck**2 + by_seed**2)
    truth = 100 * (NormalDist().cdf(0.5 / deviation) - 0.5)
    hits = 0
    for _ in range(worlds):
        hard = rng.normal(0, 1, speakers) + rng.normal(0, by_arm, (2, 1, speakers))
        skill = np.array([0.5, 0.0])[:, None, None] + rng.normal(0, by_seed, (2, seeds, 1))
        each = np.repeat(hard, clips, -1) + rng.normal(0, by_clip, speakers * clips) + skill
        right = each + rng.normal(0, luck, each.shape) > 0
        found = interval(draw([Paired(owners, right.astype(float))], draws=200), difference)
        hits += found.low <= truth <= found.high
    assert 0.935 <= hits / worlds <= 0.97
