"""whisper.cpp through pywhispercpp, file by file, in a process for each core.

Weights in 8 bits (q8_0), greedy as is its default, language detected, a segment for each word.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

from common import Spoken, Task, main
from decoded import decoded

model = None


def load(path: str, threads: int) -> None:
    global model
    from pywhispercpp.model import Model

    model = Model(
        path,
        n_threads=threads,
        language="auto",
        print_progress=False,
        token_timestamps=True,
        max_len=1,
        split_on_word=True,
        redirect_whispercpp_logs_to=None,
    )


def transcribe_file(file: str) -> Spoken:
    import _pywhispercpp

    words = [(s.t0 / 100, s.t1 / 100, s.text) for s in model.transcribe(decoded(file))]
    language = _pywhispercpp.whisper_lang_str(_pywhispercpp.whisper_full_lang_id(model._ctx))
    return Spoken(file, " ".join(word for _, _, word in words).strip(), language, words)


def transcribe(task: Task) -> Iterator[Spoken]:
    with multiprocessing.Pool(task.processes, load, (task.model, task.threads)) as pool:
        yield from pool.imap_unordered(transcribe_file, task.files)


if __name__ == "__main__":
    main(transcribe, "pywhispercpp")
