"""Create a table before any time of GPUs is spent on it, and check that this machine can write its files."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

from airflow_whisper.table.errors import CatalogError, CatalogRefusedError, unavailable
from airflow_whisper.table.schema import ensure_table

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

_S3_PROPERTIES = "s3.endpoint, s3.region, s3.access-key-id and s3.secret-access-key"


def prepare_new_table(catalog: Catalog, table: str, partition_keys: Iterable[str], connection: str) -> Table:
    """Create a table that does not exist yet, and check that its files can be written from here.

    A catalog may create a table although this machine has no access to the warehouse, because the catalog
    itself writes the table's metadata.

    :param connection: what messages call the catalog, for example ``connection 'lake'``.
    :raises CatalogRefusedError: if the table cannot be created, or its folder cannot be written.
    :raises CatalogError: if the catalog or the store cannot be reached at the moment.
    """
    try:
        created = ensure_table(catalog, table, partition_keys)
    except CatalogError:
        raise
    except Exception as error:
        kind = CatalogError if unavailable(error) else CatalogRefusedError
        raise kind(
            f"table {table} cannot be created in the catalog of {connection}: {error}. Check the "
            f"connection's extra: the warehouse, and unless the catalog vends credentials, {_S3_PROPERTIES}"
        ) from error
    _check_writable(created, connection)
    return created


def _check_writable(table: Table, connection: str) -> None:
    """:raises CatalogRefusedError: unless the table's folder can be read or written."""
    try:
        # Reading what the catalog has just written leaves nothing behind, unlike a file of our own.
        if table.io.new_input(table.metadata_location).exists():
            return
    # Whoever may write may not always read: the next try decides.
    except Exception:  # noqa: S110
        pass
    path = f"{table.location()}/data/{uuid.uuid4()}.parquet"
    try:
        with table.io.new_output(path).create(overwrite=True) as stream:
            stream.write(b"PAR1")
    except Exception as error:
        name = ".".join(table.name())
        raise CatalogRefusedError(
            f"the catalog has table {name} at {table.location()}, but this machine cannot write there: "
            f"{error}. The catalog of {connection} does not vend credentials for this place: add "
            f"{_properties(table.location())} to the connection's extra"
        ) from error
    # Some stores let nobody delete. Then a few bytes remain that no snapshot refers to.
    with contextlib.suppress(Exception):
        table.io.delete(path)


def _properties(location: str) -> str:
    if location.startswith("s3"):
        return f"{_S3_PROPERTIES} of that store"
    return (
        "the properties of PyIceberg's FileIO for that store (https://py.iceberg.apache.org/configuration/)"
    )
