"""Select the audio files of a listing and determine their partitions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_whisper.discovery.audio_filter import AudioFilter
from airflow_whisper.watch.partition_templates import Partitioning, modified_partition
from airflow_whisper.watch.pending import NEVER, File
from whisper_spark.contract import partition_path

if TYPE_CHECKING:
    import pyarrow as pa

# Largest number of folders whose partition is cached: about 30 MB.
_MOST_FOLDERS = 100_000


class PartitionAssignment:
    """Assigns listed audio files to partitions, and ignores other objects."""

    def __init__(self, partitioning: Partitioning, audio_filter: AudioFilter) -> None:
        self._partitioning = partitioning
        self._filter = audio_filter
        self._folders: dict[str, tuple[dict[str, str], str, int] | None] = {}

    def files(self, batch: pa.RecordBatch, watermark: int) -> tuple[list[File], Counter[str]]:
        """Return the audio that arrived after the watermark, and the number of ignored objects by kind.

        A kind is one of :meth:`AudioFilter.kind`, or ``elsewhere``: in a folder that matches no partition.
        """
        batch, arrivals = _newer(batch, watermark)
        files: list[File] = []
        left_out: Counter[str] = Counter()
        formats = self._partitioning.formats
        columns = (column.to_pylist() for column in (*batch.columns[:3], _micros(batch), arrivals))
        for uri, etag, size, modified, arrived in zip(*columns, strict=True):
            folder = self._folder(uri)
            if folder is None:
                left_out["elsewhere"] += 1
                continue
            values, partition, key_start = folder
            kind = self._filter.kind(uri[key_start:])
            if kind != "audio":
                left_out[kind] += 1
                continue
            if formats:
                partition = partition_path(values | _by_time(formats, modified))
            files.append((uri, etag, size, arrived, partition))
        return files, left_out

    def _folder(self, uri: str) -> tuple[dict[str, str], str, int] | None:
        """Partition values of a file, as dict and as text, and the index at which the path below starts."""
        folder = uri[: uri.rfind("/")]
        if folder not in self._folders:
            if len(self._folders) >= _MOST_FOLDERS:
                self._folders.clear()
            self._folders[folder] = self._look_up(uri)
        return self._folders[folder]

    def _look_up(self, uri: str) -> tuple[dict[str, str], str, int] | None:
        template = self._partitioning.template
        names = template.folders_of(uri)
        found = template.partition_of_folders(names)
        if names is None or found is None:
            return None
        values = {**self._partitioning.fixed, **found}
        return values, partition_path(values), len(template.root) + sum(len(name) + 1 for name in names)


def _by_time(formats: Mapping[str, str], modified: int) -> dict[str, str]:
    return modified_partition(formats, datetime.fromtimestamp(modified / 1e6, UTC))


def _newer(batch: pa.RecordBatch, watermark: int) -> tuple[pa.RecordBatch, pa.Array]:
    """The objects of a listing that arrived after the watermark, and their arrival times."""
    import pyarrow.compute as pc

    local = batch.num_rows and batch.column(0)[0].as_py().startswith("file://")
    arrived = _arrival_times(batch) if local else _micros(batch)
    if watermark == NEVER:
        return batch, arrived
    after = pc.greater(arrived, watermark)
    return batch.filter(after), arrived.filter(after)


def _arrival_times(batch: pa.RecordBatch) -> pa.Array:
    """Arrival times of local files.

    A moved or copied file keeps its old modification time, so the inode's change time counts if it is later.
    """
    import pyarrow as pa

    times = []
    for uri, modified in zip(batch.column(0).to_pylist(), _micros(batch).to_pylist(), strict=True):
        with suppress(OSError):
            modified = max(modified, os.stat(uri.removeprefix("file://")).st_ctime_ns // 1000)  # noqa: PTH116
        times.append(modified)
    return pa.array(times, pa.int64())


def _micros(batch: pa.RecordBatch) -> pa.Array:
    import pyarrow as pa

    return batch.column("last_modified").cast(pa.int64())
