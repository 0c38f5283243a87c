"""Requirements that an existing table must meet before transcripts can be written to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from airflow_whisper.table.columns import moved_columns
from airflow_whisper.table.partitions import PARTITION_TYPES, is_void
from whisper_spark.contract import transcript_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.table import Table

STATE_COLUMNS: tuple[str, ...] = (
    "audio_uri",
    "audio_etag",
    "status",
    "error_code",
    "attempt",
    "fingerprint",
)
"""The columns that determine whether a file must be transcribed again."""

CODEC = "write.parquet.compression-codec"
LEVEL = "write.parquet.compression-level"
TARGET_SIZE = "write.target-file-size-bytes"
FORMAT = "write.format.default"

_NUMBERS = (TARGET_SIZE, "write.summary.partition-limit", "write.metadata.previous-versions-max")
_MANIFEST_CODECS = ("gzip", "zstd", "snappy", "deflate", "bzip2", "zstandard", "null")


def parquet_codec(properties: dict[str, str]) -> tuple[str, int | None]:
    """Return codec and level for Parquet files, as pyarrow spells them.

    :raises ValueError: if pyarrow does not support them.
    """
    import pyarrow as pa

    codec = properties.get(CODEC, "zstd").lower()
    codec = "none" if codec == "uncompressed" else codec
    level = properties.get(LEVEL)
    if codec == "none":
        return codec, None
    try:
        number = None if level is None else int(level)
        pa.Codec(codec, compression_level=number)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(f"{CODEC}={codec}, {LEVEL}={level}: {error}") from None
    return codec, number


def problems(table: Table, keys: list[str]) -> Iterator[str]:
    """Yield every reason why transcripts partitioned by ``keys`` cannot be written to the table."""
    yield from _column_problems(table, keys)
    yield from _partition_problems(table, keys)
    yield from _property_problems(table)


def _column_problems(table: Table, keys: list[str]) -> Iterator[str]:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    ours, theirs = transcript_schema(keys), schema_to_pyarrow(table.schema(), include_field_ids=False)
    moved = moved_columns(table, ours)
    for field in ours:
        needed = field.name in STATE_COLUMNS or not field.nullable
        if field.name not in theirs.names:
            if needed:
                yield _missing(field, moved.get(field.name))
            continue
        column = theirs.field(field.name)
        if field.name in keys:
            yield from _key_problems(table, field.name)
        elif not _holds(column.type, field.type):
            yield f"column {field.name} has type {column.type}, expected {field.type}"
        elif field.nullable and not column.nullable:
            yield f"column {field.name} is required, but some transcript rows have no value for it"
    known = {*ours.names, *(now for now in moved.values() if now)}
    for column in theirs:
        if column.name not in known and not column.nullable:
            yield f"column {column.name} is required, but a transcript row has no such column"


def _missing(field: pa.Field, now: str | None) -> str:
    if now:
        return f"column {field.name} is missing: it was renamed to {now}, rename it back"
    return f"column {field.name} is missing: add it with type {field.type}"


def _key_problems(table: Table, key: str) -> Iterator[str]:
    kind = str(table.schema().find_type(key))
    if kind not in PARTITION_TYPES:
        yield f"column {key} has type {kind}, but a partition column must be {', '.join(PARTITION_TYPES)}"


def _holds(theirs: pa.DataType, ours: pa.DataType) -> bool:
    """Whether a table column can hold our values: equal, a wider number, or a struct with more fields."""
    import pyarrow.types as types

    if types.is_struct(ours):
        if not types.is_struct(theirs):
            return False
        names = {field.name: field for field in theirs}
        shared = all(_holds(names[f.name].type, f.type) for f in ours if f.name in names)
        return shared and all(field.nullable for field in theirs)
    if types.is_list(ours):
        lists = types.is_list(theirs) or types.is_large_list(theirs)
        return bool(lists) and _holds(theirs.value_type, ours.value_type)
    if types.is_string(ours):
        return bool(types.is_string(theirs) or types.is_large_string(theirs))
    if types.is_int32(ours) and types.is_int64(theirs):
        return True
    same: bool = ours.equals(theirs)
    return same


def _partition_problems(table: Table, keys: list[str]) -> Iterator[str]:
    schema = table.schema()
    actual = [
        f"{field.transform}({schema.find_column_name(field.source_id)})"
        for field in table.spec().fields
        if not is_void(field)
    ]
    if sorted(actual) != sorted(f"identity({key})" for key in keys):
        expected = ", ".join(f"identity({key})" for key in keys)
        yield f"it is partitioned by {', '.join(actual) or 'nothing'}, expected {expected}"


def _property_problems(table: Table) -> Iterator[str]:
    """Yield the table properties that this writer cannot honour.

    Performance hints, such as the size of pages and row groups, sort orders, Bloom filters and distribution,
    are not requirements: every Iceberg reader accepts files without them.
    """
    properties = table.properties
    if table.format_version > 2:
        yield f"it has Iceberg format version {table.format_version}, and PyIceberg writes 1 and 2"
    if (form := properties.get(FORMAT, "parquet")).lower() != "parquet":
        yield f"{FORMAT} is {form}, and only Parquet files are written"
    if encrypted := sorted(name for name in properties if name.startswith("encryption.")):
        yield f"{encrypted[0]} asks for encrypted files, which cannot be written"
    for name in _NUMBERS:
        value = properties.get(name, "1")
        if not value.isascii() or not value.isdecimal() or (name == TARGET_SIZE and int(value) < 1):
            yield f"{name} is {value!r}, not a number"
    codec = properties.get("write.avro.compression-codec", "gzip")
    if codec.lower() not in _MANIFEST_CODECS and codec.lower() != "uncompressed":
        yield f"write.avro.compression-codec is {codec}, and manifests are written with gzip, zstd or snappy"
    try:
        parquet_codec(properties)
    except ValueError as error:
        yield str(error)
    yield from _location_problems(table)
    yield from _metrics_problems(table)


def _location_problems(table: Table) -> Iterator[str]:
    properties = table.properties
    if "write.location-provider.impl" in properties and "write.py-location-provider.impl" not in properties:
        yield "write.location-provider.impl names a Java class, which only Java writers can use"
        return
    for old in ("write.folder-storage.path", "write.object-storage.path"):
        if old in properties and "write.data.path" not in properties:
            yield f"{old} is not read any more: set write.data.path"
    try:
        table.location_provider()
    except Exception as error:
        yield f"its location provider cannot be loaded: {error}"


def _metrics_problems(table: Table) -> Iterator[str]:
    from pyiceberg.io.pyarrow import compute_statistics_plan

    try:
        compute_statistics_plan(table.schema(), table.properties)
    except Exception as error:
        yield f"a property write.metadata.metrics.* cannot be read: {error}"
