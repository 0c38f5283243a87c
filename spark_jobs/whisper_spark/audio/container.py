"""Bytes -> an open container: what FFmpeg may open, how far it looks for streams, and what is no audio."""

from __future__ import annotations

import os
import re
from typing import Any, BinaryIO

import av

# A corrupt file would otherwise write hundreds of lines into the executor's log.
av.logging.set_level(None)

# FFmpeg's names of containers and bare streams of audio, with or without video. FFmpeg also "opens" playlists
# (HLS, ffconcat), session descriptions (SDP), scripts, subtitles and pictures: those name other files and
# hosts, or hold no sound, and are not on the list.
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

# FFmpeg codec names. FFmpeg opens a picture as a video of one frame; to us it is no recording at all.
_STILL_IMAGES = frozenset(
    "apng bmp dpx exr gif jpeg jpegls ljpeg mjpeg pam pbm pcx pgm pgmyuv png ppm psd qoi sgi sunrast svg "
    "targa tiff txd webp xbm xpm xwd".split()
)

# AVFMT_NOTIMESTAMPS (libavformat/avformat.h): a bare stream of frames without a container. FFmpeg sees one by
# chance in one of a hundred files of random bytes.
_NO_TIMESTAMPS = 0x80

# Where audio containers say what they are: a file that starts so and cannot be opened is damaged audio.
_SIGNATURES = (
    *((0, magic) for magic in (b"fLaC", b"OggS", b"ID3", b"FORM", b"caff", b".snd", b"\x1aE\xdf\xa3")),
    *((0, magic) for magic in (b"RF64", b"FLV\x01", b"#!AMR")),
    (4, b"ftyp"),
    (8, b"WAVE"),
)

# Bytes that tell how a container begins.
_LONGEST_BEGINNING = 24

# Containers without a table of their streams: one is there when its first packet has been seen.
_STREAMS_APPEAR = frozenset({"mpegts", "mpeg", "flv", "live_flv", "kux"})

# How far FFmpeg looks into those for audio, where its own 5 MB and 5 seconds hold none: at 8 Mbit/s of video
# these are 64 seconds. What it reads on the way stays in memory.
_DEEP = {"probesize": str(64 * 1024 * 1024), "analyzeduration": str(3600 * 1_000_000)}


class AudioError(Exception):
    """A file that cannot be turned into samples. ``code`` is one of :data:`contract.ERROR_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Bytes:
    """A stretch of a file, as FFmpeg reads it.

    Without the file's name, since FFmpeg trusts a suffix more than the bytes, and only local files have one.
    Damaged files send FFmpeg to places before the beginning: that is an error for FFmpeg to handle, not an
    exception.

    :param start: first byte.
    :param end: behind the last byte.
    :param other: how another container begins. Where that is read, the bytes end.
    """

    def __init__(
        self, stream: BinaryIO, start: int, end: int, other: re.Pattern[bytes] | None = None
    ) -> None:
        self._stream = stream
        self.start = start
        self.end = end
        self._other = other
        self._before = b""
        self._at = 0
        stream.seek(start)

    def __len__(self) -> int:
        return self.end - self.start

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        data = self._stream.read(max(0, min(size, len(self) - self._at)))
        if self._other is not None:
            data = self._until_other(data, self._other)
        self._at += len(data)
        return data

    def _until_other(self, data: bytes, other: re.Pattern[bytes]) -> bytes:
        seen = self._before + data
        for match in other.finditer(seen):
            beginning = self._at - len(self._before) + match.start()
            if beginning > 0:
                self.end = self.start + beginning
                return data[: max(beginning - self._at, 0)]
        self._before = seen[-_LONGEST_BEGINNING:]
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new position, or a negative number where there is none."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self)}.get(whence)
        if base is None or base + offset < 0:
            return -22  # EINVAL
        self._at = base + offset
        self._before = b""
        self._stream.seek(self.start + min(self._at, len(self)))
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def part(self, start: int, end: int) -> Bytes:
        """A stretch of this stretch."""
        return Bytes(self._stream, self.start + start, self.start + end)

    def until(self, other: re.Pattern[bytes]) -> Bytes:
        """The same stretch, which ends where another container begins."""
        return Bytes(self._stream, self.start, self.end, other)

    def at(self, offset: int, size: int) -> bytes:
        """Bytes from somewhere, without moving."""
        before = self._at
        self.seek(offset)
        data = self.read(size)
        self.seek(before)
        return data


def open_container(file: Bytes, options: dict[str, str] | None = None) -> Any:
    """The PyAV container that starts where the bytes start, with at least one stream of audio.

    :param options: for FFmpeg's demuxer.
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
    # No protocol: whatever a container names besides its own bytes stays closed.
    limits = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
    try:
        return av.open(file, mode="r", metadata_errors="ignore", container_options={**options, **limits})
    except (av.error.FFmpegError, ValueError) as error:
        raise _unopened(file.at(0, 4096), error) from None


def _check_audio(container: Any) -> None:
    """Raises ``AudioError`` when there is nothing to decode."""
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
        return AudioError("not_audio", f"no audio container that FFmpeg knows: {first_line(error)}")
    if isinstance(error, av.error.EOFError) or len(head) < 4096:
        return AudioError("empty", "an audio container that ends before the first sample")
    return AudioError("corrupt", f"an audio container that cannot be opened: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
