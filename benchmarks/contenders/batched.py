"""faster-whisper's ``BatchedInferencePipeline``, file by file, in a process for each core.

What a user of faster-whisper picks for speed. Everything is its default but ``word_timestamps``: VAD on,
batches of 8 windows, a beam of 5. For a single file one process gets all cores.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

from common import Spoken, Task, from_segments, main

BEAM = 5
pipeline = None


def load(path: str, threads: int) -> None:
    global pipeline
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    pipeline = BatchedInferencePipeline(
        WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=threads)
    )


def transcribe_file(job: tuple[str, int]) -> Spoken:
    file, beam = job
    segments, info = pipeline.transcribe(file, word_timestamps=True, beam_size=beam)
    return from_segments(file, segments, info)


def transcribe(task: Task, beam: int = BEAM) -> Iterator[Spoken]:
    with multiprocessing.Pool(task.processes, load, (task.model, task.threads)) as pool:
        yield from pool.imap_unordered(transcribe_file, [(file, beam) for file in task.files])


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2")
