"""Worlds to draw test sets from, where the truth about each metric is known or can be had from a huge test set."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.stats import norm

from benchmark.statistics.resampling import ClassAverages, MeanPrecisions, Ratios, TrialErrors

Generator = np.random.Generator


def answers(
    rng: Generator,
    speakers: int = 50,
    clips: int = 12,
    level: float = 1.2,
    by_speaker: float = 0.8,
    by_clip: float = 1.0,
    by_seed: float = 0.0,
    seeds: int = 1,
    noise: float = 1.0,
    unequal: float = 0.0,
) -> Ratios:
    """Clips right or wrong: some speakers and clips are harder, some seeds better. `share` is the truth."""
    sizes = many(rng, speakers, clips, unequal)
    owners = np.repeat(np.arange(speakers), sizes)
    hard = rng.normal(0, by_speaker, speakers)[owners] + rng.normal(0, by_clip, len(owners))
    right = level + rng.normal(0, by_seed, (seeds, 1)) + hard + rng.normal(0, noise, (seeds, len(owners))) > 0
    return Ratios(np.stack([np.bincount(owners, row, speakers) for row in right]), sizes.astype(float))


def many(rng: Generator, speakers: int, clips: int, unequal: float) -> np.ndarray:
    """Clips of each speaker, log-normal about `clips` with this deviation."""
    return np.maximum(1, np.round(clips * np.exp(rng.normal(0, unequal, speakers) - unequal**2 / 2))).astype(int)


def share(
    level: float = 1.2, by_speaker: float = 0.8, by_clip: float = 1.0, by_seed: float = 0.0, noise: float = 1.0
) -> float:
    """What `answers` come to in the long run."""
    return float(norm.cdf(level / np.sqrt(by_speaker**2 + by_clip**2 + by_seed**2 + noise**2)))


def transcripts(rng: Generator, speakers: int = 40, clips: int = 10, rate: float = 0.2, unequal: float = 0.0) -> Ratios:
    """Errors by words, Poisson with a rate of each speaker's own; WER is `rate` in the long run."""
    owners = np.repeat(np.arange(speakers), many(rng, speakers, clips, unequal))
    words = rng.integers(3, 12, len(owners))
    errors = rng.poisson(words * rng.gamma(4, rate / 4, speakers)[owners])
    return Ratios(np.bincount(owners, errors, speakers)[None], np.bincount(owners, words, speakers), closed=False)


def labels(
    rng: Generator, average: Literal["macro_f1", "uar"], speakers: int = 50, clips: int = 12, classes: int = 6
) -> ClassAverages:
    """One of some classes, of which the later ones are easier."""
    truth = rng.integers(0, classes, (speakers, clips))
    ease = rng.normal(0, 0.7, (speakers, 1)) + np.linspace(-0.5, 1.5, classes)[truth]
    known = rng.random((speakers, clips)) < 1 / (1 + np.exp(-ease))
    said = np.where(known, truth, rng.integers(0, classes, (speakers, clips)))
    places = np.repeat(np.arange(speakers), clips)
    return ClassAverages(places, speakers, truth.ravel(), said.reshape(1, -1), classes, average)


def tags(rng: Generator, clips: int = 1000) -> MeanPrecisions:
    """Each clip with some of five labels."""
    truth = rng.random((clips, 5)) < np.array([0.3, 0.2, 0.1, 0.08, 0.15])
    return MeanPrecisions(np.arange(clips), clips, truth, (truth * 1.3 + rng.normal(size=truth.shape))[None])


def trials(
    rng: Generator,
    rate: Literal["eer", "min_dcf"] = "eer",
    speakers: int = 40,
    targets: int = 45,
    others: int = 1800,
    apart: float = 2.0,
    by_speaker: float = 0.5,
    by_pair: float = 0.3,
) -> TrialErrors:
    """Some targets of each speaker, and others of two at random; speakers and pairs of them are harder or easier."""
    own, alike = rng.normal(0, by_speaker, (2, speakers))
    pairs = np.triu(rng.normal(0, by_pair, (speakers, speakers)), 1)
    first = rng.integers(0, speakers, others)
    second = (first + rng.integers(1, speakers, others)) % speakers
    enroll = np.concatenate([np.repeat(np.arange(speakers), targets), first])
    test = np.concatenate([np.repeat(np.arange(speakers), targets), second])
    truth = np.arange(len(enroll)) < speakers * targets
    between = (alike[enroll] + alike[test]) / np.sqrt(2) + (pairs + pairs.T)[enroll, test]
    scores = np.where(truth, apart + own[enroll], between) + rng.normal(size=len(enroll))
    return TrialErrors(enroll, test, speakers, truth, scores[None], rate)
