"""Read what a run has staged. Any part may be damaged or written by someone else.

A fault becomes a message for a check. Only a store that cannot be reached raises an exception.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_whisper.validation.row_checks import schema_problem
from whisper_spark.contract import (
    Run,
    in_current_schema,
    manifest_schema,
    partition_path,
    run_folder,
    transcript_schema,
)
from whisper_spark.staging.result import RunResult, StagedFile, StagingError, read_result
from whisper_spark.storage.objects import ObjectNotFound, normalise_uri

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from whisper_spark.storage.objects import ObjectStorage

MAX_ROW_GROUP_BYTES = 1 << 30
"""Largest uncompressed size of a row group that is read. The job writes row groups of about 32 MiB; the limit
protects against decompression bombs."""

_BATCH_ROWS = 1024

# Number of staged files that are read ahead while one is checked. Each takes at most 32 MiB of memory.
_READ_AHEAD = 4


# Upper limit for plausible numbers of seconds (thirty years) and real-time factors.
_ABSURD = 1e9


class DamagedError(Exception):
    """A file cannot be read. The message says why, without naming the file."""


# --- manifest --------------------------------------------------------------------------------------------


def manifest_problem(run: Run, uri: str) -> str | None:
    """Describe how a manifest contradicts its location; ``None`` if it does not.

    :param run: the run that the manifest describes.
    :param uri: URI from which the manifest was read.
    """
    try:
        stated = normalise_uri(run.manifest_uri)
    except ValueError as error:
        return f"it speaks of a run in a folder that cannot be: {error}"
    if stated != normalise_uri(uri):
        return f"it speaks of the run in {run.run_uri}, but lies in {uri}"
    folder = run_folder("", run.table, run.partition, run.options.fingerprint(), run.manifest_id)
    if not normalise_uri(run.run_uri).endswith(folder):
        return (
            f"it speaks of table {run.table}, {partition_path(run.partition)} and manifest "
            f"{run.manifest_id}, but lies in {run.run_uri}"
        )
    return None


def at_place(run: Run, uri: str) -> Run:
    """Return the run with the folder in which its manifest lies, whatever folder the manifest states."""
    return dataclasses.replace(run, run_uri=normalise_uri(uri).rsplit("/", 1)[0])


def manifest_batches(run: Run, storage: ObjectStorage) -> Iterator[pa.RecordBatch]:
    """Yield ``audio_uri`` and ``audio_etag`` of the manifest's rows.

    :raises DamagedError: if the manifest is damaged.
    :raises whisper_spark.storage.objects.StorageError: if the store cannot be read.
    """
    from whisper_spark.storage.parquet import open_parquet

    wanted = [manifest_schema().field(name) for name in ("audio_uri", "audio_etag")]
    with ExitStack() as stack:
        manifest = _undamaged(lambda: stack.enter_context(open_parquet(run.manifest_uri, storage)))
        for column in wanted:
            if column.name not in manifest.schema_arrow.names:
                raise DamagedError(f"column {column.name} is missing")
            if (found := manifest.schema_arrow.field(column.name).type) != column.type:
                raise DamagedError(f"column {column.name} is {found}, expected {column.type}")
        yield from _batches(manifest, [column.name for column in wanted])


# --- result ----------------------------------------------------------------------------------------------


def job_result(run: Run, storage: ObjectStorage) -> RunResult | str | None:
    """Return the job's result, or the reason why it is not usable; ``None`` if there is no result."""
    try:
        result = read_result(run, storage)
        problem = _result_problem(result, run)
    except ObjectNotFound:
        return None
    except StagingError as error:
        return str(error)
    except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
    return f"{run.result_uri} is not what the job writes: {problem}" if problem else result


def _result_problem(result: RunResult, run: Run) -> str | None:
    for name in ("files", "transcribed", "resumed", "reused"):
        if not _is_count(getattr(result, name)):
            return f"{name} is {getattr(result, name)!r}"
    for name in ("wall_seconds", "real_time_factor"):
        value = getattr(result, name)
        if value is not None and not (type(value) in (int, float) and 0 <= value < _ABSURD):
            return f"{name} is {value!r}"
    if not isinstance(result.engine_version, str | None):
        return f"engine_version is {result.engine_version!r}"
    if result.finished_at:
        datetime.fromisoformat(result.finished_at)
    return _staged_problem(result.staged, run)


