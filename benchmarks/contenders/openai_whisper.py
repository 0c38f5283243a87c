"""openai-whisper, file by file, in a process for each core.

Its defaults and ``word_timestamps``; float32, as it has no 8-bit arithmetic.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

from common import Spoken, Task, main
from decoded import decoded

model = None


def load(path: str, threads: int) -> None:
    global model
    import torch
    import whisper

    torch.set_num_threads(threads)
    model = whisper.load_model(path, device="cpu")


def transcribe_file(file: str) -> Spoken:
    result = model.transcribe(decoded(file), word_timestamps=True, fp16=False)
    words = [(w["start"], w["end"], w["word"]) for s in result["segments"] for w in s.get("words", ())]
    return Spoken(file, result["text"].strip(), result["language"], words)


def transcribe(task: Task) -> Iterator[Spoken]:
    # Forked processes hang where the parent has used PyTorch; the parent here has not.
    with multiprocessing.Pool(task.processes, load, (task.model, task.threads)) as pool:
        yield from pool.imap_unordered(transcribe_file, task.files)


if __name__ == "__main__":
    main(transcribe, "openai-whisper", "torch")
