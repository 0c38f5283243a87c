"""``whisper_udf`` in a real Spark session."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from docs_blocks import named_block
from pyspark.sql import SparkSession
from servers import S3Server
from speech import Clip

from whisper_spark import Transcript, WhisperOptions, udf, whisper_udf
from whisper_spark.contract import transcript_schema


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


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
    session.sparkContext.addPyFile(str(Path(__file__).parents[1] / "support" / "standin_engine.py"))
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
    transcribed = whisper_udf(WhisperOptions(model=str(model_dir), prefetch_processes=processes))("uri")
    rows = frame.select("n", "uri", transcribed.alias("t")).orderBy("n").collect()
    assert [row.uri for row in rows] == column
    assert [row.t.status for row in rows] == ["ok", "error", "error", "ok", "ok", "ok", "ok", "ok"]
    assert rows[1].t.error_code == "not_audio"
    for row in rows:
        if row.t.status == "ok":
            assert row.t.audio_uri == f"file://{row.uri}"
            assert row.t.segments[0].words[0].probability > 0
    assert "ill-disposed young man" in rows[3].t.text
    assert list(rows[0].t.asDict()) == transcript_schema().names


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_file_that_kills_its_process_costs_its_own_row(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # A local master gives no task a second try, so that nothing but the UDF itself can cope with this.
    paths = [tmp_path / f"{number}.wav" for number in range(20)]
    for path in paths:
        path.touch()
    paths[8].write_text(f"kill {name}")
    frame = spark.createDataFrame([(str(path),) for path in paths], "uri string").coalesce(1)
    monkeypatch.setattr(udf, "ENGINE", "standin_engine:get_engine")
    rows = frame.select(whisper_udf(WhisperOptions(model="base"))("uri").alias("t")).collect()
    assert [row.t.status for row in rows] == ["ok"] * 8 + ["error"] + ["ok"] * 11
    assert rows[8].t.error_code == "internal"
    assert name in rows[8].t.error_message


def test_transcripts_behind_a_long_file_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "word " * 1000
    monkeypatch.setattr(udf, "MOST_BYTES", 10 * len(text))
    rows = udf.InputOrder()
    files = rows.files(iter([pd.Series([f"/{number}.wav" for number in range(100)])]))
    given = [next(files).uri]

    def finish_all_others() -> None:
        for file in files:
            given.append(file.uri)
            rows.add(Transcript(file.uri, text=text))

    others = threading.Thread(target=finish_all_others)
    others.start()
    wait_until(lambda: rows.held_bytes > 10 * len(text))
    assert rows.take(1000) == []
    assert len(given) <= 12
    rows.add(Transcript(given[0], text="long"))
    taken: list[str] = []
    while len(taken) < 100:
        taken += [transcript.audio_uri for transcript in rows.take(7)]
    others.join()
    assert taken == given
    assert rows.held_bytes == 0


def test_uri_that_cannot_be_read_costs_its_own_row(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tmp_path / "good.wav"
    good.touch()
    frame = spark.createDataFrame([("http://a/b.wav",), (str(good),), ("s3://",)], "uri string").coalesce(1)
    monkeypatch.setattr(udf, "ENGINE", "standin_engine:get_engine")
    rows = frame.select(whisper_udf(WhisperOptions(model="base"))("uri").alias("t")).collect()
    assert [row.t.status for row in rows] == ["error", "ok", "error"]
    assert "http://a/b.wav" in rows[0].t.error_message


def test_notebook_of_the_readme_transcribes_with_and_without_spark(
    spark: SparkSession,
    librivox: list[Clip],
    model_dir: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket, clips = s3.bucket("notebook"), librivox[1:3]
    s3.client().put_object(Bucket=bucket, Key="b.wav", Body=clips[1].path.read_bytes())
    for name, value in s3.config.items():
        monkeypatch.setenv(name.upper(), value)
    text = named_block("readme-without-airflow").text
    for old, new in (
        ('"base"', repr(str(model_dir))),
        ('"a.wav"', repr(str(clips[0].path))),
        ("s3://bucket/b.mp3", f"s3://{bucket}/b.wav"),
    ):
        assert old in text
        text = text.replace(old, new)
    names = {"df": spark.createDataFrame([(str(clips[0].path),)], "uri string")}
    exec(compile(text, "README", "exec"), names)
    # Transcripts come in the order in which they are finished.
    said = sorted(capsys.readouterr().out.splitlines())
    assert [line.split()[:2] for line in said] == [
        [f"file://{clips[0].path}", "ok"],
        [f"s3://{bucket}/b.wav", "ok"],
    ]
    (row,) = names["transcribed"].collect()
    assert row.transcript.text in said[0]
