"""The Parquet file in which the index of a partition's exports is stored."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA_KEY = b"airflow_whisper.export"
_LISTS = ("files", "hashes", "runs")


def index_schema() -> pa.Schema:
    """Schema of the index, in the order of the table ``exported`` of the comparison."""
    import pyarrow as pa

    texts = pa.list_(pa.field("element", pa.string()))
    return pa.schema(
        [
            pa.field("audio_uri", pa.string(), nullable=False),
            pa.field("audio_etag", pa.string()),
            pa.field("fingerprint", pa.string()),
            pa.field("transcribed_at", pa.timestamp("us", tz="UTC")),
            pa.field("settings", pa.string()),
            *(pa.field(name, texts) for name in _LISTS),
        ]
    )


def noted(schema: pa.Schema) -> dict[str, Any]:
    """What :func:`write_index` noted in the file that has this schema.

    :raises ValueError: if the note is damaged.
    """
    note = json.loads((schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    return note if isinstance(note, dict) else {}


def write_index(path: Path, chunks: Iterable[list[Any]], note: dict[str, Any]) -> None:
    """Write the index to a local file that differs from all others.

    :param chunks: lists of tuples with the columns of :func:`index_schema`; lists are JSON.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = json.dumps({**note, "id": uuid.uuid4().hex}).encode()
    schema = index_schema().with_metadata({_METADATA_KEY: metadata})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for chunk in chunks:
            columns = [
                [json.loads(text) for text in values] if field.name in _LISTS else values
                for field, values in zip(schema, zip(*chunk, strict=True), strict=True)
            ]
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def for_database(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of the file in the columns of :func:`index_schema`, with lists as JSON.

    Lists that an earlier release did not write are empty.

    :raises KeyError: if another column is missing.
    """
    import pyarrow as pa

    def column(name: str) -> pa.Array:
        if name not in _LISTS:
            return batch.column(name)
        if name != "files" and name not in batch.schema.names:
            return pa.array(["[]"] * batch.num_rows, pa.string())
        return pa.array([json.dumps(values or []) for values in batch.column(name).to_pylist()], pa.string())

    names = index_schema().names
    return pa.RecordBatch.from_arrays([column(name) for name in names], names=names)
