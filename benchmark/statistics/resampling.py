"""Scores of several runs on one test set, in a form that can be resampled. Pure arrays: nothing here reads a file.

One class for each kind of metric implements `RunScores`. A run is one upstream with one seed and is one of the M
columns of the scores. Clips that depend on each other, such as those of one speaker, form a cluster. Clusters are
numbered from 0 to J - 1, and a bootstrap draws whole clusters. Scores are fractions, as in `downstreams.metrics`; the
tests compare every class with the metric there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from downstreams.metrics import equal_error_rates

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
# Maps how often each cluster is drawn in each resample (R, J) to scores (R, M), NaN where a resample has no score.
Resampler = Callable[[Integers], Floats]

TARGET_PRIOR = 0.01  # prior of a target trial in minDCF, as in `downstreams.metrics.min_dcf`; both costs are 1
ROC_POINTS = 1000  # operating points at most by which resamples of trials are scored


class RunScores(Protocol):
    """Scores of M runs on one test set whose clips form J clusters."""

    @property
    def size(self) -> int:
        """The number J of clusters."""

    def counts(self) -> Floats:
        """How many clips each cluster contributes (J,)."""

    @property
    def optimistic(self) -> Booleans | bool:
        """Whether the score on a finite test set is biased upwards, as a minimum over thresholds is; may be (M,)."""

    def values(self) -> Floats:
        """The scores of the runs on the test set as it is (M,)."""

    def resampler(self) -> Resampler:
        """A function that computes the scores of resamples."""


class Ratios(NamedTuple):
    """Sums of marks divided by sums of sizes, such as the share of clips that are right or a word error rate.

    marks: (M, J) sums over the clips of each cluster. sizes: (J,), or (M, J) where they differ by run. closed: the
    covariance is computed in closed form instead of by a bootstrap.
    """

    marks: Floats
    sizes: Floats
    closed: bool = True

    @property
    def size(self) -> int:
        """The number of clusters."""
        return self.marks.shape[1]

    @property
    def optimistic(self) -> bool:
        """False: a ratio of sums has no bias worth correcting."""
        return False

    def counts(self) -> Floats:
        """The size of each cluster (J,), averaged over the runs where it differs."""
        return np.atleast_2d(self.sizes).mean(0)

    def values(self) -> Floats:
        """The ratio of each run (M,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.marks.sum(1) / self.sizes.sum(-1))

    def resampler(self) -> Resampler:
        """A function that computes the ratios of resamples."""
        sizes = np.atleast_2d(self.sizes)

        def resample(weights: Integers) -> Floats:
            counts = weights.astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(counts @ self.marks.T / (counts @ sizes.T))

        return resample

    def residuals(self) -> Floats:
        """What each cluster adds to the error of each ratio (M, J); products give the covariance (Cochran, 1977)."""
        totals = np.atleast_2d(self.sizes).sum(1)[:, None]
        return np.asarray((self.marks - self.values()[:, None] * self.sizes) / totals)


class ClassAverages(NamedTuple):
    """Macro-F1 or unweighted average recall of clips with one label each, over the classes that occur as references.

    places: (N,) cluster of each clip. truth: (N,) and predicted: (M, N) reference and predicted classes, numbers below
    `classes`. average: "macro_f1" or "uar".
    """

    places: Integers
    size: int
    truth: Integers
    predicted: Integers
    classes: int
    average: Literal["macro_f1", "uar"]

    def counts(self) -> Floats:
        """How many clips each cluster has (J,)."""
        return np.bincount(self.places, minlength=self.size).astype(np.float64)

    @property
    def optimistic(self) -> bool:
        """Whether the score on a finite test set is biased upwards."""
        return False

    def values(self) -> Floats:
        """The scores of the runs (M,)."""
        return self.resampler()(np.ones((1, self.size), np.int64))[0]

    def resampler(self) -> Resampler:
        """A function that computes the scores of resamples."""
        truly = self._tally(self.truth)
        tallies = [
            (self._tally(np.where(predicted == self.truth, predicted, self.classes)), self._tally(predicted))
            for predicted in self.predicted
        ]

        def resample(weights: Integers) -> Floats:
            counts = weights.astype(np.float64)
            positives = counts @ truly
            return np.stack(
                [self._average(positives, counts @ right, counts @ predicted) for right, predicted in tallies], -1
            )

        return resample

    def _average(self, truly: Floats, right: Floats, predicted: Floats) -> Floats:
        whole = truly if self.average == "uar" else (truly + predicted) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(truly > 0, right / whole, 0).sum(1) / (truly > 0).sum(1))

    def _tally(self, labels: Integers) -> Floats:
        """Clips (J, C) of each cluster with each label; the label C counts nowhere."""
        flat = np.bincount(self.places * (self.classes + 1) + labels, minlength=self.size * (self.classes + 1))
        return flat.reshape(self.size, self.classes + 1)[:, : self.classes].astype(np.float64)


