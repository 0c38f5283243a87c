"""The work of one Spark task: transcribe the files of its partition and stage each finished row."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pyspark import TaskContext
from pyspark.accumulators import Accumulator, AccumulatorParam

from whisper_spark.audio.files import AudioFile
from whisper_spark.contract import Run, Transcript, WhisperOptions
from whisper_spark.engine.engine_process import ENGINE
from whisper_spark.engine.isolated import IsolatedEngine, error_row
from whisper_spark.progress.counters import Progress
from whisper_spark.progress.reports import (
    PROGRESS_SECONDS,
    JobSize,
    TaskReport,
    read_reports,
    report_folder,
    task_report_uri,
)
from whisper_spark.spark.first_files import FirstFiles
from whisper_spark.spark.precautions import Precautions
from whisper_spark.staging.rows import FLUSH_SECONDS, StagedRows, task_index
from whisper_spark.storage.objects import ObjectStorage

INPUT_COLUMNS = ("audio_uri", "audio_etag", "audio_bytes", "attempt")
"""Columns of the manifest that are the arguments of the UDF, in this order."""

STATISTICS = ("audio_uri", "status", "error_code", "language", "duration_s", "speech_s")
STATISTICS_DDL = (
    "audio_uri string, status string, error_code string, language string, duration_s double, speech_s double"
)
"""Columns that a task returns for each file. The text is written to staging only."""

_ROWS_A_BATCH = 64


@dataclass(frozen=True)
class JobSpec:
    """The parameters of one job run. Sent to the executors with the tasks.

    :param options: options of the run, with the values given to the job for those that affect only speed.
    :param credentials: obstore configuration for each of ``credentials.PLACES``; empty: ambient credentials.
    :param id: unique to this job run; part of the names of the files that it stages.
    :param attempt_id: copied to the result.
    :param tasks: number of tasks; ``None``: chosen by the job.
    :param flush_seconds: longest time that finished rows wait in memory, in seconds.
    :param progress_seconds: seconds between two progress reports of a task.
    :param engine: ``module:function`` with the signature of
        :func:`whisper_spark.engine.transcriber.get_engine`.
    """

    run: Run
    options: WhisperOptions
    credentials: Mapping[str, dict[str, str]] = field(repr=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    attempt_id: str = ""
    tasks: int | None = None
    flush_seconds: float = FLUSH_SECONDS
    progress_seconds: float = PROGRESS_SECONDS
    engine: str = ENGINE

    @property
    def staging(self) -> dict[str, str]:
        """Configuration of the storage that holds the manifest, rows and result."""
        return self.credentials["staging"]

    @property
    def progress_uri(self) -> str:
        """Folder of the progress reports of this job run."""
        return report_folder(self.run.run_uri, self.attempt_id or self.id)


class Sums(AccumulatorParam[dict[str, float]]):
    """The parameter of a Spark accumulator that sums numbers by name."""

    def zero(self, value: dict[str, float]) -> dict[str, float]:
        """The initial value in a task."""
        return {}

    def addInPlace(  # noqa: N802 - Spark's name
        self, value1: dict[str, float], value2: dict[str, float]
    ) -> dict[str, float]:
        """The sums of both."""
        return {name: value1.get(name, 0) + value2.get(name, 0) for name in {**value1, **value2}}


def transcriber(job: JobSpec, size: JobSize, sums: Accumulator[dict[str, float]]) -> Any:
    """The Pandas UDF of the job, from :data:`INPUT_COLUMNS` to a struct of :data:`STATISTICS`.

    It returns one struct per file, in order of completion instead of input order; the struct contains the
    URI.

    :param size: the work of all tasks together.
    :param sums: accumulates :meth:`Snapshot.sums` and ``task_seconds`` of each successful task.
    """
    from pyspark.sql.pandas.functions import pandas_udf

    # Any, because the stubs of pandas_udf do not cover a UDF with several input columns and a struct as
    # output.
    create: Any = pandas_udf

    def transcribe(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        yield from transcribe_partition(job, size, sums, batches)

    # Declared non-deterministic, so that the optimizer never evaluates it twice.
    return create(transcribe, STATISTICS_DDL).asNondeterministic()


def transcribe_partition(
    job: JobSpec,
    size: JobSize,
    sums: Accumulator[dict[str, float]],
    batches: Iterator[tuple[pd.Series, ...]],
) -> Iterator[pd.DataFrame]:
    """Transcribe the files of one task. Yields their :data:`STATISTICS` in small DataFrames.

    A task that Spark retries, because an executor was lost or its output is missing, skips the files that
    earlier attempts of the same Spark task have staged, and takes :class:`Precautions`.

    :raises Exception: the exceptions of the engine for an unusable device or model, and
        :class:`whisper_spark.storage.objects.StorageError` when staging cannot be written.
    """
    started = time.monotonic()
    task = _Task(job, size, _context())
    todo = task.left(batches)
    first = next(todo, None)
    # Load the model only if there is a file to transcribe.
    if first is not None:
        yield from task.transcribed(itertools.chain([first], todo))
        seconds = time.monotonic() - started
        sums.add({**task.progress.snapshot().sums(), "task_seconds": seconds})
    yield from task.frames(1)


class _Task:
    """One attempt of a Spark task: its input, its engine, and the rows that it has finished."""

    def __init__(self, job: JobSpec, size: JobSize, context: TaskContext) -> None:
        number = context.partitionId()
        self._job = job
        self._staging = ObjectStorage(job.staging)
        self._name = f"{job.id}-{number:05d}"
        self._report_uri = task_report_uri(job.progress_uri, number)
        self._earlier = task_index(self._staging, job.run.rows_uri, self._name)
        note = f"{job.progress_uri}/alone-{number:05d}"
        self._precautions = Precautions(self._staging, note, context.attemptNumber())
        self._first_files = FirstFiles(lambda: read_reports(self._staging, job.progress_uri))
        part = size.of_task(number)
        self.progress = Progress(part.files, part.audio_bytes or None)
        # Statistics of finished files; the thread that takes files also appends to it.
        self._ready: list[dict[str, Any]] = []

    def left(self, batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[AudioFile]:
        """The files that no earlier attempt of this task has staged."""
        for file in _audio_files(batches):
            if file.uri in self._earlier:
                self._ready.append(self._earlier[file.uri])
                self.progress.leave_out(file.size)
            else:
                yield file

    def transcribed(self, files: Iterator[AudioFile]) -> Iterator[pd.DataFrame]:
        """Transcribe and stage files. Yields their statistics in small DataFrames."""
        job = self._job
        report = TaskReport(self._staging, self._report_uri, self.progress, job.progress_seconds)
        seconds = self._precautions.flush_seconds(job.flush_seconds)
        staged = StagedRows(self._staging, job.run, "part", self._name, flush_seconds=seconds)
        engine = IsolatedEngine(job.options, job.credentials["model"], job.engine)
        source, alone = ObjectStorage(job.credentials["source"]), self._precautions.alone
        with report, staged:
            careful = self._without_culprit(files, staged)
            for transcript in engine.transcribe(careful, source, self.progress, alone):
                self._stage(self._first_files.passed(transcript), staged)
                yield from self.frames(_ROWS_A_BATCH)
            self._stage(self._first_files.rest(), staged)

    def _without_culprit(self, files: Iterator[AudioFile], staged: StagedRows) -> Iterator[AudioFile]:
        culprit = self._precautions.culprit()
        for file in files:
            if file.uri == culprit:
                error = error_row(file, self._job.options, "the Spark worker was lost with it, twice")
                self.progress.finished(error)
                self._stage([error], staged)
                staged.flush()
            else:
                self._precautions.starting(file.uri)
                yield file

    def _stage(self, transcripts: Iterable[Transcript], staged: StagedRows) -> None:
        for transcript in transcripts:
            staged.add(transcript)
            self._ready.append({column: getattr(transcript, column) for column in STATISTICS})

    def frames(self, least: int) -> Iterator[pd.DataFrame]:
        """The statistics of finished files, while there are at least ``least`` of them."""
        while len(self._ready) >= least:
            yield _frame(self._ready)


def _frame(ready: list[dict[str, Any]]) -> pd.DataFrame:
    rows = ready[:_ROWS_A_BATCH]
    del ready[: len(rows)]
    return pd.DataFrame.from_records(rows, columns=[*STATISTICS])


def _audio_files(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[AudioFile]:
    for columns in batches:
        for uri, etag, size, attempt in zip(*columns, strict=True):
            yield AudioFile(
                uri=uri,
                etag=None if pd.isna(etag) else etag,
                size=None if pd.isna(size) else int(size),
                attempt=int(attempt),
            )


def _context() -> TaskContext:
    context = TaskContext.get()
    if context is None:
        raise RuntimeError("this runs inside Spark tasks only; use transcribe_files elsewhere")
    return context
