"""Resamples the frames of one audio stream to blocks of 16 kHz float32 samples, with silence for gaps."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, Protocol

import av
import numpy as np

from whisper_spark.audio.channels import Mixer, Samples, Scale
from whisper_spark.audio.timeline import Timeline
from whisper_spark.contract import SAMPLE_RATE

log = logging.getLogger(__name__)

# Long enough to keep Python's overhead per block small, short enough to keep memory use small.
_BLOCK_SAMPLES = 10 * SAMPLE_RATE

# A track whose peak is below this is silent. Full scale is 1; the smallest 16-bit sample is 3e-5.
_AUDIBLE = 1e-4


# Number of samples of a constant value that are no sound, the least such value, and what resampling adds.
_STUCK = SAMPLE_RATE // 2
_CONSTANT = 0.9
_RIPPLE = 1e-4


class Block(NamedTuple):
    """The next samples of a channel: float32, mono, 16 kHz, about 10 seconds.

    :param channel: index of the channel; 0 when channels are mixed.
    """

    samples: Samples
    channel: int


class Outlet(Protocol):
    """Turns the samples of a track into blocks.

    :ivar mixer: mixes the channels before resampling; ``None``: the channels stay separate.
    """

    mixer: Mixer | None

    def blocks(self, samples: Samples) -> Iterator[Block]:
        """The blocks of some samples of shape (samples, channels)."""
        ...


class Mix:
    """Mixes all channels of a track into one."""

    def __init__(self) -> None:
        self.mixer: Mixer | None = Mixer()

    def blocks(self, samples: Samples) -> Iterator[Block]:
        """See :class:`Outlet`."""
        yield Block(samples[:, 0], 0)


class Split:
    """Keeps channels separate and equally long: one that begins later or ends earlier is padded with silence.

    :param numbers: counter that numbers the channels of the whole file.
    :param channels: number of channels at the start.
    """

    def __init__(self, numbers: count[int], channels: int) -> None:
        self.mixer: Mixer | None = None
        self._numbers = numbers
        self._channels = [next(numbers) for _ in range(channels)]
        self._past = 0

    def blocks(self, samples: Samples) -> Iterator[Block]:
        """See :class:`Outlet`."""
        for row in range(samples.shape[1]):
            if row == len(self._channels):
                self._channels.append(next(self._numbers))
                yield from (Block(silent[:, 0], self._channels[row]) for silent in silence(self._past))
            yield Block(np.ascontiguousarray(samples[:, row]), self._channels[row])
        for channel in self._channels[samples.shape[1] :]:
            yield from (Block(silent[:, 0], channel) for silent in silence(len(samples)))
        self._past += len(samples)


class Ignore:
    """Discards the samples and measures how loud they are."""

    def __init__(self) -> None:
        self.mixer: Mixer | None = None
        self.peak = 0.0

    @property
    def audible(self) -> bool:
        """Whether there is any sound."""
        return self.peak >= _AUDIBLE

    def blocks(self, samples: Samples) -> Iterator[Block]:
        """See :class:`Outlet`."""
        self.peak = max(self.peak, float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))
        return iter(())


def silence(samples: int) -> Iterator[Samples]:
    """Blocks of silence of shape (samples, 1). They share their memory, which is read-only."""
    zeros = np.zeros((min(samples, _BLOCK_SAMPLES), 1), np.float32)
    zeros.flags.writeable = False
    while samples > 0:
        yield zeros[:samples]
        samples -= _BLOCK_SAMPLES


class Track:
    """One audio stream of a file. In a file of several containers, it continues in each of them.

    :param outlet: receives the samples.
    :param channels: number of channels that the container declares.
    :param longest_s: longest possible length, in seconds.
    :ivar channels: largest number of channels so far.
    :ivar gaps_s: silence that was inserted for gaps so far, in seconds.
    :ivar damaged: whether some part is in a format that cannot be, or one constant value near full scale. No
        sound is: it is what bytes that were never written decode to, in formats with 8 bits.
    """

    def __init__(self, outlet: Outlet, channels: int, longest_s: float) -> None:
        self.outlet = outlet
        self.gaps_s = 0.0
        self.damaged = False
        self.channels = max(channels, 1)
        self._timeline = Timeline(longest_s)
        self._scale = Scale()
        self._tick = 0.0
        self._chunk: _Chunk | None = None
        self._samples = 0

    @property
    def seconds(self) -> float:
        """End of the last frame, in seconds from the start of the file."""
        return self._timeline.end

    @property
    def clock_s(self) -> float:
        """End of the last frame by the container's clock, which includes timestamp jumps forward."""
        return self._timeline.end + max(self._timeline.skipped, 0.0)

    def start(self, stream: Any, zero: float | None, at: float, container_format: str) -> None:
        """Start a stream, to which the following frames belong.

        :param zero: timestamp of the start of the container, in seconds; ``None`` when unknown.
        :param at: start of the container in the file, in seconds.
        """
        self._tick = float(stream.time_base)
        self._scale.stored = stream.codec_context.name.startswith("pcm_f")
        self._timeline.start(zero, at, container_format)

    def push(self, frame: Any) -> Iterable[Block]:
        """Add a frame. Returns the blocks that are now complete."""
        samples, time = frame.samples, frame.pts
        if not samples or not frame.sample_rate:
            return ()
        frame.pts = None
        gap = 0.0 if time is None else self._timeline.gap_before(time * self._tick)
        chunk = self._chunk
        if gap or chunk is None or not chunk.accepts(frame):
            return self._begin(frame, gap)
        self._timeline.end += samples / chunk.rate
        return self._blocks(chunk.resampled()) if chunk.full else ()

    def finish(self) -> Iterator[Block]:
        """The remaining blocks of the frames so far."""
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            yield from self._blocks(chunk.finish())

    def _begin(self, frame: Any, gap: float) -> Iterator[Block]:
        """Add a frame after a gap, or one with another format than the frames before it."""
        yield from self.finish()
        if gap:
            self.gaps_s += gap
            self._timeline.end += gap
            missing = round(self._timeline.end * SAMPLE_RATE) - self._samples
            yield from self._blocks(silence(max(missing, 0)))
        self._chunk = _Chunk(frame, self._scale, self.outlet.mixer)
        self.channels = max(self.channels, self._chunk.channels)
        self._timeline.end += frame.samples / frame.sample_rate

    def _blocks(self, blocks: Iterable[Samples]) -> Iterator[Block]:
        try:
            for samples in blocks:
                self._samples += len(samples)
                self.damaged = self.damaged or _is_stuck(samples)
                yield from self.outlet.blocks(samples)
        except av.error.FFmpegError as error:
            # A damaged frame may claim a sample rate or a layout that no resampler takes.
            log.debug("resampling failed: %s", error)
            self.damaged = True


