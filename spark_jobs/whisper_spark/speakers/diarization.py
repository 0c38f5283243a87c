"""Tells the speakers of one channel apart at the end of a file: how many there are, and how they sound.

How similar the embeddings of one speaker are depends on the model and on the recording, so it is measured in
each file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whisper_spark.speakers.clustering import Groups, Merge, after, merges_of, small_groups
from whisper_spark.speakers.speech import STRETCH, Speech

Floats = npt.NDArray[np.float32]

# Two groups are one speaker when their distance is at most this. It is what the similarity of their voices
# lacks to 1, divided by how much stretches of one voice differ compared with what they have in common. The
# mean of a small group is less certain: the distance may be larger by the second number divided by the
# seconds of speech in the group. Both come from a logistic regression on pairs of groups in conversations
# other than those of benchmarks/RESULTS.md. Other voices in other languages give the same numbers, and so do
# embeddings from which their mean is subtracted, whose similarities are as low as those of newer models.
_TOLERANCE = 0.44
_TOLERANCE_SMALL = 1.25

# A distance this close to the limit leaves the decision uncertain: beyond it, 19 of 20 are right.
_DOUBT = 0.12

# Seconds of speech from which on a group tells more about the similarity of its own stretches than the file.
_ENOUGH_SECONDS = 2.0

# Shorter stretches tell more about a sound than about who makes it: they found no speaker where there are
# others. Many people say no more than "yes" and "thank you" at a time, so the limit is not higher.
_LEAST_STRETCH = 0.6

# Overlapping stretches from which on a file tells more about typical similarity than the model's clip does.
_ENOUGH_PAIRS = 6

# A speaker speaks at least this many seconds, or this share of the speech. Smaller groups are noises,
# laughter, and stretches in which two people speak: they go to the speaker who is most similar.
_LEAST_SECONDS = 2.0
_LEAST_SHARE = 0.1

# Embeddings that are compared with the speakers at once.
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class ChannelSpeakers:
    """The speakers of one channel.

    :param starts: start of each stretch of speech in the file, in seconds.
    :param ends: end of each stretch.
    :param evidence: float32 of shape (stretches, speakers): similarity of a stretch with a speaker, in units
        of a quarter of what separates similar stretches of one speaker from equal ones.
    :param sure: whether their number is certain.
    """

    starts: npt.NDArray[np.float64]
    ends: npt.NDArray[np.float64]
    evidence: Floats
    sure: bool


def speakers_of(speech: Speech, likeness: float, least: int | None, most: int | None) -> ChannelSpeakers:
    """Tell the speakers of a channel apart.

    :param likeness: similarity of two stretches of one speaker, as measured with the model's own clip.
    :param least: smallest number of speakers, ``None``: one.
    :param most: largest number of speakers, ``None``: as many as there are.
    """
    weights = _seconds(speech)
    reliable = speech.ends - speech.starts >= _LEAST_STRETCH
    if not reliable.any():
        reliable[:] = True
    chosen = np.flatnonzero(reliable)
    typical = _typical_similarity(speech, likeness)
    unit = max((1 - typical) / 4, 1e-3)
    # Where a number of speakers is demanded, even what is alike may have to be divided.
    alike = typical - unit if (least or 1) == 1 else 1.0
    groups = small_groups(speech.embeddings[chosen], weights[chosen], alike)
    smallest = min(_LEAST_SECONDS, _LEAST_SHARE * float(weights[chosen].sum()))
    decision = _decision(groups, typical, smallest, least or 1, most)
    found = after(groups, decision.merges)
    large = found.weights >= smallest
    if int(large.sum()) < (least or 1):
        # So many do not speak long enough: take the largest groups.
        large = np.sort(np.argsort(-found.weights, kind="stable")[: least or 1])
    evidence = _evidence(speech, weights * reliable, found.means[large])
    return ChannelSpeakers(speech.starts, speech.ends, evidence / np.float32(unit), decision.sure)


def _seconds(speech: Speech) -> Floats:
    """Seconds of speech for which each stretch stands: overlapping stretches of a region share its length."""
    _, numbers, counts = np.unique(speech.regions, return_inverse=True, return_counts=True)
    first = np.full(len(counts), np.inf)
    last = np.zeros(len(counts))
    np.minimum.at(first, numbers, speech.starts)
    np.maximum.at(last, numbers, speech.ends)
    return np.asarray(((last - first) / counts)[numbers], np.float32)


def _typical_similarity(speech: Speech, likeness: float) -> float:
    """Similarity of two stretches of one speaker, estimated from those that overlap.

    They are of one speaker nearly always, and there are many of them. They overlap by half, so they differ
    half as much as others do.
    """
    pairs = np.flatnonzero(np.diff(speech.regions) == 0)
    if not len(pairs):
        return likeness
    found = [_products(speech.embeddings, pairs[block]) for block in _blocks(len(pairs))]
    similarity = float(np.median(np.concatenate(found)))
    trust = len(pairs) / (len(pairs) + _ENOUGH_PAIRS)
    return trust * (2 * similarity - 1) + (1 - trust) * likeness


def _products(embeddings: npt.NDArray[np.float16], numbers: npt.NDArray[np.int64]) -> Floats:
    """Similarity of some stretches with the ones behind them."""
    ones, others = embeddings[numbers], embeddings[numbers + 1]
    return np.asarray(np.einsum("ij,ij->i", ones, others, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class _Decision:
    """Which groups are one speaker.

    :param merges: to make, in order.
    :param sure: whether the number of speakers is certain.
    """

    merges: Sequence[Merge]
    sure: bool


def _decision(groups: Groups, typical: float, smallest: float, least: int, most: int | None) -> _Decision:
    """Decide which groups are one speaker.

    :param typical: similarity of stretches of one speaker.
    :param smallest: seconds of speech that a speaker has at least.
    """
    weights, whole = groups.weights.copy(), np.ones(len(groups.weights), bool)
    squares = np.square(groups.means).sum(axis=1)
    spread = max(1 - typical, 1e-3) / max(typical, 1e-3)
    accepted: list[Merge] = []
    refused: list[Merge] = []
    close = False
    for merge in merges_of(groups):
        sides = [merge.kept, merge.gone]
        smaller = float(weights[sides].min())
        distance = (1 - _similarity_of_voices(merge, squares, weights, typical)) / spread
        limit = _TOLERANCE + _TOLERANCE_SMALL / max(smaller, 0.1)
        fits = bool(whole[sides].all()) and distance <= limit
        (accepted if fits else refused).append(merge)
        close = close or (smaller >= smallest and abs(distance - limit) < _DOUBT)
        share = weights[merge.kept] / weights[sides].sum()
        squares[merge.kept] = (
            share**2 * squares[merge.kept]
            + (1 - share) ** 2 * squares[merge.gone]
            + 2 * share * (1 - share) * merge.similarity
        )
        weights[merge.kept] += weights[merge.gone]
        whole[merge.kept] = fits
    merges = [*accepted, *refused]
    speakers = _speakers_after_each(groups, merges, smallest)
    cut = len(accepted)
    while most is not None and speakers[cut] > most and cut < len(merges):
        cut += 1
    while speakers[cut] < least and cut > 0:
        cut -= 1
    if speakers[cut] < least:
        cut = max(len(groups.weights) - least, 0)
    return _Decision(merges[:cut], not close or least == most)


def _similarity_of_voices(merge: Merge, squares: Floats, weights: Floats, typical: float) -> float:
    """Similarity of the voices of two groups: 1 for the same voice, however much its stretches differ.

    The average similarity of two groups is lower when the stretches within them differ more, as those of a
    lively speaker do. The average similarity within each group corrects that, as it corrects correlations
    for attenuation.

    :param squares: squared length of the mean of each group: the average similarity of all its pairs.
    :param weights: seconds of speech in each group.
    """
    sides = [merge.kept, merge.gone]
    # Each stretch is equal to itself and half equal to its neighbours, which makes STRETCH seconds in all.
    different = np.maximum(weights[sides] - np.float32(STRETCH), 0)
    known = np.where(different > 0, weights[sides] * squares[sides] - STRETCH, 0)
    within = (known + _ENOUGH_SECONDS * typical) / (different + _ENOUGH_SECONDS)
    return merge.similarity / float(np.sqrt(np.maximum(within, 1e-3).prod()))


def _speakers_after_each(groups: Groups, merges: Sequence[Merge], smallest: float) -> list[int]:
    """Number of groups that are large enough for a speaker, before the merges and after each of them."""
    weights = groups.weights.copy()
    found = [int((weights >= smallest).sum())]
    for merge in merges:
        before = int(weights[merge.kept] >= smallest) + int(weights[merge.gone] >= smallest)
        weights[merge.kept] += weights[merge.gone]
        found.append(found[-1] - before + int(weights[merge.kept] >= smallest))
    return found


def _evidence(speech: Speech, weights: Floats, means: Floats) -> Floats:
    """Similarity of all stretches with the speakers, after their means followed what is nearest to them."""
    similarity = _similarities(speech, means)
    for _ in range(2):
        nearest = similarity.argmax(axis=1)
        sums = np.zeros_like(means)
        for block in _blocks(len(nearest)):
            np.add.at(sums, nearest[block], speech.embeddings[block] * weights[block, None])
        empty = ~sums.any(axis=1)
        sums[empty] = means[empty]
        similarity = _similarities(speech, sums)
    return similarity


def _similarities(speech: Speech, means: Floats) -> Floats:
    directions = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.concatenate([speech.embeddings[block] @ directions.T for block in _blocks(len(speech.starts))])


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, count, _BLOCK)]
