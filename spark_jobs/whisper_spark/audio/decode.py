"""Bytes of any container FFmpeg knows -> blocks of 16 kHz float32 samples, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from whisper_spark.contract import SAMPLE_RATE

av.logging.set_level(None)  # A corrupt file would otherwise write hundreds of lines into the executor's log.

Samples = npt.NDArray[np.float32]

_BLOCK_SAMPLES = 10 * SAMPLE_RATE
# Long enough that Python's overhead for each block is small, short enough that memory does not matter.

_STILL_IMAGES = frozenset(
    "apng bmp dpx exr gif jpeg jpegls ljpeg mjpeg pam pbm pcx pgm pgmyuv png ppm psd qoi sgi sunrast svg "
    "targa tiff txd webp xbm xpm xwd".split()
)
# FFmpeg codec names. FFmpeg opens a picture as a video of one frame; to us it is no recording at all.

_NO_TIMESTAMPS = 0x80
# AVFMT_NOTIMESTAMPS (libavformat/avformat.h): a bare stream of frames without a container. FFmpeg sees one by
# chance in one of a hundred files of random bytes.

_SIGNATURES = (
    *((0, magic) for magic in (b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\x1aE\xdf\xa3")),
    (4, b"ftyp"),
    (8, b"WAVE"),
)
# Where audio containers say what they are: a file that starts so and cannot be opened is damaged audio.

_HEADERS_BYTES = 64 * 1024
# A container without a sample that is larger than headers and tags usually are has lost its sound.


class AudioError(Exception):
    """A file that cannot be turned into samples. ``code`` is one of :data:`contract.ERROR_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class DecodedAudio:
    """An open audio file.

    :param channels: channels in the file; :meth:`blocks` gives as many rows when channels are split.
    :param declared_s: length that the container claims, in seconds; ``None`` when it claims none.
    :param decoded_s: length decoded so far, in seconds.
    :param damaged: some of the file could not be decoded.
    :param cut_short: the file is smaller than its header says.
    """

    channels: int
    declared_s: float | None
    _container: Any
    _split: bool
    _max_duration_s: float
    _bytes: int
    decoded_s: float = 0.0
    damaged: bool = False
    cut_short: bool = False

    @property
    def truncated(self) -> bool:
        """Whether what could be decoded falls short of what the file promised.

        One second or 2 % of slack: containers round, and MP3 headers count the encoder's padding.
        """
        short = self.declared_s is not None and self.decoded_s < self.declared_s - max(
            1.0, 0.02 * self.declared_s
        )
        return self.decoded_s > 0 and (self.damaged or self.cut_short or short)

    def blocks(self) -> Iterator[Samples]:
        """The samples in order: float32 arrays of shape (rows, samples), about 10 seconds each.

        One row when channels are mixed, else one for each channel.

        :raises AudioError: ``empty`` or ``corrupt`` when nothing can be decoded, ``too_long``.
        """
        try:
            for block in self._resampled():
                self.decoded_s += block.shape[1] / SAMPLE_RATE
                if self.decoded_s > self._max_duration_s:
                    raise AudioError(
                        "too_long", f"longer than max_duration_s={self._max_duration_s:g} seconds"
                    )
                yield block
        finally:
            self._container.close()
        if not self.decoded_s:
            if self.damaged or self._bytes > _HEADERS_BYTES:
                raise AudioError("corrupt", "an audio stream of which nothing can be decoded")
            raise AudioError("empty", "an audio container without a single sample")

    def _resampled(self) -> Iterator[Samples]:
        resampler: _Resampler | None = None
        for frame in self._frames():
            frame.pts = None  # Gaps in the timestamps are the container's; samples follow one another.
            if resampler is None or not resampler.accepts(frame):
                if resampler is not None:
                    yield from self._samples(resampler.finish())
                resampler = _Resampler(frame, frame.layout.name if self._split else "mono")
            yield from self._samples(resampler.full())
        if resampler is not None:
            yield from self._samples(resampler.finish())

    def _samples(self, frames: list[Any]) -> Iterator[Samples]:
        rows = self.channels if self._split else 1
        for frame in frames:
            samples = frame.to_ndarray()
            if samples.shape[0] != rows:  # A stream may change its channels half way through.
                samples = np.resize(samples, (rows, samples.shape[1]))
            block = np.ascontiguousarray(samples, dtype=np.float32)
            np.nan_to_num(block, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
            yield block

    def _frames(self) -> Iterator[Any]:
        """Decoded frames; a packet that cannot be decoded is skipped, and remembered as damage."""
        stream = self._container.streams.audio[0]
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                logging.getLogger(__name__).debug("demuxing stopped: %s", error)
                self.damaged = True
                return
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self.damaged = True


class _Resampler:
    """Frames of one format -> frames of about 10 seconds of float32 at 16 kHz.

    Codecs give 20 ms at a time. Each call into FFmpeg costs Python's lock, which all threads of a process
    share: a second of frames is collected first, and the resampler keeps what it has until a block is full.
    """

    def __init__(self, first: Any, layout: str) -> None:
        self._collected = av.AudioFifo()
        self._collected.write(first)
        self._second = first.sample_rate
        self._resampler = av.AudioResampler("fltp", layout, SAMPLE_RATE, frame_size=_BLOCK_SAMPLES)

    def accepts(self, frame: Any) -> bool:
        """Takes a frame, unless it has another format than those before it."""
        try:
            self._collected.write(frame)
        except ValueError:
            return False
        return True

    def full(self) -> list[Any]:
        """Blocks that are complete."""
        return self._resampled() if self._collected.samples >= self._second else []

    def finish(self) -> list[Any]:
        """The last blocks."""
        return [*self._resampled(), *self._resampler.resample(None)]

    def _resampled(self) -> list[Any]:
        collected = self._collected.read(partial=True)
        if collected is None:
            return []
        collected.pts = None
        return self._resampler.resample(collected)


def open_audio(
    stream: BinaryIO, *, split: bool = False, max_duration_s: float = float("inf")
) -> DecodedAudio:
    """Open a seekable binary stream as audio.

    :param split: keep the channels apart instead of averaging them.
    :param max_duration_s: refuse longer files, in seconds.
    :raises AudioError: ``empty`` for zero bytes, ``not_audio``, ``no_audio_stream`` or ``too_long``.
    """
    head = stream.read(4096)
    if not head:
        raise AudioError("empty", "zero bytes")
    stream.seek(0)
    try:
        container: Any = av.open(_Nameless(stream), mode="r", metadata_errors="ignore")
    except (av.error.FFmpegError, ValueError) as error:
        raise _unopened(head, error) from None
    try:
        audio = _decoded_audio(container, split, max_duration_s)
        audio.cut_short = _promised_bytes(head) > container.size
        return audio
    except BaseException:
        container.close()
        raise


def _decoded_audio(container: Any, split: bool, max_duration_s: float) -> DecodedAudio:
    if not container.streams.audio:
        videos = [s.codec_context.name for s in container.streams.video if s.codec_context is not None]
        if container.format.flags & _NO_TIMESTAMPS:
            raise AudioError(
                "not_audio", f"no audio container, at best a bare {container.format.name} stream"
            )
        if videos and not all(name in _STILL_IMAGES for name in videos):
            raise AudioError("no_audio_stream", f"a video ({', '.join(videos)}) without an audio stream")
        kind = (
            f"an image ({videos[0]})" if videos else f"{container.format.long_name or container.format.name}"
        )
        raise AudioError("not_audio", f"no recording but {kind}")
    stream = container.streams.audio[0]
    stream.thread_type = "AUTO"
    context = stream.codec_context
    if context is None:
        raise AudioError("corrupt", "an audio stream in a codec that FFmpeg cannot decode")
    if not context.channels or not context.sample_rate:
        raise AudioError("corrupt", "an audio stream without channels or sample rate")
    declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if declared is None and container.duration:
        declared = container.duration / av.time_base
    if declared is not None and declared > max_duration_s and not _may_lie(container):
        raise AudioError("too_long", f"{declared:.0f} seconds, longer than max_duration_s={max_duration_s:g}")
    return DecodedAudio(context.channels, declared, container, split, max_duration_s, container.size)


class _Nameless:
    """A file without its name: FFmpeg trusts a suffix more than the bytes, and only local files have one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell


def _unopened(head: bytes, error: Exception) -> AudioError:
    if not any(head[at:].startswith(signature) for at, signature in _SIGNATURES):
        return AudioError("not_audio", f"no audio container that FFmpeg knows: {_first_line(error)}")
    if isinstance(error, av.error.EOFError) or len(head) < 4096:
        return AudioError("empty", "an audio container that ends before the first sample")
    return AudioError("corrupt", f"an audio container that cannot be opened: {_first_line(error)}")


def _promised_bytes(head: bytes) -> int:
    """Size that a WAV must have by its header, 0 when it makes no promise. FFmpeg asks the file's size.

    Recorders that never go back to their header leave 0, or a placeholder of almost 2 or 4 GiB.
    """
    position = 12 if head[:4] == b"RIFF" and head[8:12] == b"WAVE" else len(head)
    while position + 8 <= len(head):
        size = int.from_bytes(head[position + 4 : position + 8], "little")
        if head[position : position + 4] == b"data":
            return position + 8 + size if size < 0x7FFF0000 else 0
        position += 8 + size + size % 2
    return 0


def _may_lie(container: Any) -> bool:
    """A WAV header that was never completed claims hours; only decoding tells."""
    return "wav" in container.format.name


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
