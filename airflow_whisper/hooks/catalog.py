"""The catalog that holds the table of transcripts, from an Airflow connection or embedded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_whisper.table.errors import (
    CatalogConnectionError,
)

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

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
