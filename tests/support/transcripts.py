"""Create transcript rows, and complete runs in staging, without transcribing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whisper_spark.contract import (
    Run,
    Segment,
    Transcript,
    WhisperOptions,
    Word,
    manifest_schema,
    run_folder,
    transcript_schema,
)
from whisper_spark.decoding.quality import compression_ratio
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.staging.result import RunResult, StagedFile, staged_file_uri
from whisper_spark.staging.rows import write_table
from whisper_spark.storage.objects import ObjectStorage

OPTIONS = WhisperOptions(model="base")
PARTITION = {"dt": "2026-11-01"}


def make_transcript_rows(
    uris: Iterable[str], *, partition: Mapping[str, str] | None = None, **overrides: Any
) -> pa.Table:
    """Return one row per URI in ``contract.transcript_schema``, in :data:`PARTITION` by default.

    ``overrides`` are fields of ``Transcript``; a callable is called with the URI.
    """
    partition = PARTITION if partition is None else partition
    rows = []
    for uri in uris:
        values = {name: value(uri) if callable(value) else value for name, value in overrides.items()}
        rows.append({**_transcript(uri, values).to_row(), **partition})
    return pa.Table.from_pylist(rows, schema=transcript_schema(partition))


def _transcript(uri: str, values: Mapping[str, Any]) -> Transcript:
    error = values.get("status") == "error"
    text = "" if error else f"The words of {uri}."
    words = (Word(0.1, 0.9, "The", 0.9), Word(0.9, 2.5, " words", 0.8))
    segment = Segment(0, None, 0.1, 2.5, text, "en", -0.2, 1.1, 0.01, words)
    defaults = Transcript(
        audio_uri=uri,
        audio_etag="e1",
        audio_bytes=1000,
        error_code="internal" if error else None,
        error_message="it broke" if error else None,
        language=None if error else "en",
        duration_s=None if error else 36.0,
        text=text,
        segments=() if error else (segment,),
        model="base",
        fingerprint=OPTIONS.fingerprint(),
        engine_version="0",
        transcribed_at=datetime(2026, 11, 2, tzinfo=UTC),
    )
    return Transcript(**{**{f: getattr(defaults, f) for f in Transcript.__dataclass_fields__}, **values})


def make_manifest_rows(
    uris: Iterable[str], *, partition: Mapping[str, str] | None = None, **overrides: Any
) -> pa.Table:
    """Return one row per URI in ``contract.manifest_schema``, by default new files with etag ``e1``."""
    partition = PARTITION if partition is None else partition
    modified = datetime(2026, 11, 1, tzinfo=UTC)
    defaults = {
        "audio_etag": "e1",
        "audio_bytes": 1000,
        "last_modified": modified,
        "change": "new",
        "attempt": 1,
    }
    rows = []
    for uri in uris:
        values = {name: value(uri) if callable(value) else value for name, value in overrides.items()}
        rows.append({"audio_uri": uri, **defaults, **values, **partition})
    return pa.Table.from_pylist(rows, schema=manifest_schema(partition))


def stage_run(
    folder: Path,
    uris: Iterable[str] = (),
    *,
    table: str = "speech.transcripts",
    partition: Mapping[str, str] | None = None,
    base_snapshot_id: int | None = None,
    change: str = "new",
    etag: str = "e1",
    attempt: int = 1,
    options: WhisperOptions = OPTIONS,
    removed: Iterable[str] = (),
    rows: pa.Table | None = None,
    passed: bool | None = True,
    files: int = 1,
) -> Run:
    """Write a discovered, transcribed and validated run to a local folder, as the tasks do.

    ``rows`` replaces the staged rows, ``passed=None`` omits the report, and ``files`` is the number of staged
    files.
    """
    uris, removed, partition = list(uris), list(removed), dict(PARTITION if partition is None else partition)
    manifest = make_manifest_rows(uris, partition=partition, change=change, audio_etag=etag, attempt=attempt)
    if rows is None:
        rows = make_transcript_rows(
            uris, partition=partition, audio_etag=etag, attempt=attempt, fingerprint=options.fingerprint()
        )
    key = json.dumps(
        [table, partition, uris, removed, change, etag, attempt, options.to_json(), base_snapshot_id]
    )
    manifest_id = hashlib.sha256(key.encode()).hexdigest()[:32]
    run = Run(
        table=table,
        partition=partition,
        source="s3://calls/raw/",
        options=options,
        run_uri=run_folder(f"file://{folder}", table, partition, options.fingerprint(), manifest_id),
        manifest_id=manifest_id,
        base_snapshot_id=base_snapshot_id,
        counts={change: len(uris), "removed": len(removed)},
    )
    size = -(-rows.num_rows // files)
    parts = [rows.slice(start, size) for start in range(0, rows.num_rows, size)] if size else []
    local = write_run_files(run, manifest, parts)
    if removed:
        pq.write_table(pa.table({"audio_uri": pa.array(removed, pa.string())}), local / "removed.parquet")
    if passed is not None:
        (local / "report.json").write_text(json.dumps({"passed": passed, "manifest_id": manifest_id}))
    return run


def write_run_files(run: Run, manifest: pa.Table, parts: Iterable[pa.Table], **result_fields: Any) -> Path:
    """Write the manifest, a staged file for each part and the result of a run; return its local folder."""
    storage = ObjectStorage()
    write_table(storage, run.manifest_uri, manifest.replace_schema_metadata(run.to_metadata()))
    staged = []
    for number, part in enumerate(parts):
        uri = staged_file_uri(run.rows_uri, "part", str(number), part.num_rows)
        staged.append(StagedFile(uri, part.num_rows, write_table(storage, uri, part)))
    result = RunResult(
        manifest_uri=run.manifest_uri,
        manifest_id=run.manifest_id,
        fingerprint=run.options.fingerprint(),
        attempt_id="1",
        staged=tuple(staged),
        files=manifest.num_rows,
        **result_fields,
    )
    storage.write_bytes(run.result_uri, result.to_json().encode())
    return Path(run.run_uri.removeprefix("file://"))


def window_text(text: str, **changes: Any) -> WindowText:
    """Return the text of one English window, decoded with high confidence, that passes the quality gate."""
    base = WindowText(
        channel=0,
        number=0,
        tokens=tuple(range(len(text.split()) + 2)),
        text=text,
        language="en",
        avg_logprob=-0.15,
        no_speech_prob=0.01,
        compression_ratio=compression_ratio(text),
        temperature=0.0,
        capped=False,
        reliable=True,
        start=0.0,
        end=3.0,
    )
    return dataclasses.replace(base, **changes)
