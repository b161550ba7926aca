"""Samples: values as `downstreams.metrics` has them, draws as if clips were really repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmark.statistics.resampling import (
    ROC_POINTS,
    ClassAverages,
    FoldMeans,
    MeanPrecisions,
    Ratios,
    RocCurve,
    TrialErrors,
)
from downstreams import metrics
from tests.benchmark import worlds

Rate = Literal["eer", "min_dcf"]


def draws(clusters: int, count: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=count)


def repeated(places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Indices of clips, each as often as its cluster was drawn."""
    return np.repeat(np.arange(len(places)), weights[places])


def label_metric(sample: ClassAverages, run: int, clips: np.ndarray) -> float:
    function = metrics.macro_f1 if sample.average == "macro_f1" else metrics.unweighted_average_recall
    return function([str(name) for name in sample.truth[clips]], [str(name) for name in sample.predicted[run, clips]])


def trial_metric(sample: TrialErrors, run: int, chosen: np.ndarray) -> float:
    scores, truth = sample.scores[run, chosen], sample.truth[chosen]
    return metrics.eer(scores, truth).rate if sample.rate == "eer" else metrics.min_dcf(scores, truth)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["macro_f1", "uar"]))
def test_macro_f1_and_uar_are_those_of_clips_that_are_repeated(seed: int, average: Any) -> None:
    rng = np.random.default_rng(seed)
    clips, clusters = int(rng.integers(3, 30)), int(rng.integers(2, 6))
    sample = ClassAverages(
        rng.integers(0, clusters, clips),
        clusters,
        rng.integers(0, 4, clips),
        rng.integers(0, 5, (2, clips)),
        5,
        average,
    )
    everything = np.arange(clips)
    assert sample.values() == pytest.approx([label_metric(sample, run, everything) for run in (0, 1)])
    weights = draws(clusters, seed=seed)
    for weight, found in zip(weights, sample.resampler()(weights), strict=True):
        chosen = repeated(sample.places, weight)
        expected = [label_metric(sample, run, chosen) for run in (0, 1)] if len(chosen) else [np.nan] * 2
        assert found == pytest.approx(expected, nan_ok=True)


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_average_precision_is_that_of_clips_that_are_repeated_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips, clusters, classes = int(rng.integers(4, 25)), int(rng.integers(2, 6)), int(rng.integers(1, 4))
    truth = rng.random((clips, classes)) < 0.4
    truth[0, 0] = True
    sample = MeanPrecisions(
        rng.integers(0, clusters, clips), clusters, truth, rng.integers(0, 6, (2, clips, classes)) / 2
    )
    expected = [metrics.mean_average_precision(scores, truth).value for scores in sample.scores]
    assert sample.values() == pytest.approx(expected)
    weights = draws(clusters, seed=seed)
    for weight, found in zip(weights, sample.resampler()(weights), strict=True):
        chosen = repeated(sample.places, weight)
        if truth[chosen].any():
            expected = [metrics.mean_average_precision(scores[chosen], truth[chosen]).value for scores in sample.scores]
            assert found == pytest.approx(expected)
        else:
            assert np.isnan(found).all()


def drawn_trials(sample: TrialErrors, weight: np.ndarray) -> np.ndarray:
    """Indices of trials, of two speakers as often as their product says, of one as often as he was drawn."""
    both = np.where(sample.enroll == sample.test, weight[sample.enroll], weight[sample.enroll] * weight[sample.test])
    return np.repeat(np.arange(len(both)), both)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["eer", "min_dcf"]))
def test_error_rates_are_those_of_trials_that_are_repeated_ties_included(seed: int, rate: Rate) -> None:
    rng = np.random.default_rng(seed)
    count, speakers = int(rng.integers(10, 120)), int(rng.integers(3, 8))
    enroll, test = rng.integers(0, speakers, (2, count))
    test = np.where(rng.random(count) < 0.3, enroll, test)
    scores = np.round(rng.normal(size=(2, count)) + (enroll == test), 1)
    sample = TrialErrors(enroll, test, speakers, enroll == test, scores, rate)
    if sample.truth.all() or not sample.truth.any():
        return
    assert sample.values() == pytest.approx([trial_metric(sample, run, np.arange(count)) for run in (0, 1)])
    weights = draws(speakers, seed=seed)
    for weight, found in zip(weights, sample.resampler()(weights), strict=True):
        chosen = drawn_trials(sample, weight)
        if sample.truth[chosen].any() and not sample.truth[chosen].all():
            assert found == pytest.approx([trial_metric(sample, run, chosen) for run in (0, 1)])
        else:
            assert np.isnan(found).all()


