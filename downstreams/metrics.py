"""Metrics as pure functions of plain arrays: rates are fractions, nothing is rounded, nothing is quadratic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from downstreams.base import HeadError

Floats = NDArray[np.float64]


class EER(NamedTuple):
    """Equal error rate (a fraction) and the score at which it is reached."""

    rate: float
    threshold: float


class MeanAveragePrecision(NamedTuple):
    """Mean over the classes that have a positive (a fraction), and how many classes had none."""

    value: float
    skipped: int


class Errors(NamedTuple):
    """Edits that turn a reference into a hypothesis."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def edits(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Tokens in the reference."""
        return self.substitutions + self.deletions + self.hits


def eer(scores: ArrayLike, targets: ArrayLike) -> EER:
    """Where misses equal false alarms, by linear interpolation between the operating points of the ROC.

    With m_i and f_i the miss and false alarm rates of accepting every score >= u_i (u descending, equal scores
    together), and i the first point with m_i <= f_i:
    a = (m_{i-1} - f_{i-1}) / (m_{i-1} - f_{i-1} + f_i - m_i) and EER = f_{i-1} + a (f_i - f_{i-1}).
    This is the definition of SUPERB (Yang et al., 2021), which solves the same polyline numerically.

    scores: (N,) finite, higher = more likely a target; targets: (N,) true for target trials, both kinds present.
    Raises HeadError on non-finite scores and where one kind is missing.

    >>> eer([0.9, 0.8, 0.3, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0])
    EER(rate=0.3333333333333333, threshold=0.6)
    """
    thresholds, misses, alarms = _operating_points(scores, targets)
    gap = misses - alarms
    here = int(np.argmax(gap <= 0))
    share = gap[here - 1] / (gap[here - 1] - gap[here])
    return EER(_between(alarms, here, share), _between(thresholds, here, share))


