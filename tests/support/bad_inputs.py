"""Damaged and misleading input files, and the expected result of each."""

from __future__ import annotations

import json
import shutil
import struct
import wave
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

RATE = 16_000
Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Expected:
    """The expected result of a file.

    :param code: the error code; ``None`` for a transcript.
    :param flags: quality flags that must be set.
    :param text: ``"whole"``: the text of the clip; ``"part"``: its beginning; ``"none"``: no text.
    """

    code: str | None = None
    flags: frozenset[str] = frozenset()
    text: str = "whole"

    @property
    def status(self) -> str:
        return "ok" if self.code is None else "error"


def error(code: str) -> Expected:
    return Expected(code=code, text="none")


WHOLE = Expected()
TRUNCATED = Expected(flags=frozenset({"truncated"}), text="part")
NOTHING_SAID = Expected(flags=frozenset({"no_speech"}), text="none")

NAMES = (
    "with space.wav",
    " leading space.wav",
    "hash#1.wav",
    "percent%.wav",
    "percent%20encoded.wav",
    "question?.wav",
    "single'quote.wav",
    'double"quote.wav',
    "plus+and&.wav",
    "glob[1]*.wav",
    "größe.wav",
    "会議の録音.wav",
    "emoji-🎧.wav",
    "no_extension",
    "UPPER.WAV",
)


def make_bad_inputs(folder: Path, clip: Path) -> dict[str, Expected]:
    """Write every kind of bad input to ``folder``, and good files with awkward names.

    :param clip: a recording of speech of several seconds, as 16-bit WAV.
    :return: the expected result of each file, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rate, samples = read_wav(clip)
    expected: dict[str, Expected] = {}
    for make in (_no_audio, _headers, _damaged, _lying_wavs, _videos):
        expected |= make(folder, rate, samples)
    expected |= make_non_speech(folder)
    for name in NAMES:
        shutil.copy(clip, folder / name)
        expected[name] = WHOLE
    return expected


def make_non_speech(folder: Path) -> dict[str, Expected]:
    """Write silence, white noise and a pure tone, of 1 and 30 seconds each."""
    noise = np.random.default_rng(1)
    kinds: dict[str, Callable[[int], npt.NDArray[np.float64]]] = {
        "silence": lambda n: np.zeros(n),
        "noise": lambda n: noise.normal(0.0, 0.1, n),
        "quiet_noise": lambda n: noise.normal(0.0, 0.003, n),
        "tone": lambda n: 0.3 * np.sin(2 * np.pi * 440 * np.arange(n) / RATE),
    }
    expected = {}
    for kind, make in kinds.items():
        for seconds in (1, 30):
            name = f"{kind}_{seconds}s.wav"
            samples = (np.clip(make(seconds * RATE), -1, 1) * 32767).astype(np.int16)
            write_wav(folder / name, RATE, samples)
            expected[name] = NOTHING_SAID
    write_wav(folder / "one_sample.wav", RATE, np.array([1000], np.int16))
    return expected | {"one_sample.wav": NOTHING_SAID}


def read_wav(path: Path) -> tuple[int, Samples]:
    """Return the sample rate in Hz and the samples."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)


