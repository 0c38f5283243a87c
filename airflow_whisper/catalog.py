"""Open the catalog of a connection in your own tasks: see :mod:`airflow_whisper.hooks.catalog`."""

from __future__ import annotations

from airflow_whisper.hooks.catalog import (
    current_rows,
    current_snapshot_id,
    load_table,
    open_catalog,
    partition_rows,
)

__all__ = ["current_rows", "current_snapshot_id", "load_table", "open_catalog", "partition_rows"]
