"""How large a second of audio is, from the first bytes of files as encoders write them."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from airflow_whisper.discovery.headers import HEAD_BYTES, bytes_per_second

SECONDS = 30
DATA = Path(__file__).resolve().parents[2] / "data" / "audio"


def encoded(
    folder: Path, format_: str, codec: str, rate: int, options: dict[str, str] | None = None
) -> bytes:
    """Half a minute of noise, as FFmpeg writes it."""
    noise = np.random.default_rng(1).normal(0, 3000, rate * SECONDS).astype(np.int16)
    path = folder / f"noise.{format_}"
    with av.open(path, "w", format=format_, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(noise[None, :], format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("format_", "codec", "rate", "options"),
    [
        ("wav", "pcm_s16le", 8_000, None),
        ("wav", "pcm_mulaw", 8_000, None),
        ("flac", "flac", 16_000, None),
        ("mp3", "libmp3lame", 16_000, None),
        ("mp3", "libmp3lame", 44_100, None),
        ("mp3", "libmp3lame", 44_100, {"write_xing": "0"}),
        ("mp4", "aac", 16_000, {"movflags": "faststart"}),
    ],
    ids=lambda value: str(value),
)
def test_header_tells_the_size_of_a_second(
    tmp_path: Path, format_: str, codec: str, rate: int, options: dict[str, str] | None
) -> None:
    file = encoded(tmp_path, format_, codec, rate, options)
    told = bytes_per_second(file[:HEAD_BYTES], len(file))
    assert told == pytest.approx(len(file) / SECONDS, rel=0.02)


def test_picture_in_front_of_the_music_is_stepped_over(tmp_path: Path) -> None:
    file = encoded(tmp_path, "mp3", "libmp3lame", 16_000)
    start = bytes_per_second(file, len(file))
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 100 >> 1, 0]) + b"\xff\xfb\x90\x00" * 1600
    body = file[file.index(b"\xff\xf3") :]
    assert bytes_per_second(tag + body, len(tag + body)) == pytest.approx(start, rel=0.02)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"RIFF",
        b"RIFF\0\0\0\0WAVE",
        b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff",
        b"fLaC" + b"\0" * 60,
        b"\0\0\0\x20ftypM4A ",
        b"\xff\xfb\xff\xff" * 20,
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f",
        b"OggS" + b"\0" * 90,
    ],
)
def test_header_that_does_not_tell_is_no_error(head: bytes) -> None:
    assert bytes_per_second(head, 1_000_000) is None


def test_every_odd_file_is_told_or_not_without_an_error() -> None:
    for path in DATA.iterdir():
        data = path.read_bytes()
        told = bytes_per_second(data[:HEAD_BYTES], len(data))
        assert told is None or 100 < told < 2_000_000, path.name


def test_wave_written_by_the_standard_library() -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        file.writeframes(b"\0" * 1000)
    assert bytes_per_second(out.getvalue(), 1_044) == 176_400
