"""Blocks of samples -> speech regions -> windows of limited length.

Everything here streams: memory does not grow with the length of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from whisper_spark.audio.features import Features
from whisper_spark.audio.vad import (
    FixedSegmenter,
    Region,
    Samples,
    Segmenter,
    SpeechSegmenter,
    window_samples,
)
from whisper_spark.contract import SAMPLE_RATE, WhisperOptions
from whisper_spark.progress.counters import stage

# Seconds that a word may reach over the border of detected speech: the detector needs a few 32 ms frames
# to notice an onset, and soft consonants at either end stay below its threshold.
_REACH = 0.15


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a stretch of a window comes from. All in seconds.

    :param offset: where it starts in the window.
    :param start: where it starts in the file.
    :param length: how long it is.
    :param lead: padding before the speech in it.
    :param tail: padding behind the speech in it.
    """

    offset: float
    start: float
    length: float
    lead: float = 0.0
    tail: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkMap:
    """Translates times in a window into times in the file.

    :param chunks: the regions that the window was packed from, in order, without gaps.
    """

    chunks: tuple[Chunk, ...]

    @property
    def seconds(self) -> float:
        """Length of the window."""
        last = self.chunks[-1]
        return last.offset + last.length

    @property
    def speech_seconds(self) -> float:
        """Length of the window without the padding around speech."""
        return sum(max(c.length - c.lead - c.tail, 0.0) for c in self.chunks)

    def chunk_of(self, start: float, end: float) -> int:
        """Index of the chunk that holds most of a word, given in seconds of the window."""
        overlaps = [min(end, c.offset + c.length) - max(start, c.offset) for c in self.chunks]
        return max(range(len(overlaps)), key=overlaps.__getitem__)

    def span_in_file(self, start: float, end: float) -> tuple[float, float]:
        """A word's start and end in the window as start and end in the file, in seconds.

        Clipped to the speech of one chunk, so that a word never reaches into the silence between two.
        """
        piece = self.chunks[self.chunk_of(start, end)]
        low = piece.start + max(piece.lead - _REACH, 0.0)
        high = piece.start + piece.length - max(piece.tail - _REACH, 0.0)
        shift = piece.start - piece.offset
        first = min(max(start + shift, low), high)
        return first, min(max(end + shift, first), high)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Speech of one channel that Whisper sees at once, at most ``chunk_length`` seconds of it.

    :param channel: 0, or the channel when they are split.
    :param number: its place among the windows of its channel, from 0.
    :param map: where its chunks come from.
    :param features: log-mel features, float32 of shape (mel bands, frames), 10 ms a frame, unpadded.
    """

    channel: int
    number: int
    map: ChunkMap
    features: Features

    @property
    def frames(self) -> int:
        """Frames of features, 10 ms each."""
        return int(self.features.shape[-1])

    @property
    def end(self) -> float:
        """Where it ends in the file, in seconds."""
        last = self.map.chunks[-1]
        return last.start + last.length


class WindowPacker:
    """Packs the speech of one channel into windows of at most ``options.chunk_length`` seconds, in order.

    :param features: makes features of samples, see :class:`~whisper_spark.audio.features.LogMel`.
    :param channel: of the windows.
    """

    def __init__(
        self, options: WhisperOptions, features: Callable[[Samples], Features], channel: int = 0
    ) -> None:
        self._features = features
        self._channel = channel
        self._number = 0
        self._segment: Segmenter = SpeechSegmenter(options) if options.vad else FixedSegmenter(options)
        self._limit = window_samples(options)
        self._pieces: list[Region] = []
        self._length = 0

    @property
    def speech_seconds(self) -> float:
        """Speech found so far, in seconds, without padding."""
        return self._segment.speech_samples / SAMPLE_RATE

    def push(self, samples: Samples) -> Iterator[Window]:
        """Windows that are complete now."""
        yield from self._pack(self._segment.push(samples))

    def finish(self) -> Iterator[Window]:
        """The windows that the end of the file completes."""
        yield from self._pack(self._segment.finish())
        if self._pieces:
            yield self._take()

    def _pack(self, regions: Iterable[Region]) -> Iterator[Window]:
        for region in regions:
            if self._pieces and self._length + len(region.samples) > self._limit:
                yield self._take()
            self._pieces.append(region)
            self._length += len(region.samples)

    def _take(self) -> Window:
        pieces, self._pieces, self._length = self._pieces, [], 0
        with stage("features"):
            features = self._features(np.concatenate([piece.samples for piece in pieces]))
        window = Window(self._channel, self._number, _map_of(pieces), features)
        self._number += 1
        return window


def _map_of(pieces: list[Region]) -> ChunkMap:
    chunks, offset = [], 0
    for piece in pieces:
        in_samples = (offset, piece.start, len(piece.samples), piece.lead, piece.tail)
        chunks.append(Chunk(*(value / SAMPLE_RATE for value in in_samples)))
        offset += len(piece.samples)
    return ChunkMap(tuple(chunks))
