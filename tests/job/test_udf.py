"""``whisper_udf`` in a real Spark session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from speech import Clip

from whisper_spark import WhisperOptions, whisper_udf
from whisper_spark.contract import transcript_schema


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYSPARK_PYTHON", sys.executable)  # Spark would take the first python3 on the path
    session = (
        builder.config("spark.task.cpus", "2")
        .config("spark.sql.execution.arrow.pyspark.validateSchema.enabled", "true")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "2")
        .getOrCreate()
    )
    yield session
    session.stop()
    patch.undo()


@pytest.mark.parametrize("processes", [0, 2])
def test_a_column_of_uris_becomes_a_column_of_transcripts(
    spark: SparkSession, librivox: list[Clip], model_dir: Path, tmp_path: Path, processes: int
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no audio at all")
    uris = [str(clip.path) for clip in librivox]
    column = [uris[0], str(tmp_path / "broken.wav"), None, *uris[1:], uris[0]]
    frame = spark.createDataFrame([(n, uri) for n, uri in enumerate(column)], "n int, uri string").coalesce(1)
    udf = whisper_udf(WhisperOptions(model=str(model_dir), prefetch_processes=processes))
    rows = frame.select("n", "uri", udf("uri").alias("t")).orderBy("n").collect()
    assert [row.uri for row in rows] == column
    assert [row.t.status for row in rows] == ["ok", "error", "error", "ok", "ok", "ok", "ok", "ok"]
    assert rows[1].t.error_code == "not_audio"
    for row in rows:
        if row.t.status == "ok":
            assert row.t.audio_uri == f"file://{row.uri}"
            assert row.t.segments[0].words[0].probability > 0
    assert "ill-disposed young man" in rows[3].t.text
    assert list(rows[0].t.asDict()) == transcript_schema().names
