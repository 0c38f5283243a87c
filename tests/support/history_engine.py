"""A stand-in engine for histories, controlled by hidden files beside the audio, so that etags do not change.

The transcript of a file ``a.wav`` is its content. The hidden file ``.a.wav.fails`` makes it fail with a
transient error. ``.stop-after`` in the folder contains the number of files after which the engine fails, as
with a lost GPU. The engine appends a line to ``.heard`` for each transcribed file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from standin_engine import error_of, transcript_of

from whisper_spark.contract import Transcript, WhisperOptions
from whisper_spark.progress.counters import Progress
from whisper_spark.storage.objects import ObjectChanged, ObjectNotFound, StorageError

BROKEN = "not audio"
"""Content of a file that can never be transcribed."""


class DeviceLostError(RuntimeError):
    """The error with which the engine stops early."""


def get_engine(options: WhisperOptions, storage: Any = None) -> HistoryEngine:
    return HistoryEngine(options)


class HistoryEngine:
    def __init__(self, options: WhisperOptions) -> None:
        self._options = options

    def transcribe(
        self, files: Iterable[Any], storage: Any = None, progress: Any = None
    ) -> Iterator[Transcript]:
        progress = progress or Progress()
        progress.start()
        for number, file in enumerate(files):
            folder = Path(file.uri.removeprefix("file://")).parent
            stop = folder / ".stop-after"
            if stop.exists() and number >= int(stop.read_text()):
                raise DeviceLostError("CUDA error: the device was lost")
            transcript = self._transcript(file, storage, folder)
            with (folder / ".heard").open("a") as heard:
                heard.write(f"{file.uri} {file.etag} {self._options.fingerprint()}\n")
            progress.finished(transcript)
            yield transcript
        progress.stop()

    def _transcript(self, file: Any, storage: Any, folder: Path) -> Transcript:
        name = file.uri.rsplit("/", 1)[1]
        if (folder / f".{name}.fails").exists():
            return error_of(file, self._options, "internal")
        try:
            with storage.open(file.uri, etag=file.etag) as audio:
                text = audio.read().decode()
        except ObjectNotFound:
            return error_of(file, self._options, "not_found")
        except ObjectChanged:
            return error_of(file, self._options, "changed_during_read")
        except StorageError:
            return error_of(file, self._options, "internal")
        if text == BROKEN:
            return error_of(file, self._options, "corrupt")
        return transcript_of(file, self._options, text)