def write_wav(path: Path, rate: int, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def encode(
    path: Path, codec: str, rate: int, samples: Samples, *, options: dict[str, str] | None = None
) -> bytes:
    """Write samples in the format given by the suffix of ``path``, and return the bytes written."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate if codec != "libopus" else 48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _no_audio(folder: Path, rate: int, samples: Samples) -> dict[str, Expected]:
    random = np.random.default_rng(7).bytes(200_000)
    page = "<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>" + "<p>No access.</p>" * 200
    record = {"id": 17, "calls": [{"from": "+1 555 0100", "seconds": i} for i in range(300)]}
    contents = {
        "zero_bytes.wav": b"",
        "one_byte.mp3": b"\xff",
        "random.flac": random,
        "page.mp3": page.encode(),
        "record.m4a": json.dumps(record).encode(),
        "notes.wav": b"Call back on Monday.\n" * 50,
        "picture.wav": _picture(folder / "picture.png"),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "picture.png").unlink()
    return dict.fromkeys(contents, error("not_audio")) | {"zero_bytes.wav": error("empty")}


def _picture(path: Path) -> bytes:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        pixels = np.random.default_rng(3).integers(0, 255, (48, 64, 3), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _headers(folder: Path, rate: int, samples: Samples) -> dict[str, Expected]:
    """Write files that end before the first sample."""
    mp3 = encode(folder / "header_only.mp3", "libmp3lame", rate, samples)
    flac = encode(folder / "header_only.flac", "flac", rate, samples)
    ogg = encode(folder / "header_only.ogg", "libopus", rate, samples)
    m4a = encode(folder / "header_only.m4a", "aac", rate, samples)
    write_wav(folder / "header_only.wav", rate, samples)
    headers = {
        "header_only.wav": (folder / "header_only.wav").read_bytes()[:44],
        "header_only.mp3": mp3[: _id3_bytes(mp3)],
        "header_only.flac": flac[: _flac_header_bytes(flac)],
        "header_only.ogg": ogg[: _ogg_header_bytes(ogg)],
        "header_only.m4a": m4a[: m4a.index(b"mdat") + 4],
    }
    for name, data in headers.items():
        (folder / name).write_bytes(data)
    return dict.fromkeys(headers, error("empty"))


def _id3_bytes(mp3: bytes) -> int:
    assert mp3[:3] == b"ID3"
    size = 0
    for byte in mp3[6:10]:
        size = size << 7 | byte
    return 10 + size


def _flac_header_bytes(flac: bytes) -> int:
    assert flac[:4] == b"fLaC"
    position, last = 4, False
    while not last:
        last = bool(flac[position] & 0x80)
        position += 4 + int.from_bytes(flac[position + 1 : position + 4], "big")
    return position


def _ogg_header_bytes(ogg: bytes) -> int:
    """Size of the header: an Ogg Opus stream has two header pages, and sound from the third page on."""
    second = ogg.index(b"OggS", 4)
    return ogg.index(b"OggS", second + 4)


def _damaged(folder: Path, rate: int, samples: Samples) -> dict[str, Expected]:
    noise = np.random.default_rng(5).bytes
    mp3 = encode(folder / "truncated.mp3", "libmp3lame", rate, samples)
    (folder / "truncated.mp3").write_bytes(mp3[: len(mp3) * 6 // 10])
    flac = encode(folder / "truncated.flac", "flac", rate, samples)
    (folder / "truncated.flac").write_bytes(flac[: len(flac) * 6 // 10])
    header = _flac_header_bytes(flac)
    (folder / "garbage_inside.flac").write_bytes(flac[:header] + noise(200_000))
    # The index is at the end of the file, so truncation removes it.
    m4a = encode(folder / "truncated.m4a", "aac", rate, samples)
    (folder / "truncated.m4a").write_bytes(m4a[: len(m4a) * 6 // 10])
    front = encode(
        folder / "truncated_faststart.m4a", "aac", rate, samples, options={"movflags": "faststart"}
    )
    (folder / "truncated_faststart.m4a").write_bytes(front[: len(front) * 6 // 10])
    return {
        "truncated.mp3": TRUNCATED,
        "truncated.flac": TRUNCATED,
        "truncated_faststart.m4a": TRUNCATED,
        "truncated.m4a": error("corrupt"),
        "garbage_inside.flac": error("corrupt"),
    }


def _lying_wavs(folder: Path, rate: int, samples: Samples) -> dict[str, Expected]:
    """Write WAV files whose header states a wrong number of bytes."""
    write_wav(folder / "says_more.wav", rate, samples)
    honest = (folder / "says_more.wav").read_bytes()
    bytes_of_sound = len(honest) - 44
    claims = {
        "says_more.wav": (10 * bytes_of_sound, Expected(flags=frozenset({"truncated"}))),
        "says_less.wav": (bytes_of_sound * 6 // 10 & ~1, WHOLE),
        # Written by recorders that stream and never update their header.
        "says_nothing.wav": (0, WHOLE),
        # Written by FFmpeg and SoX to a pipe.
        "says_unknown.wav": (0xFFFFFFFF, WHOLE),
    }
    for name, (claim, _) in claims.items():
        riff = min(claim + 36, 0xFFFFFFFF)
        lie = honest[:4] + struct.pack("<I", riff) + honest[8:40] + struct.pack("<I", claim) + honest[44:]
        (folder / name).write_bytes(lie)
    return {name: expected for name, (_, expected) in claims.items()}


def _videos(folder: Path, rate: int, samples: Samples) -> dict[str, Expected]:
    _video(folder / "silent_film.mp4", "libx264")
    _video(folder / "silent_film.avi", "mpeg4")
    _video(folder / "talk.mp4", "libx264", rate, samples)
    return {
        "silent_film.mp4": error("no_audio_stream"),
        "silent_film.avi": error("no_audio_stream"),
        "talk.mp4": WHOLE,
    }


def _video(path: Path, codec: str, rate: int = RATE, samples: Samples | None = None) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = None if samples is None else container.add_stream("aac", rate=rate, layout="mono")
        for number in range(25):
            pixels = np.full((48, 64, 3), 10 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and samples is not None:
            sound = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout="mono")
            sound.sample_rate = rate
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
