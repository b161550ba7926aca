from __future__ import annotations

import doctest
import json
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn import metrics as sklearn_metrics

from downstreams import metrics
from downstreams.errors import HeadError
from downstreams.metrics import Errors, average_precision, eer, error_rate, min_dcf

TRIALS = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda trials: len({target for _, target in trials}) == 2
)
LABELS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcde")), min_size=1, max_size=40)
WORDS = st.lists(st.sampled_from(["a", "the", "cat", "dog", "é", "A"]), max_size=8).map(" ".join)


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The situations in which existing implementations were seen to disagree."""
    random = np.random.default_rng(0)

    def gaussian(positives: int, negatives: int) -> tuple[np.ndarray, np.ndarray]:
        targets = np.arange(positives + negatives) < positives
        return random.normal(2.0 * targets), targets

    few, targets = gaussian(50, 950)
    return {
        "10 + 10": gaussian(10, 10),
        "500 + 500": gaussian(500, 500),
        "50 + 950": (few, targets),
        "tenths": (few.round(1), targets),
        "integers": (few.round(), targets),
        "binary": ((few > 1).astype(float), targets),
        "constant": (np.zeros(1000), targets),
        "perfect": (targets.astype(float), targets),
        "reversed": (-targets.astype(float), targets),
        "below one operating point": (np.array([3.0, 2, 2, 2]), np.array([True, False, False, True])),
    }


def by_superb(scores: np.ndarray, targets: np.ndarray) -> float:
    alarms, hits, _ = sklearn_metrics.roc_curve(targets, scores)
    return brentq(lambda x: 1.0 - x - interp1d(alarms, hits)(x), 0.0, 1.0, xtol=1e-13)


def operating_points(scores: list[float], targets: list[bool]) -> list[tuple[Fraction, Fraction]]:
    """Miss and false alarm rates of every threshold, exact and quadratic."""
    positives = [s for s, t in zip(scores, targets, strict=True) if t]
    negatives = [s for s, t in zip(scores, targets, strict=True) if not t]
    points = [(Fraction(1), Fraction(0))]
    for threshold in sorted(set(scores), reverse=True):
        missed = Fraction(sum(s < threshold for s in positives), len(positives))
        points.append((missed, Fraction(sum(s >= threshold for s in negatives), len(negatives))))
    return points


def eer_by_hand(scores: list[float], targets: list[bool]) -> Fraction:
    points = operating_points(scores, targets)
    for (miss, alarm), (next_miss, next_alarm) in pairwise(points):
        if next_miss <= next_alarm:
            share = (miss - alarm) / (miss - alarm + next_alarm - next_miss)
            return alarm + share * (next_alarm - alarm)
    raise AssertionError


def distance(reference: list[str], hypothesis: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, a in enumerate(reference, start=1):
        above, row = row, [i]
        for j, b in enumerate(hypothesis, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]


@pytest.fixture(scope="module")
def speechbrain() -> dict[str, dict[str, float]]:
    """EER and un-normalised minDCF of every case by SpeechBrain, whose import wants a guard of its own."""
    program = """
import json, sys
from upstreams.torchaudio_guard import guard
guard()
import torch
from speechbrain.utils.metric_stats import EER, minDCF
found = {}
for name, (scores, targets) in json.load(sys.stdin).items():
    scores, targets = torch.tensor(scores, dtype=torch.float64), torch.tensor(targets)
    sides = scores[targets], scores[~targets]
    found[name] = {"eer": EER(*sides)[0], "dcf": minDCF(*sides)[0], "dcf3": minDCF(*sides, 2.0, 3.0, 0.3)[0]}
