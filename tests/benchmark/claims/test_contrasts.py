"""Contrasts: values against the formula, errors against independent implementations, coverage by simulation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from statistics import NormalDist
from time import process_time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from benchmark.claims.contrasts import Clips, Trials, difference, draw, fewer, gain, interval, reduction, word_of
from benchmark.statistics.intervals import Interval
from downstreams.metrics import eer


def paired(rng: np.random.Generator, clips: int, clusters: int, seeds: int, name: str = "speaker") -> Clips:
    """Answers at random: the first system right more often, some speakers and clips harder than others."""
    owners = rng.integers(0, clusters, clips)
    hard = rng.normal(0, 0.7, clusters)[owners] + rng.normal(0, 0.7, clips)
    right = hard + rng.normal(0, 0.7, (2, seeds, clips)) + np.array([0.4, 0.0])[:, None, None] > 0
    return Clips([f"{name}{owner}" for owner in owners], right.astype(float))


@pytest.fixture(scope="module")
def two_tasks() -> list[Clips]:
    rng = np.random.default_rng(3)
    return [paired(rng, 300, 40, 3), paired(rng, 150, 150, 3, "clip")]


def test_values_are_those_of_the_formula(two_tasks: list[Clips]) -> None:
    drawn = draw(two_tasks, draws=50)
    a, b = (np.array([task.marks[system].mean() for task in two_tasks]) for system in (0, 1))
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
    task = Clips([f"clip{number}" for number in range(80)], task.marks)
    first, second = task.marks.mean(1)
    scipys = stats.bootstrap(
        (first, second), lambda a, b, axis: 100 * (a - b).mean(axis), paired=True, vectorized=True, n_resamples=9999,
        method="percentile", rng=np.random.default_rng(1),
    )  # fmt: skip
    found = interval(draw([task]), difference).clips
    assert found == pytest.approx(float(scipys.standard_error) * math.sqrt(80 / 79), rel=0.03)
    assert found == pytest.approx(100 * float((first - second).std(ddof=1)) / math.sqrt(80), rel=0.03)


def test_the_error_by_clips_counts_speakers_not_clips(two_tasks: list[Clips]) -> None:
    """Against the linearised variance of a ratio with clusters (Cochran, 1977), for a difference and for a gain."""
    task = two_tasks[0]
    a, b = task.marks.mean((1, 2))
    each_difference = task.marks[0].mean(0) - task.marks[1].mean(0) - (a - b)
    each_gain = (task.marks[0].mean(0) - a) / b - a / b**2 * (task.marks[1].mean(0) - b)
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


def test_the_error_by_seeds_of_a_difference_is_the_spread_of_its_values(two_tasks: list[Clips]) -> None:
    by_seed = [100 * np.mean([np.subtract(*task.marks[:, seed].mean(-1)) for task in two_tasks]) for seed in range(3)]
    assert interval(draw(two_tasks, draws=50), difference).seeds == pytest.approx(stats.sem(by_seed))


def test_the_interval_is_welchs_with_the_degrees_of_freedom_of_both_errors(two_tasks: list[Clips]) -> None:
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
    one_speaker = Clips(["a"] * 5, np.stack([np.ones((2, 5)), np.zeros((2, 5))]))
    assert word_of(interval(draw([one_speaker], draws=50), difference)) == "not resolved"
    never_right = Clips(list("abcde"), np.stack([np.ones((2, 5)), np.zeros((2, 5))]))
    assert word_of(interval(draw([never_right], draws=50), gain)) == "not resolved"


def test_the_interval_decides() -> None:
    assert word_of(Interval(1.0, 0.1, 1.9, 0.1, 0.1)) == "shown"
    assert word_of(Interval(1.0, -0.1, 2.1, 0.1, 0.1)) == "not resolved"
    assert word_of(Interval(-1.0, -1.9, -0.1, 0.1, 0.1)) == "opposite"
    assert word_of(Interval(1.0, 0.1, 1.9, 0.1, math.nan)) == "shown for one seed"
    assert word_of(Interval(1.0, -0.1, 2.1, 0.1, math.nan)) == "not resolved"


def test_systems_that_answer_alike_differ_by_nothing(two_tasks: list[Clips]) -> None:
    same = [task._replace(marks=task.marks[[0, 0]]) for task in two_tasks]
    assert interval(draw(same, draws=50), difference)[:3] == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("seeds", "by_seed"), [(3, 0.05), (3, 0.1), (5, 0.1)])
def test_the_true_difference_lies_in_95_of_100_intervals(seeds: int, by_seed: float) -> None:
    """52 speakers with 8 clips: speakers, clips and seeds drawn anew each time, as hard as the embedded corpus."""
    rng, worlds, speakers, clips = np.random.default_rng(7), 1500, 52, 8
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
        found = interval(draw([Clips(owners, right.astype(float))], draws=200), difference)
        hits += found.low <= truth <= found.high
    assert 0.935 <= hits / worlds <= 0.97


# Errors by words.


def spoken(rng: np.random.Generator, clips: int, clusters: int, seeds: int) -> Clips:
    """Transcripts of clips with one to nine words, the second system's worse, some speakers harder than others."""
    owners = rng.integers(0, clusters, clips)
    words = rng.integers(1, 10, clips).astype(float)
    rate = 0.3 * rng.gamma(4, 1 / 4, clusters)[owners] * np.array([1.0, 1.5])[:, None, None]
    return Clips(
        [f"speaker{owner}" for owner in owners], rng.poisson(rate * words, (2, seeds, clips)).astype(float), words
    )


