"""Ours as it runs in production: the packaged job, from a manifest to rows in staging, in local Spark."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import Spoken, Task, main
from spark_session import local_spark

from whisper_spark import WhisperOptions, job
from whisper_spark.spark.conf import spark_defaults

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))


def transcribe(task: Task) -> Iterator[Spoken]:
    from spark_cluster import staged_table, write_run

    options = WhisperOptions(model=task.model)
    defaults = spark_defaults({"spark.master": f"local[{task.cores}]"}, options)
    # The job takes over the session that runs.
    with local_spark(task, task.cores, defaults), tempfile.TemporaryDirectory() as staging:
        run = write_run(f"file://{staging}", [f"file://{file}" for file in task.files], options)
        if job.main(["--manifest", run.manifest_uri]):
            raise RuntimeError("the job failed")
        for row in staged_table(run).to_pylist():
            words = [(w["start"], w["end"], w["word"]) for s in row["segments"] for w in s["words"] or ()]
            yield Spoken(row["audio_uri"], row["text"] or "", row["language"], words)


if __name__ == "__main__":
    main(transcribe, "faster-whisper", "ctranslate2", "pyspark")