def _staged_problem(staged: Sequence[StagedFile], run: Run) -> str | None:
    seen = set()
    for file in staged:
        if not isinstance(file.uri, str) or not file.uri.startswith(f"{run.rows_uri}/") or "/../" in file.uri:
            return f"it names {file.uri!r}, which is not among the staged rows of this run"
        if file.uri in seen:
            return f"it names {file.uri} twice"
        if not _is_count(file.rows):
            return f"it says that {file.uri} has {file.rows!r} rows"
        seen.add(file.uri)
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


# --- rows ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedFile:
    """An open file that the result names.

    :param rows: its number of rows; ``None`` if the file does not exist or cannot be read.
    :param missing: whether the file does not exist.
    :param problem: why its rows cannot be used; ``None`` if :meth:`batches` can read them.
    """

    uri: str
    rows: int | None = None
    missing: bool = False
    problem: str | None = None
    parquet: Any = None
    schema: Any = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, in the schema of ``contract.transcript_schema``.

        :raises DamagedError: if they cannot be read completely.
        """
        return (in_current_schema(batch, self.schema) for batch in _batches(self.parquet))


def opened_files(staged: Sequence[StagedFile], run: Run, storage: ObjectStorage) -> Iterator[OpenedFile]:
    """Yield the staged files that a result names, in order. Each is closed when the next is requested."""
    rows = {file.uri: file.rows for file in staged}
    for uri, file in _read_ahead(sorted(rows), storage):
        if file is None:
            yield OpenedFile(uri, missing=True)
            continue
        with file:
            yield _opened(uri, file, rows[uri], tuple(run.partition))


def _opened(uri: str, file: BinaryIO, rows: int, partition_keys: Sequence[str]) -> OpenedFile:
    import pyarrow.parquet as pq

    try:
        parquet = _undamaged(lambda: pq.ParquetFile(file, page_checksum_verification=True))
        schema = _undamaged(lambda: parquet.schema_arrow)
    except DamagedError as error:
        return OpenedFile(uri, problem=f"no Parquet file: {error}")
    found = parquet.metadata.num_rows
    problem = schema_problem(schema, partition_keys) or _size_problem(parquet.metadata)
    if found != rows:
        # Do not read the rows: a forged number in the footer must not determine memory and time.
        problem = problem or f"{found} rows, expected {rows}"
    return OpenedFile(uri, found, problem=problem, parquet=parquet, schema=transcript_schema(partition_keys))


def _size_problem(metadata: pq.FileMetaData) -> str | None:
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).total_byte_size
        if not 0 <= size <= MAX_ROW_GROUP_BYTES:
            return f"row group {number} takes {size:,} bytes"
    return None


def _batches(parquet: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    # Use one thread: with more, columns of several row groups are decompressed at the same time.
    batches = _undamaged(
        lambda: parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False)
    )
    while (batch := _undamaged(lambda: next(batches, None))) is not None:
        # Full validation finds lists with decreasing offsets, and text that is not UTF-8.
        _undamaged(lambda: batch.validate(full=True))
        yield batch


def _undamaged(read: Callable[[], Any]) -> Any:
    """Return the result of a pyarrow call, and turn its many kinds of exceptions into a DamagedError."""
    import pyarrow as pa

    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise DamagedError(str(error) or type(error).__name__) from None


def _read_ahead(uris: Sequence[str], storage: ObjectStorage) -> Iterator[tuple[str, BinaryIO | None]]:
    """Yield the files in order, reading some ahead: a run of ten million files stages thousands of them."""
    ahead: deque[tuple[str, Future[BinaryIO | None]]] = deque()
    waiting = iter(uris)
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        try:
            while True:
                while len(ahead) < _READ_AHEAD and (uri := next(waiting, None)) is not None:
                    ahead.append((uri, pool.submit(_open, uri, storage)))
                if not ahead:
                    return
                uri, future = ahead.popleft()
                yield uri, future.result()
        finally:
            for _, future in ahead:
                if not future.cancel() and future.exception() is None and (file := future.result()):
                    file.close()


def _open(uri: str, storage: ObjectStorage) -> BinaryIO | None:
    try:
        return storage.open(uri)
    except ObjectNotFound:
        return None
