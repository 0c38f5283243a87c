"""Opens a container with FFmpeg: which formats it may open, how far it probes, and what is not audio."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import av

from whisper_spark.audio.look_alikes import changed_as_text, look_alike

# A corrupt file would otherwise write hundreds of lines into the executor's log.
av.logging.set_level(None)

# FFmpeg's names of containers and raw streams that can hold audio, with or without video. Playlists (HLS,
# ffconcat), session descriptions (SDP), scripts, subtitles and pictures are not on the list, although FFmpeg
# opens them: they refer to other files and hosts, or contain no audio.
_FORMATS = ",".join(
    "3dostr 4xm aa aac aax ac3 ac4 ace acm act adp ads adx aea afc aiff aix alp amr amrnb amrwb apac apc ape "
    "apm aptx aptx_hd argo_asf argo_brp argo_cvg asf asf_o ast au avi avr bethsoftvid bfi bfstm bink binka "
    "bmv boa bonk brstm c93 caf cdxl cine codec2 daud dcstr derf dfa dfpwm dhav dsf dsicin dss dts dtshd dv "
    "dxa ea ea_cdata eac3 epaf evc film_cpk flac flic flv frm fsb fwse g722 g723_1 g726 g726le g728 g729 gdv "
    "genh gsm gxf hca hcom hnm iamf ifv ilbc ipmovie ircam iss ivf ivr jv kux kvag laf live_flv lmlm4 loas "
    "luodat lvf lxf matroska webm mca mgsts mlp mlv mm mmf moflex mov mp4 m4a 3gp 3g2 mj2 mp3 mpc mpc8 mpeg "
    "mpegts msf msnwctcp msp mtaf mtv musx mv mvi mxf mxg nc nistsphere nsp nsv nut nuv ogg oma osq paf pmp "
    "pp_bnk psxstr pva pvf qcp qoa r3d redspark rka rl2 rm roq rpl rsd rso s337m sbc sdns sds sdx shn siff "
    "simbiosis_imx sln smjpeg smk smush sol sox spdif svag svs swf tak thp tiertexseq tmv truehd tta ty usm "
    "vag vividas vivo vmd voc vpk vqf w64 wady wav wavarc wc3movie wsaud wsd wsvqa wtv wv wve xa xmd xmv "
    "xvag xwma yop".split()
)

# FFmpeg's names of image codecs. FFmpeg opens a picture as a video of one frame; here it counts as not_audio.
_STILL_IMAGES = frozenset(
    "apng bmp dpx exr gif jpeg jpegls ljpeg mjpeg pam pbm pcx pgm pgmyuv png ppm psd qoi sgi sunrast svg "
    "targa tiff txd webp xbm xpm xwd".split()
)

# AVFMT_NOTIMESTAMPS (libavformat/avformat.h): a raw stream of frames without a container. FFmpeg detects one
# by chance in one of a hundred files of random bytes.
_NO_TIMESTAMPS = 0x80

# Position and value of the magic bytes of audio containers. A file that has them and cannot be opened is
# damaged.
_SIGNATURES = (
    *((0, magic) for magic in (b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\x1aE\xdf\xa3")),
    *((0, magic) for magic in (b"RF64", b"FLV\x01", b"#!AMR")),
    (4, b"ftyp"),
    (8, b"WAVE"),
)

# Bytes at the beginning that show whether a file was changed as if it were text.
_TRANSFER = 64 * 1024

# Length in bytes of the longest pattern that recognises the beginning of a container.
_LONGEST_BEGINNING = 24

# Containers without a table of streams: a stream becomes known with its first packet.
_STREAMS_APPEAR = frozenset({"mpegts", "mpeg", "flv", "live_flv", "kux"})

# Probe limits for these containers when FFmpeg's defaults of 5 MB and 5 seconds show no audio: 64 MB is 64
# seconds of video at 8 Mbit/s. FFmpeg keeps the data that it probes in memory.
_DEEP = {"probesize": str(64 * 1024 * 1024), "analyzeduration": str(3600 * 1_000_000)}


class AudioError(Exception):
    """A file that cannot be turned into samples. ``code`` is one of :data:`contract.ERROR_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Beginning:
    """Recognises the beginning of containers.

    :param pattern: pattern of it.
    :param markers: each match contains one of these, for which searching is much faster.
    """

    pattern: re.Pattern[bytes]
    markers: tuple[bytes, ...]

    def found(self, data: bytes) -> Iterator[re.Match[bytes]]:
        """The matches in some bytes."""
        return self.pattern.finditer(data) if any(marker in data for marker in self.markers) else iter(())


class Bytes:
    """A byte range of a file, in the form of a file object for FFmpeg.

    It has no name, because FFmpeg trusts a suffix more than the content, and only local files have one.
    Damaged files make FFmpeg seek before the start: ``seek`` then returns an error code instead of raising.

    :param start: offset of the first byte.
    :param end: offset behind the last byte.
    :param other: the beginning of other containers. Reading stops before the first one.
    :param own: offset of the first byte that may belong to another container.
    :param fixes: bytes to read instead of those in the file, by offset.
    """

    def __init__(
        self,
        stream: BinaryIO,
        start: int,
        end: int,
        other: Beginning | None = None,
        own: int = 1,
        fixes: Mapping[int, bytes] | None = None,
    ) -> None:
        self._stream = stream
        self.start = start
        self.end = end
        self._other = other
        self._own = own
        self._fixes = fixes or {}
        self._before = b""
        self._at = 0
        stream.seek(start)

    def __len__(self) -> int:
        return self.end - self.start

    def read(self, size: int) -> bytes:
        """Read at most ``size`` bytes."""
        data = self._stream.read(max(0, min(size, len(self) - self._at)))
        if self._other is not None:
            data = self._until_other(data, self._other)
        for offset, right in self._fixes.items():
            data = _overwritten(data, offset - self._at, right)
        self._at += len(data)
        return data

    def _until_other(self, data: bytes, other: Beginning) -> bytes:
        seen = self._before + data
        for match in other.found(seen):
            beginning = self._at - len(self._before) + match.start()
            if beginning >= self._own:
                self.end = self.start + beginning
                return data[: max(beginning - self._at, 0)]
        self._before = seen[-_LONGEST_BEGINNING:]
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position. Returns it, or a negative error code for an invalid one."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}.get(whence)
        if base is None or base + offset < 0:
            # EINVAL
            return -22
        self._at = base + offset
        self._before = b""
        self._stream.seek(self.start + min(self._at, len(self)))
        return self._at

    def tell(self) -> int:
        """The current position."""
        return self._at

    def part(self, start: int, end: int) -> Bytes:
        """A part of this range; ``start`` and ``end`` are relative to it."""
        return Bytes(self._stream, self.start + start, self.start + end)

    def until(self, other: Beginning, own: int = 1) -> Bytes:
        """The same range, cut where another container begins, at or behind offset ``own``."""
        return Bytes(self._stream, self.start, self.end, other, own, self._fixes)

    def fixed(self, fixes: Mapping[int, bytes]) -> Bytes:
        """The same range with other bytes at some offsets."""
        return Bytes(self._stream, self.start, self.end, fixes=fixes)

    def at(self, offset: int, size: int) -> bytes:
        """Read at most ``size`` bytes from ``offset`` without moving the position."""
        before = self._at
        self.seek(offset)
        data = self.read(size)
        self.seek(before)
        return data


def _overwritten(data: bytes, offset: int, right: bytes) -> bytes:
    if not -len(right) < offset < len(data):
        return data
    first, last = max(offset, 0), min(offset + len(right), len(data))
    return data[:first] + right[first - offset : last - offset] + data[last:]


def open_container(file: Bytes, options: dict[str, str] | None = None) -> Any:
    """Open the PyAV container at the start of a byte range. It has at least one audio stream.

    :param options: options of FFmpeg's demuxer.
    :raises AudioError: ``empty``, ``not_audio``, ``no_audio_stream`` or ``corrupt``.
    """
    container = _opened(file, options or {})
    if not container.streams.audio and container.format.name in _STREAMS_APPEAR:
        container.close()
        container = _opened(file, {**(options or {}), **_DEEP})
    try:
        _check_audio(container)
    except BaseException:
        container.close()
        raise
    return container


def _opened(file: Bytes, options: dict[str, str]) -> Any:
    file.seek(0)
    # No protocols: FFmpeg must not open other files or hosts that a container refers to.
    limits = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    try:
        return av.open(file, mode="r", metadata_errors="ignore", container_options={**options, **limits})
    except (av.error.FFmpegError, ValueError) as error:
        raise _unopened(file.at(0, 4096), error) from None


def _check_audio(container: Any) -> None:
    """Raise ``AudioError`` when there is nothing to decode."""
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
    if all(stream.codec_context is None for stream in container.streams.audio):
        raise AudioError("corrupt", "an audio stream in a codec that FFmpeg cannot decode")


def _unopened(head: bytes, error: Exception) -> AudioError:
    if not any(head[at:].startswith(signature) for at, signature in _SIGNATURES):
        kind = look_alike(head)
        return AudioError(
            "not_audio", f"no recording but {kind}" if kind else "no audio container that FFmpeg knows"
        )
    if isinstance(error, av.error.EOFError) or len(head) < 4096:
        return AudioError("empty", "an audio container that ends before the first sample")
    return AudioError("corrupt", f"an audio container that cannot be opened: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, without the number and the file name that PyAV adds."""
    text = getattr(error, "strerror", None) or str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:200]


def check_transfer(file: Bytes) -> None:
    """Raise ``AudioError`` for a file that was changed as if it were text."""
    change = changed_as_text(file.at(0, _TRANSFER))
    if change is not None:
        raise AudioError("corrupt", change)
