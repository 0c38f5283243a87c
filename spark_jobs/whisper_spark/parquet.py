"""Parquet files in object storage: see :mod:`whisper_spark.storage.parquet`."""

from __future__ import annotations

from whisper_spark.storage.parquet import open_parquet, read_manifest, read_run

__all__ = ["open_parquet", "read_manifest", "read_run"]