class MeanPrecisions(NamedTuple):
    """Mean average precision of clips with several labels, over the classes that have a positive clip.

    places: (N,) cluster of each clip. truth: (N, C). scores: (M, N, C).
    """

    places: Integers
    size: int
    truth: Booleans
    scores: Floats

    def counts(self) -> Floats:
        """How many clips each cluster has (J,)."""
        return np.bincount(self.places, minlength=self.size).astype(np.float64)

    @property
    def optimistic(self) -> bool:
        """Whether the score on a finite test set is biased upwards."""
        return True

    def values(self) -> Floats:
        """The scores of the runs (M,)."""
        return self.resampler()(np.ones((1, self.size), np.int64))[0]

    def resampler(self) -> Resampler:
        """A function that computes the scores of resamples."""
        present = np.flatnonzero(self.truth.any(0))
        rankings = [[RankedClips.of(run[:, label], self.truth[:, label]) for label in present] for run in self.scores]

        def resample(weights: Integers) -> Floats:
            counts = np.ascontiguousarray(weights.T[self.places])
            return np.stack([_finite_mean([ranked.precisions(counts) for ranked in run]) for run in rankings], -1)

        return resample


class RankedClips(NamedTuple):
    """Clips in descending order of their score for one class.

    order: (N,) the clips by rank. positives: (P,) ranks of the clips that have the class. last: (P,) rank of the last
    clip whose score equals that of the positive. among: (P,) number of the last positive up to that rank.
    """

    order: Integers
    positives: Integers
    last: Integers
    among: Integers

    @staticmethod
    def of(scores: Floats, truth: Booleans) -> RankedClips:
        """Rank clips by scores (N,); truth (N,) says which of them have the class."""
        order, accepted = descending_order(scores)
        positives = np.flatnonzero(truth[order])
        last = accepted[np.searchsorted(accepted, positives + 1)] - 1
        return RankedClips(order, positives, last, np.searchsorted(positives, last, side="right") - 1)

    def precisions(self, counts: Integers) -> Floats:
        """Average precision (R,) with each clip counted as often as counts (N, R) say; NaN without a positive."""
        weights = counts[self.order[self.positives]]
        hits = weights.cumsum(0)[self.among]
        above = counts[self.order].cumsum(0)[self.last]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(weights > 0, weights * (hits / above), 0.0).sum(0) / weights.sum(0))


