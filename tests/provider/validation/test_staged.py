"""Damaged and tampered staging: a verdict with a report instead of an exception."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import AirflowFailException
from staged_runs import PARTITION, STORAGE, error, row, staged_run

from airflow_whisper.operators.validate import ValidateTranscriptsOperator
from airflow_whisper.validation import staged
from airflow_whisper.validation.report import Report
from airflow_whisper.validation.run import validate_run
from whisper_spark.contract import Run, transcript_schema
from whisper_spark.staging.result import finished_result
from whisper_spark.storage.parquet import read_run


class TaskInstance:
    def xcom_push(self, key: str, value: Any) -> None:
        """Nothing reads it here."""


def path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def rows_files(run: Run) -> list[Path]:
    return sorted(path(run.rows_uri).iterdir())


def verdict(run: Run) -> str | None:
    """What the task says when it fails; ``None`` when it passes."""
    context: Any = {"ti": TaskInstance()}
    try:
        ValidateTranscriptsOperator(task_id="validate", manifest=run.manifest_uri).execute(context)
    except AirflowFailException as error:
        return str(error)
    return None


def report_of(run: Run) -> Report:
    return Report.from_json(STORAGE.read_bytes(run.report_uri))


def failed(run: Run) -> dict[str, tuple[str, ...]]:
    """Offenders by failed check, after the task has failed."""
    assert verdict(run) is not None
    assert STORAGE.exists(run.report_page_uri)
    return {check.check: check.offenders for check in report_of(run).failed}


def change_result(run: Run, **values: Any) -> None:
    result = json.loads(STORAGE.read_bytes(run.result_uri))
    STORAGE.write_bytes(run.result_uri, json.dumps(result | values).encode())


def change_manifest(run: Run, change: Callable[[dict[str, Any]], None]) -> None:
    """The manifest with other things in its description of the run."""
    manifest = path(run.manifest_uri)
    table = pq.read_table(manifest, partitioning=None)
    metadata = dict(table.schema.metadata)
    values = json.loads(metadata[b"whisper_spark.run"])
    change(values)
    metadata[b"whisper_spark.run"] = json.dumps(values).encode()
    pq.write_table(table.replace_schema_metadata(metadata), manifest)


# --- flipped bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rows", "result", "manifest"])
def test_flipped_bytes_give_a_verdict_and_never_other_rows(tmp_path: Path, kind: str) -> None:
    rows = [row("a.wav"), row("b.wav", quality_flags=("repetitive",)), error("c.wav", "empty")]
    run = staged_run(tmp_path, ["a.wav", "b.wav", "c.wav"], rows, unchanged=100)
    file = {"rows": rows_files(run)[0], "result": path(run.result_uri), "manifest": path(run.manifest_uri)}[
        kind
    ]
    good = file.read_bytes()
    assert verdict(run) is None
    expected = report_of(run)
    random_bytes = random.Random(7)
    caught = 0
    for _ in range(60):
        place, value = random_bytes.randrange(len(good)), random_bytes.randrange(1, 256)
        file.write_bytes(good[:place] + bytes([good[place] ^ value]) + good[place + 1 :])
        if verdict(run) is not None:
            caught += 1
        elif kind == "rows":
            found = report_of(run)
            assert (found.counts, found.worst, found.errors) == (
                expected.counts,
                expected.worst,
                expected.errors,
            )
    # Statistics, padding and free text may change without consequence; most places may not.
    assert caught > 30
    file.write_bytes(good)
    assert verdict(run) is None


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + b"\xff" * 60 + b"\x40\x00\x00\x00PAR1", b"\x00" * 5000], ids=len
)
def test_garbage_in_place_of_rows_is_deleted_so_that_the_job_makes_it_again(
    tmp_path: Path, content: bytes
) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav"], [row("a.wav")], [row("b.wav")])
    damaged, good = rows_files(run)
    damaged.write_bytes(content)
    said = verdict(run)
    assert said is not None
    assert "1 damaged files were deleted: clear the transcribe task" in said
    assert {check.check for check in report_of(run).failed} == {"staged files", "schema", "completeness"}
    assert report_of(run).damaged == [f"file://{damaged}"]
    assert rows_files(run) == [good]
    assert finished_result(run, STORAGE) is None


def test_rows_that_are_only_wrong_are_kept(tmp_path: Path) -> None:
    # The same job would write the same rows again.
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav", duration_s=1.0)])
    before = rows_files(run)
    assert list(failed(run)) == ["times"]
    assert rows_files(run) == before


# --- result.json -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"staged": 3},
        {"staged": [{"uri": 3, "rows": 1, "bytes": 1}]},
        {"staged": [{"uri": "s3://elsewhere/part-n1.parquet", "rows": 1, "bytes": 1}]},
        {"transcribed": "many"},
        {"transcribed": 1, "finished_at": "yesterday", "wall_seconds": 1.0},
        {"transcribed": 1, "finished_at": "2026-11-01T00:00:00+00:00", "wall_seconds": 1e308},
        {"wall_seconds": float("nan")},
        {"wall_seconds": float("inf")},
        {"engine_version": ["1"]},
        {"manifest_id": None},
    ],
    ids=str,
)
def test_odd_result_fails_the_check_of_staged_files(tmp_path: Path, values: dict[str, Any]) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    change_result(run, **values)
    assert "staged files" in failed(run)


def test_result_that_names_files_elsewhere_reads_none_of_them(tmp_path: Path) -> None:
    run = staged_run(tmp_path / "mine", ["a.wav"], [row("a.wav")])
    other = staged_run(tmp_path / "other", ["a.wav"], [row("a.wav")])
    uri = f"file://{rows_files(other)[0]}"
    for named in (uri, f"{run.rows_uri}/../../../../../../../other/{uri.split('/other/')[1]}"):
        change_result(run, staged=[{"uri": named, "rows": 1, "bytes": 1}])
        assert {"staged files", "completeness"} == set(failed(run))
        assert rows_files(other)


def test_deeply_nested_result_is_no_result(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    STORAGE.write_bytes(run.result_uri, b"[" * 200_000)
    assert "staged files" in failed(run)


# --- manifest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("table", "other.table"),
        ("run_uri", "file:///elsewhere/run"),
        # One damaged byte.
        ("run_uri", "filq:///calls/staging/run"),
        ("run_uri", "file://%calls/staging/run"),
        ("manifest_id", "f" * 32),
        ("partition", {"dt": "2026-11-02"}),
    ],
)
def test_manifest_that_speaks_of_another_run_fails(tmp_path: Path, key: str, value: Any) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    change_manifest(run, lambda values: values.update({key: value}))
    offenders = failed(run)["manifest"]
    assert str(value if isinstance(value, str) else "dt=2026-11-02") in offenders[0]


def test_report_of_a_foreign_manifest_lies_beside_it(tmp_path: Path) -> None:
    run = staged_run(tmp_path / "mine", ["a.wav"], [row("a.wav")])
    other = staged_run(tmp_path / "other", ["a.wav"], [row("a.wav")])
    change_manifest(run, lambda values: values.update(run_uri=other.run_uri))
    assert "manifest" in failed(run)
    assert not STORAGE.exists(other.report_uri)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.clear(),
        lambda values: values.update(counts={"unchanged": "all"}),
        lambda values: values.update(partition=["dt"]),
        lambda values: values.update(table=7),
        lambda values: values.update(run_uri=None),
        lambda values: values.update(unknown=1),
        lambda values: values.update(options=[]),
    ],
)
def test_manifest_that_describes_no_run_says_what_to_clear(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    change_manifest(run, change)
    said = verdict(run)
    assert said is not None
    assert "Clear the discover task" in said
    with pytest.raises(ValueError, match=r"manifest\.parquet"):
        read_run(run.manifest_uri, STORAGE)


# --- files that unpack to more than they are ---------------------------------------------------------------


def test_more_rows_than_the_result_says_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    schema = transcript_schema(PARTITION)
    bomb = pa.Table.from_pylist([row("a.wav")] * 3000, schema=schema)
    pq.write_table(bomb, rows_files(run)[0])
    monkeypatch.setattr(staged.OpenedFile, "batches", lambda self: pytest.fail("the rows were read"))
    assert "3000 rows, expected 1" in failed(run)["schema"][0]


def test_row_group_that_unpacks_to_more_than_the_job_writes_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav", text="a" * 3_000_000)])
    assert rows_files(run)[0].stat().st_size < 50_000
    assert validate_run(run, STORAGE, max_error_rate=0).passed
    monkeypatch.setattr(staged, "MAX_ROW_GROUP_BYTES", 1_000_000)
    monkeypatch.setattr(staged.OpenedFile, "batches", lambda self: pytest.fail("the rows were read"))
    assert "row group 0 takes" in failed(run)["schema"][0]
