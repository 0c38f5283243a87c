"""One job run on a manifest: reuse staged rows, transcribe the other files, and end with one row per file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from whisper_spark.contract import partition_path
from whisper_spark.progress.counters import STAGES, Snapshot, device_busy
from whisper_spark.progress.reports import JobSize, ProgressLog, clear_left_over_reports, clear_reports
from whisper_spark.spark.conf import slots, task_count, task_share
from whisper_spark.spark.dataframes import (
    copy_rows,
    is_settled,
    keep_rows,
    manifest_rows,
    partitioned_by_size,
    ranked,
    reusable,
    staged_index,
    unsettled,
)
from whisper_spark.spark.first_files import AllFilesFailError, check_job
from whisper_spark.spark.task import INPUT_COLUMNS, JobSpec, Sums, transcriber
from whisper_spark.staging.result import (
    RunResult,
    StagedFile,
    StagingError,
    finished_result,
    nothing_done,
    read_result,
    spent_tries,
    staged_files,
)
from whisper_spark.storage.objects import ObjectNotFound, ObjectStorage, StorageError

log = logging.getLogger(__name__)

T = TypeVar("T", int, str)

_EXAMPLES = 5
_GPUS_A_TASK = "spark.task.resource.gpu.amount"
_ROWS_A_PARTITION = 50_000


class JobRun:
    """Executes one job run in a Spark session and counts its work.

    :param row_groups: number of rows in each row group of the manifest.
    :param started: ``time.monotonic()`` at the start of the job.
    """

    def __init__(self, spark: SparkSession, job: JobSpec, row_groups: Sequence[int], started: float) -> None:
        self._spark = spark
        self._job = job
        self._run = job.run
        self._storage = ObjectStorage(job.staging)
        self._conf = dict(spark.sparkContext.getConf().getAll())
        self._row_groups = list(row_groups)
        self._files = sum(row_groups)
        self._started = started
        # Files that this job run has staged and that its result does not list.
        self._superseded: list[str] = []
        self._all_fail: AllFilesFailError | None = None
        self._result = RunResult(
            manifest_uri=self._run.manifest_uri,
            manifest_id=self._run.manifest_id,
            fingerprint=self._run.options.fingerprint(),
            attempt_id=job.attempt_id,
            files=self._files,
            spark_app_id=spark.sparkContext.applicationId,
        )

    def run(self) -> RunResult:
        """Execute the job run. Writes ``result.json`` at the end and returns its content.

        :raises StagingError: when rows are missing at the end.
        :raises AllFilesFailError: when all files fail with the same transient error.
        """
        run = self._run
        partition = partition_path(run.partition)
        log.info("%s files for %s %s, manifest %s", f"{self._files:,}", run.table, partition, run.manifest_id)
        finished = finished_result(run, self._storage)
        if finished is not None:
            log.info("all of them are staged already: nothing to do%s", spent_tries(finished))
            self._result = dataclasses.replace(
                nothing_done(finished),
                attempt_id=self._job.attempt_id,
                spark_app_id=self._result.spark_app_id,
            )
            return self._finish(self._result)
        if self._files:
            self._size_shuffles()
            pending = self._without_reusable(self._without_staged(self._manifest))
            if self._left:
                self._transcribe(pending)
        return self._finish(self._settle())

    @property
    def _left(self) -> int:
        return self._files - self._result.resumed - self._result.reused

    @property
    def _slots(self) -> int:
        return slots(self._conf, self._spark.sparkContext.defaultParallelism)

    def _size_shuffles(self) -> None:
        # In small runs, shuffles with Spark's default of 200 partitions take longer than the transcription.
        if "spark.sql.shuffle.partitions" not in self._conf:
            partitions = max(self._slots, self._files // _ROWS_A_PARTITION)
            self._spark.conf.set("spark.sql.shuffle.partitions", partitions)

    def _count(self, **counts: Any) -> None:
        self._result = dataclasses.replace(self._result, **counts)

    @cached_property
    def _manifest(self) -> DataFrame:
        uri, tasks = self._run.manifest_uri, 4 * self._slots
        return manifest_rows(self._spark, uri, self._row_groups, self._job.staging, tasks).persist()

    def _index(self, files: Sequence[StagedFile]) -> DataFrame:
        return staged_index(self._spark, files, self._job.staging, 4 * self._slots)

    def _without_staged(self, manifest: DataFrame) -> DataFrame:
        """The files that earlier job runs on this manifest have not settled."""
        files = staged_files(self._storage, self._run.rows_uri)
        if not files:
            return manifest
        pending = unsettled(manifest, self._index(files), self._run.max_attempts).persist()
        self._count(resumed=self._files - pending.count())
        log.info("%s files were staged by earlier runs of this job", f"{self._result.resumed:,}")
        return pending

    def _without_reusable(self, pending: DataFrame) -> DataFrame:
        """The files without a final row in another run of this partition and options. Copies such rows."""
        own = self._run.rows_uri + "/"
        files = [f for f in staged_files(self._storage, self._run.siblings_uri) if not f.uri.startswith(own)]
        if not files or not self._left:
            return pending
        chosen = reusable(pending, self._index(files)).select("audio_uri", "file", "row").persist()
        self._count(reused=chosen.count())
        if not self._result.reused:
            return pending
        if lost := copy_rows(chosen, files, self._run, self._job.staging, self._job.id):
            chosen = chosen.where(~F.col("file").isin(*lost)).persist()
            self._count(reused=chosen.count())
        log.info("%s rows taken from other runs of this partition", f"{self._result.reused:,}")
        return pending.join(chosen, "audio_uri", "left_anti").persist()

    def _transcribe(self, pending: DataFrame) -> None:
        groups, audio_bytes = dict(enumerate(self._row_groups)), self._run.audio_bytes
        if self._left < self._files:
            counts = pending.groupBy("row_group").agg(
                F.count("*").alias("n"), F.sum("audio_bytes").alias("b")
            )
            rows = counts.collect()
            groups, audio_bytes = {r["row_group"]: r["n"] for r in rows}, sum(r["b"] or 0 for r in rows)
        tasks = self._job.tasks or task_count(self._left, self._slots, gpu=_GPUS_A_TASK in self._conf)
        log.info(
            "transcribing %s files in %s tasks with %s", f"{self._left:,}", tasks, self._run.options.model
        )
        size = JobSize(self._left, audio_bytes, tasks)
        sums = self._spark.sparkContext.accumulator({}, Sums())
        statistics = transcriber(self._job, size, sums)(*INPUT_COLUMNS)
        told = (
            partitioned_by_size(pending, groups, tasks)
            .select(statistics.alias("file"))
            .select("file.*")
            .agg(F.count("*").alias("files"), F.sum("duration_s").alias("seconds"))
        )
        start, started_at = time.monotonic(), datetime.now(UTC)
        context = self._spark.sparkContext
        for name, value in task_share(self._conf).items():
            context.setLocalProperty(name, value)
        context.addJobTag(self._job.id)
        with self._progress(size):
            total = told.collect()[0]
        errors = {code: int(files) for code, files in _named(sums.value, "error ").items()}
        check_job([Snapshot(files=self._left, errors=errors)])
        elapsed = time.monotonic() - start
        if total["files"] != self._left:
            raise StagingError(
                f"{self._left} files went to the tasks, {total['files']} came back. This is a bug: please "
                f"report it with the log of Spark application {self._result.spark_app_id}"
            )
        seconds = float(total["seconds"] or 0.0)
        self._count(
            transcribed=self._left,
            transcribed_audio_seconds=round(seconds, 3),
            transcribe_seconds=round(elapsed, 3),
            transcribe_started_at=started_at.isoformat(timespec="milliseconds"),
            real_time_factor=round(seconds / elapsed, 3),
            **_telemetry(sums.value),
            **_task_time(sums.value, self._conf.get(_GPUS_A_TASK)),
        )

    @contextlib.contextmanager
    def _progress(self, size: JobSize) -> Iterator[None]:
        """Logs the progress of the tasks in the block, and removes their reports from staging at its end."""
        folder, every = self._job.progress_uri, self._job.progress_seconds
        clear_left_over_reports(self._storage, self._run.run_uri)
        # YARN starts a driver that was lost again, with the same folder.
        clear_reports(self._storage, folder)
        with contextlib.suppress(StorageError):
            size.write(self._storage, folder)
        try:
            with ProgressLog(self._storage, folder, log.info, size, every, self._stop_if_all_fail):
                yield
        except Exception:
            if self._all_fail is not None:
                raise self._all_fail from None
            raise
        finally:
            clear_reports(self._storage, folder)

    def _stop_if_all_fail(self, tasks: Collection[Snapshot]) -> None:
        try:
            check_job(tasks)
        except AllFilesFailError as error:
            self._all_fail = error
            self._spark.sparkContext.cancelJobsWithTag(self._job.id)

    def _settle(self) -> RunResult:
        """Select staged files that hold exactly one row per file of the manifest. Returns the final result.

        Only files of this job run are marked for deletion, because another job may work on the same run.

        :raises StagingError: when a file has no row.
        """
        files = staged_files(self._storage, self._run.rows_uri)
        if not files:
            return self._result
        own = [number for number, file in enumerate(files) if f"-{self._job.id}-" in file.uri]
        index = ranked(self._index(files), [own, self._listed_before(files)])
        chosen = index.where("rank = 1").join(self._manifest, "audio_uri", "left_semi").persist()
        groups = self._groups(chosen)
        counts = _tally((group["file"], group["files"]) for group in groups)
        if sum(counts.values()) < self._files:
            self._require_all(chosen)
        whole = [number for number, count in counts.items() if count == files[number].rows]
        staged = [files[number] for number in whole]
        if len(whole) < len(counts):
            kept = chosen.where(~F.col("file").isin(*whole)) if whole else chosen
            staged += keep_rows(kept, files, self._run, self._job.staging, self._job.id)
        self._superseded = [files[number].uri for number in own if number not in whole]
        return self._summary(groups, sorted(staged, key=lambda file: file.uri))

    def _listed_before(self, files: Sequence[StagedFile]) -> list[int]:
        """Numbers of the files that the current ``result.json`` lists, which others may be reading."""
        try:
            listed = set(read_result(self._run, self._storage).staged)
        except (ObjectNotFound, StagingError):
            return []
        return [number for number, file in enumerate(files) if file in listed]

    def _require_all(self, chosen: DataFrame) -> None:
        missing = self._manifest.join(chosen, "audio_uri", "left_anti").select("audio_uri")
        examples = [row["audio_uri"] for row in missing.limit(_EXAMPLES).collect()]
        if examples:
            raise StagingError(
                f"{missing.count():,} of {self._files:,} files have no row in {self._run.rows_uri}, for "
                f"example {', '.join(examples)}. Run the job again: it goes on where this one stopped"
            )

    def _groups(self, chosen: DataFrame) -> list[Row]:
        """Counts and sums of the rows that are alike: one group or a few for each staged file."""
        groups = chosen.groupBy("file", "status", "error_code", "language", "engine_version").agg(
            F.count("*").alias("files"),
            F.sum("duration_s").alias("audio"),
            F.sum("speech_s").alias("speech"),
            F.sum((~is_settled(self._run.max_attempts)).cast("int")).alias("retryable"),
        )
        return groups.collect()

    def _summary(self, groups: Sequence[Row], files: Sequence[StagedFile]) -> RunResult:
        ok = [group for group in groups if group["status"] == "ok"]
        return dataclasses.replace(
            self._result,
            staged=tuple(files),
            ok=sum(group["files"] for group in ok),
            errors=sum(group["files"] for group in groups) - sum(group["files"] for group in ok),
            error_codes=_tally((g["error_code"], g["files"]) for g in groups if g["status"] != "ok"),
            retryable=sum(group["retryable"] for group in groups),
            languages=_tally((g["language"], g["files"]) for g in ok if g["language"]),
            audio_seconds=round(sum(group["audio"] or 0.0 for group in groups), 3),
            speech_seconds=round(sum(group["speech"] or 0.0 for group in groups), 3),
            engine_version=max((g["engine_version"] for g in groups if g["engine_version"]), default=None),
        )

    def _finish(self, result: RunResult) -> RunResult:
        result = dataclasses.replace(
            result,
            wall_seconds=round(time.monotonic() - self._started, 3),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._storage.write_bytes(self._run.result_uri, result.to_json().encode())
        self._storage.delete(self._superseded)
        log.info(
            "done in %.0f s: %s ok, %s errors; %s transcribed, %s staged before, %s from other runs",
            result.wall_seconds,
            f"{result.ok:,}",
            f"{result.errors:,}",
            f"{result.transcribed:,}",
            f"{result.resumed:,}",
            f"{result.reused:,}",
        )
        if result.real_time_factor is not None:
            log.info(
                "%.2f hours of audio in %.0f s: %.1f times real time, %s",
                result.transcribed_audio_seconds / 3600,
                result.transcribe_seconds,
                result.real_time_factor,
                _hours_used(result),
            )
            for line in _telemetry_lines(result):
                log.info(line)
        return result


def _telemetry(sums: Mapping[str, float]) -> dict[str, Any]:
    """Fields of the result from the counters of the tasks."""
    stages = {name: round(seconds, 3) for name, seconds in _named(sums, "stage ").items()}
    busy = device_busy(stages)
    return {
        "windows": int(sums.get("windows", 0)),
        "retried_windows": int(sums.get("retried_windows", 0)),
        "flags": {name: int(files) for name, files in _named(sums, "flag ").items()},
        "stage_seconds": stages,
        "device_busy": None if busy is None else round(busy, 4),
    }


def _task_time(sums: Mapping[str, float], gpus_a_task: str | None) -> dict[str, Any]:
    """Fields of the result: how long the tasks took, and how long they held a GPU.

    :param gpus_a_task: value of the Spark property, for example ``"0.25"`` if four tasks share one GPU.
    """
    seconds = sums.get("task_seconds", 0.0)
    return {
        "task_seconds": round(seconds, 3),
        "gpu_seconds": round(seconds * float(gpus_a_task), 3) if gpus_a_task else None,
    }


def _hours_used(result: RunResult) -> str:
    if result.gpu_seconds is not None:
        return f"{result.gpu_seconds / 3600:.2f} GPU hours"
    return f"{result.task_seconds / 3600:.2f} hours of Spark tasks"


def _named(sums: Mapping[str, float], kind: str) -> dict[str, float]:
    return {name.removeprefix(kind): sums[name] for name in sorted(sums) if name.startswith(kind)}


def _telemetry_lines(result: RunResult) -> Iterator[str]:
    if result.windows:
        yield f"{result.windows:,} windows, {result.retried_windows:,} of them decoded again"
    if result.flags:
        yield "flagged: " + ", ".join(f"{files:,} {name}" for name, files in result.flags.items())
    if result.device_busy is not None:
        seconds = (f"{name} {result.stage_seconds.get(name, 0.0):,.0f}" for name in STAGES)
        yield f"device busy {100 * result.device_busy:.0f} %; seconds of threads: {', '.join(seconds)}"


def _tally(counts: Iterable[tuple[T, int]]) -> dict[T, int]:
    total: dict[T, int] = {}
    for name, count in counts:
        total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