def min_dcf(
    scores: ArrayLike, targets: ArrayLike, prior: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0
) -> float:
    """Lowest normalised detection cost over all thresholds (NIST SRE): 1 is what deciding without listening costs.

    min_t (c_miss prior m_t + c_fa (1 - prior) f_t) / min(c_miss prior, c_fa (1 - prior)), m and f as in `eer`.

    scores, targets: as in `eer`; prior: probability of a target trial; c_miss, c_fa: costs.

    >>> round(min_dcf([0.9, 0.8, 0.3, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0]), 4)
    0.3333
    """
    if not 0 < prior < 1 or c_miss <= 0 or c_fa <= 0:
        raise HeadError(f"min_dcf wants a prior between 0 and 1 and positive costs, not {prior}, {c_miss}, {c_fa}")
    _, misses, alarms = _operating_points(scores, targets)
    costs = c_miss * prior * misses + c_fa * (1 - prior) * alarms
    return float(costs.min() / min(c_miss * prior, c_fa * (1 - prior)))


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of clips that are right; equal to micro-F1 where every clip has one label.

    references, predictions: N labels each, in the same order.

    >>> accuracy(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    0.5
    """
    right, _, _ = _counts(references, predictions)
    return float(right.sum() / len(references))


def micro_f1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """2 TP / (2 TP + FP + FN) over all classes together; a clip with one wrong label is one FP and one FN.

    references, predictions: N labels each, in the same order.

    >>> micro_f1(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    0.5
    """
    right, truly, said = _counts(references, predictions)
    return float(2 * right.sum() / (truly.sum() + said.sum()))


def macro_f1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes of the references.

    references, predictions: N labels each, in the same order. A class that is only ever predicted counts as false
    negatives of the others, not as a class of its own, so the mean does not depend on a head's mistakes.

    >>> round(macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "b"]), 4)
    0.3889
    """
    right, truly, said = _counts(references, predictions)
    present = truly > 0
    return float((2 * right[present] / (truly + said)[present]).mean())


def unweighted_average_recall(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean recall TP / (TP + FN) over the classes of the references (UAR, balanced accuracy).

    references, predictions: N labels each, in the same order.

    >>> unweighted_average_recall(["a", "a", "b", "c"], ["a", "b", "b", "b"])
    0.5
    """
    right, truly, _ = _counts(references, predictions)
    present = truly > 0
    return float((right[present] / truly[present]).mean())


def average_precision(scores: ArrayLike, targets: ArrayLike) -> float:
    """sum_i (recall_i - recall_{i-1}) precision_i over the distinct scores, from the highest down.

    scores: (N,) finite; targets: (N,) true for positives, of which there is at least one.

    >>> round(average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]), 4)
    0.8333
    """
    values, positive = _pair(scores, targets)
    if not positive.any():
        raise HeadError("average precision needs a positive; this class has none")
    _, hits, alarms = _accepted(values, positive)
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float((gained * hits / (hits + alarms)).sum())


def mean_average_precision(scores: ArrayLike, targets: ArrayLike) -> MeanAveragePrecision:
    """Average precision of each class, averaged over the classes with a positive (macro mAP).

    scores: (N, C) finite; targets: (N, C) true where clip n has class c. Raises HeadError if no class has a positive,
    and on scores that are not finite, also of classes that are left out.

    >>> mean_average_precision([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], [[1, 0, 0], [0, 1, 0]])
    MeanAveragePrecision(value=1.0, skipped=1)
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(targets, bool)
    if values.ndim != 2 or values.shape != positive.shape:
        raise HeadError(f"scores and targets must both be (clips, classes), not {values.shape} and {positive.shape}")
    _finite(values)
    present = np.flatnonzero(positive.any(0))
    if not len(present):
        raise HeadError("mean average precision needs a positive in some class; there is none in any")
    each = [average_precision(values[:, c], positive[:, c]) for c in present]
    return MeanAveragePrecision(float(np.mean(each)), positive.shape[1] - len(present))


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Fewest word edits from reference to hypothesis (Levenshtein), words being what white space separates.

    An empty reference counts every word of the hypothesis as inserted.

    >>> word_errors("the cat sat down", "a cat sat")
    Errors(substitutions=1, deletions=1, insertions=0, hits=2)
    """
    return _errors(reference, hypothesis, "word")


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Fewest character edits from reference to hypothesis; runs of white space count as one space, outer ones as none.

    An empty reference counts every character of the hypothesis as inserted.

    >>> character_errors("a  cat", "a cut")
    Errors(substitutions=1, deletions=0, insertions=0, hits=4)
    """
    return _errors(reference, hypothesis, "character")


def error_rate(errors: Iterable[Errors]) -> float:
    """Edits over reference length, both summed over a corpus: WER of `word_errors`, CER of `character_errors`.

    May exceed one. Raises HeadError where all references are empty.

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
    found = jiwer.process_words(reference, hypothesis, split, split)
    return Errors(found.substitutions, found.deletions, found.insertions, found.hits)


def _operating_points(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Thresholds descending, and the miss and false alarm rates of accepting scores at or above each.

    The first point accepts nothing; it repeats the highest score as its threshold, so that none is infinite.
    """
    values, positive = _pair(scores, targets)
    if positive.all() or not positive.any():
        kind = "non-target" if positive.any() else "target"
        raise HeadError(f"an error trade-off needs target and non-target trials; there are no {kind} ones")
    thresholds, hits, alarms = _accepted(values, positive)
    misses = np.concatenate([[1.0], (hits[-1] - hits) / hits[-1]])
    return np.concatenate([thresholds[:1], thresholds]), misses, np.concatenate([[0.0], alarms / alarms[-1]])


def _accepted(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Distinct scores descending; how many positives and negatives score at least that much."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    found = hits[last].astype(np.float64)
    return ranked[last], found, last + 1 - found


def _between(values: Floats, upper: int, share: float) -> float:
    return float(values[upper - 1] + share * (values[upper] - values[upper - 1]))


def _pair(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    values, positive = np.asarray(scores, np.float64), np.asarray(targets).astype(bool)
    if values.ndim != 1 or values.shape != positive.shape:
        raise HeadError(f"scores and targets must be two rows of equal length, not {values.shape} and {positive.shape}")
    _finite(values)
    return values, positive


def _finite(scores: Floats) -> None:
    """Raise HeadError unless all are."""
    if not np.isfinite(scores).all():
        raise HeadError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite numbers")


def _counts(references: Sequence[str], predictions: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Per class: clips that are right, clips that have it, clips that are said to have it."""
    if not references or len(references) != len(predictions):
        raise HeadError(f"{len(references)} references and {len(predictions)} predictions; both must be one per clip")
    names, codes = np.unique(np.asarray([*references, *predictions], dtype=str), return_inverse=True)
    truth, said = codes[: len(references)], codes[len(references) :]
    right = np.bincount(truth[truth == said], minlength=len(names))
    counts = (right, np.bincount(truth, minlength=len(names)), np.bincount(said, minlength=len(names)))
    return counts[0].astype(float), counts[1].astype(float), counts[2].astype(float)
