"""Ours without Spark: ``transcribe_files`` with its defaults."""

from __future__ import annotations

from collections.abc import Iterator

from common import Spoken, Task, from_transcript, main

from whisper_spark import WhisperOptions, transcribe_files


def transcribe(task: Task) -> Iterator[Spoken]:
    options = WhisperOptions(model=task.model, num_workers=task.cores)
    return map(from_transcript, transcribe_files(task.files, options))


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2")
