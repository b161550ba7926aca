"""Clusters of embeddings: recovery, selection by size and distance, and agreement with names."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from upstreams.pretraining.clustering import agreement, kmeans_clusters, pseudo_labels_of, standardized_directions
from upstreams.pretraining.methods import UNKNOWN


def blobs(count: int, size: int, dim: int = 8, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors around `count` random directions, and the number of the direction of each, in random order."""
    dice = np.random.default_rng(0)
    names = dice.permutation(np.repeat(np.arange(count), size))
    return dice.standard_normal((count, dim))[names] + spread * dice.standard_normal((count * size, dim)), names


def test_clusters_that_lie_apart_are_found_with_any_number_of_threads_and_again() -> None:
    vectors, names = blobs(12, 9)
    points = standardized_directions(vectors)
    with threadpool_limits(1):
        first = kmeans_clusters(points, 12, 3)
    second = kmeans_clusters(points, 12, 3)
    assert first.tolist() == second.tolist()
    assert {len(set(names[first == cluster])) for cluster in range(12)} == {1}
    assert agreement(first, [str(name) for name in names]) == (pytest.approx(1.0), 1.0)


def test_clusters_of_very_many_vectors_are_found_from_parts_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upstreams.pretraining.clustering.MANY", 100)
    monkeypatch.setattr("upstreams.pretraining.clustering.PART", 64)
    vectors, names = blobs(6, 50)
    found = kmeans_clusters(standardized_directions(vectors), 6, 0)
    assert agreement(found, [str(name) for name in names]).nmi > 0.9
    assert found.tolist() == kmeans_clusters(standardized_directions(vectors), 6, 0).tolist()


def test_what_is_comparable_has_no_scale_no_offset_and_unit_length() -> None:
    vectors, _ = blobs(5, 6)
    points = standardized_directions(vectors)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0)
    moved = (vectors * np.linspace(0.01, 100, 8) + np.linspace(-3, 3, 8)).astype(np.float32)
    np.testing.assert_allclose(standardized_directions(moved), points, atol=1e-4)


def test_dimensions_that_never_vary_count_for_nothing() -> None:
    vectors, _ = blobs(5, 6)
    constant = np.column_stack([vectors, np.full(30, 0.1), np.zeros(30)])
    np.testing.assert_allclose(standardized_directions(constant)[:, :-2], standardized_directions(vectors))
    assert not standardized_directions(constant)[:, -2:].any()
    assert not standardized_directions(np.ones((4, 3))).any()


clusterings = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(np.array)
bounds = st.tuples(st.integers(1, 8), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair)))
shares = st.floats(0.01, 1.0)


def points_of(clusters: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((len(clusters), 3))


@given(clusterings, bounds, shares)
def test_only_clusters_of_the_sizes_asked_for_are_kept_each_by_its_share(
    clusters: np.ndarray, bound: tuple[int, int], share: float
) -> None:
    labels = pseudo_labels_of(points_of(clusters), clusters, *bound, share)
    sizes = Counter(clusters.tolist())
    sensible = {cluster for cluster, size in sizes.items() if bound[0] <= size <= bound[1]}
    kept = labels != UNKNOWN
    assert set(clusters[kept]) == sensible
    assert set(labels[kept]) == set(range(len(sensible)))
    for cluster in sensible:
        mine = labels[(clusters == cluster) & kept]
        assert len(set(mine)) == 1
        assert len(mine) - 1 < share * sizes[cluster] <= len(mine) + 1e-6


@given(clusterings, shares)
def test_what_is_left_out_of_a_kept_cluster_is_farther_from_its_mean_than_what_stays(
    clusters: np.ndarray, share: float
) -> None:
    points = points_of(clusters)
    labels = pseudo_labels_of(points, clusters, 1, 60, share)
    for cluster in set(clusters.tolist()):
        mine = clusters == cluster
        distance = np.linalg.norm(points - points[mine].mean(0), axis=1)
        stay, go = distance[mine & (labels >= 0)], distance[mine & (labels < 0)]
        assert len(stay)
        assert not len(go) or go.min() >= stay.max()


@given(clusterings, shares)
def test_which_clips_are_kept_does_not_depend_on_their_order(clusters: np.ndarray, share: float) -> None:
    bound = (3, 60)  # two clips are equally far from their mean
    points = points_of(clusters)
    order = np.random.default_rng(2).permutation(len(clusters))
    labels = pseudo_labels_of(points, clusters, *bound, share)
    assert pseudo_labels_of(points[order], clusters[order], *bound, share).tolist() == labels[order].tolist()


def entropy(counts: list[int]) -> float:
    shares = np.array(counts) / sum(counts)
    return float(-(shares * np.log(shares)).sum())


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc")), min_size=1, max_size=40))
def test_agreement_with_names_is_as_its_definitions_say(pairs: list[tuple[int, str]]) -> None:
    clusters, names = np.array([cluster for cluster, _ in pairs]), [name for _, name in pairs]
    right = sum(max(Counter(name for other, name in pairs if other == one).values()) for one in set(clusters.tolist()))
    first, second = (entropy(list(Counter(labels).values())) for labels in (clusters.tolist(), names))
    shared = first + second - entropy(list(Counter(pairs).values()))
    found = agreement(clusters, names)
    assert found.purity == pytest.approx(right / len(pairs))
    if first and second:
        assert found.nmi == pytest.approx(2 * shared / (first + second), abs=1e-9)
