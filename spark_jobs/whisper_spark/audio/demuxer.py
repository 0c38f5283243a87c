"""Decodes the audio streams of an open container to frames, and skips what is damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import av

from whisper_spark.audio.container import Bytes, first_line
from whisper_spark.audio.losses import Losses

log = logging.getLogger(__name__)

# Up to this many undecodable seconds do not count as damage: the last frame of a recording is often cut.
_UNHEARD = 0.1

# An error in the last bytes behind the last packet does not count as damage: these are tags or padding.
_TAGS = 4096

# How often demuxing is tried again after an error without any progress in the file.
_TRIES = 10

# FFmpeg's own AMR decoders refuse comfort-noise frames.
_BETTER_DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}

_LAYOUTS = {1: "mono", 2: "stereo"}

# Offset of the channel mapping family in an Opus header, and its value for channels without a meaning.
_OPUS_MAPPING, _OPUS_UNMAPPED = 18, b"\xff"


class Demuxer:
    """Decodes the audio streams of one container.

    :param known: ids of the streams in earlier parts of the same broadcast, which are not decoded again.
    :ivar streams: the audio streams that can be decoded, in the order of the file.
    :ivar channels: number of channels of each stream; 0 when only decoding tells.
    :ivar format: FFmpeg's name of the container format.
    :ivar known: ids of all streams so far.
    :ivar same_clock: whether the timestamps continue those of the part before.
    :ivar zero: timestamp of the start of the container, in seconds; ``None`` when unknown.
    :ivar end: position behind the last packet so far, in bytes.
    :ivar losses: the audio that FFmpeg skipped.
    """

    def __init__(self, file: Bytes, container: Any, known: frozenset[int] | None = None) -> None:
        self.file = file
        self.container = container
        self.end = 0
        self.format: str = container.format.name
        self.known = frozenset(stream.id for stream in container.streams) | (known or frozenset())
        self.same_clock = known is not None
        start = container.start_time
        self.zero: float | None = None if start is None else float(start / av.time_base)
        self.streams = [
            stream
            for stream in container.streams.audio
            if stream.codec_context is not None and not (known and stream.id in known)
        ]
        self._contexts = [_decoder(stream) for stream in self.streams]
        self.channels = [_without_names(context) for context in self._contexts]
        self._lost = [0.0 for _ in self.streams]
        self.losses = Losses(file, self.format)
        self._clocks = [_Clock(context.sample_rate) for context in self._contexts]
        self._broken = False
        self._frames = 0

    @property
    def default(self) -> int:
        """Position of the default stream, which players play."""
        streams = list(enumerate(self.streams))
        known = [(i, s) for i, s in streams if self.channels[i]] or streams
        return next((i for i, s in known if s.disposition & 1), known[0][0])

    def damaged(self, numbers: Sequence[int]) -> bool:
        """Whether so much of the given streams could not be decoded that a word may be missing."""
        # Without a frame, this part is only the remainder of the last packet.
        if self.same_clock and not self._frames:
            return False
        return self._broken or self.losses.damaged or any(self._lost[number] > _UNHEARD for number in numbers)

    def frames(self) -> Iterator[tuple[int, Any]]:
        """The decoded frames of all streams, each with the position of its stream."""
        numbers = {stream.index: number for number, stream in enumerate(self.streams)}
        ticks = [float(stream.time_base) for stream in self.streams]
        for packet in self._packets():
            number = numbers.get(packet.stream_index)
            seconds = (packet.duration or 0) * ticks[0] if number == 0 else 0.0
            self.losses.see(packet, seconds)
            if number is None:
                continue
            clock = self._clocks[number]
            clock.see(packet)
            if self.losses.seconds and packet.pts is not None:
                packet.pts += round(self.losses.seconds / ticks[number])
            for frame in self._decoded(number, packet):
                self._frames += 1
                if clock.errs(frame):
                    frame.pts = None
                yield number, frame
        for number in range(len(self.streams)):
            for frame in self._decoded(number, None):
                yield number, frame

    def _decoded(self, number: int, packet: Any) -> list[Any]:
        try:
            frames: list[Any] = self._contexts[number].decode(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            log.debug("decoding failed: %s", error)
            if packet is not None:
                self._lost[number] += float((packet.duration or 0) * packet.time_base) or _UNHEARD
            return []
        return frames

    def _packets(self) -> Iterator[Any]:
        tries = 0
        while tries < _TRIES:
            try:
                for packet in self.container.demux():
                    if packet.size:
                        end = (packet.pos or 0) + packet.size
                        if end > self.end:
                            self.end, tries = end, 0
                        yield packet
            except (IndexError, av.error.EOFError):
                # At the end, PyAV raises IndexError if streams appeared that were not known at the beginning.
                return
            except av.error.FFmpegError as error:
                log.debug("demuxing failed: %s", first_line(error))
                tries += 1
                self._broken = self._broken or self.end + _TAGS < len(self.file)
            else:
                return


class _Clock:
    """Recognises wrong timestamps: FFmpeg computes those that are not in the file with the sample rate at the
    start of the stream.

    :param rate: sample rate at the start of the stream, in Hz; 0 when unknown.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._changed = False
        self._next: int | None = None
        self._computed = False

    def see(self, packet: Any) -> None:
        """Look at the next packet of the stream."""
        pts = packet.pts
        # FFmpeg rounds.
        self._computed = pts is not None and self._next is not None and abs(pts - self._next) <= 2
        self._next = pts + packet.duration if pts is not None and packet.duration else None

    def errs(self, frame: Any) -> bool:
        """Whether the timestamp of a frame of the last packet is wrong."""
        self._changed = self._changed or 0 < self._rate != frame.sample_rate
        return self._changed and self._computed


def _decoder(stream: Any) -> Any:
    context = stream.codec_context
    better = _BETTER_DECODERS.get(context.name)
    if better in av.codecs_available:
        return av.CodecContext.create(better, "r")
    # One thread, because files are decoded in parallel anyway, and TTA's frame threads hang on damaged files.
    context.thread_count = 1
    return context


def _without_names(context: Any) -> int:
    """Replace the channel layout by one without channel names. Returns the number of channels.

    PyAV frees the names of channels in a custom order twice, once for each frame. Reading ``channels``
    already frees them once, so the layout must be replaced immediately afterwards.
    """
    channels: int = context.channels
    if channels:
        context.layout = _LAYOUTS.get(channels, f"{channels} channels")
    extra = context.extradata
    if context.name == "opus" and extra and len(extra) > _OPUS_MAPPING and extra[_OPUS_MAPPING] > 1:
        context.extradata = extra[:_OPUS_MAPPING] + _OPUS_UNMAPPED + extra[_OPUS_MAPPING + 1 :]
    return channels
