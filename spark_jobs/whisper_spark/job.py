"""The packaged Spark job: transcribes the audio that a manifest lists and writes transcript rows to staging.

Run it with ``spark-submit job.py --manifest URI``; ``WhisperTranscribeOperator`` does so in Airflow.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    # Python puts the folder of the script first on sys.path, where the modules of this package would be found
    # as top-level modules.
    del sys.path[0]

import argparse
import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whisper_spark.contract import speed_options
from whisper_spark.contract.text import visible
from whisper_spark.progress.reports import PROGRESS_SECONDS
from whisper_spark.spark.conf import spark_defaults
from whisper_spark.spark.failures import cause_of
from whisper_spark.spark.first_files import AllFilesFailError
from whisper_spark.staging.result import RunResult, StagingError
from whisper_spark.staging.rows import FLUSH_SECONDS
from whisper_spark.storage.credentials import PLACES, SECRET_PREFIX, from_property
from whisper_spark.storage.objects import ObjectStorage, StorageError, normalise_uri
from whisper_spark.storage.parquet import read_manifest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("whisper_spark.job")

_EPILOG = """\
examples:
  spark-submit --py-files whisper_spark.zip job.py --manifest s3://bucket/staging/.../manifest.parquet

  One engine on each executor, with all of its cores and one GPU:
  spark-submit --master spark://host:7077 --py-files whisper_spark.zip \\
      --conf spark.executor.cores=8 --conf spark.task.cpus=8 \\
      --conf spark.executor.resource.gpu.amount=1 --conf spark.task.resource.gpu.amount=1 \\
      job.py --manifest s3://bucket/staging/.../manifest.parquet --options '{"batch_size": 32}'

credentials:
  Ambient ones (environment, instance role) need nothing. Others are the Spark properties
  spark.whisper.secret.source, .staging and .model, each the base64 form of a JSON object with
  obstore settings. Put them into a file that only you can read and pass that as
  --properties-file; never pass them as --conf, which everybody on the machine can read.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``spark-submit``. Returns the exit status."""
    arguments = parser().parse_args(argv)
    _log_to_stdout()
    try:
        run_job(arguments)
    except Exception as error:
        if not isinstance(error, (AllFilesFailError, StagingError, StorageError, ValueError)):
            log.exception("unexpected error")
        # Last, because Airflow quotes the end of the output.
        log.error("failed: %s", cause_of(error))
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The argument parser of the command line."""
    result = argparse.ArgumentParser(
        prog="spark-submit job.py",
        description="Transcribe the audio that a manifest lists, into transcript rows in staging.\n"
        "What is staged already is not transcribed again: a killed job goes on where it was.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--manifest", required=True, metavar="URI", help="manifest.parquet of the run")
    result.add_argument(
        "--options",
        default="{}",
        metavar="JSON",
        help="other values for options that change only speed, such as batch_size or device, as a JSON "
        "object; everything else is fixed by the manifest",
    )
    result.add_argument(
        "--tasks",
        type=_positive(int),
        metavar="N",
        help="Spark tasks to divide the files among (default: one for each task that can run at the same "
        "time, four for many files)",
    )
    result.add_argument(
        "--flush-seconds",
        type=_positive(float),
        default=FLUSH_SECONDS,
        metavar="S",
        help="finished rows are durable after so many seconds at the latest (default: %(default)g)",
    )
    result.add_argument(
        "--progress-seconds",
        type=_positive(float),
        default=PROGRESS_SECONDS,
        metavar="S",
        help="print how far each task is every so many seconds (default: %(default)g)",
    )
    result.add_argument(
        "--attempt-id",
        default="",
        metavar="ID",
        help="copied to the result, to tell the results of several job runs apart",
    )
    result.add_argument(
        "--engine", default="whisper_spark.engine.transcriber:get_engine", help=argparse.SUPPRESS
    )
    return result


def _positive(kind: type[int] | type[float]) -> Any:
    def number(text: str) -> int | float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
        return value

    # argparse puts this name into its messages: "invalid int value".
    number.__name__ = kind.__name__
    return number


def run_job(arguments: argparse.Namespace) -> RunResult:
    """Run the job on a parsed command line. Writes ``result.json`` at the end and returns its content.

    :raises ValueError: for invalid options or credentials, and for a file that is not a manifest.
    :raises StorageError: when the manifest cannot be read, or staging cannot be written.
    :raises StagingError: when rows are missing from staging at the end.
    """
    started = time.monotonic()
    overrides = json.loads(arguments.options)
    if not isinstance(overrides, dict):
        raise ValueError(f"--options must be a JSON object, got {arguments.options!r}")
    conf = _submitted_conf()
    credentials = {place: from_property(place, conf.get(SECRET_PREFIX + place)) for place in PLACES}
    storage = ObjectStorage(credentials["staging"])
    run, manifest = read_manifest(normalise_uri(arguments.manifest), storage)
    options = speed_options(run.options, overrides)
    spark = _session(spark_defaults(conf, options))
    try:
        # Imported only now, because these modules need the Python path that the session sets.
        from whisper_spark.spark.run import JobRun
        from whisper_spark.spark.task import JobSpec

        job = JobSpec(
            run=run,
            options=options,
            credentials=credentials,
            attempt_id=arguments.attempt_id,
            tasks=arguments.tasks,
            flush_seconds=arguments.flush_seconds,
            progress_seconds=arguments.progress_seconds,
            engine=arguments.engine,
        )
        row_groups = [manifest.row_group(group).num_rows for group in range(manifest.num_row_groups)]
        result = JobRun(spark, job, row_groups, started).run()
    finally:
        spark.stop()
    return result


def _submitted_conf() -> dict[str, str]:
    """Spark properties as submitted, before there is a session."""
    from pyspark import SparkConf, SparkContext

    # Without this, SparkConf() does not contain the properties that were given to spark-submit.
    SparkContext._ensure_initialized()
    return dict(SparkConf().getAll())


def _session(defaults: dict[str, str]) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for key, value in defaults.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    context = spark.sparkContext
    context.setLogLevel("WARN")
    # Airflow parses this line to link to the Spark UI.
    ui = f", UI at {context.uiWebUrl}" if context.uiWebUrl else ""
    log.info("Spark application %s%s", context.applicationId, ui)
    return spark


class LineFormatter(logging.Formatter):
    """Writes each record as one line, even if a file name in it has line breaks; a traceback follows it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name in the base class
        """The message as one line, with line breaks and other invisible characters escaped."""
        return f"whisper: {visible(record.message)}"

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, each line with a prefix that sets it apart from the messages of the job."""
        return "\n".join(f"  | {visible(line)}" for line in super().formatException(ei).split("\n"))


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger("whisper_spark")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


if __name__ == "__main__":
    # Run the module instead of this script: executors could not unpickle what is defined in ``__main__``.
    from whisper_spark import job

    sys.exit(job.main())
