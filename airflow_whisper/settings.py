"""Settings of the example DAGs, from environment variables, so that they run without being edited.

=====================================  ======================================================================
``AIRFLOW_WHISPER_SOURCE``             URI of one partition's audio, with placeholders for the partition keys:
                                       ``s3://calls/raw/dt={dt}/``
``AIRFLOW_WHISPER_TABLE``              ``namespace.table``, default ``speech.transcripts``
``AIRFLOW_WHISPER_STAGING``            URI prefix that workers and executors can write to
``AIRFLOW_WHISPER_MODEL``              name, path or URI of the model, default ``large-v3-turbo``
``AIRFLOW_WHISPER_SOURCE_CONN_ID``     Airflow connections; without them ambient credentials, and for the
``AIRFLOW_WHISPER_STAGING_CONN_ID``    catalog the embedded one
``AIRFLOW_WHISPER_CATALOG_CONN_ID``
``AIRFLOW_WHISPER_MODEL_CONN_ID``
``AIRFLOW_WHISPER_SPARK_CONN_ID``      default ``spark_default``
``AIRFLOW_WHISPER_SPARK_CONF``         Spark configuration as a JSON object
``AIRFLOW_WHISPER_RETRIES``            of each task, default 3
``AIRFLOW_WHISPER_POOL``               pool of the Spark task, for example ``gpu``; default ``default_pool``
``AIRFLOW_WHISPER_POLL_INTERVAL``      seconds between two looks at the source, default 60
=====================================  ======================================================================
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any


def setting(name: str, default: str) -> str:
    """The value of ``AIRFLOW_WHISPER_<NAME>``, or the default where it is not set, or empty."""
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


def connection(name: str) -> str | None:
    """The connection id in ``AIRFLOW_WHISPER_<NAME>_CONN_ID``."""
    return setting(f"{name}_CONN_ID", "") or None


def staging() -> str:
    """Where runs keep their files until they are registered."""
    home = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
    return setting("STAGING", str(home / "whisper_staging"))


def locations() -> dict[str, Any]:
    """Arguments of :func:`transcribe_partition` that name places, connections and Spark."""
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
    """Retries of all tasks, with growing pauses."""
    return {
        "retries": int(setting("RETRIES", "3")),
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(hours=1),
    }