print(json.dumps(found))
"""
    given = json.dumps({name: [scores.tolist(), targets.tolist()] for name, (scores, targets) in cases().items()})
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", cases())
def test_eer_is_that_of_superb(name: str) -> None:
    scores, targets = cases()[name]
    assert eer(scores, targets).rate == pytest.approx(by_superb(scores, targets), abs=1e-9)


@pytest.mark.parametrize("name", cases())
def test_eer_and_min_dcf_equal_an_exact_quadratic_computation(name: str) -> None:
    scores, targets = cases()[name]
    pair = scores.tolist(), targets.tolist()
    assert eer(scores, targets).rate == pytest.approx(float(eer_by_hand(*pair)), abs=1e-12)
    costs = [Fraction(1, 100) * miss + Fraction(99, 100) * alarm for miss, alarm in operating_points(*pair)]
    assert min_dcf(scores, targets) == pytest.approx(float(100 * min(costs)), abs=1e-12)


@pytest.mark.parametrize("name", cases())
def test_speechbrain_agrees_up_to_one_operating_point(name: str, speechbrain: dict[str, dict[str, float]]) -> None:
    scores, targets = cases()[name]
    nearest = min(operating_points(scores.tolist(), targets.tolist()), key=lambda point: abs(point[0] - point[1]))
    gap = float(abs(nearest[0] - nearest[1]))
    assert abs(eer(scores, targets).rate - speechbrain[name]["eer"]) <= gap / 2 + 1e-6


@pytest.mark.parametrize("name", [name for name in cases() if name not in ("reversed", "constant")])
def test_min_dcf_is_speechbrains_after_normalisation(name: str, speechbrain: dict[str, dict[str, float]]) -> None:
    scores, targets = cases()[name]
    assert min_dcf(scores, targets) == pytest.approx(speechbrain[name]["dcf"] / 0.01, abs=1e-4)
    three = min_dcf(scores, targets, prior=0.3, c_miss=2.0, c_fa=3.0)
    assert three == pytest.approx(speechbrain[name]["dcf3"] / 0.6, abs=1e-5)


@given(TRIALS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_trade_offs_ignore_the_order_of_trials(trials: list[tuple[int, bool]], random) -> None:
    shuffled = random.sample(trials, len(trials))
    (scores, targets), (others, turned) = zip(*trials, strict=True), zip(*shuffled, strict=True)
    assert eer(scores, targets) == eer(others, turned)
    assert min_dcf(scores, targets) == min_dcf(others, turned)


@given(TRIALS)
@settings(max_examples=60, deadline=None)
def test_trade_offs_ignore_strictly_monotone_transforms(trials: list[tuple[int, bool]]) -> None:
    scores, targets = zip(*trials, strict=True)
    for transform in (lambda s: s**3 + 7.0, lambda s: np.exp(s / 2), lambda s: -1 / (s + 100)):
        moved = [transform(s) for s in scores]
        assert eer(moved, targets).rate == eer(scores, targets).rate
        assert min_dcf(moved, targets, 0.2) == min_dcf(scores, targets, 0.2)


@given(TRIALS)
@settings(max_examples=60, deadline=None)
def test_turning_scores_and_labels_round_keeps_the_eer(trials: list[tuple[int, bool]]) -> None:
    scores, targets = zip(*trials, strict=True)
    turned = eer([-s for s in scores], [not t for t in targets])
    assert turned.rate == pytest.approx(eer(scores, targets).rate, abs=1e-12)


@given(TRIALS)
@settings(max_examples=60, deadline=None)
def test_eer_of_any_trials_is_that_of_superb_and_exact(trials: list[tuple[int, bool]]) -> None:
    scores, targets = zip(*trials, strict=True)
    found = eer(scores, targets)
    assert found.rate == pytest.approx(float(eer_by_hand(list(scores), list(targets))), abs=1e-12)
    assert found.rate == pytest.approx(by_superb(np.array(scores, float), np.array(targets)), abs=1e-9)
    assert min(scores) <= found.threshold <= max(scores)
    assert 0 <= min_dcf(scores, targets) <= 1


@pytest.mark.parametrize(("scores", "rate"), [([1.0, 0.0], 0.0), ([0.0, 1.0], 1.0), ([0.0, 0.0], 0.5)])
def test_two_trials_suffice(scores: list[float], rate: float) -> None:
    assert eer(scores, [True, False]).rate == rate


def test_constant_scores_are_no_better_than_deciding_without_listening() -> None:
    assert eer(np.ones(7), [1, 0, 0, 0, 0, 0, 1]) == (0.5, 1.0)
    assert min_dcf(np.ones(7), [1, 0, 0, 0, 0, 0, 1]) == 1.0


@pytest.mark.parametrize("metric", [eer, min_dcf])
@pytest.mark.parametrize(
    ("scores", "targets", "reason"),
    [
        ([0.1, float("nan")], [1, 0], "1 of 2 scores are not finite"),
        ([0.1, float("inf")], [1, 0], "not finite"),
        ([0.1, 0.2], [1, 1], "no non-target"),
        ([0.1, 0.2], [0, 0], "no target"),
        ([], [], "no target"),
        ([0.1, 0.2], [1], "equal length"),
    ],
)
def test_what_has_no_trade_off_is_refused(metric, scores, targets, reason: str) -> None:
    with pytest.raises(HeadError, match=reason):
        metric(scores, targets)


@pytest.mark.parametrize("wrong", [{"prior": 0.0}, {"prior": 1.0}, {"c_miss": 0.0}, {"c_fa": -1.0}])
def test_min_dcf_refuses_costs_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(HeadError, match="prior between 0 and 1"):
        min_dcf([1.0, 0.0], [1, 0], **wrong)


def test_a_million_trials_take_a_second_or_two() -> None:
    random = np.random.default_rng(1)
    scores, targets = random.normal(size=1_000_000), random.random(1_000_000) < 0.1
    start = time.process_time()
    assert eer(scores, targets).rate == pytest.approx(0.5, abs=0.01)
    min_dcf(scores, targets)
    assert time.process_time() - start < 3


@given(LABELS)
@settings(max_examples=60, deadline=None)
def test_label_metrics_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    truth, said = map(list, zip(*pairs, strict=True))
    classes = sorted(set(truth))
    reference = {
        metrics.accuracy: sklearn_metrics.accuracy_score(truth, said),
        metrics.micro_f1: sklearn_metrics.f1_score(truth, said, average="micro"),
        metrics.macro_f1: sklearn_metrics.f1_score(truth, said, average="macro", labels=classes, zero_division=0),
        metrics.unweighted_average_recall: sklearn_metrics.recall_score(truth, said, average="macro", labels=classes),
    }
    for metric, value in reference.items():
        assert metric(truth, said) == pytest.approx(value, abs=1e-12), metric.__name__
    assert metrics.micro_f1(truth, said) == metrics.accuracy(truth, said)


def test_label_metrics_refuse_lists_that_do_not_pair() -> None:
    for truth, said in ([], []), (["a"], ["a", "b"]):
        with pytest.raises(HeadError, match="one per clip"):
            metrics.accuracy(truth, said)


@given(TRIALS)
@settings(max_examples=60, deadline=None)
def test_average_precision_is_that_of_scikit_learn_with_ties(trials: list[tuple[int, bool]]) -> None:
    scores, targets = zip(*trials, strict=True)
    reference = sklearn_metrics.average_precision_score(targets, scores)
    assert average_precision(scores, targets) == pytest.approx(reference, abs=1e-12)


def test_mean_average_precision_leaves_out_and_counts_classes_without_positives() -> None:
    random = np.random.default_rng(2)
    scores, targets = random.normal(size=(50, 6)), random.random((50, 6)) < 0.3
    whole = sklearn_metrics.average_precision_score(targets, scores, average="macro")
    assert metrics.mean_average_precision(scores, targets) == (pytest.approx(whole, abs=1e-12), 0)
    targets[:, [1, 4]] = False
    part = sklearn_metrics.average_precision_score(np.delete(targets, [1, 4], 1), np.delete(scores, [1, 4], 1))
    assert metrics.mean_average_precision(scores, targets) == (pytest.approx(part, abs=1e-12), 2)
    with pytest.raises(HeadError, match="none in any"):
        metrics.mean_average_precision(scores, np.zeros_like(targets))
    with pytest.raises(HeadError, match=r"\(50, 6\) and \(6, 50\)"):
        metrics.mean_average_precision(scores, targets.T)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_error_rates_are_the_corpus_rates_of_jiwer(texts: list[tuple[str, str]]) -> None:
    spoken = [pair for pair in texts if pair[0]]
    if not spoken:
        return
    references, hypotheses = map(list, zip(*spoken, strict=True))
    words = [metrics.word_errors(*pair) for pair in spoken]
    assert error_rate(words) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
    characters = [metrics.character_errors(*pair) for pair in spoken]
    assert error_rate(characters) == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)


@given(WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_edits_are_fewest_and_add_up(reference: str, hypothesis: str) -> None:
    for count, split in ((metrics.word_errors, str.split), (metrics.character_errors, list)):
        errors, (old, new) = count(reference, hypothesis), (split(reference), split(hypothesis))
        assert errors.edits == distance(old, new)
        assert errors.length == len(old)
        assert errors.substitutions + errors.insertions + errors.hits == len(new)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_scores_that_are_not_finite_are_refused_even_of_classes_that_do_not_count(
    place: tuple[int, int], value: float
) -> None:
    scores, targets = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]]), [[1, 0, 0], [0, 1, 0]]
    scores[place] = value
    with pytest.raises(HeadError, match="1 of 6 scores are not finite numbers"):
        metrics.mean_average_precision(scores, targets)


def test_words_inserted_into_silence_count() -> None:
    assert metrics.word_errors("", "oh no") == Errors(0, 0, 2, 0)
    assert metrics.character_errors("  ", "oh no") == Errors(0, 0, 5, 0)
    assert metrics.word_errors("oh no", "") == Errors(0, 2, 0, 0)
    assert metrics.word_errors("", "") == Errors(0, 0, 0, 0)
    assert error_rate([metrics.word_errors("", "oh no"), metrics.word_errors("a b c d", "a b c d")]) == 0.5


def test_a_corpus_rate_weighs_utterances_by_length() -> None:
    long = " ".join(["word"] * 20)
    assert error_rate([metrics.word_errors("a b", "a c"), metrics.word_errors(long, long)]) == pytest.approx(1 / 22)


def test_a_corpus_of_silence_has_no_error_rate() -> None:
    with pytest.raises(HeadError, match="all of them are empty"):
        error_rate([metrics.word_errors("", "oh")])


def test_white_space_is_no_error_but_case_is() -> None:
    assert metrics.character_errors(" a\t cat\n", "a cat").edits == 0
    assert metrics.word_errors("a  cat", "a cat ").edits == 0
    assert metrics.word_errors("A cat", "a cat").edits == 1


def test_examples_in_docstrings_hold() -> None:
    found = doctest.testmod(metrics)
    assert found.attempted >= 10
    assert found.failed == 0
