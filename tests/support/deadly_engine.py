"""The real engine, but files with certain names kill its process, at the stage and by the signal in the name.

``read-SIGSEGV.wav`` kills the process when the file is read, ``decode-SIGKILL.wav`` when its first windows
are decoded.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any

from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader import FileReader
from whisper_spark.engine import transcriber
from whisper_spark.progress.counters import Progress

_read, _heard = FileReader.read, Progress.heard


def get_engine(*arguments: Any) -> transcriber.Engine:
    engine = transcriber.get_engine(*arguments)
    FileReader.read = read
    Progress.heard = heard
    return engine


def read(self: FileReader, file: AudioFile) -> Iterator[Any]:
    parts = _read(self, file)
    yield next(parts)
    die(file.uri, "read")
    yield from parts


def heard(self: Progress, positions: Mapping[str, float]) -> None:
    for uri in positions:
        die(uri, "decode")
    _heard(self, positions)


def die(uri: str, where: str) -> None:
    found = re.search(rf"/{where}-(SIG[A-Z]+)", uri)
    if found:
        os.kill(os.getpid(), signal.Signals[found[1]])
