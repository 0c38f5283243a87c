"""Write the manifest of a run, and the list of rows to delete, to staging."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_whisper.discovery.comparison import ROW_GROUP, Comparison, Counts
from whisper_spark.contract import Run, WhisperOptions, manifest_schema, partition_path, run_folder
from whisper_spark.storage.parquet import open_parquet

if TYPE_CHECKING:
    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

# --- the run -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Target:
    """The destination of a source's transcripts. See :class:`whisper_spark.contract.Run`."""

    table: str
    partition: dict[str, str]
    source: str
    staging: str
    options: WhisperOptions
    base_snapshot_id: int | None
    max_attempts: int = 3

    def run_uri(self, manifest_id: str) -> str:
        """URI of a run's folder in staging."""
        fingerprint = self.options.fingerprint()
        return run_folder(self.staging, self.table, self.partition, fingerprint, manifest_id)


def write_run(comparison: Comparison, counts: Counts, target: Target, storage: ObjectStorage) -> Run:
    """Write the manifest, and the rows to delete if there are any, to staging.

    The folder's name is derived from the content, so repeated calls write the same files.

    :param storage: storage of the staging URI.
    """
    manifest_id = _manifest_id(comparison, counts, target)
    run = Run(
        table=target.table,
        partition=target.partition,
        source=target.source,
        options=target.options,
        run_uri=target.run_uri(manifest_id),
        manifest_id=manifest_id,
        base_snapshot_id=target.base_snapshot_id,
        counts={**counts.files, "unchanged_errors": counts.unchanged_errors},
        audio_bytes=counts.audio_bytes,
        max_attempts=target.max_attempts,
    )
    if counts.files["removed"]:
        _write_removed(comparison, run, storage)
    # Write the manifest last, because readers that find it rely on the other file.
    _write_manifest(comparison, run, storage)
    return run


def _manifest_id(comparison: Comparison, counts: Counts, target: Target) -> str:
    head = [
        target.table,
        partition_path(target.partition),
        target.source,
        target.options.fingerprint(),
        target.base_snapshot_id,
        target.max_attempts,
    ]
    digest = hashlib.sha256(json.dumps(head).encode())
    for chunk in comparison.files():
        for uri, etag, size, _, change, attempt in chunk:
            digest.update(f"\n{uri}\0{etag}\0{size}\0{change}\0{attempt}".encode())
    if counts.files["removed"]:
        for chunk in comparison.removed():
            for (uri,) in chunk:
                digest.update(f"\nremoved\0{uri}".encode())
    return digest.hexdigest()[:32]


def _write_manifest(comparison: Comparison, run: Run, storage: ObjectStorage) -> None:
    import pyarrow as pa

    schema = manifest_schema(run.partition).with_metadata(run.to_metadata())

    def batches() -> Iterator[pa.RecordBatch]:
        for chunk in comparison.files():
            values = [*zip(*chunk, strict=True)]
            values += [(value,) * len(chunk) for value in run.partition.values()]
            arrays = [pa.array(v, f.type) for v, f in zip(values, schema, strict=True)]
            yield pa.record_batch(arrays, schema=schema)

    _upload(comparison.folder / "manifest.parquet", run.manifest_uri, schema, batches(), storage)


def _write_removed(comparison: Comparison, run: Run, storage: ObjectStorage) -> None:
    import pyarrow as pa

    schema = pa.schema([pa.field("audio_uri", pa.string(), nullable=False)])
    batches = (
        pa.record_batch([pa.array([uri for (uri,) in chunk], pa.string())], schema=schema)
        for chunk in comparison.removed()
    )
    _upload(comparison.folder / "removed.parquet", run.removed_uri, schema, batches, storage)


def _upload(
    path: Path, uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], storage: ObjectStorage
) -> None:
    """Write a file, unless it is there already. Replaces one that is damaged, but never a sound one.

    Jobs may be reading a sound one.
    """
    import pyarrow.parquet as pq

    # With checksums, because a damaged page may still decompress, to other URIs.
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=ROW_GROUP)
    if storage.upload(path, uri, if_absent=True) or _is_alike(path, uri, storage):
        return
    log.warning("%s is damaged, and is written again", uri)
    storage.upload(path, uri)


def _is_alike(path: Path, uri: str, storage: ObjectStorage) -> bool:
    """Whether an object holds the same as a local file, but for what the id of a manifest leaves out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def parts(file: pq.ParquetFile) -> Iterator[object]:
        schema = file.schema_arrow
        if schema.metadata:
            run = Run.from_metadata(schema.metadata)
            yield dataclasses.replace(run, counts={}), list(run.partition)
        for batch in file.iter_batches(batch_size=ROW_GROUP):
            names = [name for name in batch.schema.names if name != "last_modified"]
            yield batch.select(names).replace_schema_metadata()

    try:
        with pq.ParquetFile(path) as ours, open_parquet(uri, storage) as theirs:
            return all(mine == other for mine, other in zip(parts(ours), parts(theirs), strict=True))
    except (ValueError, OSError, pa.ArrowException):
        return False
