"""Method 2 of the article: a model broadcast to the workers, ``flatMap`` over an RDD of file names.

Mended where it cannot run: a CTranslate2 model does not pickle, so what is broadcast is the path of its
weights, and each Python worker loads it once; the generator of ``transcribe`` is read to the end. Left to us
by the article, and chosen for speed: a partition for each file, so that no core waits for the other, and all
cores for one file where there is but one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from common import Spoken, Task, from_segments, main
from spark_session import local_spark


@functools.cache
def load(path: str) -> Any:
    from faster_whisper import WhisperModel

    return WhisperModel(path, device="cpu", compute_type="int8")


def transcribe_file(file: str, path: str) -> list[Spoken]:
    segments, info = load(path).transcribe(file, word_timestamps=True, vad_filter=True)
    return [from_segments(file, segments, info)]


def transcribe(task: Task) -> Iterator[Spoken]:
    # Imported by the workers as a module, where the cached model outlives a Spark task.
    import method2

    with local_spark(task, task.threads) as spark:
        broadcast = spark.sparkContext.broadcast(task.model)
        files = spark.sparkContext.parallelize(task.files, len(task.files))
        yield from files.flatMap(lambda file: method2.transcribe_file(file, broadcast.value)).collect()


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2", "pyspark")
