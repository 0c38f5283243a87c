"""What the processes of ``gpu.py`` do: load an engine, then transcribe, all beginning at the same moment.

Engines: ``ours``, which runs in a process of its own as everywhere; ``transcribe``, faster-whisper's
``WhisperModel.transcribe`` as the article's method 3 calls it for each file; ``batched``, its
``BatchedInferencePipeline``. The latter two read local files, one after the other, in float16 on a GPU and
with their defaults but for word timestamps and VAD.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from contenders.common import Spoken, from_segments, from_transcript


@dataclass
class _Here:
    """What a process keeps between its two calls."""

    start: Any  # a barrier of all processes: so each gets one of the calls, and they begin together
    name: str = ""
    engine: Any = None


_here: _Here


def enter(start: Any) -> None:
    """Called in each process before anything else, with the barrier."""
    global _here
    _here = _Here(start)


def load(name: str, options: dict[str, Any]) -> float:
    """Load an engine.

    :param options: of ``WhisperOptions``; the other engines take ``model`` and ``device`` only.
    :return: seconds.
    """
    started = time.monotonic()
    try:
        _here.name, _here.engine = name, _loaded(name, options)
    except BaseException:
        _here.start.abort()
        raise
    seconds = time.monotonic() - started
    _here.start.wait()
    return seconds


def _loaded(name: str, options: dict[str, Any]) -> Any:
    if name == "ours":
        from whisper_spark import WhisperOptions
        from whisper_spark.engine.isolated import IsolatedEngine
        from whisper_spark.storage.objects import ObjectStorage

        engine = IsolatedEngine(WhisperOptions(**options))
        list(engine.transcribe([], ObjectStorage()))  # its process keeps the model that this loads
        return engine
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    compute_type = "float16" if options["device"] == "cuda" else "int8"
    model = WhisperModel(options["model"], device=options["device"], compute_type=compute_type)
    return BatchedInferencePipeline(model) if name == "batched" else model


def transcribe(storage: dict[str, str], uris: Sequence[str], folder: str) -> dict[str, Any]:
    """Transcribe files with the loaded engine.

    :param storage: configuration of the object store that the URIs are in.
    :param folder: where files of the same names lie on this machine.
    """
    from whisper_spark.progress.counters import Progress

    progress = Progress()
    errors: list[str] = []
    if _here.name == "ours":
        spoken = _by_us(storage, uris, progress, errors)
    else:
        spoken = _by_faster_whisper([Path(folder, uri.rsplit("/", 1)[1]) for uri in uris])
    _here.start.wait()
    processor, started, peak, looked = processor_seconds(), time.monotonic(), 0.0, 0.0
    heard: dict[str, Spoken] = {}
    for file in spoken:
        heard[Path(file.file).name] = file
        if time.monotonic() - looked > 1:
            peak, looked = max(peak, memory_mib()), time.monotonic()
    end = progress.snapshot()
    return {
        "wall_s": time.monotonic() - started,
        "cpu_s": processor_seconds() - processor,
        "windows": end.windows,
        "retried": end.retried_windows,
        "stages": dict(end.stages),
        "threads_busy": end.device_busy,
        "peak_mib": peak,
        "heard": heard,
        "errors": errors,
    }


def processor_seconds() -> float:
    """Of this process and of all that it and its children have started, those that have ended included."""
    # User and system time, then that of children which have ended, theirs included.
    return _of_all_processes(lambda process: sum(process.cpu_times()[:4]))


def memory_mib() -> float:
    """Resident sets of this process and of all that it and its children have started."""
    return _of_all_processes(lambda process: process.memory_info().rss / 2**20)


def _of_all_processes(amount: Callable[[psutil.Process], float]) -> float:
    this, total = psutil.Process(), 0.0
    for process in [this, *this.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += amount(process)
    return total


def _by_us(
    storage: dict[str, str], uris: Sequence[str], progress: Any, errors: list[str]
) -> Iterator[Spoken]:
    from whisper_spark.audio.files import AudioFile
    from whisper_spark.storage.objects import ObjectStorage

    for transcript in _here.engine.transcribe(map(AudioFile, uris), ObjectStorage(storage), progress):
        if transcript.error_code:
            errors.append(f"{transcript.audio_uri}: {transcript.error_code} {transcript.error_message}")
        yield from_transcript(transcript)


def _by_faster_whisper(paths: Sequence[Path]) -> Iterator[Spoken]:
    for path in paths:
        segments, info = _here.engine.transcribe(str(path), word_timestamps=True, vad_filter=True)
        yield from_segments(str(path), segments, info)
