"""Method 3 of the article: ``predict_batch_udf``, a function that loads the model and gives the predictor.

As in the article: one file name a batch, a JSON string out, ``word_timestamps`` and ``vad_filter`` on,
everything else faster-whisper's default (beam of 5, temperature fallback). Mended where it cannot run: the
generator of ``transcribe`` is read to the end before it is written as JSON. Changed for this machine: the
model, int8 on the CPU instead of float16 on CUDA. Left to us by the article, and chosen for speed: a
partition for each file, so that no core waits for the other, and all cores for one file where there is but
one. Spark keeps a loaded model for all tasks of a Python worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
from common import Spoken, Task, from_segments, main
from spark_session import local_spark

Texts = npt.NDArray[np.str_]


def predictor(
    path: str, device: str = "cpu", compute_type: str = "int8"
) -> Callable[[], Callable[[Texts], Texts]]:
    def make_predict_fn() -> Callable[[Texts], Texts]:
        from faster_whisper import WhisperModel

        model = WhisperModel(path, device=device, compute_type=compute_type)

        def predict(files: Texts) -> Texts:
            results = []
            for file in files:
                segments, info = model.transcribe(str(file), word_timestamps=True, vad_filter=True)
                results.append(json.dumps(asdict(from_segments(str(file), segments, info))))
            return np.array(results)

        return predict

    return make_predict_fn


def transcribe(task: Task) -> Iterator[Spoken]:
    with local_spark(task, task.threads) as spark:
        from pyspark.ml.functions import predict_batch_udf
        from pyspark.sql.types import StringType

        rows = spark.sparkContext.parallelize([(file,) for file in task.files], len(task.files))
        udf = predict_batch_udf(predictor(task.model), return_type=StringType(), batch_size=1)
        for row in rows.toDF(["file"]).select(udf("file").alias("json")).collect():
            yield Spoken(**json.loads(row.json))


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2", "pyspark")
