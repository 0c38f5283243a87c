"""Write runs to staging as discovery and the job do, with any rows that a test needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from transcripts import OPTIONS, PARTITION, make_manifest_rows, write_run_files

from whisper_spark.contract import Run, Segment, Transcript, run_folder, transcript_schema
from whisper_spark.storage.objects import ObjectStorage

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
    listed = make_manifest_rows([f"s3://calls/raw/{name}" for name in manifest])
    schema = transcript_schema(PARTITION)
    write_run_files(run, listed, [pa.Table.from_pylist(rows, schema=schema) for rows in files])
    return run
