"""Write runs to staging as discovery and the job do, with any rows that a test needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from whisper_spark.contract import (
    Run,
    Segment,
    Transcript,
    WhisperOptions,
    manifest_schema,
    run_folder,
    transcript_schema,
)
from whisper_spark.staging.result import RunResult, StagedFile, staged_file_uri
from whisper_spark.staging.rows import write_table
from whisper_spark.storage.objects import ObjectStorage

PARTITION = {"dt": "2026-11-01"}
OPTIONS = WhisperOptions(model="base")
STORAGE = ObjectStorage()


def row(name: str, *, logprob: float = -0.3, **values: Any) -> dict[str, Any]:
    text = values.get("text", "Hello there.")
    segment = Segment(0, None, 0.0, 2.0, text, "en", logprob, 1.0, 0.01)
    defaults: dict[str, Any] = {
        "audio_uri": f"s3://calls/raw/{name}",
        "audio_etag": "e1",
        "language": "en",
        "duration_s": 10.0,
        "speech_s": 4.0,
        "text": text,
        "segments": (segment,) if text else (),
        "fingerprint": OPTIONS.fingerprint(),
    }
    return {**Transcript(**(defaults | values)).to_row(), **PARTITION}


def error(name: str, code: str = "corrupt") -> dict[str, Any]:
    return row(
        name,
        status="error",
        error_code=code,
        error_message="no frame",
        text=None,
        duration_s=None,
        speech_s=None,
    )


def staged_run(folder: Path, manifest: list[str], *files: list[dict[str, Any]], **counts: int) -> Run:
    """Write a run to a local disk as discovery and the job do."""
    run = Run(
        table="speech.transcripts",
        partition=PARTITION,
        source="s3://calls/raw/",
        options=OPTIONS,
        run_uri=run_folder(
            f"file://{folder}", "speech.transcripts", PARTITION, OPTIONS.fingerprint(), "0" * 32
        ),
        manifest_id="0" * 32,
        counts=counts,
    )
    listed = [
        {
            "audio_uri": f"s3://calls/raw/{name}",
            "audio_etag": "e1",
            "change": "new",
            "attempt": 1,
            **PARTITION,
        }
        for name in manifest
    ]
    schema = manifest_schema(PARTITION).with_metadata(run.to_metadata())
    write_table(STORAGE, run.manifest_uri, pa.Table.from_pylist(listed, schema=schema))
    staged = []
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(rows, schema=transcript_schema(PARTITION))
        uri = staged_file_uri(run.rows_uri, "part", str(number), len(rows))
        staged.append(StagedFile(uri, len(rows), write_table(STORAGE, uri, table)))
    result = RunResult(
        manifest_uri=run.manifest_uri,
        manifest_id=run.manifest_id,
        fingerprint=OPTIONS.fingerprint(),
        attempt_id="attempt",
        staged=tuple(staged),
    )
    STORAGE.write_bytes(run.result_uri, result.to_json().encode())
    return run
