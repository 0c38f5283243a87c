"""An open container -> the decoded frames of its audio streams, whatever is damaged on the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import av

from whisper_spark.audio.container import Bytes, first_line

log = logging.getLogger(__name__)

# Seconds that may be undecodable without being missed: the last frame of a recording is often cut.
_UNHEARD = 0.1

# Bytes behind the last packet that an error may concern without being missed: tags, padding.
_TAGS = 4096

# How often demuxing is tried again behind an error without getting further in the file.
_TRIES = 10

# FFmpeg's own AMR decoders refuse the frames that stand for comfort noise.
_BETTER_DECODERS = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}

_LAYOUTS = {1: "mono", 2: "stereo"}

# The byte of an Opus header that says what its channels mean, and its value for "they mean nothing".
_OPUS_MAPPING, _OPUS_UNMAPPED = 18, b"\xff"


class Demuxer:
    """Decodes the audio streams of one container.

    :param known: ids of the streams that an earlier part of the same broadcast had; they are left alone.
    :ivar streams: those that can be decoded, in the order of the file.
    :ivar channels: of each stream, 0 where only decoding tells.
    :ivar format: FFmpeg's name of the container.
    :ivar known: ids of all streams so far.
    :ivar same_clock: its clock is that of the part before.
    :ivar zero: what the container's clock shows at its start, in seconds.
    :ivar end: position behind the last packet so far, in bytes.
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
        self._broken = False
        self._frames = 0

    @property
    def default(self) -> int:
        """The stream that players play, by its position."""
        streams = list(enumerate(self.streams))
        known = [(i, s) for i, s in streams if self.channels[i]] or streams
        return next((i for i, s in known if s.disposition & 1), known[0][0])

    def damaged(self, numbers: Sequence[int]) -> bool:
        """Whether so much of some streams could not be decoded that a word may be missing."""
        if self.same_clock and not self._frames:
            return False  # what was left of the last packet
        return self._broken or any(self._lost[number] > _UNHEARD for number in numbers)

    def frames(self) -> Iterator[tuple[int, Any]]:
        """The frames of all streams, each with the position of its stream."""
        numbers = {stream.index: number for number, stream in enumerate(self.streams)}
        for packet in self._packets():
            number = numbers[packet.stream_index]
            for frame in self._decoded(number, packet):
                self._frames += 1
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
                for packet in self.container.demux(self.streams):
                    if packet.size:
                        end = (packet.pos or 0) + packet.size
                        if end > self.end:
                            self.end, tries = end, 0
                        yield packet
            except (IndexError, av.error.EOFError):
                # PyAV counts on the streams that were there at the beginning, and trips over new ones when
                # it is done.
                return
            except av.error.FFmpegError as error:
                log.debug("demuxing failed: %s", first_line(error))
                tries += 1
                self._broken = self._broken or self.end + _TAGS < len(self.file)
            else:
                return


def _decoder(stream: Any) -> Any:
    context = stream.codec_context
    better = _BETTER_DECODERS.get(context.name)
    if better in av.codecs_available:
        return av.CodecContext.create(better, "r")
    # One thread: files are decoded side by side anyway, and frame threads of TTA wait forever behind damage.
    context.thread_count = 1
    return context


def _without_names(context: Any) -> int:
    """Number of channels; from now on they are only numbered.

    PyAV frees the names of channels in an order of their own twice, once for each frame. Reading ``channels``
    frees them once already, so that the layout has to be replaced at once.
    """
    channels: int = context.channels
    if channels:
        context.layout = _LAYOUTS.get(channels, f"{channels} channels")
    extra = context.extradata
    if context.name == "opus" and extra and len(extra) > _OPUS_MAPPING and extra[_OPUS_MAPPING] > 1:
        context.extradata = extra[:_OPUS_MAPPING] + _OPUS_UNMAPPED + extra[_OPUS_MAPPING + 1 :]
    return channels
