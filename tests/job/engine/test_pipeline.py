"""The engine stops reading ahead when nobody takes its results."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from whisper_spark import WhisperOptions
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.reader import Part
from whisper_spark.engine import pipeline
from whisper_spark.engine.pipeline import Pipeline


class BrokenFiles:
    """Reads nothing but broken files."""

    def read(self, file: AudioFile) -> Iterator[Part]:
        yield FileError("corrupt", "it is broken")

    def close(self) -> None:
        pass


def test_files_wait_while_nobody_takes_what_is_finished(monkeypatch: Any) -> None:
    monkeypatch.setattr(pipeline, "_MOST_DONE", 10)
    given = 0
    stalled = threading.Event()

    def files() -> Iterator[AudioFile]:
        nonlocal given
        for number in range(500):
            given += 1
            yield AudioFile(f"file:///{number}.wav")

    decoder: Any = SimpleNamespace(
        batch_size=1, device=SimpleNamespace(workers=1), window_bytes=1, multilingual=True
    )
    work = iter(Pipeline(files(), decoder, WhisperOptions(), [BrokenFiles(), BrokenFiles()]))
    next(work)
    # Both readers stop by themselves: then the number stays.
    before = -1
    while before != given:
        before = given
        stalled.wait(0.3)
    assert given <= 10 + 1 + 2 + 1
    start = time.monotonic()
    assert sum(1 for _ in work) == 499
    assert time.monotonic() - start < 60