def test_word_error_rates_are_ratios_of_sums() -> None:
    task = spoken(np.random.default_rng(0), 200, 30, 3)
    assert task.sizes is not None
    a, b = (task.marks[system].sum() / 3 / task.sizes.sum() for system in (0, 1))
    drawn = draw([task], draws=50)
    assert interval(drawn, fewer).value == pytest.approx(100 * (b - a))
    assert interval(drawn, reduction).value == pytest.approx(100 * (b - a) / b)
    assert interval(drawn, fewer).value > 0  # the first makes fewer


def test_sizes_may_differ_between_systems_and_seeds() -> None:
    """Such as the clips that a system takes for one of two languages, of which a share is taken for the wrong one."""
    task = spoken(np.random.default_rng(3), 90, 15, 2)
    sizes = np.random.default_rng(4).integers(1, 9, (2, 2, 90)).astype(float)
    places, weights = {name: at for at, name in enumerate(sorted(task.names))}, np.ones((1, 15), np.int64)
    expected = task.marks.sum(-1) / sizes.sum(-1)
    np.testing.assert_allclose(task._replace(sizes=sizes).points(), expected)
    np.testing.assert_allclose(task._replace(sizes=sizes).drawn(places, weights)[0], expected)
    assert task.sizes is not None
    same = np.broadcast_to(task.sizes, sizes.shape)
    assert interval(draw([task._replace(sizes=same)], 50), fewer) == interval(draw([task], 50), fewer)


def test_the_papers_relative_reductions_are_those_that_they_report() -> None:
    # Wan et al. (2022) and Cho et al. (2022): 8.27 % WER is 13.7 % below 9.58 %, 1.89 % EER is 57 % below 4.38 %.
    assert float(reduction(np.array([8.27]), np.array([9.58]))) == pytest.approx(13.7, abs=0.05)
    assert float(reduction(np.array([1.89]), np.array([4.38]))) == pytest.approx(56.8, abs=0.05)


def test_a_draw_of_word_errors_is_that_of_clips_copied_with_their_speakers() -> None:
    rng = np.random.default_rng(2)
    task = spoken(rng, 60, 12, 2)
    names, weights = sorted(task.names), rng.multinomial(12, np.full(12, 1 / 12), size=20)
    places = {name: number for number, name in enumerate(names)}
    assert task.sizes is not None
    for row, found in zip(weights, task.drawn(places, weights), strict=True):
        copied = np.repeat(np.arange(60), [row[places[owner]] for owner in task.clusters])
        expected = task.marks[..., copied].sum(-1) / task.sizes[copied].sum()
        np.testing.assert_allclose(found, expected)


