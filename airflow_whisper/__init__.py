"""Airflow provider: audio in object storage becomes a trustworthy table of transcripts.

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
    # The provider manager imports this package in every Airflow component: keep that free of airflow.sdk.
    if name == "transcribe_partition":
        from airflow_whisper.task_groups import transcribe_partition

        return transcribe_partition
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
