"""What all contenders share: the command line, and the lines they write. Only the standard library.

    python method1.py FOLDER OUT.jsonl --model .cache/models/whisper-base --cores 2

A contender is a whole process: it gets a folder of audio, writes one line of JSON for each file, and at the
end a line ``{"facts": {...}}``. Peers run it with the Python of an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

STARTED = "BENCH_STARTED"
"""Environment variable: ``time.monotonic()`` when the contender's process was started."""

Word = tuple[float, float, str]


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a contender heard in a file.

    :param words: start and end in seconds, text; ``None``: it gives none.
    """

    file: str
    text: str
    language: str | None = None
    words: list[Word] | None = None


@dataclass(slots=True)
class Task:
    """What a contender is asked to do.

    :param files: paths of the audio files.
    :param model: folder or file with the weights.
    :param cores: cores to use.
    :param facts: filled by the contender with what else there is to know about its run.
    """

    files: list[str]
    model: str
    cores: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes that can work at the same time: no more than there are files."""
        return max(1, min(self.cores, len(self.files)))

    @property
    def threads(self) -> int:
        """Threads for each of them."""
        return self.cores // self.processes

    def ready(self) -> None:
        """Note that everything up to here was the start-up of a framework, reported apart."""
        self.facts["startup_s"] = time.monotonic() - float(os.environ.get(STARTED, time.monotonic()))


def main(transcribe: Callable[[Task], Iterable[Spoken]], *packages: str) -> None:
    """Run a contender from its command line.

    :param packages: whose versions are noted.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    audio = sorted(path for path in arguments.folder.iterdir() if path.suffix not in (".jsonl", ".json"))
    task = Task([str(path.resolve()) for path in audio], arguments.model, arguments.cores)
    with arguments.out.open("w", encoding="utf-8") as out:
        for spoken in transcribe(task):
            row = {
                "file": Path(spoken.file).name,
                "text": spoken.text,
                "language": spoken.language,
                "words": spoken.words,
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
        task.facts["versions"] = {name: metadata.version(name) for name in packages}
        out.write(json.dumps({"facts": task.facts}) + "\n")


def from_transcript(transcript: Any) -> Spoken:
    """What ours gave for a file: a ``Transcript``, or a row of Spark with its fields."""
    words = [(w.start, w.end, w.word) for segment in transcript.segments for w in segment.words or ()]
    return Spoken(transcript.audio_uri, transcript.text or "", transcript.language, words)


def from_segments(file: str, segments: Iterable[Any], info: Any) -> Spoken:
    """What faster-whisper gave for a file."""
    segments = list(segments)
    words = [(w.start, w.end, w.word) for segment in segments for w in segment.words or ()]
    return Spoken(file, "".join(segment.text for segment in segments).strip(), info.language, words)
