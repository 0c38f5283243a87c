"""Writes and reads the staged rows of a run.

Uses Arrow and object storage, but neither Spark nor Airflow: both sides use it.
"""

from __future__ import annotations

import bisect
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whisper_spark.contract import Run, Transcript, in_current_schema, transcript_schema
from whisper_spark.staging.result import StagedFile, staged_file_uri, staged_files
from whisper_spark.storage.objects import ObjectNotFound
from whisper_spark.storage.parquet import open_parquet

if TYPE_CHECKING:
    import types

    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

FLUSH_SECONDS = 60.0
"""Seconds after which finished rows are written at the latest. A killed task loses at most this much work."""

FLUSH_BYTES = 32 * 1024 * 1024
"""Rows are written at once when they take this many bytes of memory (Arrow, uncompressed)."""

# A batch with these nested columns takes 45 kB in addition to its data, so batches of one row are joined when
# there are _SINGLE_ROWS of them.
_BATCH_BYTES = 48 * 1024
_SINGLE_ROWS = 256

# Making a batch of one transcript takes 400 microseconds, and 2 for each of many. So transcripts wait until
# they take about this many bytes, as 256 of them do without text.
_TRANSCRIPTS_BYTES = 256 * 1024

INDEX_COLUMNS: tuple[str, ...] = (
    "audio_uri",
    "audio_etag",
    "status",
    "error_code",
    "attempt",
    "language",
    "duration_s",
    "speech_s",
    "engine_version",
    "transcribed_at",
)
"""Columns of staged rows that are read without the text."""


