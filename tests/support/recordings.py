"""Create test audio from recorded speech: calls with known positions, in any container."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from whisper_spark.audio.decode import open_audio

RATE = 16_000
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Span:
    """Position of a prompt in a created recording, in seconds."""

    start: float
    end: float
    text: str


def samples_of(path: Path) -> Samples:
    """Return all samples of a file, as float32 mono at 16 kHz."""
    with path.open("rb") as stream:
        return np.concatenate([block[0] for block in open_audio(stream).blocks()])


def silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * RATE), np.float32)


def call(paths_and_texts: Iterable[tuple[Path, str]], pause: float = 1.0) -> tuple[Samples, list[Span]]:
    """Join recordings with pauses, and return where the sound of each begins and ends."""
    pieces, spans, position = [silence(pause)], [], pause
    for path, text in paths_and_texts:
        samples = samples_of(path)
        loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
        start, end = position + loud[0] / RATE, position + loud[-1] / RATE
        spans.append(Span(float(start), float(end), text))
        pieces += [samples, silence(pause)]
        position += len(samples) / RATE + pause
    return np.concatenate(pieces), spans


def write(
    path: Path, channels: Samples | Sequence[Samples], rate: int = RATE, codec: str | None = None
) -> Path:
    """Encode float32 samples, mono or channels of equal length. The suffix determines the container."""
    rows = np.atleast_2d(np.asarray(channels, np.float32))
    codecs = {".wav": "pcm_s16le", ".mp3": "mp3", ".ogg": "libopus", ".m4a": "aac"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        name = codec or codecs.get(path.suffix, path.suffix[1:])
        stream = container.add_stream(name, rate=rate)
        stream.layout = "mono" if len(rows) == 1 else "stereo"
        layout = stream.layout.name
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(rows), format="fltp", layout=layout)
        frame.sample_rate = RATE
        size = stream.codec_context.frame_size or 4096
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts = None
            fifo.write(piece)
        while (chunk := fifo.read(size) or fifo.read(0, partial=True)) is not None:
            chunk.pts = None
            container.mux(stream.encode(chunk))
        container.mux(stream.encode(None))
    return path


def record(path: Path, seconds: int) -> None:
    """Write silence of 8 kHz and 16 bits as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(b"\0\0" * 8_000 * seconds)
