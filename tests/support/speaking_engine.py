"""An engine without a model that says what stands in the file, one segment a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from whisper_spark.contract import Segment, Transcript, WhisperOptions, Word


def get_engine(options: WhisperOptions, storage: Any = None) -> SpeakingEngine:
    return SpeakingEngine(options)


class SpeakingEngine:
    def __init__(self, options: WhisperOptions) -> None:
        self._options = options

    def transcribe(
        self, files: Iterable[Any], storage: Any = None, progress: Any = None
    ) -> Iterator[Transcript]:
        for file in files:
            with storage.open(file.uri) as audio:
                lines = audio.read().decode().splitlines()
            segments = tuple(_segment(number, line) for number, line in enumerate(lines))
            transcript = Transcript(
                audio_uri=file.uri,
                audio_etag=file.etag,
                audio_bytes=file.size,
                attempt=file.attempt,
                language="en",
                duration_s=float(len(lines)),
                speech_s=float(len(lines)),
                channels=1,
                text=" ".join(segment.text for segment in segments),
                segments=segments,
                model=self._options.model,
                fingerprint=self._options.fingerprint(),
                engine_version="speaking 1",
                transcribed_at=datetime.now(UTC),
            )
            progress.finished(transcript)
            yield transcript


def _segment(number: int, line: str) -> Segment:
    said = line.split()
    each = 1 / len(said)
    words = tuple(
        Word(round(number + n * each, 3), round(number + (n + 1) * each, 3), f" {word}", 0.9)
        for n, word in enumerate(said)
    )
    return Segment(number, None, float(number), number + 1.0, " ".join(said), "en", -0.1, 1.0, 0.0, words)
