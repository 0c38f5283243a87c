"""Open the catalog of an Airflow connection in your own tasks: see :mod:`airflow_whisper.hooks.catalog`."""

from __future__ import annotations

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table.read import current_rows, current_snapshot_id, partition_rows
from airflow_whisper.table.schema import load_table

__all__ = ["current_rows", "current_snapshot_id", "load_table", "open_catalog", "partition_rows"]
