"""What the Airflow side and the Spark side agree on: options, manifest, transcript row, error codes.

This package needs only pyarrow, and imports it inside the functions that build schemas: a DAG file that
imports :class:`WhisperOptions` loads nothing but the standard library. Everything here is a public format,
stored in manifests, tables and DAGs of users: add fields and codes, but never rename or reuse one.
"""

from __future__ import annotations

from whisper_spark.contract.codes import (
    CHANGES,
    ERROR_CODES,
    FINAL_ERRORS,
    GONE_ERRORS,
    QUALITY_FLAGS,
    SAMPLE_RATE,
    STAYING,
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
from whisper_spark.contract.transcript import (
    TIME_TOLERANCE_S,
    Segment,
    Transcript,
    Word,
    earlier_transcript_schema,
    in_current_schema,
    transcript_schema,
)

__all__ = [
    "CHANGES",
    "ERROR_CODES",
    "FINAL_ERRORS",
    "GONE_ERRORS",
    "QUALITY_FLAGS",
    "SAMPLE_RATE",
    "STAYING",
    "TIME_TOLERANCE_S",
    "TRANSIENT_ERRORS",
    "WINDOW_SECONDS",
    "Run",
    "Segment",
    "Transcript",
    "WhisperOptions",
    "Word",
    "check_partition",
    "earlier_transcript_schema",
    "in_current_schema",
    "manifest_schema",
    "parse_partition_path",
    "partition_path",
    "run_folder",
    "speed_options",
    "transcript_schema",
]
