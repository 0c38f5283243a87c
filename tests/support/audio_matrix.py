"""One recording in every container, codec and channel layout, with the edits that occur in practice.

The recording has three sentences with pauses of more than a second between them. Tests locate the sentences
by their sound level, so they need no model.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from whisper_spark.audio.decode import DecodedAudio, open_audio

RATE = 16_000
Samples = npt.NDArray[np.float32]
Spans = list[tuple[float, float]]

# Seconds between the sentences. A cut in the middle of a pause does not affect sound.
PAUSE = 1.5


@dataclass(frozen=True)
class Format:
    """A container with a codec.

    :param exact: whether the length in its header is exact, so that a cut must be flagged.
    :param timed: whether its packets have arbitrary timestamps, so that gaps are possible.
    :param loses: whether packets may be omitted; in Ogg this would move the rest of the page.
    :param starts: whether its timestamps may begin at any time.
    :param video: the video codec that it can hold.
    :param layouts: numbers of channels that it can hold.
    :param index: whether the index of its packets is at the end, so that a cut removes it.
    """

    name: str
    container: str
    codec: str
    rate: int = RATE
    options: dict[str, str] = field(default_factory=dict)
    exact: bool = False
    timed: bool = False
    loses: bool = True
    starts: bool = False
    video: str | None = None
    layouts: tuple[int, ...] = (1, 2)
    index: bool = False

    def __str__(self) -> str:
        return self.name


_ANY = (1, 2, 3, 6, 8, 9, 16)
_TO_8 = (1, 2, 3, 6, 8)
_TO_6 = (1, 2, 3, 6)
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "500000"}

FORMATS = (
    Format("wav", "wav", "pcm_s16le", exact=True, layouts=(*_ANY, 64)),
    Format("wav-u8", "wav", "pcm_u8", exact=True, layouts=_ANY),
    Format("wav-float", "wav", "pcm_f32le", exact=True, layouts=_ANY),
    Format("wav-double", "wav", "pcm_f64le", exact=True, layouts=_ANY),
    Format("wav-s24", "wav", "pcm_s24le", 48_000, exact=True, layouts=_ANY),
    Format("wav-mulaw", "wav", "pcm_mulaw", 8_000, exact=True, layouts=_ANY),
    Format("wav-adpcm", "wav", "adpcm_ms", exact=True),
    Format("rf64", "wav", "pcm_s16le", options={"rf64": "always"}, exact=True, layouts=_ANY),
    Format("w64", "w64", "pcm_s16le", exact=True, layouts=_ANY),
    Format("aiff", "aiff", "pcm_s16be", 44_100, exact=True, layouts=_TO_8),
    Format("au", "au", "pcm_s16be", exact=True, layouts=_TO_8),
    Format("caf", "caf", "pcm_s16be", exact=True, layouts=_TO_8),
    Format("tta", "tta", "tta", exact=True, layouts=_TO_6, index=True),
    Format("wavpack", "wv", "wavpack", exact=True, layouts=_TO_8),
    Format("flac", "flac", "flac", exact=True, layouts=_TO_8),
    Format("mp3", "mp3", "libmp3lame", 44_100, exact=True),
    Format("mp3-no-xing", "mp3", "libmp3lame", 22_050, {"write_xing": "0", "id3v2_version": "0"}),
    Format("mp2", "mp2", "mp2", 44_100),
    Format("adts", "adts", "aac", 44_100, layouts=_TO_6),
    Format("ac3", "ac3", "ac3", 48_000, layouts=_TO_6),
    Format("eac3", "eac3", "eac3", 48_000, layouts=_TO_6),
    Format("amr", "amr", "libopencore_amrnb", 8_000, layouts=(1,)),
    Format("3gp-amr", "3gp", "libopencore_amrnb", 8_000, exact=True, timed=True, layouts=(1,), index=True),
    Format("m4a-alac", "ipod", "alac", exact=True, timed=True, video="mpeg4", index=True),
    Format("m4a-aac", "ipod", "aac", 44_100, exact=True, timed=True, video="mpeg4", index=True),
    Format("m4a-faststart", "ipod", "aac", 48_000, {"movflags": "faststart"}, exact=True, layouts=_TO_6),
    Format("mp4-fragments", "mp4", "aac", 32_000, _FRAGMENTS, timed=True, video="mpeg4", layouts=_TO_6),
    Format("mov-pcm", "mov", "pcm_s16le", exact=True, layouts=_TO_8, index=True),
    Format("ogg-vorbis", "ogg", "vorbis", timed=True, loses=False, starts=True, layouts=(2,)),
    Format("ogg-opus", "ogg", "libopus", 48_000, timed=True, loses=False, starts=True, layouts=(1, 2, 6, 8)),
    Format("ogg-flac", "ogg", "flac", timed=True, loses=False, starts=True, layouts=_TO_8),
    Format("webm-opus", "webm", "libopus", 48_000, {}, True, True, True, True, "libvpx", (1, 2, 6, 8)),
    Format("mka-pcm", "matroska", "pcm_s16le", RATE, {}, True, True, True, True, "mpeg4", _ANY),
    Format("mka-aac", "matroska", "aac", 44_100, {}, True, True, True, True, "mpeg4", _TO_6),
    Format("mka-flac", "matroska", "flac", RATE, {}, True, True, True, True, None, _TO_8),
    Format("avi-mp3", "avi", "libmp3lame", 44_100, exact=True),
    Format("avi-pcm", "avi", "pcm_s16le", exact=True),
    Format("flv-aac", "flv", "aac", 44_100, exact=True, timed=True, video="flv"),
    Format("flv-mp3", "flv", "libmp3lame", 44_100, exact=True, timed=True, video="flv"),
    Format("ts-aac", "mpegts", "aac", 44_100, layouts=_TO_6, timed=True, starts=True, video="mpeg2video"),
    Format("ts-mp2", "mpegts", "mp2", 44_100, timed=True, starts=True, video="mpeg2video"),
    Format("ts-mp3", "mpegts", "libmp3lame", 44_100, timed=True, starts=True, video="mpeg2video"),
    Format("ts-ac3", "mpegts", "ac3", 48_000, layouts=_TO_6, timed=True, starts=True, video="mpeg2video"),
    Format("ps-mp2", "mpeg", "mp2", 44_100, timed=True, starts=True, video="mpeg2video"),
    Format("vob-ac3", "vob", "ac3", 48_000, timed=True, starts=True, video="mpeg2video", layouts=_TO_6),
    Format("asf-wma", "asf", "wmav2", 44_100, exact=True, timed=True),
)


def recording(sentences: Sequence[Samples]) -> Samples:
    """The sentences with pauses around them."""
    pause = np.zeros(int(PAUSE * RATE), np.float32)
    return np.concatenate([pause, *(piece for sentence in sentences for piece in (sentence, pause))])


def spans(samples: Samples) -> Spans:
    """Start and end, in seconds, of each stretch of sound without a second of silence."""
    step = RATE // 50
    levels = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(axis=1, initial=0.0)
    loud = np.flatnonzero(levels > 0.1 * levels.max(initial=0.0)) if levels.any() else np.zeros(0, np.int64)
    found: Spans = []
    for number in loud.tolist():
        start = number * step / RATE
        if found and start - found[-1][1] < 1.0:
            found[-1] = (found[-1][0], start + step / RATE)
        else:
            found.append((start, start + step / RATE))
    return found


def moved(where: Spans, seconds: float) -> Spans:
    return [(start + seconds, end + seconds) for start, end in where]


def layout_of(channels: int) -> str:
    names = {1: "mono", 2: "stereo", 3: "2.1", 6: "5.1", 8: "7.1"}
    return names.get(channels, f"{channels} channels")


Edit = Callable[[float], float | None]


def encode(
    form: Format,
    channels: npt.NDArray[np.float32],
    edit: Edit = lambda time: time,
    video: float | None = None,
) -> bytes:
    """Encode a recording and return the bytes of the file.

    :param channels: float32 of shape (channels, samples) at 16 kHz.
    :param edit: maps the time of each packet to a new time in seconds, or to ``None`` to omit the packet.
    :param video: duration in seconds of a video stream beside the sound.
    """
    channels = np.repeat(channels, 2, axis=0) if len(channels) not in form.layouts else channels
    with tempfile.NamedTemporaryFile() as file:
        _write(file.name, form, channels, edit, video)
        return Path(file.name).read_bytes()


def _write(
    path: str, form: Format, channels: npt.NDArray[np.float32], edit: Edit, video: float | None
) -> None:
    with av.open(path, "w", format=form.container, options=form.options) as container:
        layout = layout_of(len(channels))
        strict = {"strict": "experimental"} if form.codec == "vorbis" else {}
        stream: Any = container.add_stream(form.codec, rate=form.rate, layout=layout, options=strict)
        stream.bit_rate = 64_000 * len(channels)
        pictures = None if video is None else _pictures(container, form, video)
        packets = [p for p in packets_of(stream, channels, form.rate) if _edited(p, edit)]
        packets += pictures or []
        for packet in sorted(packets, key=lambda p: float((p.dts or p.pts or 0) * p.time_base)):
            container.mux(packet)


def _edited(packet: Any, edit: Edit) -> bool:
    tick = packet.time_base
    time = edit(float((packet.pts or 0) * tick))
    if time is None:
        return False
    shift = round(Fraction(time) / tick) - (packet.pts or 0)
    if shift:
        packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
    return True


def packets_of(stream: Any, channels: npt.NDArray[np.float32], rate: int) -> list[Any]:
    layout = layout_of(len(channels))
    to_codec = av.AudioResampler(stream.codec_context.format.name, layout, rate, frame_size=1024)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels.T.reshape(1, -1)), "flt", layout)
    frame.sample_rate = RATE
    packets, position = [], 0
    for piece in [*to_codec.resample(frame), *to_codec.resample(None)]:
        piece.pts, piece.time_base = position, Fraction(1, rate)
        position += piece.samples
        packets += stream.encode(piece)
    return [*packets, *stream.encode(None)]


def _pictures(container: Any, form: Format, seconds: float) -> list[Any]:
    stream = container.add_stream(form.video, rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    # libvpx's threads wait for each other in busy loops.
    stream.codec_context.thread_count = 1
    packets = []
    for number in range(int(seconds * 25)):
        frame = av.VideoFrame(64, 48, "yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def decoded(data: bytes, **how: Any) -> tuple[dict[int, Samples], DecodedAudio]:
    """Decode a file: the samples of each channel, and the decoder."""
    audio = open_audio(io.BytesIO(data), **how)
    channels: dict[int, list[Samples]] = {}
    for samples, channel in audio.blocks():
        channels.setdefault(channel, []).append(samples)
    return {channel: np.concatenate(blocks) for channel, blocks in sorted(channels.items())}, audio