def test_the_error_of_word_error_rates_is_that_of_a_ratio_with_clusters() -> None:
    """Against the linearised variance (Cochran, 1977)."""
    task = spoken(np.random.default_rng(1), 600, 50, 1)
    assert task.sizes is not None
    rates = task.marks[:, 0].sum(-1) / task.sizes.sum()
    residuals = np.subtract(*(task.marks[[1, 0], 0] - rates[[1, 0], None] * task.sizes))
    names = sorted(task.names)
    sums = np.array([residuals[[name == owner for owner in task.clusters]].sum() for name in names])
    error = 100 * math.sqrt(len(names) * sums.var(ddof=1)) / task.sizes.sum()
    assert interval(draw([task]), fewer).clips == pytest.approx(error, rel=0.06)


def test_the_true_difference_of_word_error_rates_lies_in_95_of_100_intervals() -> None:
    rng, worlds, speakers, clips = np.random.default_rng(5), 1500, 52, 8
    owners = [str(number // clips) for number in range(speakers * clips)]
    hits = 0
    for _ in range(worlds):
        hard = np.repeat(rng.gamma(4, 1 / 4, speakers) * rng.gamma(25, 1 / 25, (2, 1, speakers)), clips, -1)
        luck = rng.gamma(100, 1 / 100, (2, 3, 1))
        words = rng.integers(3, 6, speakers * clips).astype(float)
        marks = rng.poisson(np.array([0.25, 0.3])[:, None, None] * hard * luck * words).astype(float)
        found = interval(draw([Clips(owners, marks, words)], draws=200), fewer)
        hits += found.low <= 5 <= found.high
    assert 0.935 <= hits / worlds <= 0.97


# Equal error rates.

Places = NDArray[np.int64]


@cache
def pairs(speakers: int, clips: int) -> tuple[Places, Places]:
    """The two clips of all trials of one speaker, and of as many of two; `clips` of each follow one another."""
    every = list(combinations(range(speakers * clips), 2))
    same = [pair for pair in every if pair[0] // clips == pair[1] // clips]
    other = [pair for pair in every if pair[0] // clips != pair[1] // clips]
    chosen = np.random.default_rng(0).choice(len(other), len(same), replace=False)
    enroll, test = np.array(same + [other[place] for place in chosen]).T
    return enroll, test


SKILL, VOICE, RECORDING, PAIR, SEED = (1.6, 1.3), (0.4, 0.25), (0.4, 0.2), (0.3, 0.15), 0.05


def trials(rng: np.random.Generator, speakers: int, clips: int, seeds: int, step: float = 0.0) -> Trials:
    """Scores of two systems that depend on both speakers, both clips and the pair, partly alike for both systems.

    step: to which they are rounded, if any, so that some tie.
    """
    enroll, test = pairs(speakers, clips)
    a, b = enroll // clips, test // clips

    def drawn(shares: tuple[float, float], count: int) -> NDArray[np.float64]:
        return shares[0] * rng.normal(size=(1, 1, count)) + shares[1] * rng.normal(size=(2, 1, count))

    voices, recordings = drawn(VOICE, speakers), drawn(RECORDING, speakers * clips)
    scores = voices[..., a] + voices[..., b] + recordings[..., enroll] + recordings[..., test] + drawn(PAIR, len(a))
    scores = scores + (np.array(SKILL)[:, None, None] + SEED * rng.normal(size=(2, seeds, 1))) * (a == b)
    scores = np.round(scores / step) * step if step else scores
    return Trials([f"s{each}" for each in a], [f"s{each}" for each in b], a == b, scores[:, :, None])


def copied(task: Trials, drawn: Mapping[str, int]) -> tuple[list[int], list[bool]]:
    """The trials among speakers drawn so often, each copy of a speaker being compared with itself and with others."""
    places, targets = [], []
    for place, (one, other, target) in enumerate(zip(task.enroll, task.test, task.targets, strict=True)):
        copies = [(one, first, other, second) for first in range(drawn[one]) for second in range(drawn[other])]
        kept = [copy for copy in copies if one != other or copy[1] == copy[3]]
        places += [place] * len(kept)
        targets += [bool(target)] * len(kept)
    return places, targets


def test_equal_error_rates_are_those_of_the_metric() -> None:
    for step in (0.0, 0.3):
        task = trials(np.random.default_rng(0), 12, 5, 3, step=step)
        expected = [[eer(task.scores[a, k, 0], task.targets).rate for k in range(3)] for a in range(2)]
        np.testing.assert_allclose(task.points(), expected, rtol=1e-12)


@pytest.mark.parametrize("step", [0.0, 0.3, 2.0])
def test_a_draw_of_trials_is_that_of_speakers_copied(step: float) -> None:
    rng = np.random.default_rng(4)
    task = trials(rng, 8, 4, 2, step=step)
    names, weights = sorted(task.names), rng.multinomial(8, np.full(8, 1 / 8), size=300)
    found = task.drawn({name: number for number, name in enumerate(names)}, weights)
    assert found.shape == (300, 2, 2)
    for row, rates in zip(weights, found, strict=True):
        places, targets = copied(task, dict(zip(names, row.tolist(), strict=True)))
        expected = [[eer(task.scores[a, k, 0, places], targets).rate for k in range(2)] for a in range(2)]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)


def test_rates_of_several_heads_are_averaged_not_their_scores() -> None:
    task = trials(np.random.default_rng(1), 10, 4, 3)
    heads = task._replace(scores=np.moveaxis(task.scores, 1, 2))  # three heads of one seed
    np.testing.assert_allclose(heads.points()[:, 0], task.points().mean(1))


def test_only_the_order_of_scores_matters() -> None:
    task = trials(np.random.default_rng(1), 10, 4, 1)
    other = task._replace(scores=np.exp(task.scores))
    assert interval(draw([task], draws=300), fewer) == interval(draw([other], draws=300), fewer)


def test_a_draw_without_trials_of_one_kind_has_no_rate() -> None:
    task = trials(np.random.default_rng(1), 3, 3, 1)
    one_speaker, nobody = np.array([[3, 0, 0]]), np.array([[0, 0, 0]])
    places = {"s0": 0, "s1": 1, "s2": 2}
    assert np.isnan(task.drawn(places, one_speaker)).all()
    assert np.isnan(task.drawn(places, nobody)).all()
    assert np.isfinite(interval(draw([task], draws=300), fewer).clips)


def test_both_speakers_of_a_trial_count() -> None:
    """With speakers who differ, resampling trials as if they were independent would be too sure."""
    task = trials(np.random.default_rng(6), 30, 6, 1)
    apart = [f"trial{number}" for number in range(len(task.enroll))]
    sure = interval(draw([task._replace(enroll=apart, test=apart)], draws=1000), fewer)
    assert interval(draw([task], draws=1000), fewer).clips > 1.3 * sure.clips


def test_the_true_difference_of_equal_error_rates_lies_in_95_of_100_intervals() -> None:
    """Scores of targets and of others are normal here. What is a pair's own counts thrice, so it is rather in more."""
    rng, worlds, hits = np.random.default_rng(8), 600, 0
    voice, recording, pair = (math.hypot(*shares) for shares in (VOICE, RECORDING, PAIR))
    rest = 2 * recording**2 + pair**2
    spread = math.sqrt(2 * voice**2 + rest) + math.sqrt((2 * voice) ** 2 + rest)  # one speaker's voice counts twice
    better, worse = (NormalDist().cdf(-skill / math.hypot(spread, SEED)) for skill in SKILL)
    for _ in range(worlds):
        found = interval(draw([trials(rng, 30, 4, 2)], draws=200), fewer)
        hits += found.low <= 100 * (worse - better) <= found.high
    assert 0.975 <= hits / worlds <= 0.99  # about 0.97 with intervals a sixth narrower


def test_ten_thousand_draws_of_3600_trials_take_seconds() -> None:
    task = trials(np.random.default_rng(0), 40, 10, 1)
    assert len(task.enroll) == 3600
    began = process_time()
    draw([task])
    assert process_time() - began < 10  # about one; tens with a loop over draws
