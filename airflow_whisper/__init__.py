"""Airflow provider: turn audio in object storage into a reliable table of transcripts.

The modules directly in this package and the packages ``operators``, ``sensors`` and ``triggers`` are public:
users' DAGs, serialised DAGs and Airflow's provider metadata refer to them by path, so keep names and paths.

.. code-block:: python

    from airflow_whisper import WhisperOptions, transcribe_partition
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whisper_spark import __version__
from whisper_spark.contract import WhisperOptions

if TYPE_CHECKING:
    from airflow_whisper.task_groups import transcribe_partition

__all__ = ["WhisperOptions", "__version__", "transcribe_partition"]


def __getattr__(name: str) -> Any:
    # Airflow's provider manager imports this package in every component, so it must not import airflow.sdk.
    if name == "transcribe_partition":
        from airflow_whisper.task_groups import transcribe_partition

        return transcribe_partition
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
