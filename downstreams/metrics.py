"""Metrics as pure functions of plain arrays. Rates are unrounded fractions, and none takes quadratic time in clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from downstreams.errors import HeadError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class EER(NamedTuple):
    """Equal error rate (a fraction) and the score at which it is reached."""

    rate: float
    threshold: float


class MeanAveragePrecision(NamedTuple):
    """Mean over the classes that have a positive (a fraction), and the number of classes without one."""

    value: float
    skipped: int


class Errors(NamedTuple):
    """Counts of the edits that turn a reference into a hypothesis, and of the tokens that stay (`hits`)."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def edits(self) -> int:
        """The sum of substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """The number of tokens in the reference."""
        return self.substitutions + self.deletions + self.hits


def eer(scores: ArrayLike, targets: ArrayLike) -> EER:
    """Return the rate at which misses equal false alarms, interpolated linearly between the points of the ROC.

    With m_i and f_i the miss and false alarm rates of accepting every score >= u_i (u descending, equal scores
    together), and i the first point with m_i <= f_i:
    a = (m_{i-1} - f_{i-1}) / (m_{i-1} - f_{i-1} + f_i - m_i) and EER = f_{i-1} + a (f_i - f_{i-1}).
    This is the definition of SUPERB (Yang et al., 2021), which solves for the same crossing numerically.

    scores: (N,) finite, higher = more likely a target; targets: (N,) true for target trials.
    Raises HeadError on non-finite scores, and unless there are both target and non-target trials.

    >>> eer([0.9, 0.8, 0.3, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0])
    EER(rate=0.3333333333333333, threshold=0.6)
    """
    thresholds, misses, alarms = _operating_points(scores, targets)
    (rate,), (crossing,), (fraction,) = equal_error_rates(misses[:, None], alarms[:, None])
    low, high = thresholds[crossing - 1], thresholds[crossing]
    return EER(float(rate), float(low + fraction * (high - low)))


def equal_error_rates(misses: Floats, alarms: Floats) -> tuple[Floats, Integers, Floats]:
    """Return the equal error rates of R detectors at once, by the formula of `eer`.

    misses, alarms: (G, R) miss and false alarm rates at G operating points, from accepting nothing to accepting all.
    Returns the rates (R,), the indices i (R,) of the first operating points with m_i <= f_i, and the fractions a (R,),
    from 0 to 1, at which the crossings lie between points i - 1 and i.
    """
    gaps, detectors = misses - alarms, np.arange(misses.shape[1])
    crossings = np.maximum((gaps <= 0).argmax(0), 1)
    before = gaps[crossings - 1, detectors]
    fractions = before / (before - gaps[crossings, detectors])
    low, high = alarms[crossings - 1, detectors], alarms[crossings, detectors]
    return low + fractions * (high - low), crossings, fractions


def min_dcf(
    scores: ArrayLike, targets: ArrayLike, prior: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Return the lowest normalised detection cost over all thresholds (NIST SRE).

    It is 1 for the better of accepting all trials and rejecting all. The formula is

    min_t (c_miss prior m_t + c_fa (1 - prior) f_t) / min(c_miss prior, c_fa (1 - prior)), with m and f as in `eer`.

    scores, targets: as in `eer`; prior: probability of a target trial; c_miss, c_fa: costs.

    >>> round(min_dcf([0.9, 0.8, 0.3, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0]), 4)
    0.3333
    """
    if not 0 < prior < 1 or c_miss <= 0 or c_fa <= 0:
        raise HeadError(f"min_dcf needs a prior between 0 and 1 and positive costs, not {prior}, {c_miss}, {c_fa}")
    _, misses, alarms = _operating_points(scores, targets)
    costs = c_miss * prior * misses + c_fa * (1 - prior) * alarms
    return float(costs.min() / min(c_miss * prior, c_fa * (1 - prior)))


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the share of clips with the right label; it equals micro-F1 where every clip has one label.

    references, predictions: N labels each, in the same order.

    >>> accuracy(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    0.5
    """
    correct, _, _ = _class_counts(references, predictions)
    return float(correct.sum() / len(references))


def micro_f1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return 2 TP / (2 TP + FP + FN), counted over all classes together.

    A clip with one wrong label is one FP and one FN.

    references, predictions: N labels each, in the same order.

    >>> micro_f1(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    0.5
    """
    correct, actual, predicted = _class_counts(references, predictions)
    return float(2 * correct.sum() / (actual.sum() + predicted.sum()))


def macro_f1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the mean of 2 TP / (2 TP + FP + FN) over the classes of the references.

    references, predictions: N labels each, in the same order. A class that occurs in the predictions only is left out
    of the mean, and each clip predicted as it is an FN of another class. So a head's mistakes do not change the number
    of classes that the mean is over.

    >>> round(macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "b"]), 4)
    0.3889
    """
    correct, actual, predicted = _class_counts(references, predictions)
    present = actual > 0
    return float((2 * correct[present] / (actual + predicted)[present]).mean())


def unweighted_average_recall(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Return the mean recall TP / (TP + FN) over the classes of the references (UAR, balanced accuracy).

    references, predictions: N labels each, in the same order.

    >>> unweighted_average_recall(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    0.5
    """
    correct, actual, _ = _class_counts(references, predictions)
    present = actual > 0
    return float((correct[present] / actual[present]).mean())


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return sum_i (recall_i - recall_{i-1}) precision_i over the distinct scores, from the highest down.

    scores: (N,) finite; targets: (N,) true for positives. Raises HeadError on non-finite scores, and where there is no
    positive.

    >>> round(average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]), 4)
    0.8333
    """
    values, positive = _checked_arrays(scores, targets)
    if not positive.any():
        raise HeadError("average precision needs a positive; this class has none")
    _, hits, alarms = _accepted(values, positive)
    recall_steps = np.diff(hits, prepend=0) / hits[-1]
    return float((recall_steps * hits / (hits + alarms)).sum())


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> MeanAveragePrecision:
    """Return the average precision of each class, averaged over the classes with a positive (macro mAP).

    scores: (N, C) finite; targets: (N, C) true where clip n has class c. Raises HeadError if no class has a positive,
    and on non-finite scores in any class.

    >>> mean_average_precision([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], [[1, 0, 0], [0, 1, 0]])
    MeanAveragePrecision(value=1.0, skipped=1)
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(targets, bool)
    if values.ndim != 2 or values.shape != positive.shape:
        raise HeadError(f"scores and targets must both be (clips, classes), not {values.shape} and {positive.shape}")
    _check_finite(values)
    present = np.flatnonzero(positive.any(0))
    if not len(present):
        raise HeadError("mean average precision needs a positive in some class; there is none in any")
    precisions = [average_precision(values[:, c], positive[:, c]) for c in present]
    return MeanAveragePrecision(float(np.mean(precisions)), positive.shape[1] - len(present))


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Count the fewest word edits from reference to hypothesis (Levenshtein, 1966); white space separates words.

    An empty reference counts every word of the hypothesis as inserted.

    >>> word_errors("the cat sat down", "a cat sat")
    Errors(substitutions=1, deletions=1, insertions=0, hits=2)
    """
    return _errors(reference, hypothesis, "word")


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Count the fewest character edits from reference to hypothesis (Levenshtein, 1966).

    A run of white space counts as one space, and as nothing at the start or end of a text.

    An empty reference counts every character of the hypothesis as inserted.

    >>> character_errors("a  cat", "a cut")
    Errors(substitutions=1, deletions=0, insertions=0, hits=4)
    """
    return _errors(reference, hypothesis, "character")


