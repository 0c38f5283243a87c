"""Open the Iceberg catalog: that of an Airflow connection, or the embedded one."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_whisper.config import WAREHOUSE_VARIABLE, warehouse
from airflow_whisper.hooks.connection_extra import extra_problem
from airflow_whisper.table.errors import (
    CatalogConnectionError,
    CatalogError,
    CatalogRefusedError,
    unavailable,
)

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

CATALOG_NAME = "whisper"
"""Name of the embedded catalog. SQL catalogs keep the tables of different names apart."""

# Executors that run all tasks on the scheduler's machine.
_LOCAL_EXECUTORS = {"LocalExecutor", "SequentialExecutor"}

_SECRET_KEY = re.compile(r"secret|password|token|credential|account-key|authorization|access-key", re.I)
# Shorter values are settings such as "true"; masking those would hide large parts of every log.
_SHORTEST_SECRET = 8
_URI_PASSWORD = re.compile(r"://[^/@:]*:([^/@]+)@")


def open_catalog(conn_id: str | None) -> Catalog:
    """Open the Iceberg catalog of an Airflow connection, or the embedded one.

    :param conn_id: connection of type ``iceberg``. Its extra fields are PyIceberg catalog properties:
        ``type`` is one of PyIceberg's catalog types (``rest``, the default, ``sql``, ``glue``, ...), and
        ``name`` is the catalog's name, by default the connection id. SQL catalogs keep the tables of
        different names apart. ``None``: the SQLite catalog ``catalog.db`` in the folder
        ``[whisper] warehouse`` of Airflow's configuration, or else in ``AIRFLOW_HOME/whisper_warehouse``,
        together with its tables; for use on one machine.
    :raises CatalogConnectionError: if the connection does not exist or has another type, if PyIceberg lacks
        a package for it, or if the embedded catalog would be lost with the machine that a task runs on.
    :raises CatalogRefusedError: if the catalog refuses the connection's credentials or properties.
    :raises CatalogError: if the catalog cannot be reached.
    """
    return _embedded_catalog(_embedded_folder()) if conn_id is None else _connected_catalog(conn_id)


def _embedded_folder() -> Path:
    configured = warehouse()
    if configured and "://" in configured and not configured.startswith("file://"):
        raise CatalogConnectionError(
            f"[whisper] warehouse ({WAREHOUSE_VARIABLE}) is {configured!r}, but the embedded catalog "
            "needs a local folder. For tables in object storage create an Airflow connection of type "
            "'iceberg' and pass its id as catalog_conn_id."
        )
    if not configured:
        _check_one_machine()
    if configured:
        folder = Path(configured.removeprefix("file://")).expanduser()
    else:
        folder = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser() / "whisper_warehouse"
    if set("#?") & set(str(folder)):
        raise CatalogConnectionError(
            f"the folder {folder} cannot hold tables, because a URI cuts off what follows '#' or '?': "
            f"set [whisper] warehouse ({WAREHOUSE_VARIABLE}) to another one"
        )
    return folder.absolute()


def _check_one_machine() -> None:
    """Raise an error if tasks run on several machines, each of which has its own AIRFLOW_HOME."""
    from airflow.sdk.configuration import conf

    # Several executors may be configured, each by name or class path, with an optional alias or team.
    configured = re.split(r"[,;=:]", conf.get("core", "executor", fallback="LocalExecutor"))
    names = {name.strip().rsplit(".", 1)[-1] for name in configured if "Executor" in name}
    # In its task pods, where Helm charts configure the LocalExecutor, Airflow sets this variable.
    if os.environ.get("AIRFLOW_IS_K8S_EXECUTOR_POD"):
        names.add("KubernetesExecutor")
    if elsewhere := sorted(names - _LOCAL_EXECUTORS):
        raise CatalogConnectionError(
            f"tasks of the {elsewhere[0]} run on machines of their own, where a table in the embedded "
            "catalog would vanish with the machine. Create an Airflow connection of type 'iceberg' and pass "
            f"its id as catalog_conn_id; or set {WAREHOUSE_VARIABLE} to a folder that all machines share"
        )


def _embedded_catalog(folder: Path) -> Catalog:
    from pyiceberg.catalog.sql import SqlCatalog
    from sqlalchemy import URL
    from sqlalchemy.exc import OperationalError

    folder.mkdir(parents=True, exist_ok=True)
    # Seconds that SQLite waits for another writer. The default of 5 is too short for a busy disk.
    uri = URL.create("sqlite", database=str(folder / "catalog.db"), query={"timeout": "60"})
    properties = {
        "uri": uri.render_as_string(),
        "warehouse": f"file://{folder}",
    }
    try:
        return SqlCatalog(CATALOG_NAME, **properties)
    except OperationalError:
        # Another process created the catalog's own tables at the same time; the second call finds them.
        return SqlCatalog(CATALOG_NAME, **properties)


def _connected_catalog(conn_id: str) -> Catalog:
    from pyiceberg.exceptions import NotInstalledError
    from sqlalchemy.exc import NoSuchModuleError

    connection = _connection(conn_id)
    if connection.conn_type != "iceberg":
        raise CatalogConnectionError(
            f"connection {conn_id!r} is of type {connection.conn_type!r}, but catalog_conn_id needs one of "
            "type 'iceberg'. Credentials of object storage belong into source_conn_id and staging_conn_id."
        )
    if problem := extra_problem(connection):
        raise CatalogConnectionError(problem)
    _mask(connection)
    try:
        return _load_catalog(connection)
    except ImportError as error:
        raise CatalogConnectionError(
            f"the catalog of connection {conn_id!r} needs the Python package {error.name!r}: install it on "
            "the Airflow workers (for AWS: pip install 'airflow-provider-whisper[amazon]')"
        ) from error
    except NotInstalledError as error:
        raise CatalogConnectionError(
            f"the catalog of connection {conn_id!r} needs a Python package that the Airflow workers lack: "
            f"{error} (for AWS: pip install 'airflow-provider-whisper[amazon]')"
        ) from error
    except NoSuchModuleError as error:
        raise CatalogConnectionError(
            f"`uri` in the extra of connection {conn_id!r} names a database that SQLAlchemy does not know: "
            f"{error}. Begin it with postgresql+psycopg2:// or sqlite:///"
        ) from error
    except CatalogError:
        raise
    except Exception as error:
        if unavailable(error):
            raise CatalogError(
                f"the catalog of connection {conn_id!r} cannot be reached{_at(connection)}: {error}. Does it "
                "run, and can this worker reach it? If the address is wrong, correct the connection"
            ) from error
        raise CatalogRefusedError(
            f"the catalog of connection {conn_id!r} cannot be opened{_at(connection)}: {error}. Check the "
            "connection: host, login and password (an OAuth2 client), and its extra, the properties of "
            "PyIceberg's catalogs"
        ) from error


def _at(connection: Any) -> str:
    """The address of a catalog, if the connection has one. An address with a password stays unsaid."""
    host = str(connection.host or "")
    return f" at {host}" if host and "@" not in host else ""


def _load_catalog(connection: Any) -> Catalog:
    from airflow.providers.apache.iceberg.hooks.iceberg import IcebergHook

    extra = connection.extra_dejson or {}
    name = extra.pop("name", None)
    if name is None:
        return IcebergHook(connection.conn_id).catalog
    if not isinstance(name, str) or not name:
        raise CatalogConnectionError(
            f"`name` in the extra of connection {connection.conn_id!r} must be the name of a catalog, "
            f"got {name!r}"
        )
    renamed = copy.copy(connection)
    renamed.extra = json.dumps(extra)

    # The hook uses the connection id as the name of the catalog, so pass the name as the connection id.
    class NamedCatalogHook(IcebergHook):
        def get_connection(self, conn_id: str) -> Any:  # type: ignore[override]
            return renamed

    return NamedCatalogHook(name).catalog


def _connection(conn_id: str) -> Any:
    from airflow.sdk.bases.hook import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise CatalogConnectionError(
            f"there is no Airflow connection {conn_id!r} (catalog_conn_id). Create one of type 'iceberg', "
            f"for example: airflow connections add {conn_id} --conn-type iceberg --conn-host https://CATALOG "
            """--conn-extra '{"warehouse": "s3://BUCKET/"}' """
            "(for AWS Glue, and for REST with SigV4, install airflow-provider-whisper[amazon]); "
            "or leave catalog_conn_id out for the embedded catalog."
        ) from error


def _mask(connection: Any) -> None:
    # Airflow masks only values of names it knows; PyIceberg's names contain dots and hyphens.
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