def write_table(storage: ObjectStorage, uri: str, table: pa.Table) -> int:
    """Write one table as one Parquet file. Returns its size in bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = pa.BufferOutputStream()
    # With checksums, because a damaged page may still decompress, to other text.
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    data = buffer.getvalue()
    storage.write_bytes(uri, data.to_pybytes())
    return len(data)


# --- rows --------------------------------------------------------------------------------------------


class StagedRows:
    """Writes the rows of one task to staging, each after ``flush_seconds`` at the latest.

    .. code-block:: python

        with StagedRows(storage, run, "part", "0007") as staged:
            for transcript in engine.transcribe(files):
                staged.add(transcript)

    A thread writes the rows regularly, so that finished rows do not wait for a file that takes an hour. The
    remaining rows are written at the end of the block, even after an exception, because finished work must
    not be lost.

    :param origin, name: parts of the file names, see :func:`staged_file_uri`.
    :param flush_seconds: longest time that a row waits in memory, in seconds.
    :param flush_bytes: rows are written at once when they take this many bytes of memory.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        run: Run,
        origin: str,
        name: str,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        flush_bytes: int = FLUSH_BYTES,
    ) -> None:
        self._storage = storage
        self._rows_uri = run.rows_uri
        self._partition = run.partition
        self._schema = transcript_schema(run.partition)
        self._origin, self._name = origin, name
        self._flush_seconds, self._flush_bytes = flush_seconds, flush_bytes
        self._written: list[StagedFile] = []
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0
        # Number of batches with a single row at the end of _waiting.
        self._single = 0
        # Rows that are not in a batch yet. They are newer than those in _waiting.
        self._transcripts: list[Transcript] = []
        self._transcripts_bytes = 0
        # Guards the five attributes above; never held during I/O.
        self._lock = threading.Lock()
        # Held while a file is written, so that only one thread writes at a time.
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._flush_regularly, name="staging", daemon=True)
        self._thread.start()

    def __enter__(self) -> StagedRows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:
                raise
            # Logged only, because the first error is the cause and must be the one that is raised.
            log.exception("finished rows could not be written either")

    def add(self, transcript: Transcript) -> None:
        """Add one finished row.

        :raises StorageError: when the rows exceed ``flush_bytes`` and cannot be written.
        """
        with self._lock:
            self._transcripts.append(transcript)
            self._transcripts_bytes += _held_bytes(transcript)
            if self._transcripts_bytes >= _TRANSCRIPTS_BYTES:
                self._make_batch()
            full = self._waiting_bytes + self._transcripts_bytes >= self._flush_bytes
        if full:
            self.flush()

    def add_batch(self, batch: pa.RecordBatch) -> None:
        """Add finished rows that have the schema of the table. Raises the same exceptions as :meth:`add`."""
        with self._lock:
            self._append(batch)
            full = self._waiting_bytes + self._transcripts_bytes >= self._flush_bytes
        if full:
            self.flush()

    def _make_batch(self) -> None:
        import pyarrow as pa

        rows = [{**transcript.to_row(), **self._partition} for transcript in self._transcripts]
        self._append(pa.RecordBatch.from_pylist(rows, schema=self._schema))
        self._transcripts, self._transcripts_bytes = [], 0

    def _append(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._waiting_bytes += batch.nbytes + _BATCH_BYTES
        self._single = self._single + 1 if batch.num_rows == 1 else 0
        if self._single == _SINGLE_ROWS:
            self._join_single_rows()

    def _join_single_rows(self) -> None:
        import pyarrow as pa

        self._waiting[-self._single :] = [pa.concat_batches(self._waiting[-self._single :])]
        self._waiting_bytes -= (self._single - 1) * _BATCH_BYTES
        self._single = 0

    def flush(self) -> None:
        """Write all rows that wait. After a failure they are kept for the next try.

        :raises StorageError: when staging cannot be written.
        """
        import pyarrow as pa

        with self._writing:
            with self._lock:
                if self._transcripts:
                    self._make_batch()
                batches, self._waiting = self._waiting, []
                size, self._waiting_bytes = self._waiting_bytes, 0
                self._single = 0
            if not batches:
                return
            table = pa.Table.from_batches(batches, schema=self._schema)
            uri = staged_file_uri(self._rows_uri, self._origin, self._name, table.num_rows)
            try:
                written = write_table(self._storage, uri, table)
            except BaseException:
                with self._lock:
                    # Before the rows that were added meanwhile, so that _single still counts the last ones.
                    self._waiting = batches + self._waiting
                    self._waiting_bytes += size
                raise
            self._written.append(StagedFile(uri, table.num_rows, written))

    @property
    def written(self) -> list[StagedFile]:
        """The files written so far."""
        return list(self._written)

    def close(self) -> None:
        """Stop the thread and write the rest.

        :raises StorageError: when staging cannot be written.
        """
        self._closing.set()
        self._thread.join()
        self.flush()

    def _flush_regularly(self) -> None:
        while not self._closing.wait(self._flush_seconds):
            try:
                self.flush()
            except Exception as error:
                # Not fatal: the next round, a full buffer or close() tries again.
                log.warning("finished rows could not be written yet: %s", error)


def _held_bytes(transcript: Transcript) -> int:
    """About the bytes of memory that a transcript takes. Its words take 40 for each character of the text."""
    return 1024 + 40 * len(transcript.text or "")


def read_index(storage: ObjectStorage, uri: str) -> Iterator[pa.RecordBatch]:
    """:data:`INDEX_COLUMNS` of one file of staged rows, plus ``row`` (int32): the position in the file.

    A damaged file gives no rows, so that its audio is transcribed again. Nor does one that is gone: another
    job may have deleted what it has superseded since the files were listed.
    """
    import pyarrow as pa

    try:
        # Read the whole file first: if its second half is damaged, the first half must not be used.
        batches = list(_index_batches(storage, uri))
    except ObjectNotFound:
        log.info("%s is gone: another job has replaced it, or staging was tidied up", uri)
        return
    except (pa.ArrowException, OSError, ValueError) as error:
        log.warning("%s is damaged, so its rows are made again: %s", uri, error)
        return
    yield from batches


def _index_batches(storage: ObjectStorage, uri: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    first = 0
    with open_parquet(uri, storage) as parquet:
        for batch in parquet.iter_batches(columns=list(INDEX_COLUMNS)):
            rows = pa.array(range(first, first + batch.num_rows), pa.int32())
            first += batch.num_rows
            yield pa.RecordBatch.from_arrays(
                [*(batch.column(name) for name in INDEX_COLUMNS), rows], names=[*INDEX_COLUMNS, "row"]
            )


def read_rows(
    storage: ObjectStorage, uri: str, rows: Sequence[int], partition: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """The rows at the given positions of one file of staged rows, in batches."""
    import pyarrow as pa

    schema = transcript_schema(partition)
    wanted = sorted(rows)
    first = taken = 0
    with open_parquet(uri, storage) as parquet:
        for batch in parquet.iter_batches(batch_size=1024):
            here = wanted[taken : bisect.bisect_left(wanted, first + batch.num_rows)]
            if here:
                chosen = batch.take(pa.array([row - first for row in here], pa.int64()))
                yield in_current_schema(chosen, schema)
            taken += len(here)
            first += batch.num_rows


def task_index(storage: ObjectStorage, rows_uri: str, name: str) -> dict[str, dict[str, Any]]:
    """The index rows that earlier attempts of a Spark task have staged, by audio URI.

    :param name: name of the task in the file names; its attempts have the same.
    """
    index: dict[str, dict[str, Any]] = {}
    for file in staged_files(storage, rows_uri):
        if file.uri.startswith(f"{rows_uri}/part-{name}-"):
            for batch in read_index(storage, file.uri):
                index.update((row["audio_uri"], row) for row in batch.to_pylist())
    return index
