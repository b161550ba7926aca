"""Intervals and tests against closed forms, other people's implementations and slow, naive resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmark.statistics.intervals import (
    ScoreDistribution,
    bootstrap,
    holm,
    mcnemar,
    mean_interval,
    p_value,
    paired_difference,
    score_distribution,
    t_quantile,
)
from benchmark.statistics.resampling import Ratios, RunScores, TrialErrors
from downstreams import metrics
from tests.benchmark import worlds
from tests.benchmark.statistics.test_resampling import drawn_trials, label_metric, repeated, trial_metric


def naive_error(sample: RunScores, score: Callable[[np.ndarray], float], draws: int = 400) -> float:
    """Standard deviation of scores of clips that are drawn cluster by cluster, one draw after the other."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        drawn = rng.integers(0, sample.size, sample.size)
        found.append(score(np.bincount(drawn, minlength=sample.size)))
    return float(np.std(found, ddof=1))


def test_the_closed_form_of_shares_agrees_with_the_bootstrap() -> None:
    sample = worlds.answers(np.random.default_rng(0), speakers=60, seeds=3)
    drawn = bootstrap(sample.resampler(), sample.size, 20_000)
    assert np.cov(drawn, rowvar=False) * 60 / 59 == pytest.approx(score_distribution(sample).covariance, rel=0.05)


def test_an_accuracy_of_single_clips_has_wilsons_interval() -> None:
    right = np.arange(400) < 372
    found = mean_interval(score_distribution(Ratios(right[None].astype(float), np.ones(400))), [0])
    wilson = stats.binomtest(372, 400).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=3e-4)


