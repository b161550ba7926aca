"""What runs answered on one test set, ready to be resampled: pure arrays, no files.

A column is one run: an upstream with one seed. Clusters are numbered 0 to J - 1 and drawn as wholes, since their clips
depend on each other. Values are fractions, as in `downstreams.metrics`, which the tests hold every kind against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
# How often each cluster counts (R, J) -> values (R, M), NaN where there is none.
Resampler = Callable[[Integers], Floats]

PRIOR = 0.01  # of a target trial in minDCF, as in `downstreams.metrics.min_dcf`; both costs are 1
POINTS = 1000  # of a ROC that draws are judged by; with as many trials or fewer, all there are


class Sample(Protocol):
    """Answers of M runs to one test set."""

    @property
    def size(self) -> int:
        """J, the number of clusters."""

    def counts(self) -> Floats:
        """How much each cluster counts (J,)."""

    @property
    def optimistic(self) -> bool:
        """Whether values are better than with more data, as a minimum over thresholds is."""

    def values(self) -> Floats:
        """Of the runs (M,), every clip counting once."""

    def resampler(self) -> Resampler:
        """What gives the values of draws."""


class Shares(NamedTuple):
    """Marks over sizes, both summed: the share of clips that are right, or the errors of texts by their words.

    marks: (M, J) sums over the clips of each cluster. sizes: (J,). closed: the closed form of the covariance is taken.
    """

    marks: Floats
    sizes: Floats
    closed: bool = True

    @property
    def size(self) -> int:
        """See `Sample`."""
        return len(self.sizes)

    @property
    def optimistic(self) -> bool:
        """See `Sample`."""
        return False

    def values(self) -> Floats:
        """See `Sample`."""
        return np.asarray(self.marks.sum(1) / self.sizes.sum())

    def resampler(self) -> Resampler:
        """See `Sample`."""

        def resample(weights: Integers) -> Floats:
            counts = weights.astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(counts @ self.marks.T / (counts @ self.sizes)[:, None])

        return resample

    def covariance(self) -> Floats:
        """Of the values (M, M), as J grows, in closed form: by the residuals in each cluster (Cochran, 1977)."""
        residuals = (self.marks - self.values()[:, None] * self.sizes) / self.sizes.sum()
        return np.asarray(residuals @ residuals.T)

    def counts(self) -> Floats:
        """See `Sample`."""
        return self.sizes


class Classes(NamedTuple):
    """One label per clip, averaged over the classes that the references have.

    places: (N,) cluster of each clip. truth: (N,) and said: (M, N) numbers of classes below `classes`. average:
    "macro_f1" or "uar".
    """

    places: Integers
    size: int
    truth: Integers
    said: Integers
    classes: int
    average: Literal["macro_f1", "uar"]

    def counts(self) -> Floats:
        """See `Sample`."""
        return np.bincount(self.places, minlength=self.size).astype(np.float64)

    @property
    def optimistic(self) -> bool:
        """See `Sample`."""
        return False

    def values(self) -> Floats:
        """See `Sample`."""
        return self.resampler()(np.ones((1, self.size), np.int64))[0]

    def resampler(self) -> Resampler:
        """See `Sample`."""
        truly = self._tally(self.truth)
        tallies = [
            (self._tally(np.where(said == self.truth, said, self.classes)), self._tally(said)) for said in self.said
        ]

        def resample(weights: Integers) -> Floats:
            counts = weights.astype(np.float64)
            there = counts @ truly
            return np.stack([self._average(there, counts @ right, counts @ said) for right, said in tallies], -1)

        return resample

    def _average(self, truly: Floats, right: Floats, said: Floats) -> Floats:
        whole = truly if self.average == "uar" else (truly + said) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(truly > 0, right / whole, 0).sum(1) / (truly > 0).sum(1))

    def _tally(self, labels: Integers) -> Floats:
        """Clips (J, C) of each cluster with each label; the label C counts nowhere."""
        flat = np.bincount(self.places * (self.classes + 1) + labels, minlength=self.size * (self.classes + 1))
        return flat.reshape(self.size, self.classes + 1)[:, : self.classes].astype(np.float64)


class Tags(NamedTuple):
    """Several labels per clip, by average precision, averaged over the classes that have a positive.

    places: (N,) cluster of each clip. truth: (N, C). scores: (M, N, C).
    """

    places: Integers
    size: int
    truth: Booleans
    scores: Floats

    def counts(self) -> Floats:
        """See `Sample`."""
        return np.bincount(self.places, minlength=self.size).astype(np.float64)

    @property
    def optimistic(self) -> bool:
        """See `Sample`."""
        return True

    def values(self) -> Floats:
        """See `Sample`."""
        return self.resampler()(np.ones((1, self.size), np.int64))[0]

    def resampler(self) -> Resampler:
        """See `Sample`."""
        present = np.flatnonzero(self.truth.any(0))
        each = [[Ranked.of(scores[:, name], self.truth[:, name]) for name in present] for scores in self.scores]

        def resample(weights: Integers) -> Floats:
            counts = np.ascontiguousarray(weights.T[self.places])
            return np.stack([_mean([ranked.precisions(counts) for ranked in some]) for some in each], -1)

        return resample


class Ranked(NamedTuple):
    """Clips from the highest score of a class down.

    order: (N,). positives: places (P,) in it of those that have the class. last: (P,) places of the last clip with an
    equal score. among: (P,) which of the positives is the last one there.
    """

    order: Integers
    positives: Integers
    last: Integers
    among: Integers

    @staticmethod
    def of(scores: Floats, truth: Booleans) -> Ranked:
        """Of scores (N,) and who has the class (N,)."""
        order, accepted = ranking(scores)
        positives = np.flatnonzero(truth[order])
        last = accepted[np.searchsorted(accepted, positives + 1)] - 1
        return Ranked(order, positives, last, np.searchsorted(positives, last, side="right") - 1)

    def precisions(self, counts: Integers) -> Floats:
        """Average precision (R,), clips being counted as often as (N, R) says; NaN without a positive."""
        own = counts[self.order[self.positives]]
        hits = own.cumsum(0)[self.among]
        above = counts[self.order].cumsum(0)[self.last]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(own > 0, own * (hits / above), 0.0).sum(0) / own.sum(0))


class Trials(NamedTuple):
    """Error rates of trials; speakers are drawn, on both sides.

    A trial of speakers drawn v and w times counts v w times, one of a single speaker v times: who is drawn twice is not
    compared with himself as if he were two. What two speakers have by themselves, such as the luck of their trials, is
    thereby counted thrice (Owen, 2007), see `excess`.

    enroll, test: (N,) clusters of the two clips. truth: (N,) true for one speaker. scores: (M, N). rate: "eer" or
    "min_dcf".
    """

    enroll: Integers
    test: Integers
    size: int
    truth: Booleans
    scores: Floats
    rate: Literal["eer", "min_dcf"]

    def counts(self) -> Floats:
        """See `Sample`."""
        sides = np.concatenate([self.enroll, self.test])
        return np.bincount(sides, minlength=self.size).astype(np.float64)

    @property
    def optimistic(self) -> bool:
        """See `Sample`."""
        return self.rate == "min_dcf"

    def values(self) -> Floats:
        """See `Sample`."""
        curves = [Curve.of(scores, self.truth) for scores in self.scores]
        return np.array([self._rates(curve.missed[:, None], curve.alarmed[:, None])[0] for curve in curves])

    def resampler(self) -> Resampler:
        """See `Sample`: a ROC is judged by at most POINTS of its points, and by straight lines between them."""
        pairs, cells = np.unique(np.stack([self.enroll, self.test, self.truth]), axis=1, return_inverse=True)
        alone, targets = pairs[0] == pairs[1], pairs[2] == 1
        curves = [Curve.of(scores, self.truth).thinned(self.rate) for scores in self.scores]
        counted = [
            curve.counted(scores, cells, pairs.shape[1]) for curve, scores in zip(curves, self.scores, strict=True)
        ]

        def resample(weights: Integers) -> Floats:
            counts = weights[:, pairs[0]] * np.where(alone, 1, weights[:, pairs[1]])
            hits, alarms = counts[:, targets].astype(np.float64), counts[:, ~targets].astype(np.float64)
            return np.stack([self._drawn(hits @ each[targets], alarms @ each[~targets]) for each in counted], -1)

        return resample

    def _drawn(self, hits: Floats, alarms: Floats) -> Floats:
        """Rates (R,) from numbers (R, G) of trials of both kinds that each threshold accepts, the lowest one all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._rates((1 - hits / hits[:, -1:]).T, (alarms / alarms[:, -1:]).T)

    def _rates(self, missed: Floats, alarmed: Floats) -> Floats:
        """Rates (R,) from shares (G, R)."""
        if self.rate == "min_dcf":
            return np.asarray((PRIOR * missed + (1 - PRIOR) * alarmed).min(0) / PRIOR)
        gap, draws = missed - alarmed, np.arange(missed.shape[1])
        here = np.maximum((gap <= 0).argmax(0), 1)
        before = gap[here - 1, draws]
        share = before / (before - gap[here, draws])
        return np.asarray(alarmed[here - 1, draws] + share * (alarmed[here, draws] - alarmed[here - 1, draws]))

    def excess(self, spread: Floats) -> Floats:
        """What draws add to the covariance (M, M) of the rates that is not there (Aronow et al., 2015).

        It is twice that of pairs of different speakers, by what each moves the rate. Of minDCF only half of it is taken
        off, as simulations say: its threshold follows the few alarms that there are. spread: (M,) standard deviations
        of draws.
        """
        apart = (self.enroll != self.test) & ~self.truth
        low, high = np.minimum(self.enroll, self.test)[apart], np.maximum(self.enroll, self.test)[apart]
        _, pairs = np.unique(low * self.size + high, return_inverse=True)
        sums = []
        for scores, width in zip(self.scores, spread, strict=True):
            curve = Curve.of(scores, self.truth)
            threshold, alarmed, speed = curve.cheapest() if self.rate == "min_dcf" else curve.crossing(width)
            sums.append(np.bincount(pairs, speed * ((scores[apart] >= threshold) - alarmed)))
        moved = np.stack(sums) / (~self.truth).sum()
        return np.asarray((1 if self.rate == "min_dcf" else 2) * moved @ moved.T)


