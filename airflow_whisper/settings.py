"""Settings of the example DAGs of earlier releases, kept for copies of them. Do not use in new DAGs.

The examples in ``dags/`` now contain their settings themselves and read the same environment variables
``AIRFLOW_WHISPER_*``. The library's own settings are in section ``[whisper]`` of Airflow's configuration.
"""

from __future__ import annotations

import json
import os
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

warnings.warn(
    "airflow_whisper.settings will be removed: read the environment variables in the DAG file itself, as the "
    "examples in dags/ do",
    DeprecationWarning,
    stacklevel=2,
)


def setting(name: str, default: str) -> str:
    """The value of ``AIRFLOW_WHISPER_<NAME>``, or the default if it is unset or empty."""
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


def connection(name: str) -> str | None:
    """The connection id in ``AIRFLOW_WHISPER_<NAME>_CONN_ID``."""
    return setting(f"{name}_CONN_ID", "") or None


def staging() -> str:
    """Folder in which runs keep their files until they are registered."""
    home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
    return setting("STAGING", str(home / "whisper_staging"))


def locations() -> dict[str, Any]:
    """Arguments of :func:`transcribe_partition` for locations, connections and Spark."""
    return {
        "table": setting("TABLE", "speech.transcripts"),
        "staging": staging(),
        "source_conn_id": connection("SOURCE"),
        "staging_conn_id": connection("STAGING"),
        "catalog_conn_id": connection("CATALOG"),
        "model_conn_id": connection("MODEL"),
        "spark_conn_id": setting("SPARK_CONN_ID", "spark_default"),
        "pool": setting("POOL", "default_pool"),
        "spark": {"conf": json.loads(setting("SPARK_CONF", "{}"))},
    }


def default_args() -> dict[str, Any]:
    """Default arguments of all tasks: retries with exponential backoff."""
    return {
        "retries": int(setting("RETRIES", "3")),
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
    }
