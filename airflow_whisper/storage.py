"""Read and write object storage in your own tasks: see :mod:`airflow_whisper.hooks.object_storage`."""

from __future__ import annotations

from airflow_whisper.hooks.object_storage import object_storage, storage_config

__all__ = ["object_storage", "storage_config"]
