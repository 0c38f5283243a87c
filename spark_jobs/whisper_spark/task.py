"""What one Spark task does: transcribe its share of the files and make each row durable as it goes."""

from __future__ import annotations

import importlib
import itertools
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from pyspark import TaskContext

from whisper_spark.contract import Run, WhisperOptions
from whisper_spark.objects import ObjectStorage
from whisper_spark.staging import FLUSH_SECONDS, StagedRows, task_index

INPUT_COLUMNS = ("audio_uri", "audio_etag", "audio_bytes", "attempt", "language")
"""Columns of the manifest that :func:`transcriber` takes, in this order."""

STATISTICS = ("audio_uri", "status", "error_code", "language", "duration_s", "speech_s")
STATISTICS_DDL = (
    "audio_uri string, status string, error_code string, language string, duration_s double, speech_s double"
)
"""What a task tells the driver about a file; the text goes to staging and nowhere else."""

_ROWS_A_BATCH = 64


@dataclass(frozen=True)
class Job:
    """What one invocation of the job was asked to do. Travels to the executors inside the tasks.

    :param options: those of the run, with other values for what only changes speed.
    :param credentials: obstore configuration for each of ``credentials.PLACES``; empty: ambient.
    :param id: unique to this invocation; part of the names of the files it stages.
    :param attempt_id: copied to the result.
    :param tasks: number of tasks; ``None`` picks one.
    :param flush_seconds: finished rows wait no longer than this.
    :param engine: ``module:function`` with the signature of :func:`whisper_spark.engine.get_engine`.
    """

    run: Run
    options: WhisperOptions
    credentials: Mapping[str, dict[str, str]] = field(repr=False)
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    attempt_id: str = ""
    tasks: int | None = None
    flush_seconds: float = FLUSH_SECONDS
    engine: str = "whisper_spark.engine:get_engine"

    @property
    def staging(self) -> dict[str, str]:
        """Configuration of the storage that holds manifest, rows and result."""
        return self.credentials["staging"]


def transcriber(job: Job) -> Any:
    """The Pandas UDF of the job: :data:`INPUT_COLUMNS` to a struct of :data:`STATISTICS`.

    Gives one struct for each file, in order of completion and not of the input: the struct names its file.
    """
    from pyspark.sql.pandas.functions import pandas_udf

    create: Any = pandas_udf  # its stubs know no struct of several columns in

    def transcribe(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
        yield from transcribe_share(job, batches)

    # Not deterministic, so that the optimiser never evaluates it twice.
    return create(transcribe, STATISTICS_DDL).asNondeterministic()


def transcribe_share(job: Job, batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.DataFrame]:
    """Transcribe the files of one task; a frame of :data:`STATISTICS` for every few of them.

    A task that Spark runs again, because an executor died or its output was lost, goes on after the rows
    that its earlier attempts staged.

    :raises Exception: what the engine raises for an unusable device or model, and
        :class:`whisper_spark.objects.StorageError` when staging cannot be written.
    """
    name = f"{job.id}-{_partition():05d}"
    staging = ObjectStorage(job.staging)
    earlier = task_index(staging, job.run.rows_uri, name)
    ready: list[dict[str, Any]] = []  # appended to by the engine's reading thread, too

    def files() -> Iterator[Any]:
        for file in _audio_files(batches):
            if file.uri in earlier:
                ready.append(earlier[file.uri])
            else:
                yield file

    todo = files()
    first = next(todo, None)
    if first is not None:  # else no model needs to be loaded
        engine = _function(job.engine)(job.options, job.credentials["model"] or None)
        source = ObjectStorage(job.credentials["source"])
        with StagedRows(staging, job.run, "part", name, flush_seconds=job.flush_seconds) as staged:
            for transcript in engine.transcribe(itertools.chain([first], todo), source):
                staged.add(transcript)
                ready.append({column: getattr(transcript, column) for column in STATISTICS})
                if len(ready) >= _ROWS_A_BATCH:
                    yield _frame(ready)
    while ready:
        yield _frame(ready)


def _frame(ready: list[dict[str, Any]]) -> pd.DataFrame:
    rows = ready[:_ROWS_A_BATCH]
    del ready[: len(rows)]
    return pd.DataFrame.from_records(rows, columns=[*STATISTICS])


def _audio_files(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[Any]:
    from whisper_spark.engine import AudioFile

    for columns in batches:
        for uri, etag, size, attempt, language in zip(*columns, strict=True):
            yield AudioFile(
                uri=uri,
                etag=None if pd.isna(etag) else etag,
                size=None if pd.isna(size) else int(size),
                attempt=int(attempt),
                language=None if pd.isna(language) else language,
            )


def _partition() -> int:
    context = TaskContext.get()
    if context is None:
        raise RuntimeError("transcribe_share runs inside Spark tasks only; use transcribe_files elsewhere")
    return context.partitionId()


def _function(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