def test_a_word_error_rate_agrees_with_naive_resampling_of_texts() -> None:
    rng = np.random.default_rng(5)
    words = ["one", "two", "three", "four", "five"]
    references = [" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(120)]
    heard = [
        " ".join(word for word in text.split() if rng.random() < 0.8) + " oh" * (rng.random() < 0.2)
        for text in references
    ]
    edits = [metrics.word_errors(*pair) for pair in zip(references, heard, strict=True)]
    owners = rng.integers(0, 25, 120)
    sums = [
        np.bincount(owners, np.array([getattr(each, part) for each in edits], float)) for part in ("edits", "length")
    ]
    sample = Ratios(sums[0][None], sums[1])
    naive = naive_error(
        sample, lambda weight: metrics.error_rate([edits[clip] for clip in repeated(owners, weight)]), 2000
    )
    assert sample.values()[0] == pytest.approx(metrics.error_rate(edits))
    assert mean_interval(score_distribution(sample), [0], bounded=False).clips == pytest.approx(
        naive * math.sqrt(25 / 24), rel=0.06
    )


@pytest.mark.parametrize("average", ["macro_f1", "uar"])
def test_f1_and_recall_agree_with_naive_resampling(average: str) -> None:
    sample = worlds.labels(np.random.default_rng(2), average, speakers=30)  # type: ignore[arg-type]
    naive = naive_error(sample, lambda weight: label_metric(sample, 0, repeated(sample.places, weight)), 800)
    assert mean_interval(score_distribution(sample, 2000), [0]).clips == pytest.approx(
        naive * math.sqrt(30 / 29), rel=0.08
    )


def test_mean_average_precision_agrees_with_naive_resampling() -> None:
    sample = worlds.tags(np.random.default_rng(2), 400)

    def score(weight: np.ndarray) -> float:
        clips = repeated(sample.places, weight)
        return metrics.mean_average_precision(sample.scores[0, clips], sample.truth[clips]).value

    found = score_distribution(sample, 2000)
    error = math.sqrt(found.covariance[0, 0] - found.bias[0] ** 2)
    assert error == pytest.approx(naive_error(sample, score), rel=0.09)


@pytest.mark.parametrize("rate", ["eer", "min_dcf"])
def test_error_rates_of_trials_agree_with_naive_resampling_of_speakers(rate: str) -> None:
    sample = worlds.trials(np.random.default_rng(3), rate, speakers=30)  # type: ignore[arg-type]
    naive = naive_error(sample, lambda weight: trial_metric(sample, 0, drawn_trials(sample, weight)))
    found = score_distribution(sample, 2000)
    assert math.sqrt(found.covariance[0, 0] - found.bias[0] ** 2) == pytest.approx(naive * math.sqrt(30 / 29), rel=0.09)


def test_an_eer_is_as_unsure_as_new_speakers_make_it_and_trials_alone_would_be_far_too_sure() -> None:
    """40 speakers and 37 720 trials, as in VoxCeleb1's original list."""
    many = {"targets": 471, "others": 18_880, "by_speaker": 0.5, "by_pair": 0.2}
    sample = worlds.trials(np.random.default_rng(0), **many)  # type: ignore[arg-type]
    new = [worlds.trials(np.random.default_rng([1, n]), **many).values()[0] for n in range(150)]
    truth = float(np.std(new, ddof=1))
    ours = mean_interval(score_distribution(sample, 1000), [0]).clips
    rng, count = np.random.default_rng(2), len(sample.truth)
    naive = np.std([trial_metric(sample, 0, rng.integers(0, count, count)) for _ in range(100)], ddof=1)
    assert ours == pytest.approx(truth, rel=0.25)
    assert truth / naive > 4
    assert ours / naive > 4


def test_the_luck_of_pairs_is_counted_once_where_nothing_else_differs() -> None:
    """Independent trials: then the error of an EER is that of two binomial shares, whoever speaks."""
    errors, naive = [], []
    for seed in range(12):
        sample = worlds.trials(np.random.default_rng(seed), targets=45, others=780, by_speaker=0, by_pair=0)
        found = score_distribution(sample, 600)
        errors.append(mean_interval(found, [0]).clips)
        naive.append(math.sqrt(found.covariance[0, 0]))
    rate = stats.norm.cdf(-1.0)  # two normals two apart, cut in the middle; both slopes are equal there
    truth = 0.5 * math.sqrt(rate * (1 - rate) * (1 / 1800 + 1 / 780))
    assert np.mean(errors) == pytest.approx(truth, rel=0.1)
    assert np.mean(naive) > 1.25 * truth


@given(st.integers(0, 10**6))
def test_the_variance_of_a_difference_is_never_negative(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = worlds.trials(rng, speakers=6, targets=3, others=12)
    both = sample._replace(
        scores=np.concatenate([sample.scores, sample.scores + 0.01 * rng.normal(size=sample.scores.shape)])
    )
    found = score_distribution(both, 50)
    if np.isfinite(found.covariance).all():
        assert found.variance(np.array([1.0, -1.0])) >= 0


def test_nothing_wrong_does_not_mean_that_nothing_can_go_wrong() -> None:
    perfect = score_distribution(Ratios(np.full((1, 50), 12.0), np.full(50, 12.0)))
    wilson = stats.binomtest(50, 50).proportion_ci(method="wilson")
    found = mean_interval(perfect, [0])
    assert found.high == pytest.approx(1, abs=1e-12)
    assert found.low == pytest.approx(wilson.low, abs=4e-3)  # as if each speaker were one clip
    without_errors = mean_interval(score_distribution(Ratios(np.zeros((1, 50)), np.full(50, 80.0))), [0], bounded=False)
    assert without_errors.low == 0
    assert 0.05 < without_errors.high < 0.1


def test_what_all_clusters_agree_on_is_as_sure_as_one_clip_of_each_would_make_it() -> None:
    few, many = (score_distribution(Ratios(np.full((1, size), 5.0), np.full(size, 50.0))) for size in (6, 600))
    wilson = stats.binomtest(60, 600).proportion_ci(method="wilson")
    assert mean_interval(few, [0]).high > 0.4
    assert (mean_interval(many, [0]).low, mean_interval(many, [0]).high) == pytest.approx(
        (wilson.low, wilson.high), abs=1e-3
    )


@pytest.mark.parametrize(("clusters", "p"), [(2, 0.5), (5, 1 / 16), (10, 1 / 512)])
def test_a_difference_that_all_clusters_agree_on_is_tested_by_their_signs(clusters: int, p: float) -> None:
    sizes = np.full(clusters, 4.0)
    told = paired_difference(score_distribution(Ratios(np.stack([sizes, sizes / 2]), sizes)), [0], [1])
    assert told.p == pytest.approx(p)
    assert (told.interval.low > 0) == (clusters > 5)


def test_where_only_one_side_has_seeds_the_other_is_taken_to_differ_as_much() -> None:
    found = estimates([0.4, 0.5, 0.6, 0.0], np.pad(np.full((3, 3), 4e-4), (0, 1)), 41)
    clips, seeds = 4e-4, 0.01 * (1 / 3 + 1)
    freedom = (clips + seeds) ** 2 / (clips**2 / 40 + seeds**2 / 2)
    told = paired_difference(found, [0, 1, 2], [3])
    assert told.freedom == pytest.approx(freedom)
    assert told.p == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(clips + seeds), freedom))
    assert paired_difference(found, [3], [0, 1, 2]).p == pytest.approx(told.p)


