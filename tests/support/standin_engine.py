"""An engine without a model, for tests of Spark and staging. Tests send this file to the executors."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whisper_spark.contract import Segment, Transcript, WhisperOptions, Word
from whisper_spark.progress.counters import Progress

LOG_SUFFIX = ".transcribed"
"""Suffix of a log beside each audio file. The log has one character for each transcription of the file."""


def transcript_of(file: Any, options: WhisperOptions, text: str) -> Transcript:
    """Return a transcript of one English segment and one word."""
    words = (Word(0.0, 1.0, text, 0.9),)
    segment = Segment(0, None, 0.0, 1.0, text, "en", -0.1, 1.0, 0.0, words)
    return Transcript(
        language="en",
        duration_s=2.0,
        speech_s=1.0,
        channels=1,
        text=text,
        segments=(segment,),
        **_origin(file, options),
    )


def error_of(file: Any, options: WhisperOptions, code: str) -> Transcript:
    """Return an error row."""
    message = f"asked to fail: {code}"
    return Transcript(status="error", error_code=code, error_message=message, **_origin(file, options))


def _origin(file: Any, options: WhisperOptions) -> dict[str, Any]:
    return {
        "audio_uri": file.uri,
        "audio_etag": file.etag,
        "audio_bytes": file.size,
        "attempt": file.attempt,
        "model": options.model,
        "fingerprint": options.fingerprint(),
        "engine_version": "stand-in 1",
        "transcribed_at": datetime.now(UTC),
    }


def get_engine(options: WhisperOptions, storage: Any = None) -> StandIn:
    return StandIn(options)


class StandIn:
    """Returns the file's name as its transcript, after performing the action named in the file."""

    def __init__(self, options: WhisperOptions) -> None:
        self._options = options

    def transcribe(
        self, files: Iterable[Any], storage: Any = None, progress: Any = None
    ) -> Iterator[Transcript]:
        progress = progress or Progress()
        progress.start()
        for file in _read_ahead(files, self._options.prefetch_files):
            with storage.open(file.uri, etag=file.etag) as audio:
                order = audio.read(200).decode().split()
            with Path(file.uri.removeprefix("file://") + LOG_SUFFIX).open("a") as log:
                log.write("x")
            transcript = self._transcript(file, order)
            progress.finished(transcript)
            yield transcript
        progress.stop()

    def _transcript(self, file: Any, order: list[str]) -> Transcript:
        action, argument = [*order, "", ""][:2]
        code = _error_code(action, argument)
        if code:
            return error_of(file, self._options, code)
        _obey(action, argument)
        name = file.uri.rsplit("/", 1)[1]
        if action == "environment":
            name = f"{os.environ.get(argument)} {Path.cwd()}"
        if action == "gpu":
            from pyspark import TaskContext

            context = TaskContext.get()
            name = f"GPU {context.resources()['gpu'].addresses}, {context.cpus()} cores"
        if action == "share":
            from whisper_spark.decoding.device import available_cores, tasks_of_gpu

            name = f"{available_cores()} cores, {tasks_of_gpu()} tasks on the GPU"
        return transcript_of(file, self._options, name)


def _error_code(action: str, argument: str) -> str | None:
    """The error code of a file that is to fail; otherwise ``None``."""
    match action:
        case "error":
            return "corrupt"
        case "fail":
            return argument
        case "forbidden-until" if not Path(argument).exists():
            return "forbidden"
        case "error-once" if not Path(argument).exists():
            Path(argument).touch()
            return "internal"
    return None


def _obey(action: str, argument: str) -> None:
    """Wait, or kill a process."""
    match action:
        case "sleep":
            time.sleep(float(argument))
        case "sleep-unless" if not Path(argument).exists():
            time.sleep(3600)
        case "crash-once" if not Path(argument).exists():
            Path(argument).touch()
            # Wait until the rows before this one have become durable.
            time.sleep(1.5)
            os._exit(70)
        case "kill":
            os.kill(os.getpid(), signal.Signals[argument])
        case "kill-worker":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case "kill-worker-once" if not Path(argument).exists():
            Path(argument).touch()
            time.sleep(1.5)
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)


def _read_ahead(files: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Read ahead in another thread, as the real engine does, so that several files are open in a crash."""
    waiting: queue.Queue[Any] = queue.Queue(ahead)

    def read() -> None:
        for file in files:
            waiting.put(file)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (file := waiting.get()) is not None:
        yield file
