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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whisper_spark.contract import WhisperOptions, speed_options
from whisper_spark.contract.text import visible
from whisper_spark.doctor.host import HostPlan
from whisper_spark.progress.reports import PROGRESS_SECONDS
from whisper_spark.spark.cluster import (
    ExecutorWatch,
    MasterUnreachableError,
    check_master,
    explained_master,
    gpu_problem,
)
from whisper_spark.spark.conf import spark_defaults
from whisper_spark.spark.failures import (
    CheckFailedError,
    MissingPackagesError,
    cause_of,
    explained_imports,
    is_wrong_configuration,
)
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

  Check every executor before paying for it, with a known clip:
  spark-submit --py-files whisper_spark.zip job.py --check --options '{"model": "base", "device": "cuda"}' \\
      --source s3://bucket/calls/ --staging s3://bucket/staging/

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


# Errors whose message says enough without a traceback.
_SPEAKING_ERRORS = (
    AllFilesFailError,
    CheckFailedError,
    MasterUnreachableError,
    MissingPackagesError,
    StagingError,
    StorageError,
    ValueError,
)

FAILED = 1
"""Exit status of a job that failed, and of a check that found something wrong."""

WRONG_CONFIGURATION = 2
"""Exit status when arguments, options or Spark properties are wrong, so that a retry cannot help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``spark-submit``. Returns the exit status."""
    arguments = parser().parse_args(argv)
    if not (arguments.manifest or arguments.check):
        parser().error("the following arguments are required: --manifest")
    _log_to_stdout()
    try:
        if arguments.check:
            run_check(arguments)
        else:
            run_job(arguments)
    except Exception as error:
        if not isinstance(error, _SPEAKING_ERRORS):
            log.exception("unexpected error")
        # Last, because Airflow quotes the end of the output.
        log.error("failed: %s", cause_of(error))
        return WRONG_CONFIGURATION if is_wrong_configuration(error) else FAILED
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
    result.add_argument("--manifest", metavar="URI", help="manifest.parquet of the run")
    result.add_argument(
        "--check",
        action="store_true",
        help="instead of transcribing the manifest, check every executor, print what it has and lacks, and "
        "let it transcribe a known clip. Needs no manifest; exit status 1 if something is wrong",
    )
    result.add_argument("--source", metavar="URI", help="for --check without a manifest: folder with audio")
    result.add_argument("--staging", metavar="URI", help="for --check without a manifest: staging")
    result.add_argument(
        "--options",
        default="{}",
        metavar="JSON",
        help="other values for options that change only speed, such as batch_size or device, as a JSON "
        "object; everything else is fixed by the manifest. For --check without a manifest: all options",
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

    :raises ValueError: for invalid options, properties or credentials, and for a file that is no manifest.
    :raises MasterUnreachableError: when the standalone master accepts no connections.
    :raises MissingPackagesError: when executors lack Python packages.
    :raises StorageError: when the manifest cannot be read, or staging cannot be written.
    :raises StagingError: when rows are missing from staging at the end.
    """
    started = time.monotonic()
    overrides = _overrides(arguments)
    conf = _submitted_conf()
    credentials = _credentials(conf)
    storage = ObjectStorage(credentials["staging"])
    run, manifest = read_manifest(normalise_uri(arguments.manifest), storage)
    options = speed_options(run.options, overrides)
    check_master(conf)
    with explained_master(conf):
        spark = _session(_settings(conf, options))
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
        with explained_imports(spark.sparkContext), ExecutorWatch(spark.sparkContext):
            result = JobRun(spark, job, row_groups, started).run()
    finally:
        spark.stop()
    return result


def run_check(arguments: argparse.Namespace) -> None:
    """Check every executor, and print what was found.

    :raises CheckFailedError: when something would make a job fail.
    :raises ValueError: for invalid options or credentials, and for a file that is not a manifest.
    :raises StorageError: when the manifest cannot be read.
    """
    from whisper_spark.spark.check import check_cluster, check_conf

    overrides, conf = _overrides(arguments), _submitted_conf()
    credentials = _credentials(conf)
    if arguments.manifest:
        run, _ = read_manifest(normalise_uri(arguments.manifest), ObjectStorage(credentials["staging"]))
        plan = HostPlan(speed_options(run.options, overrides), run.source, run.run_uri, credentials)
    else:
        options = WhisperOptions.from_dict(overrides)
        plan = HostPlan(options, arguments.source, arguments.staging, credentials)
    check_master(conf)
    with explained_master(conf):
        spark = _session(_settings(conf, plan.options) | check_conf(conf))
    try:
        check_cluster(spark, plan)
    finally:
        spark.stop()


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    overrides = json.loads(arguments.options)
    if not isinstance(overrides, dict):
        raise ValueError(f"--options must be a JSON object, got {arguments.options!r}")
    return overrides


def _credentials(conf: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {place: from_property(place, conf.get(SECRET_PREFIX + place)) for place in PLACES}


def _settings(conf: Mapping[str, str], options: WhisperOptions) -> dict[str, str]:
    """Properties of the session, in addition to the submitted ones.

    :raises ValueError: when executors with GPUs could not start.
    """
    settings = spark_defaults(conf, options)
    problem = gpu_problem({**settings, **conf})
    if problem:
        raise ValueError(problem)
    return settings


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
