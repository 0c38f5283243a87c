"""Ours without Spark: ``transcribe_files`` with its defaults."""

from __future__ import annotations

from collections.abc import Iterator

from common import Spoken, Task, main

from whisper_spark import Transcript, WhisperOptions, transcribe_files


def spoken(transcript: Transcript) -> Spoken:
    words = [(w.start, w.end, w.word) for segment in transcript.segments for w in segment.words or ()]
    return Spoken(transcript.audio_uri, transcript.text or "", transcript.language, words)


def transcribe(task: Task) -> Iterator[Spoken]:
    options = WhisperOptions(model=task.model, num_workers=task.cores)
    return map(spoken, transcribe_files(task.files, options))


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2")
