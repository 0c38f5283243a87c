"""What spark-submit needs to know beyond the arguments of the operator: binary, environment, credentials."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Connection

_APPLICATION = re.compile(r"whisper: Spark application (?P<id>\S+?)(?:, UI at (?P<ui>https?://\S+))?$")
# What whisper_spark.job says once it has a session.

_HOST_EXAMPLE = "local[2], spark://host:7077, yarn or k8s://https://host"


def check_spark_connection(conn_id: str, deploy_mode: str | None) -> Connection:
    """The Spark connection, sure to exist and to name a master.

    ``SparkSubmitHook`` submits to YARN when it finds no connection; here that is an error.

    :raises InvalidConnectionError: with the command that makes the connection.
    :raises ValueError: for a standalone master in cluster mode, which Spark does not offer for Python.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    from airflow_whisper.hooks.object_storage import InvalidConnectionError

    create = f"airflow connections add {conn_id} --conn-type spark --conn-host 'local[2]'"
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise InvalidConnectionError(
            f"there is no Spark connection {conn_id!r}. Create one whose host is the master, "
            f"{_HOST_EXAMPLE}: `{create}`, in the UI under Admin > Connections, or in the environment as "
            f'AIRFLOW_CONN_{conn_id.upper()}=\'{{"conn_type": "spark", "host": "local[2]"}}\''
        ) from None
    if not connection.host:
        raise InvalidConnectionError(
            f"Spark connection {conn_id!r} has no host: set it to the master, {_HOST_EXAMPLE}"
        )
    mode = _deploy_mode(connection, deploy_mode)
    standalone = "spark://" in connection.host or (connection.conn_type == "spark" and connection.port)
    if mode == "cluster" and standalone:
        raise ValueError(
            f"Spark connection {conn_id!r} asks for deploy mode 'cluster' on a standalone master, which "
            "Spark does not offer for Python applications: use 'client'"
        )
    return connection


def _deploy_mode(connection: Connection, deploy_mode: str | None) -> str | None:
    return deploy_mode or connection.extra_dejson.get("deploy-mode")


def runs_on_cluster(conn_id: str, deploy_mode: str | None) -> bool:
    """Whether the driver runs on the cluster: what it prints does not come back through spark-submit."""
    from airflow.sdk import BaseHook

    return _deploy_mode(BaseHook.get_connection(conn_id), deploy_mode) == "cluster"


def spark_submit_binary(binary: str) -> str:
    """The binary to run: what was asked for, or that of the installed pyspark if it is not on the path.

    A worker that runs from an environment which was not activated has no ``spark-submit`` on its path, and
    the script that pip puts next to the interpreter finds pyspark only through the path, too.
    """
    found = shutil.which(binary)
    if "/" in binary or (found and Path(found).parent != Path(sys.executable).parent):
        return binary
    spec = importlib.util.find_spec("pyspark")
    packaged = Path(spec.origin).parent / "bin" / binary if spec and spec.origin else None
    return str(packaged) if packaged and packaged.is_file() else binary


def client_environment(
    master: str, deploy_mode: str | None, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Environment for spark-submit when the driver runs on this machine.

    Variables are the weakest form of each setting: properties of the job and of Spark go before them, and
    so does what is set already, in this process or by ``given``.
    """
    given = dict(given or {})
    if deploy_mode == "cluster" or not master.startswith(("local", "spark://")):
        return given
    defaults = {}
    present = {**os.environ, **given}
    if "PYSPARK_PYTHON" not in present:
        # The interpreter of this process has what the job's driver imports.
        defaults["PYSPARK_DRIVER_PYTHON"] = sys.executable
    if master.startswith("local"):
        defaults["PYSPARK_PYTHON"] = sys.executable
        # The JVM only passes rows of URIs along; compiling it thoroughly takes longer than it works.
        defaults["SPARK_SUBMIT_OPTS"] = "-XX:TieredStopAtLevel=1"
        defaults["SPARK_LOCAL_IP"] = "127.0.0.1"
    return {name: value for name, value in defaults.items() if name not in present} | given


def spark_application(line: str) -> tuple[str | None, str | None]:
    """Id of the Spark application and address of its UI, from the line in which the job tells them."""
    match = _APPLICATION.match(line.strip())
    return (match["id"], match["ui"]) if match else (None, None)


def clean_conf(conf: Mapping[Any, Any] | None) -> dict[str, str]:
    """Spark properties as text, without those that are ``None``."""
    return {
        str(key): str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (conf or {}).items()
        if value is not None
    }


def write_properties(path: Path, properties: Mapping[str, str], base: str | None) -> None:
    """A file for ``--properties-file`` that nobody else can read.

    :param base: a file of the user's, whose properties come along.
    """
    text = Path(base).read_text(encoding="utf-8") if base else ""
    lines = [text, *(f"{key}={value}" for key, value in sorted(properties.items())), ""]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