@pytest.mark.parametrize(("rate", "off"), [("eer", 2e-4), ("min_dcf", 6e-3)])
def test_many_trials_are_judged_by_fewer_points_with_little_loss(rate: Rate, off: float) -> None:
    sample = worlds.trials(np.random.default_rng(0), rate, targets=200, others=12_000, apart=3.0)
    assert len(sample.truth) > 4 * ROC_POINTS
    assert sample.values()[0] == pytest.approx(trial_metric(sample, 0, np.arange(len(sample.truth))))
    weights = draws(sample.size, 12)
    for weight, found in zip(weights, sample.resampler()(weights)[:, 0], strict=True):
        assert found == pytest.approx(trial_metric(sample, 0, drawn_trials(sample, weight)), abs=off)


def test_thinned_curves_keep_both_ends() -> None:
    sample = worlds.trials(np.random.default_rng(1), others=8000)
    curve = RocCurve.of(sample.scores[0], sample.truth)
    for rate in ("eer", "min_dcf"):
        few = curve.thinned(rate)
        assert len(few.thresholds) <= ROC_POINTS + 2 < len(curve.thresholds)
        assert (few.missed[0], few.alarmed[0], few.missed[-1], few.alarmed[-1]) == (1, 0, 0, 1)


def test_the_rate_follows_alarms_as_fast_as_the_slopes_at_the_crossing_say() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(200_000) % 2 == 0
    scores = np.where(truth, 2 + 0.5 * rng.normal(size=len(truth)), rng.normal(size=len(truth)))
    # Misses rise with the density of targets, N(2, 0.5), alarms fall with that of the others, N(0, 1); they cross at
    # 4/3, where these are 2 phi(4/3) and phi(4/3): of a change of alarms two thirds arrive.
    threshold, alarmed, speed = RocCurve.of(scores, truth).crossing(0.01)
    assert threshold == pytest.approx(4 / 3, abs=0.02)
    assert alarmed == pytest.approx(0.0912, abs=0.003)
    assert speed == pytest.approx(2 / 3, abs=0.02)


def test_shares_are_sums_over_sums() -> None:
    sample = Ratios(np.array([[3.0, 0.0, 2.0], [1.0, 1.0, 1.0]]), np.array([4.0, 1.0, 5.0]))
    assert sample.values() == pytest.approx([0.5, 0.3])
    found = sample.resampler()(np.array([[2, 0, 1], [0, 3, 0]]))
    assert found == pytest.approx(np.array([[8 / 13, 3 / 13], [0.0, 1.0]]))


def halves(make: Callable[[np.random.Generator], Ratios]) -> FoldMeans:
    parts = [make(np.random.default_rng(number)) for number in (1, 2)]
    own = [np.arange(parts[0].size), parts[0].size + np.arange(parts[1].size)]
    return FoldMeans(parts, own, parts[0].size + parts[1].size)


def test_a_score_over_folds_is_their_mean_and_a_fold_counts_by_its_clusters() -> None:
    folds = halves(lambda rng: worlds.answers(rng, speakers=3))
    assert folds.values() == pytest.approx(np.mean([part.values() for part in folds.parts], 0))
    first, second = folds.parts
    weights = np.array([[1, 1, 1, 1, 1, 1], [3, 1, 1, 0, 0, 1], [2, 2, 2, 0, 0, 0]])
    found = folds.resampler()(weights)
    values = [part.resampler()(weights[:, own]) for part, own in zip((first, second), folds.clusters, strict=True)]
    assert found[0] == pytest.approx(folds.values())
    assert found[1] == pytest.approx((5 * values[0][1] + values[1][1]) / 6)
    assert found[2] == pytest.approx(values[0][2])