class Curve(NamedTuple):
    """Operating points of a detector.

    thresholds: (G,) descending, the first one above all scores. missed, alarmed: (G,) shares of targets that it turns
    down and of others that it accepts.
    """

    thresholds: Floats
    missed: Floats
    alarmed: Floats

    @staticmethod
    def of(scores: Floats, truth: Booleans) -> Curve:
        """Of scores (N,) and targets (N,): a point for each score there is."""
        order, accepted = ranking(scores)
        hits = np.concatenate([[0], truth[order].cumsum()])[accepted]
        alarms = accepted - hits
        thresholds = np.concatenate([[np.inf], scores[order][accepted[1:] - 1]])
        return Curve(thresholds, 1 - hits / hits[-1], alarms / alarms[-1])

    def thinned(self, rate: str) -> Curve:
        """At most about POINTS of the points and the last, dense where draws reach their rates."""
        if len(self.thresholds) <= POINTS:
            return self
        gap = self.missed - self.alarmed
        costs = np.minimum(self.alarmed * (1 - PRIOR) / PRIOR, 2)  # accepting nothing costs 1
        length = -np.sign(gap) * np.abs(gap) ** 0.5 if rate == "eer" else costs - np.where(costs < 2, self.missed, 0)
        steps = np.floor((length - length[0]) / np.ptp(length) * POINTS)
        kept = np.append(np.flatnonzero(np.diff(steps, prepend=-1)), len(steps) - 1)
        return Curve(*(values[np.unique(kept)] for values in self))

    def counted(self, scores: Floats, cells: Integers, count: int) -> Floats:
        """How many trials of each cell (count, G) the thresholds accept; scores, cells: (N,)."""
        bins = len(self.thresholds) - np.searchsorted(self.thresholds[::-1], scores, side="right")
        flat = np.bincount(cells * len(self.thresholds) + bins, minlength=count * len(self.thresholds))
        return flat.reshape(count, -1).cumsum(1).astype(np.float64)

    def cheapest(self) -> tuple[float, float, float]:
        """As `crossing`, where the detection cost is least: there a small move of the threshold changes nothing."""
        at = int(np.argmin(PRIOR * self.missed + (1 - PRIOR) * self.alarmed))
        return float(self.thresholds[at]), float(self.alarmed[at]), (1 - PRIOR) / PRIOR

    def crossing(self, spread: float) -> tuple[float, float, float]:
        """The threshold of the EER, the alarms there, and how fast the rate follows them, from 0 to 1.

        Where two lines cross, d EER = (a d alarms + b d misses) / (a + b), with the slopes a of misses and b of alarms
        over thresholds: here over as many as draws reach, spread being the standard deviation of theirs.
        """
        gap = self.missed - self.alarmed
        wide = max(2 * spread, 4 * float(-np.diff(gap).min()))
        at, first, last = (int(np.argmax(gap <= level)) for level in (0, wide, -wide))
        last = last or len(gap) - 1
        lost, gained = self.missed[first] - self.missed[last], self.alarmed[last] - self.alarmed[first]
        return float(self.thresholds[at]), float(self.alarmed[at]), float(lost / (lost + gained))


