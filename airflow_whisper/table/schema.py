"""Create the table of transcripts, and check that an existing table can hold them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow_whisper.table.column_docs import documented
from airflow_whisper.table.columns import describe_moved, moved_columns, without
from airflow_whisper.table.errors import CatalogRefusedError, RegistrationError, TableMismatchError
from airflow_whisper.table.requirements import STATE_COLUMNS, problems
from whisper_spark.contract import transcript_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

__all__ = [
    "STATE_COLUMNS",
    "TABLE_PROPERTIES",
    "check_table",
    "check_table_name",
    "ensure_table",
    "expected_columns",
    "load_table",
    "warn_of_moved_columns",
]

log = logging.getLogger(__name__)

TABLE_PROPERTIES: dict[str, str] = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.target-file-size-bytes": str(128 * 1024 * 1024),
    # Commits of all partitions compete for the single pointer to the table's metadata. PyIceberg's default of
    # 4 tries was not enough for 6 writers. These settings are for other writers; commit.py has its own loop.
    "commit.retry.num-retries": "30",
    "commit.retry.min-wait-ms": "100",
    "commit.retry.max-wait-ms": "5000",
    # Every commit writes a new metadata file. Without this setting they accumulate without limit.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "100",
}
"""Properties of a new table. An existing table keeps its own."""


def check_table_name(table: str) -> None:
    """:raises ValueError: unless the name is ``namespace.table``."""
    parts = table.split(".") if isinstance(table, str) else []
    if len(parts) < 2 or not all(part.strip() == part and part for part in parts):
        raise ValueError(
            f"table {table!r} must be written namespace.table, for example 'speech.transcripts': "
            "a catalog keeps every table in a namespace"
        )


def load_table(catalog: Catalog, table: str) -> Table | None:
    """Load a table; ``None`` if it does not exist.

    :raises CatalogRefusedError: if the catalog refuses the credentials, or the name of the table.
    """
    from pyiceberg.exceptions import (
        BadRequestError,
        ForbiddenError,
        NoSuchNamespaceError,
        NoSuchTableError,
        OAuthError,
        UnauthorizedError,
    )

    check_table_name(table)
    try:
        return catalog.load_table(table)
    except (NoSuchTableError, NoSuchNamespaceError):
        return None
    except BadRequestError as error:
        raise CatalogRefusedError(
            f"catalog {catalog.name!r} refuses to look up table {table}: {error}. Check the argument `table`"
        ) from error
    # Some catalogs let anybody open them, and ask for credentials only now.
    except (UnauthorizedError, ForbiddenError, OAuthError) as error:
        raise CatalogRefusedError(
            f"catalog {catalog.name!r} does not let this worker look up table {table}: {error}. Check login, "
            "password and extra of the connection `catalog_conn_id`, and what its user may read"
        ) from error


def ensure_table(catalog: Catalog, table: str, partition_keys: Iterable[str]) -> Table:
    """Load a table, create it if it does not exist, and add new columns of the transcript row.

    :raises TableMismatchError: if the table cannot hold transcripts; the message lists all problems.
    """
    keys = list(partition_keys)
    loaded = load_table(catalog, table) or _create_table(catalog, table, keys)
    check_table(loaded, keys)
    warn_of_moved_columns(loaded, keys)
    return _with_new_columns(loaded, keys)


def _create_table(catalog: Catalog, table: str, keys: list[str]) -> Table:
    try:
        _create_namespaces(catalog, table)
        schema = documented(transcript_schema(keys))
        with (
            catalog.create_table_transaction(table, schema, properties=TABLE_PROPERTIES) as transaction,
            transaction.update_spec() as spec,
        ):
            for key in keys:
                spec.add_identity(key)
        return catalog.load_table(table)
    except Exception:
        # Another run may have created it at the same time. Catalogs report this in different ways, so check
        # whether the table exists now.
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
            # If another run has created the namespace meanwhile, the error does not matter.
            if not catalog.namespace_exists(name):
                raise


def check_table(table: Table, partition_keys: Iterable[str]) -> None:
    """:raises TableMismatchError: if the table cannot hold transcripts partitioned by these keys."""
    keys = list(partition_keys)
    found = list(problems(table, keys))
    if found:
        name = ".".join(table.name())
        raise TableMismatchError(
            f"table {name} exists but cannot hold transcripts partitioned by {', '.join(keys)}:\n- "
            + "\n- ".join(found)
            + "\nName another table, or change this one to match."
        )


def _with_new_columns(table: Table, keys: list[str]) -> Table:
    """Add the optional columns that this release writes and older ones did not, and return the table."""
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(int(TABLE_PROPERTIES["commit.retry.num-retries"])):
        ours = expected_columns(table, keys)
        if not _lacks_columns(table, ours):
            return table
        try:
            with table.update_schema() as update:
                update.union_by_name(documented(ours, known=set(table.schema().column_names)))
        # Another writer committed first, perhaps the same columns.
        except CommitFailedException:
            pass
        table.refresh()
    raise RegistrationError(
        f"could not add the new columns to {'.'.join(table.name())}, because other writers were faster each "
        "time: run the task again"
    )


def warn_of_moved_columns(table: Table, keys: Iterable[str]) -> None:
    """Log which columns of the transcript row the table has dropped or renamed."""
    if moved := moved_columns(table, transcript_schema(keys)):
        log.warning("%s", describe_moved(table, moved))


def expected_columns(table: Table, keys: Iterable[str]) -> pa.Schema:
    """Return the transcript schema without the columns that the table has dropped or renamed.

    Partition columns are omitted as well, because they exist already and may have another type than ours.
    """
    import pyarrow as pa

    keys = set(keys)
    ours = transcript_schema(keys)
    moved = moved_columns(table, ours)
    return pa.schema([field for field in without(ours, moved) if field.name not in keys])


def _lacks_columns(table: Table, ours: pa.Schema) -> bool:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    theirs = schema_to_pyarrow(table.schema(), include_field_ids=False)
    return any(f.name not in theirs.names or _lacks_fields(theirs.field(f.name).type, f.type) for f in ours)


def _lacks_fields(theirs: pa.DataType, ours: pa.DataType) -> bool:
    import pyarrow.types as types

    if types.is_list(ours):
        return _lacks_fields(theirs.value_type, ours.value_type)
    if types.is_struct(ours):
        names = {field.name: field.type for field in theirs}
        return any(f.name not in names or _lacks_fields(names[f.name], f.type) for f in ours)
    return False