def error_rate(errors: Iterable[Errors]) -> float:
    """Return edits over reference length, both summed over a corpus.

    It is the WER of `word_errors` and the CER of `character_errors`, and may exceed one. Raises HeadError where all
    references are empty.

    >>> error_rate([word_errors("one two", "one"), word_errors("a b c", "a b c"), word_errors("", "oh")])
    0.4
    """
    rows = list(errors)
    length = sum(row.length for row in rows)
    if not length:
        raise HeadError("an error rate needs a reference with text in it; all of them are empty")
    return sum(row.edits for row in rows) / length


def _errors(reference: str, hypothesis: str, unit: Literal["word", "character"]) -> Errors:
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    size = (lambda text: len(text.split())) if unit == "word" else len
    if not reference or not hypothesis:
        return Errors(0, size(reference), size(hypothesis), 0)
    import jiwer

    reduce = jiwer.ReduceToListOfListOfWords() if unit == "word" else jiwer.ReduceToListOfListOfChars()
    split = jiwer.Compose([reduce])
    alignment = jiwer.process_words(reference, hypothesis, split, split)
    return Errors(alignment.substitutions, alignment.deletions, alignment.insertions, alignment.hits)


def _operating_points(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Return thresholds in descending order, and the miss and false alarm rates of accepting scores at or above each.

    The first point accepts nothing. Its threshold is the highest score again, so that no threshold is infinite.
    """
    values, positive = _checked_arrays(scores, targets)
    if positive.all() or not positive.any():
        kind = "non-target" if positive.any() else "target"
        raise HeadError(f"an error trade-off needs target and non-target trials; there are no {kind} ones")
    thresholds, hits, alarms = _accepted(values, positive)
    misses = np.concatenate([[1.0], (hits[-1] - hits) / hits[-1]])
    return np.concatenate([thresholds[:1], thresholds]), misses, np.concatenate([[0.0], alarms / alarms[-1]])


def _accepted(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Return the distinct scores in descending order, and the numbers of positives and negatives at or above each."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    positives = hits[last].astype(np.float64)
    return ranked[last], positives, last + 1 - positives


def _checked_arrays(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values, positive = np.asarray(scores, np.float64), np.asarray(targets).astype(bool)
    if values.ndim != 1 or values.shape != positive.shape:
        raise HeadError(f"scores and targets must be two rows of equal length, not {values.shape} and {positive.shape}")
    _check_finite(values)
    return values, positive


def _check_finite(scores: Floats) -> None:
    if not np.isfinite(scores).all():
        raise HeadError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite numbers")


def _class_counts(references: Sequence[str], predictions: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Return three counts per class: correct clips (TP), clips of the class, and clips predicted as the class."""
    if not references or len(references) != len(predictions):
        raise HeadError(f"{len(references)} references and {len(predictions)} predictions; both must be one per clip")
    names, codes = np.unique(np.asarray([*references, *predictions], dtype=str), return_inverse=True)
    actual, predicted = codes[: len(references)], codes[len(references) :]

    def clips_per_class(numbers: Integers) -> Floats:
        return np.bincount(numbers, minlength=len(names)).astype(float)

    return clips_per_class(actual[actual == predicted]), clips_per_class(actual), clips_per_class(predicted)
