"""The catalog that holds the table of transcripts, and what a partition holds now.

The table itself is in :mod:`airflow_whisper.table.schema`, changing a partition in
:mod:`airflow_whisper.table.replace`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_whisper.table.schema import (
    STATE_COLUMNS,
    CatalogConnectionError,
    CatalogError,
    PartitionConflictError,
    RegistrationError,
    TableMismatchError,
    check_table,
    check_table_name,
    load_table,
)
from whisper_spark.contract import transcript_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import DataScan, FileScanTask, Table

__all__ = [
    "STATE_COLUMNS",
    "WAREHOUSE_VARIABLE",
    "CatalogConnectionError",
    "CatalogError",
    "PartitionConflictError",
    "RegistrationError",
    "TableMismatchError",
    "check_table_name",
    "current_rows",
    "current_snapshot_id",
    "load_table",
    "open_catalog",
    "partition_rows",
]

WAREHOUSE_VARIABLE = "AIRFLOW_WHISPER_WAREHOUSE"
"""Environment variable: folder of the embedded catalog and its tables."""

CATALOG_NAME = "whisper"
"""Name of the embedded catalog. SQL catalogs keep the tables of different names apart."""

_SECRET_KEY = re.compile(r"secret|password|token|credential|account-key|authorization|access-key", re.I)
_SHORTEST_SECRET = 8
# Shorter values are settings such as "true", and masking those would black out half of every log.
_URI_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@")


# --- catalogs ----------------------------------------------------------------------------------------


def open_catalog(conn_id: str | None) -> Catalog:
    """The Iceberg catalog of an Airflow connection, or the embedded one.

    :param conn_id: connection of type ``iceberg``; its extra fields are PyIceberg catalog properties, with
        ``type`` one of PyIceberg's (``rest``, the default, ``sql``, ``glue``, ...). ``None``: a SQLite
        catalog ``catalog.db`` beside its tables in the folder ``AIRFLOW_WHISPER_WAREHOUSE``, else in
        ``AIRFLOW_HOME/whisper_warehouse``, which suits one machine.
    :raises CatalogConnectionError: when there is no such connection, it has another type, or PyIceberg
        lacks a package for it.
    """
    return _embedded_catalog(_embedded_folder()) if conn_id is None else _connected_catalog(conn_id)


def _embedded_folder() -> Path:
    configured = os.environ.get(WAREHOUSE_VARIABLE)
    if configured and "://" in configured and not configured.startswith("file://"):
        raise CatalogConnectionError(
            f"{WAREHOUSE_VARIABLE} is {configured!r}, but the embedded catalog needs a local folder. For "
            "tables in object storage create an Airflow connection of type 'iceberg' and pass its id as "
            "catalog_conn_id."
        )
    if configured:
        folder = Path(configured.removeprefix("file://")).expanduser()
    else:
        folder = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser() / "whisper_warehouse"
    if set("#?") & set(str(folder)):
        raise CatalogConnectionError(
            f"the folder {folder} cannot hold tables, because a URI cuts off what follows '#' or '?': "
            f"set {WAREHOUSE_VARIABLE} to another one"
        )
    return folder.absolute()


def _embedded_catalog(folder: Path) -> Catalog:
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy.exc import OperationalError

    folder.mkdir(parents=True, exist_ok=True)
    properties = {
        # SQLite waits this many seconds for another writer; its default of 5 is short for a busy disk.
        "uri": f"sqlite:///{folder / 'catalog.db'}?timeout=60",
        "warehouse": f"file://{folder}",
    }
    try:
        return SqlCatalog(CATALOG_NAME, **properties)
    except OperationalError:
        # Two processes created the catalog's own tables at once; the second attempt finds them.
        return SqlCatalog(CATALOG_NAME, **properties)


def _connected_catalog(conn_id: str) -> Catalog:
    from airflow.providers.apache.iceberg.hooks.iceberg import IcebergHook

    connection = _connection(conn_id)
    if connection.conn_type != "iceberg":
        raise CatalogConnectionError(
            f"connection {conn_id!r} is of type {connection.conn_type!r}, but catalog_conn_id needs one of "
            "type 'iceberg'. Credentials of object storage belong into source_conn_id and staging_conn_id."
        )
    _mask(connection)
    try:
        return IcebergHook(conn_id).catalog
    except ImportError as error:
        raise CatalogConnectionError(
            f"the catalog of connection {conn_id!r} needs the Python package {error.name!r}: install it on "
            "the Airflow workers (for AWS: pip install 'airflow-provider-whisper[amazon]')"
        ) from error


def _connection(conn_id: str) -> Any:
    from airflow.sdk.bases.hook import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise CatalogConnectionError(
            f"there is no Airflow connection {conn_id!r} (catalog_conn_id). Create one of type 'iceberg', "
            f"for example: airflow connections add {conn_id} --conn-type iceberg --conn-host https://CATALOG "
            """--conn-extra '{"warehouse": "s3://BUCKET/"}'; """
            "or leave catalog_conn_id out for the embedded catalog."
        ) from error


def _mask(connection: Any) -> None:
    # Airflow masks by the names it knows; PyIceberg's are spelled with dots and hyphens.
    from airflow.sdk.log import mask_secret

    def mask(key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for inner, inner_value in value.items():
                mask(str(inner), inner_value)
        elif isinstance(value, str) and value:
            if _SECRET_KEY.search(key) and len(value) >= _SHORTEST_SECRET:
                mask_secret(value)
            for password in _URI_PASSWORD.findall(value):
                mask_secret(password)

    if connection.password:
        mask_secret(connection.password)
    mask("host", connection.host or "")
    mask("extra", connection.extra_dejson or {})


# --- reading -----------------------------------------------------------------------------------------


def current_snapshot_id(catalog: Catalog, table: str) -> int | None:
    """Id of the newest snapshot; ``None`` when there is no table, or nothing in it."""
    loaded = load_table(catalog, table)
    snapshot = loaded.current_snapshot() if loaded else None
    return snapshot.snapshot_id if snapshot else None


def current_rows(
    catalog: Catalog, table: str, partition: Mapping[str, str], *, snapshot_id: int | None = None
) -> Iterator[pa.RecordBatch]:
    """What a partition holds now, as far as it decides what has to be transcribed.

    Columns: :data:`STATE_COLUMNS`. Streams, with one data file's worth of these columns in memory.

    :param snapshot_id: read this snapshot instead of the newest, so that a caller who noted
        :func:`current_snapshot_id` reads exactly what that number stands for.
    :return: nothing when there is no table.
    :raises TableMismatchError: when the table cannot hold transcripts of this partition.
    """
    return partition_rows(catalog, table, partition, columns=STATE_COLUMNS, snapshot_id=snapshot_id)


def partition_rows(
    catalog: Catalog,
    table: str,
    partition: Mapping[str, str],
    *,
    columns: Iterable[str] | None = None,
    snapshot_id: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of one partition, with one data file's worth of the columns in memory.

    :param columns: in this order; ``None`` for all columns of a transcript row.
    :return: nothing when there is no table.
    :raises TableMismatchError: when the table cannot hold transcripts of this partition.
    """
    import pyarrow as pa

    loaded = load_table(catalog, table)
    if loaded is None:
        return
    check_table(loaded, partition)
    scan = scan_partition(loaded, partition, columns=columns, snapshot_id=snapshot_id)
    ours = transcript_schema(partition)
    names = (
        list(columns)
        if columns is not None
        else [n for n in ours.names if n in scan.projection().column_names]
    )
    schema = pa.schema([ours.field(name) for name in names])
    for task in scan.plan_files():
        for batch in read_data_file(loaded, scan, task):
            yield batch.select(names).cast(schema)


def scan_partition(
    table: Table,
    partition: Mapping[str, str],
    *,
    columns: Iterable[str] | None = None,
    snapshot_id: int | None = None,
) -> DataScan:
    """A scan of one partition, planned by its exact partition values."""
    selected = ("*",) if columns is None else tuple(columns)
    return table.scan(
        row_filter=_partition_filter(partition), selected_fields=selected, snapshot_id=snapshot_id
    )


def read_data_file(table: Table, scan: DataScan, task: FileScanTask) -> Iterator[pa.RecordBatch]:
    """The rows of one data file of a scan, with row-level deletes applied.

    One file at a time, because PyIceberg reads all the files that it is given at once, whole.
    """
    from pyiceberg.io.pyarrow import ArrowScan

    return ArrowScan(table.metadata, table.io, scan.projection(), scan.row_filter).to_record_batches([task])


def _partition_filter(partition: Mapping[str, str]) -> BooleanExpression:
    from pyiceberg.expressions import AlwaysTrue, And, EqualTo, Reference
    from pyiceberg.expressions.literals import literal

    expression: BooleanExpression = AlwaysTrue()
    for key, value in partition.items():
        expression = And(expression, EqualTo(term=Reference(key), value=literal(value)))
    return expression
