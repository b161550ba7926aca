"""Clusters of embeddings as pseudo-labels in place of speaker labels (Cho et al., 2022)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from upstreams.pretraining.methods import UNKNOWN
from upstreams.threads import one_thread

Floats = NDArray[np.float64]
ClusterNumbers = NDArray[np.int64]
MANY = 50_000  # vectors; from this number on, mini-batch k-means is used
PART = 16_384  # vectors in a mini-batch


class Agreement(NamedTuple):
    """The agreement of clusters with names: normalised mutual information, and the share of clips that have the most
    frequent name of their cluster; both are from 0 to 1.
    """

    nmi: float
    purity: float


def standardized_directions(vectors: NDArray[np.floating]) -> Floats:
    """Return vectors (N, D), standardised per dimension and scaled to unit length; constant dimensions become 0."""
    plain = vectors.astype(np.float64)
    deviation = plain.std(0)
    varies = deviation > 1e-9 * np.abs(plain).max(0, initial=0.0)
    plain = np.where(varies, (plain - plain.mean(0)) / np.where(varies, deviation, 1.0), 0.0)
    return plain / np.maximum(np.linalg.norm(plain, axis=1, keepdims=True), 1e-12)


def kmeans_clusters(vectors: Floats, count: int, seed: int) -> ClusterNumbers:
    """Return the cluster (N,) of each vector (N, D) by scikit-learn's k-means, independent of the number of threads."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    with one_thread():  # with several threads, the order of summation would vary
        if len(vectors) < MANY:
            return KMeans(count, n_init=4, random_state=seed).fit_predict(vectors).astype(np.int64)
        return (
            MiniBatchKMeans(count, batch_size=PART, n_init=1, random_state=seed).fit_predict(vectors).astype(np.int64)
        )


def pseudo_labels_of(
    vectors: Floats, clusters: ClusterNumbers, smallest: int, largest: int, nearest: float
) -> ClusterNumbers:
    """Return the pseudo-label (N,) of each vector: its cluster, renumbered, or UNKNOWN if it is not to be used.

    Clusters with fewer than `smallest` or more than `largest` members are dropped. In each other cluster, the share
    `nearest` of the members (rounded up) that are nearest to the mean is used; ties are resolved by order.
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
    """Return the agreement of the clusters (N,) of clips with their names (N)."""
    from sklearn.metrics import normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(names, clusters)
    return Agreement(float(normalized_mutual_info_score(names, clusters)), float(table.max(0).sum() / table.sum()))
