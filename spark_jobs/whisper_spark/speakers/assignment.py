"""Gives words and segments their speakers, and splits segments where the speaker changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from whisper_spark.contract import Segment, Word
from whisper_spark.speakers.diarization import ChannelSpeakers

Floats = npt.NDArray[np.float32]

# Evidence that it takes to change the speaker between two words without a pause, and how much less it takes
# at the end of a sentence and at a pause of _LONG_PAUSE_S. Chosen on conversations other than those of
# benchmarks/RESULTS.md.
_CHANGE = 4.0
_SENTENCE = 1.0
_PAUSE = 2.0
_LONG_PAUSE_S = 0.6
_SENTENCE_END = (".", "?", "!", "。", "？", "！", "…", "؟", "।")

# A word whose speaker is ahead of the next likely one by less evidence than this is uncertain.
_CLEARLY = 1.0

# Share of uncertain words from which the speakers of a file are uncertain.
_UNCERTAIN_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Spoken:
    """The segments of a file with their speakers.

    :param speakers: number of speakers; ``None`` when they could not be told apart.
    :param uncertain: whether the speakers, or their number, are uncertain.
    """

    segments: tuple[Segment, ...]
    speakers: int | None
    uncertain: bool


def with_speakers(segments: Sequence[Segment], channels: Mapping[int, ChannelSpeakers]) -> Spoken:
    """Give words and segments their speakers, named in order of appearance in the file.

    :param segments: with words, ordered by time.
    :param channels: the speakers of each channel; channel 0 is that of segments without a channel.
    """
    words, doubtful = 0, 0
    named: list[Segment] = []
    for channel, own in _by_channel(segments).items():
        if channel not in channels:
            named += own
            continue
        speakers, sure = _speakers_of_words([w for s in own for w in s.words or ()], channels[channel])
        words, doubtful = words + len(speakers), doubtful + int((~sure).sum())
        keys = iter(f"{channel} {speaker}" for speaker in speakers.tolist())
        named += [part for segment in own for part in _split(segment, keys)]
    ordered = sorted(named, key=lambda s: (s.start, s.channel or 0, s.end))
    segments, count = _renamed(ordered)
    uncertain = doubtful > _UNCERTAIN_SHARE * words or any(not found.sure for found in channels.values())
    return Spoken(segments, count, uncertain and words > 0)


def _by_channel(segments: Iterable[Segment]) -> dict[int, list[Segment]]:
    found: dict[int, list[Segment]] = {}
    for segment in segments:
        found.setdefault(segment.channel or 0, []).append(segment)
    return found


def _speakers_of_words(
    words: Sequence[Word], found: ChannelSpeakers
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The speaker of each word, and whether it is certain.

    The most likely sequence of speakers: each word has the evidence of the speech around it, and each change
    of speaker costs some evidence (Viterbi's algorithm).
    """
    count = found.evidence.shape[1]
    if count < 2 or not words:
        return np.zeros(len(words), np.int64), np.ones(len(words), bool)
    evidence = _evidence_of_words(words, found)
    costs = [_cost_of_change(one, other) for one, other in pairwise(words)]
    best = evidence[0].astype(np.float64)
    back = np.zeros((len(words), count), np.min_scalar_type(count))
    for number, cost in enumerate(costs, start=1):
        # The best predecessor is the speaker itself, or the one with the highest sum.
        top = int(best.argmax())
        change = best[top] - cost > best
        back[number] = np.where(change, top, np.arange(count))
        best = np.where(change, best[top] - cost, best) + evidence[number]
    path = np.zeros(len(words), np.int64)
    path[-1] = best.argmax()
    for number in range(len(words) - 1, 0, -1):
        path[number - 1] = back[number, path[number]]
    rows = np.arange(len(words))
    own = evidence[rows, path]
    evidence[rows, path] = -np.inf
    return path, own - evidence.max(axis=1) >= _CLEARLY


def _evidence_of_words(words: Sequence[Word], found: ChannelSpeakers) -> Floats:
    """Mean evidence of the stretches that overlap each word, by overlap; else that of the nearest stretch."""
    starts = np.array([word.start for word in words])
    ends = np.maximum(np.array([word.end for word in words]), starts + 0.02)
    evidence = np.empty((len(words), found.evidence.shape[1]), np.float32)
    # Stretches are ordered by start and by end.
    first = np.searchsorted(found.ends, starts, side="right")
    last = np.searchsorted(found.starts, ends, side="left")
    for number, (low, high) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if low < high:
            overlap = np.minimum(found.ends[low:high], ends[number]) - np.maximum(
                found.starts[low:high], starts[number]
            )
            evidence[number] = overlap @ found.evidence[low:high] / overlap.sum()
        else:
            near = [place for place in (low - 1, low) if 0 <= place < len(found.starts)]
            gaps = [max(found.starts[p] - ends[number], starts[number] - found.ends[p]) for p in near]
            evidence[number] = found.evidence[near[int(np.argmin(gaps))]]
    return evidence


def _cost_of_change(word: Word, following: Word) -> float:
    pause = min(max(following.start - word.end, 0.0) / _LONG_PAUSE_S, 1.0)
    sentence = _SENTENCE if word.word.rstrip("\"'”») ").endswith(_SENTENCE_END) else 0.0
    return _CHANGE - sentence - _PAUSE * pause


def _split(segment: Segment, keys: Iterator[str]) -> Iterator[Segment]:
    """The parts of a segment, each of one speaker."""
    spoken = [replace(word, speaker=next(keys)) for word in segment.words or ()]
    parts = [tuple(words) for _, words in groupby(spoken, key=lambda word: word.speaker)]
    if len(parts) < 2:
        speaker = spoken[0].speaker if spoken else None
        yield replace(segment, words=tuple(spoken), speaker=speaker)
        return
    for words in parts:
        text = "".join(word.word for word in words).strip()
        yield replace(
            segment, start=words[0].start, end=words[-1].end, text=text, words=words, speaker=words[0].speaker
        )


def _renamed(segments: Sequence[Segment]) -> tuple[tuple[Segment, ...], int]:
    """Segments with their final ids and names of speakers, and the number of speakers."""
    names: dict[str | None, str] = {}
    for segment in segments:
        if segment.speaker is not None:
            names.setdefault(segment.speaker, f"SPEAKER_{len(names):02}")
    return tuple(
        replace(
            segment,
            id=number,
            speaker=names.get(segment.speaker),
            words=segment.words and tuple(replace(w, speaker=names.get(w.speaker)) for w in segment.words),
        )
        for number, segment in enumerate(segments)
    ), len(names)
