"""How far the engine is from its floor: the time that CTranslate2 needs for the same windows, and no more.

    .venv/bin/python benchmarks/floor.py                       clips and calls

The engine runs in this process, with memory kept as in its own. Every call that it makes to CTranslate2 is
recorded with its input: encode, detect_language, generate, align, first tries and retries. The same calls are
then made again, from as many threads, with nothing around them: no reading, no decoding of audio, no voice
detection, no features, no text. Loading the model counts in neither time.
"""

from __future__ import annotations

import argparse
import gc
import queue
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import ctranslate2
import numpy as np
from corpus import ROOT, corpus, references
from note import table, write_block

sys.path[:0] = [str(ROOT / "scripts")]

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
METHODS = ("encode", "detect_language", "generate", "align")


class Recorder(ctranslate2.models.Whisper):
    """A model that notes what it is asked, while there is a list to note it in."""

    calls: list[Call] | None = None
    threads: set[int] = set()  # noqa: RUF012


def _recording(name: str) -> Any:
    original = getattr(ctranslate2.models.Whisper, name)

    def method(self: Recorder, first: Any, *others: Any, **settings: Any) -> Any:
        if Recorder.calls is not None:
            Recorder.threads.add(threading.get_ident())
            Recorder.calls.append((name, (np.array(first), *others), settings))
        return original(self, first, *others, **settings)

    return method


for _name in METHODS:
    setattr(Recorder, _name, _recording(_name))


def replay(model: Any, calls: list[Call], threads: int) -> float:
    """Seconds that a model needs for recorded calls."""
    todo: queue.SimpleQueue[Call] = queue.SimpleQueue()
    for name, (first, *others), settings in calls:
        settings.pop("asynchronous", None)
        todo.put((name, (ctranslate2.StorageView.from_array(first), *others), settings))

    def work() -> None:
        while True:
            try:
                name, arguments, settings = todo.get_nowait()
            except queue.Empty:
                return
            getattr(model, name)(*arguments, **settings)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpora", nargs="*", default=["clips", "calls"])
    parser.add_argument("--runs", type=int, default=3, help="of each; the median counts")
    arguments = parser.parse_args()

    ctranslate2.models.Whisper = Recorder
    from assemble_model import assemble

    from whisper_spark import WhisperOptions
    from whisper_spark.engine.transcriber import AudioFile, Engine
    from whisper_spark.malloc import own_process

    own_process()
    engine = Engine(WhisperOptions(model=str(assemble())))
    model = next(_models())
    rows = []
    for name in arguments.corpora:
        folder = corpus(name)
        own = references(folder)
        files = [AudioFile(f"file://{folder / reference.file}") for reference in own]
        Recorder.threads.clear()
        Recorder.calls = calls = []
        list(engine.transcribe(files))
        Recorder.calls = None
        ours, alone = [], []
        for _ in range(arguments.runs):
            started = time.monotonic()
            list(engine.transcribe(files))
            ours.append(time.monotonic() - started)
            alone.append(replay(model, [(n, a, dict(s)) for n, a, s in calls], len(Recorder.threads)))
        both = statistics.median(alone), statistics.median(ours)
        speed = sum(reference.seconds for reference in own) / both[1]
        ratio = both[1] / both[0]
        rows.append([name, f"{both[0]:.2f}", f"{both[1]:.2f}", f"{ratio:.2f}", f"{speed:.1f}", len(calls)])
    lines = table(["corpus", "CTranslate2 alone s", "ours s", "ours / alone", "× real time", "calls"], rows)
    print(*lines, sep="\n")
    if not any(name.endswith("-quick") for name in arguments.corpora):
        write_block("floor", lines)


def _models() -> Iterator[Recorder]:
    """The recording model, wherever the engine keeps it."""
    return (item for item in gc.get_objects() if isinstance(item, Recorder))


if __name__ == "__main__":
    main()
