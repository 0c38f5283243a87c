"""Method 1 of the article: a ``multiprocessing`` pool over file names, a model in each process.

Mended where it cannot run: ``transcribe`` returns a generator, which does not pickle, so the worker reads it
to the end. Left to us by the article, and chosen for speed: the model is loaded once for each process, files
are handed out one by one, and the threads of all processes together are the cores of the machine.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

from common import Spoken, Task, from_segments, main

model = None


def load(path: str, threads: int) -> None:
    global model
    from faster_whisper import WhisperModel

    model = WhisperModel(path, device="cpu", compute_type="int8", cpu_threads=threads)


def transcribe_file(file: str) -> Spoken:
    segments, info = model.transcribe(file, word_timestamps=True, vad_filter=True)
    return from_segments(file, segments, info)


def transcribe(task: Task) -> Iterator[Spoken]:
    with multiprocessing.Pool(task.processes, load, (task.model, task.threads)) as pool:
        yield from pool.map(transcribe_file, task.files, chunksize=1)


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2")
