"""transformers' speech recognition pipeline, as its model cards show it, in a process for each core.

Chunks of 30 seconds, word timestamps, greedy; float32, as the pipeline has no 8-bit arithmetic on a CPU. One
chunk at a time, its default: with eight, as the model cards have it for GPUs, a process took 23 GB for the
word timestamps of calls. It detects the language of each chunk for itself.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

from common import Spoken, Task, main
from decoded import RATE, decoded

recognise = None


def load(path: str, threads: int) -> None:
    global recognise
    import torch
    from transformers import pipeline

    torch.set_num_threads(threads)
    recognise = pipeline("automatic-speech-recognition", model=path, device="cpu")


def transcribe_file(file: str) -> Spoken:
    result = recognise(
        {"raw": decoded(file), "sampling_rate": RATE},
        chunk_length_s=30,
        return_timestamps="word",
    )
    spans = [(*chunk["timestamp"], chunk["text"]) for chunk in result["chunks"]]
    words = [(start, start if end is None else end, word) for start, end, word in spans]
    return Spoken(file, result["text"].strip(), None, words)


def transcribe(task: Task) -> Iterator[Spoken]:
    with multiprocessing.Pool(task.processes, load, (task.model, task.threads)) as pool:
        yield from pool.imap_unordered(transcribe_file, task.files)


if __name__ == "__main__":
    main(transcribe, "transformers", "torch")
