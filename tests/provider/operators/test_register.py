"""Registering a run from staging, and the operator that does it in Airflow."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk import Asset, AssetAlias
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors
from transcripts import (
    OPTIONS,
    PARTITION,
    make_manifest_rows,
    make_transcript_rows,
    stage_run,
    write_run_files,
)

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.report.write import write_report
from airflow_whisper.table.errors import RegistrationError, TableMismatchError
from airflow_whisper.table.publish import register_run, result_of
from airflow_whisper.table.read import current_rows, current_snapshot_id, partition_rows
from airflow_whisper.validation.run import validate_run
from whisper_spark.contract import Run, WhisperOptions, earlier_transcript_schema, transcript_schema
from whisper_spark.storage.objects import ObjectStorage
from whisper_spark.storage.parquet import open_parquet, read_run

TABLE = "speech.transcripts"


@pytest.fixture(autouse=True)
def _own_catalog(catalog_env: SimpleNamespace) -> None:
    """Every test here writes to a catalog of its own."""


def uris() -> list[str]:
    batches = current_rows(open_catalog(None), TABLE, PARTITION)
    return sorted(uri for batch in batches for uri in batch["audio_uri"].to_pylist())


def register(run: Run, context: dict[str, Any] | None = None, **kwargs: Any) -> dict[str, Any]:
    operator = RegisterTranscriptsOperator(task_id="register", manifest=run.manifest_uri, **kwargs)
    return operator.execute(context if context is not None else {"outlet_events": OutletEventAccessors()})  # type: ignore[arg-type]


# --- a run ---------------------------------------------------------------------------------------------


def test_staged_rows_become_the_partition(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a", "b", "c"], files=2)
    registered = register_run(run, ObjectStorage(), open_catalog(None))
    assert registered is not None
    assert uris() == ["a", "b", "c"]
    assert result_of(run, registered) == {
        "table": TABLE,
        "partition": "dt=2026-11-01",
        "snapshot_id": registered.snapshot_id,
        "rows": 3,
        "errors": 0,
        "removed": 0,
        "audio_hours": 0.03,
        "report_uri": run.report_uri,
        "table_location": registered.table_location,
    }


def test_staging_in_object_storage_and_table_in_another(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, bucket = ObjectStorage(s3.config), s3.bucket("staging")
    local = stage_run(tmp_path, ["a", "b"])
    run = _moved(local, f"s3://{bucket}/stage run", storage)
    monkeypatch.setenv("AIRFLOW_CONN_STAGING", s3.connection)
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", s3.lake().connection)
    result = register(run, staging_conn_id="staging", catalog_conn_id="lake")
    assert result["rows"] == 2
    table = open_catalog("lake").load_table(TABLE)
    assert table.scan().to_arrow().num_rows == 2
    # Staging may now expire: the table's rows lie in the table's own place.
    assert all(f.startswith(table.location()) for f in table.inspect.files()["file_path"].to_pylist())
    assert s3.secret_key not in json.dumps(
        [result, *(dict(s.summary.additional_properties) for s in table.snapshots())]
    )


def _moved(run: Run, uri: str, storage: ObjectStorage) -> Run:
    """The same run, in another place."""
    import dataclasses

    import pyarrow.parquet as pq

    folder = Path(run.run_uri.removeprefix("file://"))
    moved = dataclasses.replace(run, run_uri=uri)
    manifest = pq.read_table(folder / "manifest.parquet", partitioning=None).replace_schema_metadata(
        moved.to_metadata()
    )
    pq.write_table(manifest, folder / "manifest.parquet")
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            path.write_text(path.read_text().replace(run.run_uri, uri))
        if path.is_file():
            storage.upload(path, f"{uri}/{path.relative_to(folder)}")
    return moved


def test_run_that_only_deletes_empties_the_partition(tmp_path: Path) -> None:
    first = register(stage_run(tmp_path, ["a", "b"]))
    run = stage_run(tmp_path, removed=["a", "b"], base_snapshot_id=first["snapshot_id"])
    result = register(run)
    assert (result["rows"], result["removed"]) == (0, 2)
    assert uris() == []


def test_rows_that_an_earlier_release_staged_are_validated_and_registered(tmp_path: Path) -> None:
    rows = make_transcript_rows(["a", "b"])
    earlier = pa.Table.from_pylist(rows.to_pylist(), schema=earlier_transcript_schema(PARTITION))
    run = stage_run(tmp_path, ["a", "b"], rows=earlier)
    report = validate_run(run, ObjectStorage(), max_error_rate=0.0)
    assert report.passed, report.failed
    assert register_run(run, ObjectStorage(), open_catalog(None)) is not None
    batches = partition_rows(open_catalog(None), TABLE, PARTITION)
    found = {row["audio_uri"]: row for batch in batches for row in batch.to_pylist()}
    assert found == {row["audio_uri"]: row for row in rows.to_pylist()}


def test_stray_files_in_staging_are_not_registered(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a"])
    stray = stage_run(tmp_path / "stray", ["b"])
    (part,) = folder(stray).glob("rows/*")
    part.rename(Path(run.rows_uri.removeprefix("file://"), "left-over.parquet"))
    register(run)
    assert uris() == ["a"]


@pytest.mark.parametrize(
    ("missing", "message"),
    [("report.json", "no validation report"), ("result.json", "clear the transcribe task")],
)
def test_run_that_is_not_ready_is_refused(tmp_path: Path, missing: str, message: str) -> None:
    run = stage_run(tmp_path, ["a"])
    Path(run.run_uri.removeprefix("file://"), missing).unlink()
    with pytest.raises(RegistrationError, match=message):
        register(run)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"passed": False}, "validation failed, so nothing is registered"),
        ({"passed": True, "manifest_id": "0" * 32}, "is about manifest 0000"),
        ({"passed": "true"}, "validation failed"),
        ({}, "is not a validation report"),
        ([], "is not a validation report"),
    ],
)
def test_run_without_a_passing_report_of_its_own_is_refused(
    tmp_path: Path, report: Any, message: str
) -> None:
    run = stage_run(tmp_path, ["a"])
    Path(run.report_uri.removeprefix("file://")).write_text(json.dumps(report))
    with pytest.raises(RegistrationError, match=message):
        register(run)
    assert open_catalog(None).list_namespaces() == []


def test_report_may_be_waived_or_lie_elsewhere(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a"], passed=None)
    register(run, require_report=False)
    (tmp_path / "elsewhere.json").write_text(json.dumps({"passed": True}))
    other = stage_run(tmp_path, ["a"], partition={"dt": "2026-11-02"}, passed=None)
    result = register(other, report=f"file://{tmp_path}/elsewhere.json")
    assert result["report_uri"] == f"file://{tmp_path}/elsewhere.json"


def test_partition_is_spelled_as_its_columns_are_from_the_template_to_the_asset_event(tmp_path: Path) -> None:
    """The hour is a number in the table, and has two digits in the folder."""
    catalog = open_catalog(None)
    catalog.create_namespace("speech")
    schema = transcript_schema([]).append(pa.field("day", pa.date32())).append(pa.field("hour", pa.int32()))
    with (
        catalog.create_table_transaction(TABLE, schema) as transaction,
        transaction.update_spec() as spec,
    ):
        spec.add_identity("day").add_identity("hour")
    audio = tmp_path / "raw" / "hour=07" / "a.wav"
    audio.parent.mkdir(parents=True)
    audio.write_bytes(b"RIFF")

    def discover(hour: str = "07") -> dict[str, Any]:
        return DiscoverAudioOperator(
            task_id="discover",
            source=str(tmp_path / "raw" / "hour=07"),
            partition={"day": "20261101", "hour": hour},
            table=TABLE,
            staging=str(tmp_path / "staging"),
            options=OPTIONS,
        ).execute({})  # type: ignore[arg-type]

    found = discover()
    assert found["partition"] == "day=2026-11-01/hour=7"
    storage = ObjectStorage()
    run = read_run(found["manifest_uri"], storage)
    assert run.partition == {"day": "2026-11-01", "hour": "7"}
    with open_parquet(run.manifest_uri, storage) as file:
        (row,) = file.read().to_pylist()
    staged = stage_run(tmp_path, [row["audio_uri"]], partition=run.partition, etag=row["audio_etag"])
    asset, context = Asset("transcripts"), {"outlet_events": OutletEventAccessors()}
    register(staged, context, outlets=[asset])
    assert context["outlet_events"][asset].extra["partition"] == "day=2026-11-01/hour=7"
    (row,) = catalog.load_table(TABLE).scan("hour = 7").to_arrow().to_pylist()
    assert (row["day"], row["hour"]) == (date(2026, 11, 1), 7)
    with pytest.raises(AirflowSkipException, match="up to date"):
        discover("7")
    with pytest.raises(TableMismatchError, match="'noon' is not a value for the partition column hour"):
        discover("noon")


def test_partition_by_year_month_and_day_is_validated_and_registered(tmp_path: Path) -> None:
    partition = {"year": "2026", "month": "11", "day": "01"}
    run = stage_run(tmp_path, ["a"], partition=partition, passed=None)
    write_report(validate_run(run, ObjectStorage(), max_error_rate=0.0), run, ObjectStorage())
    assert register(run)["partition"] == "year=2026/month=11/day=01"


# --- the operator ----------------------------------------------------------------------------------------


def test_asset_event_tells_what_was_registered(tmp_path: Path) -> None:
    asset, context = Asset("transcripts"), {"outlet_events": OutletEventAccessors()}
    rows = make_transcript_rows(["a", "b"], status=lambda uri: "error" if uri == "a" else "ok")
    run = stage_run(tmp_path, ["a", "b"], rows=rows)
    result = register(run, context, outlets=[asset, AssetAlias("others")])
    extra = context["outlet_events"][asset].extra
    assert extra == {**result, "manifest_uri": run.manifest_uri, "idempotency_key": run.idempotency_key}
    assert (extra["partition"], extra["rows"], extra["errors"]) == ("dt=2026-11-01", 2, 1)
    json.dumps(extra)


def test_running_the_task_again_returns_the_first_commit(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a", "b"])
    asset, context = Asset("transcripts"), {"outlet_events": OutletEventAccessors()}
    first = register(run)
    assert register(run, context, outlets=[asset]) == first
    # The first try may have died between its commit and its event.
    assert context["outlet_events"][asset].extra["snapshot_id"] == first["snapshot_id"]
    assert len(open_catalog(None).load_table(TABLE).snapshots()) == 1


def expire_all_but_the_newest() -> None:
    table = open_catalog(None).load_table(TABLE)
    table.maintenance.expire_snapshots().older_than(datetime.now()).commit()


def test_task_run_again_after_its_snapshot_expired_still_succeeds(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a", "b"])
    first = register(run)
    other = stage_run(tmp_path, ["c"], partition={"dt": "2026-11-02"}, base_snapshot_id=first["snapshot_id"])
    register(other)
    expire_all_but_the_newest()
    assert len(open_catalog(None).load_table(TABLE).snapshots()) == 1
    assert register(run) == first


def test_note_of_a_registration_is_no_proof_when_the_rows_are_gone(tmp_path: Path) -> None:
    first = register(stage_run(tmp_path, ["z"], partition={"dt": "2026-11-02"}))
    run = stage_run(tmp_path, ["a"], base_snapshot_id=first["snapshot_id"])
    register(run)
    table = open_catalog(None).load_table(TABLE)
    table.manage_snapshots().rollback_to_snapshot(first["snapshot_id"]).commit()
    expire_all_but_the_newest()
    assert uris() == []
    register(run)
    assert uris() == ["a"]


def test_manifest_for_another_table_is_refused(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a"], table="speech.other")
    with pytest.raises(AirflowFailException, match=r"is for the table speech.other.*speech.transcripts"):
        register(run, table=TABLE)
    assert open_catalog(None).list_namespaces() == []


def folder(run: Run) -> Path:
    return Path(run.run_uri.removeprefix("file://"))


@pytest.mark.parametrize("name", ["rows/*.parquet", "removed.parquet", "result.json"])
def test_damaged_staging_is_named_and_nothing_is_registered(tmp_path: Path, name: str) -> None:
    run = stage_run(tmp_path, ["a"], removed=["b"])
    (path,) = folder(run).glob(name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RegistrationError, match=re.escape(path.name)):
        register(run)
    assert uris() == []


def test_damaged_manifest_asks_to_clear_discover(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a"])
    (folder(run) / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(AirflowFailException, match="Clear the discover task"):
        register(run)


def test_result_that_names_files_of_others_is_refused(tmp_path: Path) -> None:
    run, other = stage_run(tmp_path, ["a"]), stage_run(tmp_path / "other", ["a"])
    result = folder(run) / "result.json"
    result.write_text(result.read_text().replace(run.rows_uri, other.rows_uri))
    with pytest.raises(RegistrationError, match="which is no file of this run"):
        register(run)


def test_run_is_taken_from_where_its_manifest_lies(tmp_path: Path) -> None:
    run, other = stage_run(tmp_path, ["a"]), stage_run(tmp_path / "other", ["b"])
    manifest = pq.read_table(folder(run) / "manifest.parquet", partitioning=None)
    # Somebody has written another run's folder into it.
    foreign = dataclasses.replace(run, run_uri=other.run_uri)
    pq.write_table(manifest.replace_schema_metadata(foreign.to_metadata()), folder(run) / "manifest.parquet")
    register(run)
    assert uris() == ["a"]


@pytest.mark.parametrize("missing", ["report.json", "result.json", "removed.parquet"])
def test_run_that_needs_another_task_is_not_retried_and_says_which(tmp_path: Path, missing: str) -> None:
    first = register(stage_run(tmp_path, ["a", "b"]))
    run = stage_run(tmp_path, ["c"], removed=["a"], base_snapshot_id=first["snapshot_id"])
    (folder(run) / missing).unlink()
    task = {"report.json": "validate", "result.json": "transcribe", "removed.parquet": "discover"}[missing]
    with pytest.raises(AirflowFailException, match=f"clear the {task} task"):
        register(run)
    assert uris() == ["a", "b"]


def test_rows_that_were_staged_after_the_validation_are_not_registered(tmp_path: Path) -> None:
    """Only the transcribe task was cleared, and has tried again what failed."""
    run = stage_run(tmp_path, ["a", "b"], passed=None)
    write_report(validate_run(run, ObjectStorage(), max_error_rate=0.0), run, ObjectStorage())
    manifest, rows = make_manifest_rows(["a", "b"]), make_transcript_rows(["a", "b"], attempt=2)
    write_run_files(run, manifest, [rows])
    with pytest.raises(AirflowFailException, match=r"about other rows.*clear the validate task"):
        register(run)
    assert open_catalog(None).list_namespaces() == []
    write_report(validate_run(run, ObjectStorage(), max_error_rate=0.0), run, ObjectStorage())
    assert register(run)["rows"] == 2


@pytest.mark.parametrize("code", ["not_found", "changed_during_read"])
@pytest.mark.parametrize("change", ["stale", "changed", "retry"])
def test_row_of_audio_that_was_gone_when_it_was_read_again_stays(
    tmp_path: Path, change: str, code: str
) -> None:
    first = register(stage_run(tmp_path, ["a", "b"], options=WhisperOptions(model="tiny")))
    rows = make_transcript_rows(
        ["a", "b", "c"],
        status=lambda uri: "ok" if uri == "b" else "error",
        error_code=lambda uri: None if uri == "b" else code,
        audio_etag="e2",
        attempt=2,
    )
    manifest = make_manifest_rows(
        ["a", "b", "c"],
        change=lambda uri: "new" if uri == "c" else change,
        audio_etag="e2",
        attempt=2,
    )
    base = first["snapshot_id"]
    run = stage_run(tmp_path, ["a", "b", "c"], base_snapshot_id=base, change=change, etag="e2", attempt=2)
    write_run_files(run, manifest, [rows], error_codes={code: 2})
    assert register(run)["rows"] == 2
    found = {
        row["audio_uri"]: (row["audio_etag"], row["status"])
        for batch in current_rows(open_catalog(None), TABLE, PARTITION)
        for row in batch.to_pylist()
    }
    assert found == {"a": ("e1", "ok"), "b": ("e2", "ok"), "c": ("e2", "error")}
    assert register(run)["snapshot_id"] == current_snapshot_id(open_catalog(None), TABLE)


def test_run_whose_audio_has_all_expired_changes_nothing(tmp_path: Path) -> None:
    first = register(stage_run(tmp_path, ["a"]))
    rows = make_transcript_rows(["a"], status="error", error_code="not_found", audio_etag="e2")
    run = stage_run(tmp_path, ["a"], base_snapshot_id=first["snapshot_id"], change="changed", etag="e2")
    write_run_files(
        run,
        make_manifest_rows(["a"], change="changed", audio_etag="e2"),
        [rows],
        error_codes={"not_found": 1},
    )
    with pytest.raises(AirflowSkipException, match="the audio was gone or replaced"):
        register(run)
    assert current_snapshot_id(open_catalog(None), TABLE) == first["snapshot_id"]


def test_staging_that_expired_asks_to_clear_discover(tmp_path: Path) -> None:
    run = stage_run(tmp_path, ["a"], files=1)
    (staged,) = folder(run).glob("rows/*")
    staged.unlink()
    with pytest.raises(RegistrationError, match=f"{re.escape(staged.name)} is gone.*clear the discover task"):
        register(run)
    Path(run.manifest_uri.removeprefix("file://")).unlink()
    with pytest.raises(AirflowFailException, match="clear the discover task"):
        register(run)


def test_task_skips_when_another_run_did_the_same_work(tmp_path: Path) -> None:
    register(stage_run(tmp_path, ["a", "b"]))
    asset, context = Asset("transcripts"), {"outlet_events": OutletEventAccessors()}
    with pytest.raises(AirflowSkipException, match="another run did the same work"):
        register(stage_run(tmp_path, ["a"]), context, outlets=[asset])
    assert context["outlet_events"][asset].extra == {}


def test_conflict_fails_the_task_without_a_retry(tmp_path: Path) -> None:
    register(stage_run(tmp_path, ["a"]))
    with pytest.raises(AirflowFailException, match="Clear the discover task"):
        register(stage_run(tmp_path, ["a", "b"]))
    assert uris() == ["a"]


def test_table_that_does_not_fit_fails_the_task_without_a_retry(tmp_path: Path) -> None:
    register(stage_run(tmp_path, ["a"]))
    with pytest.raises(AirflowFailException, match="column hour is missing"):
        register(stage_run(tmp_path, ["a"], partition={"dt": "2026-11-01", "hour": "00"}))


@pytest.mark.parametrize("name", ["manifest", "report"])
@pytest.mark.parametrize("value", ["", "None", "ftp://host/manifest.parquet"])
def test_wrong_uri_is_refused_before_any_work(name: str, value: str) -> None:
    arguments = {"manifest": "/staging/manifest.parquet", name: value}
    with pytest.raises(ValueError, match=name):
        RegisterTranscriptsOperator(task_id="register", **arguments)
    operator = RegisterTranscriptsOperator(task_id="register", **{**arguments, name: "{{ later }}"})
    setattr(operator, name, value)  # what the template rendered to
    with pytest.raises(ValueError, match=name):
        operator.execute({})


def test_all_string_arguments_are_templates() -> None:
    assert set(RegisterTranscriptsOperator.template_fields) == {
        "manifest",
        "table",
        "staging_conn_id",
        "catalog_conn_id",
        "report",
        "table_url",
    }


def test_log_says_what_was_done(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    with caplog.at_level("INFO"):
        result = register(stage_run(tmp_path, ["a", "b"]))
    log = caplog.text + capsys.readouterr().out
    assert "Registered 2 rows (0 of them errors; 0.02 h of audio) and deleted 0" in log
    assert str(result["snapshot_id"]) in log
    assert f"in catalog 'whisper' at {result['table_location']}" in log


def test_statement_is_a_template_too() -> None:
    RegisterTranscriptsOperator(
        task_id="register",
        manifest="{% if a %}s3://b/manifest.parquet{% endif %}",
        report="{% if a %}{% endif %}",
    )
