"""Packs speech regions into windows of limited length, and maps times in a window to times in the file.

Works as a stream: memory does not grow with the length of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from whisper_spark.audio.channels import Samples
from whisper_spark.audio.features import Features
from whisper_spark.audio.vad import (
    FixedSegmenter,
    Region,
    Segmenter,
    SpeechSegmenter,
    window_samples,
)
from whisper_spark.contract import SAMPLE_RATE, WhisperOptions
from whisper_spark.progress.counters import stage

# Seconds by which a word may extend beyond detected speech: the detector needs a few 32 ms frames to notice
# an onset, and soft consonants at either end stay below its threshold.
_REACH = 0.15


@dataclass(frozen=True, slots=True)
class Chunk:
    """The position of a part of a window in the file. All values are in seconds.

    :param offset: start in the window.
    :param start: start in the file.
    :param length: length of the part.
    :param lead: length of the padding before the speech in it.
    :param tail: length of the padding behind the speech in it.
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
        """Convert start and end of a word in the window to start and end in the file, in seconds.

        They are clipped to the speech of one chunk, so that a word never extends into the silence between
        two.
        """
        piece = self.chunks[self.chunk_of(start, end)]
        low = piece.start + max(piece.lead - _REACH, 0.0)
        high = piece.start + piece.length - max(piece.tail - _REACH, 0.0)
        shift = piece.start - piece.offset
        first = min(max(start + shift, low), high)
        return first, min(max(end + shift, first), high)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Speech of one channel that Whisper sees at once, at most ``chunk_length`` seconds.

    :param channel: index of the channel when channels are split, else 0.
    :param number: index of the window among those of its channel.
    :param map: positions of its chunks in the file.
    :param features: log-mel features, float32 of shape (mel bands, frames), 10 ms per frame, without padding.
    :param samples: the audio of its chunks, float32, when speakers are told apart; else ``None``.
    """

    channel: int
    number: int
    map: ChunkMap
    features: Features
    samples: Samples | None = None

    @property
    def frames(self) -> int:
        """Number of frames of features, 10 ms each."""
        return int(self.features.shape[-1])

    @property
    def end(self) -> float:
        """End of the window in the file, in seconds."""
        last = self.map.chunks[-1]
        return last.start + last.length


class WindowPacker:
    """Packs the speech of one channel into windows of at most ``options.chunk_length`` seconds, in order.

    :param features: computes features, see :class:`~whisper_spark.audio.features.LogMel`.
    :param channel: index of the channel.
    """

    def __init__(
        self, options: WhisperOptions, features: Callable[[Samples], Features], channel: int = 0
    ) -> None:
        self._features = features
        self._channel = channel
        self._number = 0
        self._segment: Segmenter = SpeechSegmenter(options) if options.vad else FixedSegmenter(options)
        self._limit = window_samples(options)
        self._keep_samples = options.diarize
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
        samples = np.concatenate([piece.samples for piece in pieces])
        with stage("features"):
            features = self._features(samples)
        kept = samples if self._keep_samples else None
        window = Window(self._channel, self._number, _map_of(pieces), features, kept)
        self._number += 1
        return window


def _map_of(pieces: list[Region]) -> ChunkMap:
    chunks, offset = [], 0
    for piece in pieces:
        in_samples = (offset, piece.start, len(piece.samples), piece.lead, piece.tail)
        chunks.append(Chunk(*(value / SAMPLE_RATE for value in in_samples)))
        offset += len(piece.samples)
    return ChunkMap(tuple(chunks))