def test_clusters_of_unequal_size_count_as_fewer() -> None:
    sizes = np.array([1.0] * 9 + [9.0])
    found = score_distribution(Ratios(np.arange(10.0)[None] / 10, sizes))
    assert (found.clusters, found.effective) == (10, pytest.approx(18**2 / 90))
    assert math.isnan(mean_interval(score_distribution(Ratios(np.array([[0.0, 5.0]]), np.array([0.01, 9.0]))), [0]).low)


def test_an_error_rate_above_one_has_an_interval() -> None:
    found = mean_interval(
        score_distribution(worlds.transcripts(np.random.default_rng(0), rate=1.4)), [0], bounded=False
    )
    assert 1 < found.low < found.value < found.high


def test_one_cluster_says_nothing() -> None:
    alone = score_distribution(Ratios(np.array([[8.0], [6.0]]), np.array([10.0])))
    assert math.isnan(mean_interval(alone, [0]).low)
    told = paired_difference(alone, [0], [1])
    assert math.isnan(told.interval.low)
    assert math.isnan(told.p)


def few_trials(pairs: list[tuple[int, int]]) -> TrialErrors:
    """Two of each of six speakers by himself, and of each pair of them one, whoever these are."""
    enroll = np.array([*range(6), *range(6), *(one for one, _ in pairs)])
    test = np.array([*range(6), *range(6), *(other for _, other in pairs)])
    scores = np.random.default_rng(0).normal(size=(1, len(enroll))) + 2 * (enroll == test)
    return TrialErrors(enroll, test, 6, enroll == test, scores, "eer")


def test_draws_without_a_value_are_left_out_and_where_they_are_most_nothing_is_known() -> None:
    assert np.isfinite(score_distribution(few_trials(list(combinations(range(6), 2))), 400).covariance).all()
    # Speakers 0 and 1 are both drawn in 1 - 2 (5/6)^6 + (4/6)^6 = 42 of 100 draws; the others have no trial of two.
    assert np.isnan(score_distribution(few_trials([(0, 1)]), 400).covariance).all()


def estimates(values: list[float], covariance: np.ndarray, clusters: int = 100) -> ScoreDistribution:
    return ScoreDistribution(
        np.array(values), covariance, np.zeros_like(covariance), clusters, clusters, np.zeros(len(values))
    )


def test_seeds_count_by_what_the_test_clips_do_not_explain() -> None:
    """By hand: three seeds, of which each pair would differ by luck of clips with a variance of 2 * (4 - 1) = 6."""
    by_clips = np.full((3, 3), 1.0) + 3.0 * np.eye(3)
    found = estimates([0.0, 10.0, 20.0], by_clips)
    left, whole = found.seed_variance(np.eye(3))
    assert whole == pytest.approx(100 / 3)
    assert left == pytest.approx((100 - 3) / 3)
    equal = estimates([0.0, 1.0, 2.0], by_clips)
    assert equal.seed_variance(np.eye(3))[0] == 0
    assert math.isnan(mean_interval(found, [1]).seeds)


