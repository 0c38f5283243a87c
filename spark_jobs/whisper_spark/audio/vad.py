"""Detects regions of speech in blocks of samples. Works as a stream: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from whisper_spark.audio.channels import Samples
from whisper_spark.audio.silero import FRAME, Probabilities, VoiceDetector
from whisper_spark.contract import SAMPLE_RATE, WhisperOptions

# Silero misses speech whose loudest frames are below -50 dBFS, and detects none below -60. Audio that has
# been quieter than -40 dBFS for some time is amplified to that level, by at most 45 dB: 16-bit audio ends at
# -98 dBFS.
_QUIET_DB = -40.0
_LEAST_DB = -85.0

# Decay of the peak level, in decibels per frame: 0.5 dB per second. So pauses between speakers of normal
# loudness are not amplified, but a quiet speaker a minute later is.
_FORGOTTEN_DB = 0.5 * FRAME / SAMPLE_RATE


# Share by which a constant offset follows the mean of a frame: it takes about a second.
_ADAPTION = FRAME / SAMPLE_RATE

# An offset is removed when it is above this, and its energy above this share of that of the loudest frames.
_LEAST_OFFSET = 0.001
_DISTURBING = 0.25


@dataclass(frozen=True, slots=True)
class Region:
    """A part of one channel to transcribe. All positions and lengths are in samples at 16 kHz.

    :param start: position in the file.
    :param samples: float32, mono.
    :param lead: length of the padding before the speech.
    :param tail: length of the padding behind the speech.
    """

    start: int
    samples: Samples
    lead: int = 0
    tail: int = 0


class Segmenter(Protocol):
    """Decides which parts of one channel to transcribe."""

    speech_samples: int

    def push(self, samples: Samples) -> Iterator[Region]:
        """Regions that are complete now."""
        ...

    def finish(self) -> Iterator[Region]:
        """The regions that the end of the file completes."""
        ...


class _Tape:
    """A buffer of the samples that may still be needed, addressed by their position in the file."""

    def __init__(self) -> None:
        self.start = 0
        self._samples: Samples = np.zeros(0, np.float32)

    @property
    def end(self) -> int:
        return self.start + len(self._samples)

    def append(self, samples: Samples) -> None:
        self._samples = np.concatenate([self._samples, samples])

    def cut(self, start: int, end: int) -> Samples:
        return self._samples[max(start - self.start, 0) : max(end - self.start, 0)].copy()

    def forget(self, before: int) -> None:
        before = min(before, self.end)
        if before > self.start:
            self._samples = self._samples[before - self.start :].copy()
            self.start = before


# Windows whose peak is below this are not transcribed, because Whisper invents words for digital silence.
# Full scale is 1; the smallest 16-bit sample is 3e-5.
_AUDIBLE = 1e-4


def window_samples(options: WhisperOptions) -> int:
    """Samples in the longest window that the options allow."""
    return int(options.chunk_length * SAMPLE_RATE)


class FixedSegmenter:
    """Without voice detection: windows of almost full length that end where their last seconds are
    quietest."""

    # 20 ms: shorter than any pause between words.
    _STEP = SAMPLE_RATE // 50

    def __init__(self, options: WhisperOptions) -> None:
        self.speech_samples = 0
        self._window = window_samples(options)
        self._search = min(5 * SAMPLE_RATE, self._window // 2 // self._STEP * self._STEP)
        self._tape = _Tape()

    def push(self, samples: Samples) -> Iterator[Region]:
        """Regions that are complete now."""
        self._tape.append(samples)
        while self._tape.end - self._tape.start > self._window:
            end = self._tape.start + self._window
            tail = self._tape.cut(end - self._search, end)
            energy = np.square(tail).reshape(-1, self._STEP).sum(axis=1)
            quietest = int(energy.argmin()) * self._STEP + self._STEP // 2
            yield from self._take(end - self._search + quietest)

    def finish(self) -> Iterator[Region]:
        """The regions that the end of the file completes."""
        yield from self._take(self._tape.end)

    def _take(self, end: int) -> Iterator[Region]:
        region = Region(self._tape.start, self._tape.cut(self._tape.start, end))
        self._tape.forget(end)
        if len(region.samples) and float(np.abs(region.samples).max()) >= _AUDIBLE:
            self.speech_samples += len(region.samples)
            yield region


class SpeechSegmenter:
    """Silero VAD as a stream, with hysteresis, padding and a maximum length of regions.

    A region opens at a frame whose speech probability reaches ``vad_threshold`` and closes when the
    probability stays 0.15 below it (Silero's own hysteresis) for ``vad_min_silence_ms``. Both sides are
    padded by ``vad_speech_pad_ms``, or by half the pause where two paddings would overlap. A region that does
    not fit into a window is split at the frame with the lowest speech probability in its second half.
    """

    def __init__(self, options: WhisperOptions) -> None:
        self.speech_samples = 0
        self._level = _Level()
        self._vad = VoiceDetector()
        self._open_at = options.vad_threshold
        self._close_at = max(options.vad_threshold - 0.15, 0.01)
        self._min_silence = max(1, options.vad_min_silence_ms * SAMPLE_RATE // 1000)
        self._pad = options.vad_speech_pad_ms * SAMPLE_RATE // 1000
        self._limit = max(window_samples(options) - 2 * self._pad, window_samples(options) // 2)
        self._tape = _Tape()
        # Index of the next frame.
        self._frame = 0
        # First sample of the open region, start of a pause in it, and the probability of each of its frames.
        self._start: int | None = None
        self._silence: int | None = None
        self._probabilities: list[float] = []
        # A closed region: start with padding, start, end. The padding behind it depends on what follows.
        self._waiting: tuple[int, int, int] | None = None
        # First sample that the padding of the next region may include.
        self._left = 0

    def push(self, samples: Samples) -> Iterator[Region]:
        """Regions that are complete now."""
        self._tape.append(samples)
        yield from self._read(self._vad.push(self._level.push(samples)))

    def finish(self) -> Iterator[Region]:
        """The regions that the end of the file completes."""
        yield from self._read(self._vad.push(self._level.finish()))
        yield from self._read(self._vad.finish())
        if self._start is not None:
            end = self._tape.end if self._silence is None else self._silence
            self._close(self._start, min(end, self._tape.end))
        if self._waiting is not None:
            yield self._emit(self._waiting, min(self._waiting[2] + self._pad, self._tape.end))

    def _read(self, probabilities: Probabilities) -> Iterator[Region]:
        for probability in probabilities.tolist():
            position = self._frame * FRAME
            self._frame += 1
            if self._start is None:
                yield from self._outside(probability, position)
            else:
                yield from self._inside(probability, position, self._start)
        if self._start is None and self._waiting is None:
            self._tape.forget(self._frame * FRAME - self._pad)

    def _outside(self, probability: float, position: int) -> Iterator[Region]:
        if probability >= self._open_at:
            if self._waiting is not None:
                half = (position - self._waiting[2]) // 2
                yield self._emit(self._waiting, self._waiting[2] + min(self._pad, half))
            self._start, self._silence, self._probabilities = position, None, [probability]
        elif self._waiting is not None and position - self._waiting[2] >= 2 * self._pad:
            yield self._emit(self._waiting, self._waiting[2] + self._pad)

    def _inside(self, probability: float, position: int, start: int) -> Iterator[Region]:
        self._probabilities.append(probability)
        if probability >= self._open_at:
            self._silence = None
        elif probability < self._close_at and self._silence is None:
            self._silence = position
        if self._silence is not None and position + FRAME - self._silence >= self._min_silence:
            self._close(start, self._silence)
        elif position + FRAME - start > self._limit:
            yield from self._split(start)

    def _split(self, start: int) -> Iterator[Region]:
        values = np.array(self._probabilities)
        smooth = np.convolve(values, np.ones(3) / 3, mode="same")
        half = len(values) // 2
        cut = half + int(smooth[half:-1].argmin())
        kept = self._probabilities[cut:]
        seam = start + cut * FRAME
        # No padding at the cut, so that nothing is transcribed twice.
        yield self._emit(self._close(start, seam), seam)
        self._start, self._silence, self._probabilities = seam, None, kept

    def _close(self, start: int, end: int) -> tuple[int, int, int]:
        self.speech_samples += end - start
        self._waiting = (max(self._left, start - self._pad, 0), start, end)
        self._start = self._silence = None
        return self._waiting

    def _emit(self, closed: tuple[int, int, int], end: int) -> Region:
        padded, speech_start, speech_end = closed
        self._waiting, self._left = None, end
        samples = self._tape.cut(padded, end)
        self._tape.forget(end)
        return Region(padded, samples, speech_start - padded, max(end - speech_end, 0))


class _Level:
    """Amplifies quiet audio for the voice detector, frame by frame, according to the frames so far.

    A constant offset, which cheap converters have, is no sound: it does not count as level, and is removed.
    """

    def __init__(self) -> None:
        # Peak level of the frames so far in decibels, reduced by _FORGOTTEN_DB per frame.
        self._loudest = -np.inf
        # Offset of the last frames.
        self._offset: float | None = None
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: Samples) -> Samples:
        """The amplified frames that are complete now."""
        samples = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:].copy()
        return self._raised(samples[:whole].reshape(-1, FRAME))

    def finish(self) -> Samples:
        """The last frame, which may be shorter."""
        return self._raised(self._rest.reshape(1, -1)) if len(self._rest) else self._rest

    def _raised(self, frames: Samples) -> Samples:
        if not len(frames):
            return np.zeros(0, np.float32)
        means = frames.mean(axis=1, dtype=np.float64)
        offsets = self._offsets(means)
        energy = np.einsum("ij,ij->i", frames, frames) / frames.shape[1]
        energy = np.maximum(energy - 2 * offsets * means + np.square(offsets), 0.0)
        forgotten = _FORGOTTEN_DB * np.arange(1, len(frames) + 1)
        levels = 10 * np.log10(energy + 1e-20) + forgotten
        loudest = np.maximum(np.maximum.accumulate(levels), self._loudest) - forgotten
        self._loudest = float(loudest[-1])
        squares = np.square(offsets)
        disturbing = (squares > _LEAST_OFFSET**2) & (squares > _DISTURBING * 10 ** (loudest / 10))
        if disturbing.any():
            frames = frames - np.where(disturbing, offsets, 0.0)[:, None].astype(np.float32)
        if float(loudest.min()) >= _QUIET_DB:
            return frames.reshape(-1)
        gains = 10 ** ((_QUIET_DB - np.clip(loudest, _LEAST_DB, _QUIET_DB)) / 20)
        return np.asarray(frames * gains[:, None].astype(np.float32)).reshape(-1)

    def _offsets(self, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The offset at each frame: a moving average of the means of the frames."""
        offset = float(means[0]) if self._offset is None else self._offset
        offsets = []
        for mean in means.tolist():
            offset += _ADAPTION * (mean - offset)
            offsets.append(offset)
        self._offset = offset
        return np.array(offsets)
