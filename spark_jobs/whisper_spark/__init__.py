"""faster-whisper on Spark: options, a Pandas UDF, and the same engine without Spark.

.. code-block:: python

    from whisper_spark import WhisperOptions, whisper_udf

    df.select("uri", whisper_udf(WhisperOptions(model="base"))("uri").alias("transcript"))

Importing this package imports neither pyspark nor faster-whisper: ``whisper_udf`` and ``transcribe_files``
are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from whisper_spark.contract import Segment, Transcript, WhisperOptions, Word

if TYPE_CHECKING:
    from whisper_spark.engine.isolated import transcribe_files
    from whisper_spark.udf import whisper_udf

__version__ = "0.2.0"
__all__ = ["Segment", "Transcript", "WhisperOptions", "Word", "transcribe_files", "whisper_udf"]

_LAZY = {"transcribe_files": "whisper_spark.engine.isolated", "whisper_udf": "whisper_spark.udf"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
