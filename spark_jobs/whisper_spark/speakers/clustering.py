"""Groups speaker embeddings by voice: agglomerative clustering with average linkage, in bounded memory.

The average similarity between two groups of vectors is the product of their means, so a mean and a weight say
all about a group. A long file is therefore clustered in parts: the windows of each part are merged while they
are clearly alike, then the groups of all parts together. Memory is that of one part, whatever the length of
the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Vectors that are clustered at once, which takes a matrix of 4 MB and about 0.1 s.
_PART = 1024

# A part is reduced to this many groups at most.
_GROUPS = _PART // 8


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of vectors.

    :param labels: index of the group of each vector.
    :param means: mean vector of each group, not normalised.
    :param weights: sum of the weights of its vectors.
    """

    labels: Ints
    means: Floats
    weights: Floats

    def joined(self, finer: Groups) -> Groups:
        """The same groups, with the labels of the vectors in ``finer``, whose groups were merged."""
        return Groups(self.labels[finer.labels], self.means, self.weights)


@dataclass(frozen=True, slots=True)
class Merge:
    """Two groups become one, which keeps the index ``kept``. ``similarity`` is their average similarity."""

    kept: int
    gone: int
    similarity: float


def small_groups(vectors: npt.NDArray[np.floating], weights: Floats, alike: float) -> Groups:
    """Groups of vectors that are clearly alike, few enough to be clustered at once.

    :param vectors: float16 or float32, of length 1, in the order of the file.
    :param weights: weight of each vector.
    :param alike: least average similarity within a group. It is undercut where there would be too many
        groups.
    """
    groups = _merged_in_parts(vectors, weights, alike)
    while len(groups.means) > _PART:
        groups = _merged_in_parts(groups.means, groups.weights, alike).joined(groups)
    return groups


def _merged_in_parts(means: npt.NDArray[np.floating], weights: Floats, alike: float) -> Groups:
    parts, labels, count = [], [], 0
    for start in range(0, len(means), _PART):
        part = slice(start, start + _PART)
        groups = Groups(np.arange(len(means[part])), means[part].astype(np.float32), weights[part])
        merges = merges_of(groups)
        enough = sum(merge.similarity >= alike for merge in merges)
        groups = after(groups, merges[: max(enough, len(merges) + 1 - _GROUPS)])
        parts.append(groups)
        labels.append(groups.labels + count)
        count += len(groups.means)
    return Groups(
        np.concatenate(labels),
        np.concatenate([groups.means for groups in parts]),
        np.concatenate([groups.weights for groups in parts]),
    )


def merges_of(groups: Groups) -> list[Merge]:
    """All merges until one group is left, the most similar ones first. A merge follows those of its groups.

    The nearest-neighbour chain (Murtagh, "A survey of recent advances in hierarchical clustering algorithms",
    1983): quadratic time, whatever the vectors are.
    """
    weights = groups.weights.copy()
    similarity = groups.means @ groups.means.T
    np.fill_diagonal(similarity, -np.inf)
    # Lowest similarity at which a group was merged so far. Rounding must not let a later merge exceed it.
    levels = np.full(len(weights), np.inf)
    merges: list[Merge] = []
    chain: list[int] = []
    while len(merges) < len(weights) - 1:
        chain = chain or [int((weights > 0).argmax())]
        row = similarity[chain[-1]]
        nearest = int(row.argmax())
        if len(chain) == 1 or row[nearest] > row[chain[-2]]:
            chain.append(nearest)
            continue
        gone, kept = chain.pop(), chain.pop()
        levels[kept] = min(float(row[kept]), levels[kept], levels[gone])
        merges.append(Merge(kept, gone, float(levels[kept])))
        _merge(similarity, weights, kept, gone)
    return sorted(merges, key=lambda merge: -merge.similarity)


def _merge(similarity: Floats, weights: Floats, kept: int, gone: int) -> None:
    """Update the similarities after Lance and Williams: the average of the averages, by weight."""
    share = weights[kept] / (weights[kept] + weights[gone])
    row = share * similarity[kept] + (1 - share) * similarity[gone]
    row[kept] = -np.inf
    weights[kept] += weights[gone]
    weights[gone] = 0
    similarity[kept] = similarity[:, kept] = row
    similarity[gone] = similarity[:, gone] = -np.inf


def after(groups: Groups, merges: Sequence[Merge]) -> Groups:
    """The groups after some merges, numbered without gaps."""
    into = np.arange(len(groups.means))
    for merge in reversed(merges):
        into[merge.gone] = into[merge.kept]
    kept, numbers = np.unique(into, return_inverse=True)
    weights = np.zeros(len(kept), np.float32)
    np.add.at(weights, numbers, groups.weights)
    sums = np.zeros((len(kept), groups.means.shape[1]), np.float32)
    np.add.at(sums, numbers, groups.means * groups.weights[:, None])
    return Groups(numbers[groups.labels], sums / weights[:, None], weights)