class TrialErrors(NamedTuple):
    """Equal error rates or minimum detection costs of verification trials. The bootstrap draws speakers.

    A trial of two speakers who are drawn v and w times counts v w times. A trial of one speaker counts v times, because
    a speaker who is drawn twice is not compared with himself as if he were two. This counts the variance that belongs
    to a pair of speakers three times (Owen, 2007); `excess` says how much of it is too much.

    enroll, test: (N,) clusters of the two clips. truth: (N,) true where both clips are of one speaker. scores: (M, N).
    rate: "eer" or "min_dcf".
    """

    enroll: Integers
    test: Integers
    size: int
    truth: Booleans
    scores: Floats
    rate: Literal["eer", "min_dcf"]

    def counts(self) -> Floats:
        """How many clips each cluster has (J,)."""
        sides = np.concatenate([self.enroll, self.test])
        return np.bincount(sides, minlength=self.size).astype(np.float64)

    @property
    def optimistic(self) -> bool:
        """Whether the score on a finite test set is biased upwards."""
        return self.rate == "min_dcf"

    def values(self) -> Floats:
        """The scores of the runs (M,)."""
        curves = [RocCurve.of(scores, self.truth) for scores in self.scores]
        return np.array([self._rates(curve.missed[:, None], curve.alarmed[:, None])[0] for curve in curves])

    def resampler(self) -> Resampler:
        """A function that computes error rates of resamples from at most ROC_POINTS points of each ROC."""
        pairs, cells = np.unique(np.stack([self.enroll, self.test, self.truth]), axis=1, return_inverse=True)
        alone, targets = pairs[0] == pairs[1], pairs[2] == 1
        curves = [RocCurve.of(scores, self.truth).thinned(self.rate) for scores in self.scores]
        counted = [
            curve.counted(scores, cells, pairs.shape[1]) for curve, scores in zip(curves, self.scores, strict=True)
        ]

        def resample(weights: Integers) -> Floats:
            counts = weights[:, pairs[0]] * np.where(alone, 1, weights[:, pairs[1]])
            hits, alarms = counts[:, targets].astype(np.float64), counts[:, ~targets].astype(np.float64)
            return np.stack([self._resampled(hits @ run[targets], alarms @ run[~targets]) for run in counted], -1)

        return resample

    def _resampled(self, hits: Floats, alarms: Floats) -> Floats:
        """Rates (R,) from the numbers (R, G) of target and other trials that each threshold accepts."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._rates((1 - hits / hits[:, -1:]).T, (alarms / alarms[:, -1:]).T)

    def _rates(self, missed: Floats, alarmed: Floats) -> Floats:
        """Rates (R,) from the shares (G, R) of targets missed and of others accepted."""
        if self.rate == "min_dcf":
            return np.asarray((TARGET_PRIOR * missed + (1 - TARGET_PRIOR) * alarmed).min(0) / TARGET_PRIOR)
        return equal_error_rates(missed, alarmed)[0]

    def excess(self, spread: Floats) -> Floats:
        """The part of the bootstrap's covariance (M, M) that is too much (Aronow et al., 2015).

        It is twice the covariance that pairs of different speakers contribute, by how much each pair moves the rate.
        For minDCF only half of it is subtracted, as simulations support, because its threshold follows few alarms.
        spread: (M,) standard deviations of the resampled rates.
        """
        apart = (self.enroll != self.test) & ~self.truth
        low, high = np.minimum(self.enroll, self.test)[apart], np.maximum(self.enroll, self.test)[apart]
        _, pairs = np.unique(low * self.size + high, return_inverse=True)
        sums = []
        for scores, width in zip(self.scores, spread, strict=True):
            curve = RocCurve.of(scores, self.truth)
            threshold, alarmed, speed = curve.cheapest() if self.rate == "min_dcf" else curve.crossing(width)
            sums.append(np.bincount(pairs, speed * ((scores[apart] >= threshold) - alarmed)))
        moved = np.stack(sums) / (~self.truth).sum()
        return np.asarray((1 if self.rate == "min_dcf" else 2) * moved @ moved.T)


class RocCurve(NamedTuple):
    """The operating points of a detector.

    thresholds: (G,) descending, the first one above all scores. missed: (G,) share of target trials that are rejected.
    alarmed: (G,) share of other trials that are accepted.
    """

    thresholds: Floats
    missed: Floats
    alarmed: Floats

    @staticmethod
    def of(scores: Floats, truth: Booleans) -> RocCurve:
        """One operating point for each distinct score; scores, truth: (N,)."""
        order, accepted = descending_order(scores)
        hits = np.concatenate([[0], truth[order].cumsum()])[accepted]
        alarms = accepted - hits
        thresholds = np.concatenate([[np.inf], scores[order][accepted[1:] - 1]])
        return RocCurve(thresholds, 1 - hits / hits[-1], alarms / alarms[-1])

    def thinned(self, rate: str) -> RocCurve:
        """At most about ROC_POINTS points, among them the first and last, dense where resampled rates lie."""
        if len(self.thresholds) <= ROC_POINTS:
            return self
        gap = self.missed - self.alarmed
        costs = np.minimum(self.alarmed * (1 - TARGET_PRIOR) / TARGET_PRIOR, 2)  # accepting nothing costs 1
        length = -np.sign(gap) * np.abs(gap) ** 0.5 if rate == "eer" else costs - np.where(costs < 2, self.missed, 0)
        steps = np.floor((length - length[0]) / np.ptp(length) * ROC_POINTS)
        kept = np.append(np.flatnonzero(np.diff(steps, prepend=-1)), len(steps) - 1)
        return RocCurve(*(values[np.unique(kept)] for values in self))

    def counted(self, scores: Floats, cells: Integers, count: int) -> Floats:
        """How many trials of each of `count` cells each threshold accepts (count, G); scores, cells: (N,)."""
        bins = len(self.thresholds) - np.searchsorted(self.thresholds[::-1], scores, side="right")
        flat = np.bincount(cells * len(self.thresholds) + bins, minlength=count * len(self.thresholds))
        return flat.reshape(count, -1).cumsum(1).astype(np.float64)

    def cheapest(self) -> tuple[float, float, float]:
        """As `crossing`, at the least detection cost, where a small change of the threshold has no effect."""
        at = int(np.argmin(TARGET_PRIOR * self.missed + (1 - TARGET_PRIOR) * self.alarmed))
        return float(self.thresholds[at]), float(self.alarmed[at]), (1 - TARGET_PRIOR) / TARGET_PRIOR

    def crossing(self, spread: float) -> tuple[float, float, float]:
        """The threshold at the EER, the false alarm rate there, and the derivative of the EER by it, from 0 to 1.

        Where two lines cross, d EER = (a d alarms + b d misses) / (a + b), with the slopes a of the misses and b of the
        alarms. The slopes are taken over the thresholds that resamples reach; spread: their standard deviation.
        """
        gap = self.missed - self.alarmed
        wide = max(2 * spread, 4 * float(-np.diff(gap).min()))
        at, first, last = (int(np.argmax(gap <= level)) for level in (0, wide, -wide))
        last = last or len(gap) - 1
        lost, gained = self.missed[first] - self.missed[last], self.alarmed[last] - self.alarmed[first]
        return float(self.thresholds[at]), float(self.alarmed[at]), float(lost / (lost + gained))


class FoldMeans(NamedTuple):
    """The mean over folds, each of which was tested by runs of its own.

    parts: the scores of each fold. clusters: which of the J clusters each fold has. A fold counts by the share of its
    clusters that is drawn, so that folds with a single cluster can be resampled too.
    """

    parts: Sequence[RunScores]
    clusters: Sequence[Integers]
    size: int

    def counts(self) -> Floats:
        """How much each cluster counts (J,), every fold counting the same."""
        return _counts_together(self.parts, self.clusters, self.size)

    @property
    def optimistic(self) -> bool:
        """False: the bias of a mean over folds is not corrected."""
        return False

    def values(self) -> Floats:
        """The mean over folds (M,)."""
        return np.asarray(np.mean([part.values() for part in self.parts], 0))

    def resampler(self) -> Resampler:
        """A function that computes the means over folds of resamples."""
        resamplers = [part.resampler() for part in self.parts]

        def resample(weights: Integers) -> Floats:
            shares = np.stack([weights[:, clusters].mean(1) for clusters in self.clusters])[..., None]
            values = np.stack(
                [fold(weights[:, clusters]) for fold, clusters in zip(resamplers, self.clusters, strict=True)]
            )
            return np.asarray(np.where(shares > 0, shares * values, 0).sum(0) / shares.sum(0))

        return resample


class SeveralTasks(NamedTuple):
    """The scores of several tasks side by side, resampled together because tasks share clusters, such as speakers.

    parts: the scores of each task. clusters: which of the J clusters each task has. The columns are those of the first
    task, then those of the second, and so on.
    """

    parts: Sequence[RunScores]
    clusters: Sequence[Integers]
    size: int

    def counts(self) -> Floats:
        """How much each cluster counts (J,), every task counting the same."""
        return _counts_together(self.parts, self.clusters, self.size)

    @property
    def optimistic(self) -> Booleans:
        """For each column, whether its score is biased upwards."""
        return np.concatenate([np.broadcast_to(part.optimistic, len(part.values())) for part in self.parts])

    def values(self) -> Floats:
        """The scores of all tasks, one after the other."""
        return np.concatenate([part.values() for part in self.parts])

    def resampler(self) -> Resampler:
        """A function that computes the scores of all tasks on the same resample of clusters."""
        resamplers = [part.resampler() for part in self.parts]

        def resample(weights: Integers) -> Floats:
            tasks = zip(resamplers, self.clusters, strict=True)
            return np.concatenate([task(weights[:, clusters]) for task, clusters in tasks], 1)

        return resample


def _counts_together(parts: Sequence[RunScores], clusters: Sequence[Integers], size: int) -> Floats:
    total = np.zeros(size)
    for part, places in zip(parts, clusters, strict=True):
        total[places] += part.counts() / part.counts().sum()
    return total


def residuals_of(scores: RunScores) -> Floats | None:
    """What each cluster adds to the error of each score (M, J) in closed form; None where only a bootstrap will do."""
    if isinstance(scores, Ratios):
        return scores.residuals() if scores.closed else None
    if not isinstance(scores, SeveralTasks):
        return None
    rows = []
    for part, clusters in zip(scores.parts, scores.clusters, strict=True):
        residuals = residuals_of(part)
        if residuals is None:
            return None
        rows.append(np.zeros((len(residuals), scores.size)))
        rows[-1][:, clusters] = residuals
    return np.concatenate(rows)


def excess_of(scores: RunScores, spread: Floats) -> Floats:
    """The part of a bootstrap's covariance (M, M) that is too much; see `TrialErrors.excess`."""
    if isinstance(scores, TrialErrors):
        return scores.excess(spread)
    excess, start = np.zeros((len(spread), len(spread))), 0
    for part in scores.parts if isinstance(scores, SeveralTasks) else ():
        columns = slice(start, start := start + len(part.values()))
        excess[columns, columns] = excess_of(part, spread[columns])
    return excess


def descending_order(scores: Floats) -> tuple[Integers, Integers]:
    """The descending order (N,) of scores (N,), and the G + 1 numbers of scores that some threshold accepts."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.concatenate([[0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, [len(ranked)]])


def _finite_mean(values: Sequence[Floats]) -> Floats:
    """The mean (R,) of those of the values that are numbers."""
    rows = np.stack(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(rows).sum(0) / np.isfinite(rows).sum(0))
