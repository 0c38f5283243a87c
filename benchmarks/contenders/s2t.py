"""WhisperS2T, in the fork that is kept up (whisper-s2t-reborn): batches across files, on CTranslate2.

A process for each core, each with every so manyth file, because one does not keep two cores busy. It cannot
detect languages: it is told them. Its defaults (greedy, 8 windows a batch), int8, word timestamps by the same
model: its default is another one, from a hub.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

from common import Spoken, Task, main


def transcribe_share(model_path: str, threads: int, files: list[str], languages: list[str]) -> list[Spoken]:
    import torch
    import whisper_s2t

    torch.set_num_threads(threads)
    # An aligner with other features than the model's is replaced by the model.
    model = whisper_s2t.load_model(
        model_path,
        device="cpu",
        compute_type="int8",
        cpu_threads=threads,
        asr_options={"word_timestamps": True, "word_aligner_model": "large-v3"},
    )
    results = model.transcribe_with_vad(files, lang_codes=languages, batch_size=8)
    return [_spoken(*found) for found in zip(files, languages, results, strict=True)]


def _spoken(file: str, language: str, segments: list[dict[str, object]]) -> Spoken:
    words = [
        (float(w["start"]), float(w["end"]), w["word"])
        for segment in segments
        for w in segment.get("word_timestamps", ())
    ]
    return Spoken(file, " ".join(str(segment["text"]) for segment in segments).strip(), language, words)


def transcribe(task: Task) -> Iterator[Spoken]:
    lines = Path(task.files[0]).with_name("references.jsonl").read_text(encoding="utf-8").splitlines()
    languages = {row["file"]: row["language"] or "en" for row in map(json.loads, lines)}
    task.facts["told_language"] = True
    shares = [task.files[number :: task.processes] for number in range(task.processes)]
    jobs = [(task.model, task.threads, own, [languages[Path(f).name] for f in own]) for own in shares]
    with multiprocessing.get_context("spawn").Pool(task.processes) as pool:
        for spoken in pool.starmap(transcribe_share, jobs):
            yield from spoken


if __name__ == "__main__":
    main(transcribe, "whisper-s2t-reborn", "ctranslate2", "torch")
