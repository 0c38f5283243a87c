"""Ours in Spark, as in a notebook: ``whisper_udf`` on a column of file names."""

from __future__ import annotations

from collections.abc import Iterator

from common import Spoken, Task, from_transcript, main
from spark_session import local_spark

from whisper_spark import WhisperOptions, whisper_udf


def transcribe(task: Task) -> Iterator[Spoken]:
    conf = {"spark.sql.execution.arrow.maxRecordsPerBatch": "100"}
    with local_spark(task, task.cores, conf) as spark:
        rows = spark.createDataFrame([(file,) for file in task.files], ["file"]).coalesce(1)
        udf = whisper_udf(WhisperOptions(model=task.model))
        for row in rows.select(udf("file").alias("t")).collect():
            yield from_transcript(row.t)


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2", "pyspark")