def _is_stuck(samples: Samples) -> bool:
    """Whether a channel has a constant value, which is not zero, for half a second."""
    step = _STUCK // 2
    looks = samples[: len(samples) // step * step : step]
    same = np.abs(np.diff(looks, axis=0)) < _RIPPLE
    for row, channel in np.argwhere(same & (np.abs(looks[1:]) > _CONSTANT)):
        part = samples[row * step : row * step + _STUCK, channel]
        if len(part) == _STUCK and np.ptp(part) < _RIPPLE:
            return True
    return False


class _Chunk:
    """Resamples frames of one format to float32 at 16 kHz, in blocks of shape (samples, channels).

    Codecs return 20 ms at a time, and each call into FFmpeg releases and reacquires the GIL. So one second of
    frames is collected before each call, and the resampler returns a block only when it is full.

    Channels are not mixed by FFmpeg, because it weights them by their assumed names and drops some.

    :param mixer: mixes the channels before resampling, which is the more expensive step.
    """

    def __init__(self, first: Any, scale: Scale, mixer: Mixer | None) -> None:
        self.channels: int = first.layout.nb_channels
        self.rate: int = first.sample_rate
        self._collected = av.AudioFifo()
        self._collected.write(first)
        self._mixer = mixer if self.channels > 1 else None
        self._scale = scale
        self._unpacked = av.AudioResampler("flt", first.layout, self.rate)
        layout, rows = ("mono", 1) if self._mixer else (first.layout, self.channels)
        block = max(_BLOCK_SAMPLES // max(rows // 2, 1), SAMPLE_RATE)
        self._resampler = av.AudioResampler("flt", layout, SAMPLE_RATE, frame_size=block)

    @property
    def full(self) -> bool:
        """Whether enough has been collected."""
        return bool(self._collected.samples >= self.rate)

    def accepts(self, frame: Any) -> bool:
        """Add a frame if it has the same format as those before it. Returns whether it was added."""
        # AudioFifo compares format, rate and time base, but not the number of channels.
        if frame.layout.nb_channels != self.channels:
            return False
        try:
            self._collected.write(frame)
        except ValueError:
            return False
        return True

    def resampled(self) -> Iterator[Samples]:
        """Blocks that are complete now."""
        collected = self._collected.read(partial=True)
        if collected is None:
            return
        collected.pts = None
        for frame in [collected] if self._mixer is None else self._mixed(collected, self._mixer):
            yield from map(self._samples, self._resampler.resample(frame))

    def finish(self) -> Iterator[Samples]:
        """The last blocks."""
        yield from self.resampled()
        yield from map(self._samples, self._resampler.resample(None))

    def _mixed(self, collected: Any, mixer: Mixer) -> Iterator[Any]:
        for frame in self._unpacked.resample(collected):
            mono = mixer.mix(self._scaled(frame, self.channels), self.rate)
            mixed = av.AudioFrame.from_ndarray(mono.reshape(1, -1), "flt", "mono")
            mixed.sample_rate = self.rate
            yield mixed

    def _samples(self, frame: Any) -> Samples:
        if self._mixer is None:
            return self._scaled(frame, self.channels)
        samples: Samples = frame.to_ndarray().reshape(-1, 1)
        return samples

    def _scaled(self, frame: Any, channels: int) -> Samples:
        # Packed samples, because PyAV reads beyond the end of eight or more planes.
        return self._scale.scaled(frame.to_ndarray().reshape(-1, channels))