class Folds(NamedTuple):
    """The mean over folds, each of which was tested by a run of its own.

    parts: a sample for each. own: which of the J clusters it has. A fold counts by the share of its clusters that is
    drawn, so that folds with a single one are resampled too.
    """

    parts: Sequence[Sample]
    own: Sequence[Integers]
    size: int

    def counts(self) -> Floats:
        """See `Sample`."""
        total = np.zeros(self.size)
        for part, own in zip(self.parts, self.own, strict=True):
            total[own] += part.counts() / part.counts().sum()
        return total

    @property
    def optimistic(self) -> bool:
        """See `Sample`."""
        return False

    def values(self) -> Floats:
        """See `Sample`."""
        return np.asarray(np.mean([part.values() for part in self.parts], 0))

    def resampler(self) -> Resampler:
        """See `Sample`."""
        each = [(part.resampler(), own) for part, own in zip(self.parts, self.own, strict=True)]

        def resample(weights: Integers) -> Floats:
            shares = np.stack([weights[:, own].mean(1) for _, own in each])[..., None]
            values = np.stack([draw(weights[:, own]) for draw, own in each])
            return np.asarray(np.where(shares > 0, shares * values, 0).sum(0) / shares.sum(0))

        return resample


def ranking(scores: Floats) -> tuple[Integers, Integers]:
    """Order (N,) of scores (N,) from the highest down, and G + 1 numbers of them that some threshold accepts."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    return order, np.concatenate([[0], np.flatnonzero(ranked[1:] != ranked[:-1]) + 1, [len(ranked)]])


def _mean(values: Sequence[Floats]) -> Floats:
    """Of those that are numbers, (R,)."""
    each = np.stack(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(each).sum(0) / np.isfinite(each).sum(0))
