"""The table of transcripts: create it, and check that an existing one can hold what we write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from airflow_whisper.table.errors import RegistrationError, TableMismatchError
from whisper_spark.contract import transcript_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

STATE_COLUMNS: tuple[str, ...] = (
    "audio_uri",
    "audio_etag",
    "status",
    "error_code",
    "attempt",
    "fingerprint",
)
"""What decides whether a file has to be transcribed again."""

TABLE_PROPERTIES: dict[str, str] = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.target-file-size-bytes": str(128 * 1024 * 1024),
    # Each commit of any partition competes for the one pointer to the table's metadata: PyIceberg's default
    # of 4 tries ran out with 6 writers. These are for other writers; replacement.py has its own loop.
    "commit.retry.num-retries": "30",
    "commit.retry.min-wait-ms": "100",
    "commit.retry.max-wait-ms": "5000",
    # Every commit writes a new metadata file; without this they pile up for ever.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
}
"""Properties of a new table. An existing table keeps its own."""


def check_table_name(table: str) -> None:
    """:raises ValueError: unless the name is ``namespace.table``."""
    parts = table.split(".")
    if len(parts) < 2 or not all(part.strip() == part and part for part in parts):
        raise ValueError(
            f"table {table!r} must be written namespace.table, for example 'speech.transcripts': "
            "a catalog keeps every table in a namespace"
        )


def load_table(catalog: Catalog, table: str) -> Table | None:
    """The table at its newest snapshot, or ``None`` when there is none of that name."""
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    check_table_name(table)
    try:
        return catalog.load_table(table)
    except (NoSuchTableError, NoSuchNamespaceError):
        return None


def ensure_table(catalog: Catalog, table: str, partition_keys: Iterable[str]) -> Table:
    """The table, created if there is none, and with the newest columns of the transcript row.

    :raises TableMismatchError: listing every difference that stands in the way.
    """
    keys = list(partition_keys)
    loaded = load_table(catalog, table) or _create_table(catalog, table, keys)
    check_table(loaded, keys)
    return _with_new_columns(loaded, keys)


def _create_table(catalog: Catalog, table: str, keys: list[str]) -> Table:
    try:
        _create_namespaces(catalog, table)
        schema = transcript_schema(keys)
        with (
            catalog.create_table_transaction(table, schema, properties=TABLE_PROPERTIES) as transaction,
            transaction.update_spec() as spec,
        ):
            for key in keys:
                spec.add_identity(key)
        return catalog.load_table(table)
    except Exception:
        # Another run created it in the same moment. Catalogs report that in different ways, so what counts
        # is whether the table is there now.
        created = load_table(catalog, table)
        if created is None:
            raise
        return created


def _create_namespaces(catalog: Catalog, table: str) -> None:
    namespace = table.split(".")[:-1]
    for depth in range(1, len(namespace) + 1):
        name = tuple(namespace[:depth])
        if catalog.namespace_exists(name):
            continue
        try:
            catalog.create_namespace_if_not_exists(name)
        except Exception:
            if not catalog.namespace_exists(name):  # not the same race as above: a real failure
                raise


def check_table(table: Table, partition_keys: Iterable[str]) -> None:
    """:raises TableMismatchError: when the table cannot hold transcripts partitioned by these keys."""
    keys = list(partition_keys)
    problems = [*_column_problems(table, keys), *_partition_problems(table, keys)]
    if problems:
        name = ".".join(table.name())
        raise TableMismatchError(
            f"table {name} exists but cannot hold transcripts partitioned by {', '.join(keys)}:\n- "
            + "\n- ".join(problems)
            + "\nName another table, or change this one to match."
        )


def _column_problems(table: Table, keys: list[str]) -> Iterator[str]:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    ours, theirs = transcript_schema(keys), schema_to_pyarrow(table.schema(), include_field_ids=False)
    for field in ours:
        needed = field.name in STATE_COLUMNS or not field.nullable
        if field.name not in theirs.names:
            if needed:
                yield f"column {field.name} is missing: add it with type {field.type}"
            continue
        column = theirs.field(field.name)
        if not _holds(column.type, field.type):
            yield f"column {field.name} has type {column.type}, expected {field.type}"
        elif field.nullable and not column.nullable:
            yield f"column {field.name} is required, but some transcript rows have no value for it"
    for column in theirs:
        if column.name not in ours.names and not column.nullable:
            yield f"column {column.name} is required, but a transcript row has no such column"


def _holds(theirs: pa.DataType, ours: pa.DataType) -> bool:
    """Whether a table column can take our values: equal, a wider number, or a struct with more fields."""
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
        f"{field.transform}({schema.find_column_name(field.source_id)})" for field in table.spec().fields
    ]
    if sorted(actual) != sorted(f"identity({key})" for key in keys):
        expected = ", ".join(f"identity({key})" for key in keys)
        yield f"it is partitioned by {', '.join(actual) or 'nothing'}, expected {expected}"


def _with_new_columns(table: Table, keys: list[str]) -> Table:
    """The table after adding the optional columns that this version writes and an older one did not."""
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(int(TABLE_PROPERTIES["commit.retry.num-retries"])):
        if not _lacks_columns(table, keys):
            return table
        try:
            with table.update_schema() as update:
                update.union_by_name(transcript_schema(keys))
        except CommitFailedException:
            pass  # somebody else committed, perhaps the very same columns
        table.refresh()
    raise RegistrationError(
        f"could not add the new columns to {'.'.join(table.name())}, because other writers were faster each "
        "time: run the task again"
    )


def _lacks_columns(table: Table, keys: list[str]) -> bool:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    theirs = schema_to_pyarrow(table.schema(), include_field_ids=False)
    ours = transcript_schema(keys)
    return any(f.name not in theirs.names or _lacks_fields(theirs.field(f.name).type, f.type) for f in ours)


def _lacks_fields(theirs: pa.DataType, ours: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_list(ours):
        return _lacks_fields(theirs.value_type, ours.value_type)
    if types.is_struct(ours):
        names = {field.name: field.type for field in theirs}
        return any(f.name not in names or _lacks_fields(names[f.name], f.type) for f in ours)
    return False
