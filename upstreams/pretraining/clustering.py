"""Clusters of embeddings, which stand for speakers whom nobody named (Cho et al., 2022)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from upstreams.pretraining.methods import UNKNOWN
from upstreams.threads import one_thread

Floats = NDArray[np.float64]
ClusterNumbers = NDArray[np.int64]
MANY = 50_000  # vectors, from which on each step of k-means sees a part of them
PART = 16_384  # vectors in such a part


class Agreement(NamedTuple):
    """How well clusters match names: normalised mutual information, and the share of clips of the commonest name of
    their cluster, both from 0 to 1.
    """

    nmi: float
    purity: float


def comparable(vectors: NDArray[np.floating]) -> Floats:
    """Vectors (N, D) with each dimension standardised, then each of unit length; a dimension that never varies is 0."""
    plain = vectors.astype(np.float64)
    deviation = plain.std(0)
    varies = deviation > 1e-9 * np.abs(plain).max(0, initial=0.0)
    plain = np.where(varies, (plain - plain.mean(0)) / np.where(varies, deviation, 1.0), 0.0)
    return plain / np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-12)


def clustered(vectors: Floats, count: int, seed: int) -> ClusterNumbers:
    """Cluster (N,) of each of the vectors (N, D), by k-means (scikit-learn's); the same with any number of threads."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    with one_thread():  # several add up in the order in which they are done
        if len(vectors) < MANY:
            return KMeans(count, n_init=4, random_state=seed).fit_predict(vectors).astype(np.int64)
        return (
            MiniBatchKMeans(count, batch_size=PART, n_init=1, random_state=seed).fit_predict(vectors).astype(np.int64)
        )


def trusted(vectors: Floats, clusters: ClusterNumbers, smallest: int, largest: int, nearest: float) -> ClusterNumbers:
    """The cluster (N,) of each vector, numbered anew, or UNKNOWN for those that are not to be learnt from.

    Clusters with fewer than `smallest` or more than `largest` members are left out; of the others the share `nearest`
    of members, rounded up, that is nearest to their mean stays. Of members equally near, the first ones do.
    """
    labels = np.full(len(clusters), UNKNOWN, np.int64)
    number = 0
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        if smallest <= len(members) <= largest:
            distance = np.linalg.norm(vectors[members] - vectors[members].mean(0), axis=1)
            stay = np.argsort(distance, kind="stable")[: int(np.ceil(nearest * len(members) - 1e-9))]
            labels[members[stay]] = number
            number += 1
    return labels


def agreement(clusters: ClusterNumbers, names: list[str]) -> Agreement:
    """Of the clusters (N,) of some clips and their names."""
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(names, clusters)
    return Agreement(float(normalized_mutual_info_score(names, clusters)), float(table.max(0).sum() / table.sum()))