def test_intervals_are_welchs_where_clips_and_seeds_both_vary() -> None:
    clips, seeds = 4e-4, 2 * 0.01 / 3
    freedom = (clips + seeds) ** 2 / (clips**2 / 40 + 2 * (seeds / 2) ** 2 / 2)
    found = estimates([0.4, 0.5, 0.6, -0.1, 0.0, 0.1], np.pad(np.full((3, 3), 4e-4), (0, 3)), 41)
    told = paired_difference(found, [0, 1, 2], [3, 4, 5])
    assert told.interval.value == pytest.approx(0.5)
    assert told.freedom == pytest.approx(freedom)
    assert told.interval.high - told.interval.value == pytest.approx(
        stats.t.ppf(0.975, freedom) * math.sqrt(clips + seeds)
    )
    assert told.p == pytest.approx(2 * stats.t.sf(0.5 / math.sqrt(clips + seeds), freedom))


def test_without_any_difference_the_difference_is_surely_none() -> None:
    sample = worlds.answers(np.random.default_rng(0))
    twice = Ratios(np.concatenate([sample.marks, sample.marks]), sample.sizes)
    told = paired_difference(score_distribution(twice), [0], [1])
    assert (told.interval.value, told.interval.low, told.interval.high, told.p) == (0, 0, 0, 1)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-12, 1e-6, 0.3]))
def test_nearly_equal_systems_have_a_difference_that_makes_sense(seed: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    sample = worlds.tags(rng, 30)
    scores = np.repeat(sample.scores, 3, 0) + 0.2 * rng.normal(size=(3, *sample.scores.shape[1:]))
    both = sample._replace(scores=np.concatenate([scores, scores + apart * rng.normal(size=scores.shape)]))
    told = paired_difference(score_distribution(both, 40), [0, 1, 2], [3, 4, 5])
    assert told.freedom >= 1
    assert told.interval.low <= told.interval.value <= told.interval.high
    assert abs(told.interval.low) < 20
    assert 0 <= told.p <= 1


def test_pairing_makes_differences_surer_than_either_score() -> None:
    sample = worlds.answers(np.random.default_rng(0), seeds=2, noise=0.3, by_speaker=1.5)
    told = paired_difference(score_distribution(sample), [0], [1]).interval
    apart = [mean_interval(score_distribution(sample), [run]).clips for run in (0, 1)]
    assert told.clips < 0.7 * math.hypot(*apart)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_test_is_the_binomial_of_discordant_pairs(one: int, other: int) -> None:
    if one + other:
        assert mcnemar(one, other) == pytest.approx(stats.binomtest(one, one + other).pvalue, abs=1e-9)
    else:
        assert mcnemar(one, other) == 1


def test_mcnemars_table_is_of_discordant_pairs_not_of_marginals() -> None:
    """900 and 880 right of 1000 with 60 and 40 discordant: 0.057, where a table of marginals gives about 1e-136."""
    assert mcnemar(60, 40) == pytest.approx(0.0569, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holms_method_is_closed_testing_with_bonferroni(chances: list[float]) -> None:
    """A hypothesis is rejected where every set of hypotheses that holds it is, by its least p times its size."""
    places = range(len(chances))
    sets = [some for size in range(1, len(chances) + 1) for some in combinations(places, size)]
    closed = [
        max(min(1.0, len(some) * min(chances[each] for each in some)) for some in sets if place in some)
        for place in places
    ]
    assert holm(chances) == pytest.approx(closed)


def test_holm_passes_over_tests_that_could_not_be_made() -> None:
    assert holm([0.01, math.nan, 0.04])[::2] == pytest.approx([0.02, 0.04])
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([]) == []


def test_chances_are_those_of_scipy() -> None:
    assert p_value(2.0, 1.0, 9.0) == pytest.approx(2 * stats.t.sf(2.0, 9))
    assert p_value(0.0, 0.0, 9.0) == 1
    assert math.isnan(p_value(1.0, math.nan, 9.0))
    assert t_quantile(7.0) == pytest.approx(stats.t.ppf(0.975, 7))


def test_the_same_sample_gives_the_same_estimates() -> None:
    sample = worlds.trials(np.random.default_rng(0))
    assert np.array_equal(score_distribution(sample, 600).covariance, score_distribution(sample, 600).covariance)
