"""Build the payload of an event."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from airflow_whisper.watch.pending import Batch
from airflow_whisper.watch.source import Log, WatchedSource
from whisper_spark.storage.objects import join_uri

# Longer lists of files are written to a separate object, because Airflow's database stores events.
INLINE_URIS = 20


def event_payload(watched: WatchedSource, batch: Batch, log: Log) -> dict[str, Any]:
    """Return the event payload of a batch, see :class:`NewAudioTrigger`. Writes a long list to staging."""
    inline = len(batch.files) <= INLINE_URIS
    return {
        "source": watched.partitioning.template.source,
        "files": len(batch.files),
        "bytes": batch.bytes,
        "partitions": [partition_entry(watched, *entry) for entry in batch.partitions()],
        "uris": [file[0] for file in batch.files] if inline else None,
        "list_uri": None if inline or watched.staging is None else _write_list(watched, batch, log),
    }


def partition_entry(
    watched: WatchedSource, partition: Mapping[str, str], files: int, size: int
) -> dict[str, Any]:
    """The entry of one partition in a payload."""
    source = watched.partitioning.source_of(partition)
    return {"source": source, "partition": dict(partition), "files": files, "bytes": size}


def _write_list(watched: WatchedSource, batch: Batch, log: Log) -> str | None:
    """Write the files of a batch as Parquet and return the URI; ``None`` if staging cannot be reached."""
    try:
        data = _list_parquet(batch)
        name = f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"
        uri = join_uri(watched.staging or "", "arrivals", watched.watch_id, name)
        watched.staging_storage().write_bytes(uri, data)
    except Exception as error:
        # Send the event without the list: consumers plan their work by the event's partitions.
        log.warning("The list of %s new files was not written: %s", len(batch.files), error)
        return None
    return uri


def _list_parquet(batch: Batch) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uris, etags, sizes, times, partitions = zip(*batch.files, strict=True)
    table = pa.table(
        {
            "audio_uri": pa.array(uris, pa.string()),
            "audio_etag": pa.array(etags, pa.string()),
            "audio_bytes": pa.array(sizes, pa.int64()),
            "last_modified": pa.array(times, pa.timestamp("us", tz="UTC")),
            "partition": pa.array(partitions, pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
