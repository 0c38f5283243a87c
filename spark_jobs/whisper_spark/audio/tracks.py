"""Frames of one audio stream -> blocks of 16 kHz float32 samples, in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, Protocol

import av
import numpy as np

from whisper_spark.audio.channels import Mixer, Samples, Scale
from whisper_spark.audio.timeline import Timeline
from whisper_spark.contract import SAMPLE_RATE

# Long enough that Python's overhead for each block is small, short enough that memory does not matter.
_BLOCK_SAMPLES = 10 * SAMPLE_RATE

# Below this a track is silent. Full scale is 1; 16-bit audio ends at 3e-5.
_AUDIBLE = 1e-4


class Block(NamedTuple):
    """Samples that follow those of the same channel so far: float32, mono, 16 kHz, about 10 seconds.

    :param channel: 0 when channels are mixed.
    """

    samples: Samples
    channel: int


class Outlet(Protocol):
    """What becomes of the samples of a track.

    :ivar mixer: makes one channel of all of them first; ``None`` where they stay apart.
    """

    mixer: Mixer | None

    def blocks(self, samples: Samples) -> Iterator[Block]:
        """Those of a block of shape (samples, channels)."""
        ...


class Mix:
    """All channels as one."""

    def __init__(self) -> None:
        self.mixer: Mixer | None = Mixer()

    def blocks(self, samples: Samples) -> Iterator[Block]:
        """See :class:`Outlet`."""
        yield Block(samples[:, 0], 0)


class Split:
    """Each channel by itself, in step: those that end, or begin later, are silent for the rest.

    :param numbers: gives a number to each channel of the file.
    :param channels: how many there are from the start.
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
    """None of them, but how loud they are."""

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
    """Blocks of silence of shape (samples, 1), which share their memory."""
    zeros = np.zeros((min(samples, _BLOCK_SAMPLES), 1), np.float32)
    zeros.flags.writeable = False
    while samples > 0:
        yield zeros[:samples]
        samples -= _BLOCK_SAMPLES


class Track:
    """One audio stream of a file, whose parts may lie in containers that follow each other.

    :param outlet: where its samples go.
    :param channels: as many as the container says.
    :param longest_s: where they may end, in seconds.
    :ivar seconds: where they end so far.
    :ivar channels: most channels in it so far.
    """

    def __init__(self, outlet: Outlet, channels: int, longest_s: float) -> None:
        self.outlet = outlet
        self.channels = max(channels, 1)
        self._timeline = Timeline(longest_s)
        self._scale = Scale()
        self._tick = 0.0
        self._chunk: _Chunk | None = None
        self._samples = 0

    @property
    def seconds(self) -> float:
        """Where the last frame ends."""
        return self._timeline.end

    @property
    def clock_s(self) -> float:
        """Where the last frame ends by the container's clock, jumps included."""
        return self._timeline.end + max(self._timeline.skipped, 0.0)

    def start(self, stream: Any, zero: float | None, at: float, container_format: str) -> None:
        """Frames of a stream follow.

        :param zero: what the container's clock shows at its start, in seconds; ``None`` when unknown.
        :param at: where in the file the container starts, in seconds.
        """
        self._tick = float(stream.time_base)
        self._scale.stored = stream.codec_context.name.startswith("pcm_f")
        self._timeline.start(zero, at, container_format)

    def push(self, frame: Any) -> Iterable[Block]:
        """Blocks that are complete with another frame."""
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
        """Blocks of what has been pushed."""
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            yield from self._blocks(chunk.finish())

    def _begin(self, frame: Any, gap: float) -> Iterator[Block]:
        """A frame that does not follow the one before it, or has another format."""
        yield from self.finish()
        if gap:
            self._timeline.end += gap
            missing = round(self._timeline.end * SAMPLE_RATE) - self._samples
            yield from self._blocks(silence(missing))
        self._chunk = _Chunk(frame, self._scale, self.outlet.mixer)
        self.channels = max(self.channels, self._chunk.channels)
        self._timeline.end += frame.samples / frame.sample_rate

    def _blocks(self, blocks: Iterable[Samples]) -> Iterator[Block]:
        for samples in blocks:
            self._samples += len(samples)
            yield from self.outlet.blocks(samples)


class _Chunk:
    """Frames of one format -> float32 at 16 kHz, of shape (samples, channels), about 10 seconds each.

    Codecs give 20 ms at a time. Each call into FFmpeg costs Python's lock, which all threads of a process
    share: a second of frames is collected first, and the resampler keeps what it has until a block is full.

    FFmpeg does not mix the channels: it goes by what it takes their names to be, and drops some.

    :param mixer: makes one channel of them, before resampling, which costs more.
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
        """Takes a frame, unless it has another format than those before it."""
        # AudioFifo compares format, rate and time base, but would read as many channels as before.
        if frame.layout.nb_channels != self.channels:
            return False
        try:
            self._collected.write(frame)
        except ValueError:
            return False
        return True

    def resampled(self) -> Iterator[Samples]:
        """Blocks that are complete."""
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
        # Packed: PyAV walks beyond the end of eight and more planes. A copy: the frame owns its memory.
        return self._scale.scaled(frame.to_ndarray().reshape(-1, channels))
