"""Catalogs for tests, and the changes that runs make to their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table
from transcripts import OPTIONS, PARTITION, make_manifest_rows, make_transcript_rows

from airflow_whisper.table.read import current_rows
from airflow_whisper.table.replace import PartitionChange
from whisper_spark.contract import WhisperOptions, partition_path

TABLE = "speech.transcripts"


FINGERPRINT = OPTIONS.fingerprint()


OTHER = WhisperOptions(model="tiny").fingerprint()


@dataclass(frozen=True)
class Lake:
    """A catalog. Each call of ``open`` returns a new client, because each run has its own."""

    open: Callable[[], Catalog]


def change(
    uris: Iterable[str] = (),
    *,
    base: int | None = None,
    why: str = "new",
    etag: str = "e1",
    attempt: int = 1,
    removed: Iterable[str] = (),
    partition: Mapping[str, str] = PARTITION,
    fingerprint: str = FINGERPRINT,
    rows: pa.Table | None = None,
    key: str | None = None,
    **row: Any,
) -> PartitionChange:
    """Return the change of a run whose discovery saw the snapshot ``base``."""
    uris, removed = list(uris), list(removed)
    manifest = make_manifest_rows(uris, partition=partition, change=why, audio_etag=etag, attempt=attempt)
    if rows is None:
        values = {"audio_etag": etag, "attempt": attempt, "fingerprint": fingerprint, **row}
        rows = make_transcript_rows(uris, partition=partition, **values)
    return PartitionChange(
        partition=partition,
        fingerprint=fingerprint,
        idempotency_key=key
        or f"{partition_path(partition)}#{base}-{why}-{etag}-{attempt}-{fingerprint}-{uris}-{removed}",
        base_snapshot_id=base,
        manifest=manifest.to_batches(),
        removed=pa.table({"audio_uri": pa.array(removed, pa.string())}).to_batches(),
        rows=rows.to_batches(max_chunksize=2),
    )


def row_keys(
    catalog: Catalog, partition: Mapping[str, str] = PARTITION
) -> list[tuple[str, str | None, str, int]]:
    """Return (uri, etag, fingerprint, attempt) of every row of a partition, sorted."""
    rows = [row for batch in current_rows(catalog, TABLE, partition) for row in batch.to_pylist()]
    return sorted((r["audio_uri"], r["audio_etag"], r["fingerprint"], r["attempt"]) for r in rows)


def uris(catalog: Catalog, partition: Mapping[str, str] = PARTITION) -> list[str]:
    return [row[0] for row in row_keys(catalog, partition)]


def data_files(table: Table) -> set[str]:
    return set(table.inspect.data_files()["file_path"].to_pylist())


def data_files_on_disk(warehouse: Path) -> set[str]:
    return {f"file://{path}" for path in warehouse.rglob("*.parquet")}


def open_file(table: Table, path: str) -> tuple[Any]:
    return (table.io.new_input(path).open(),)
