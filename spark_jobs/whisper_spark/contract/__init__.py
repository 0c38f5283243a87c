"""What the Airflow side and the Spark side agree on: options, manifest, transcript row, error codes.

Needs only pyarrow, and imports that inside the functions that build schemas, so a DAG file can
import :class:`WhisperOptions` for the price of the standard library.
"""

from __future__ import annotations

from whisper_spark.contract.codes import (
    CHANGES,
    ERROR_CODES,
    FINAL_ERRORS,
    QUALITY_FLAGS,
    SAMPLE_RATE,
    TRANSIENT_ERRORS,
    WINDOW_SECONDS,
)
from whisper_spark.contract.options import WhisperOptions, speed_options
from whisper_spark.contract.run import (
    Run,
    check_partition,
    manifest_schema,
    parse_partition_path,
    partition_path,
    run_folder,
)
from whisper_spark.contract.transcript import Segment, Transcript, Word, transcript_schema

__all__ = [
    "CHANGES",
    "ERROR_CODES",
    "FINAL_ERRORS",
    "QUALITY_FLAGS",
    "SAMPLE_RATE",
    "TRANSIENT_ERRORS",
    "WINDOW_SECONDS",
    "Run",
    "Segment",
    "Transcript",
    "WhisperOptions",
    "Word",
    "check_partition",
    "manifest_schema",
    "parse_partition_path",
    "partition_path",
    "run_folder",
    "speed_options",
    "transcript_schema",
]
