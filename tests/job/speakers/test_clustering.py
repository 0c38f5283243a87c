"""Average linkage: the same merges as the textbook's, in parts that bound memory."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from whisper_spark.speakers.clustering import Groups, after, merges_of, small_groups


def directions(count: int, seed: int, size: int = 32) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def voices(labels: np.ndarray, noise: float, seed: int = 0, size: int = 32) -> np.ndarray:
    """Vectors of length 1 around one direction for each label."""
    centres = directions(int(labels.max()) + 1, seed, size)
    vectors = centres[labels] + noise * directions(len(labels), seed + 1, size)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def singles(vectors: np.ndarray) -> Groups:
    return Groups(np.arange(len(vectors)), vectors, np.ones(len(vectors), np.float32))


def textbook(vectors: np.ndarray) -> list[float]:
    """Similarities of the merges, each computed anew from all pairs."""
    groups = [[number] for number in range(len(vectors))]
    similarity = vectors @ vectors.T
    merged = []
    while len(groups) > 1:
        pairs = {
            (one, other): float(similarity[np.ix_(groups[one], groups[other])].mean())
            for one, other in itertools.combinations(range(len(groups)), 2)
        }
        one, other = max(pairs, key=pairs.__getitem__)
        merged.append(pairs[one, other])
        groups[one] += groups.pop(other)
    return merged


@pytest.mark.parametrize("seed", range(3))
def test_merges_are_those_of_average_linkage(seed: int) -> None:
    vectors = voices(np.arange(40) % 4, noise=1.5, seed=seed)
    found = [merge.similarity for merge in merges_of(singles(vectors))]
    np.testing.assert_allclose(found, textbook(vectors), atol=1e-5)


def test_groups_after_merges_have_the_means_of_their_vectors() -> None:
    labels = np.random.default_rng(5).integers(0, 4, 60)
    vectors = voices(labels, noise=0.5)
    groups = singles(vectors)
    found = after(groups, merges_of(groups)[:-3])
    assert len(found.means) == 4
    for number in range(4):
        own = found.labels == number
        assert len(set(labels[own])) == 1
        assert found.weights[number] == own.sum()
        np.testing.assert_allclose(found.means[number], vectors[own].mean(axis=0), atol=1e-5)


@pytest.mark.slow
def test_eleven_hours_are_grouped_by_voice_in_little_memory() -> None:
    labels = np.repeat(np.random.default_rng(1).integers(0, 5, 1_000), 50)
    vectors = voices(labels, noise=0.8, size=128).astype(np.float16)
    tracemalloc.start()
    found = small_groups(vectors, np.ones(len(vectors), np.float32), alike=0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 2**20  # All pairs would take ten gigabytes.
    assert len(found.means) <= 1_024
    assert found.weights.sum() == len(labels)
    for number in range(len(found.means)):
        assert len(set(labels[found.labels == number])) == 1


def test_vectors_that_are_all_different_are_still_reduced_to_what_fits_at_once() -> None:
    vectors = directions(5_000, seed=2, size=64)
    found = small_groups(vectors, np.ones(5_000, np.float32), alike=0.9)
    assert len(found.means) <= 1_024
    assert set(found.labels) == set(range(len(found.means)))
