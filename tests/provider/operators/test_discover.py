"""Discovery: which files a partition lacks, from real listings and a real table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from literal_s3 import literal_s3
from pyiceberg.catalog.sql import SqlCatalog
from servers import S3Server

from airflow_whisper.discovery.comparison import Comparison, Counts, Rules
from airflow_whisper.discovery.errors import DiscoveryError
from airflow_whisper.discovery.locations import source_root
from airflow_whisper.errors import ConfigurationError
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.run_manifest import read_own_manifest
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.schema import ensure_table
from airflow_whisper.templates import optional
from airflow_whisper.watch.partition_templates import modified_in
from whisper_spark.contract import (
    FINAL_ERRORS,
    TRANSIENT_ERRORS,
    Transcript,
    WhisperOptions,
    transcript_schema,
)
from whisper_spark.storage.objects import ObjectForbidden, ObjectNotFound, ObjectStorage
from whisper_spark.storage.parquet import open_parquet, read_run

OPTIONS = WhisperOptions(model="base")
OTHER = WhisperOptions(model="base", beam_size=4)
TABLE = "speech.transcripts"
PARTITION = {"dt": "2026-11-01"}


# --- the rules, row by row -------------------------------------------------------------------------------


def listing(etag: str | None) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "audio_uri": ["s3://calls/a.wav"],
            "audio_etag": pa.array([etag], pa.string()),
            "audio_bytes": pa.array([10], pa.int64()),
            "last_modified": pa.array([datetime(2026, 11, 1, tzinfo=UTC)], pa.timestamp("us", tz="UTC")),
        }
    )


def row(
    etag: str | None = "e1", error: str | None = None, attempt: int = 1, options: WhisperOptions = OPTIONS
) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "audio_uri": ["s3://calls/a.wav"],
            "audio_etag": pa.array([etag], pa.string()),
            "status": ["error" if error else "ok"],
            "error_code": pa.array([error], pa.string()),
            "attempt": pa.array([attempt], pa.int32()),
            "fingerprint": [options.fingerprint()],
        }
    )


def decide(held: pa.RecordBatch | None, etag: str | None = "e1", **rules: Any) -> tuple[str, int | None]:
    """The change of one file, and its ``attempt`` in the manifest if it is listed there."""
    with Comparison() as comparison:
        comparison.add_rows([held] if held else [])
        comparison.add_listing(listing(etag), ["audio"])
        counts = comparison.compare(OPTIONS.fingerprint(), Rules(**rules), "s3://calls")
        (change,) = [name for name, n in counts.files.items() if n]
        files = [file for chunk in comparison.files() for file in chunk]
        return change, files[0][5] if files else None


KEEP = {"on_stale": "keep"}


@pytest.mark.parametrize(
    ("held", "etag", "rules", "decision"),
    [
        (None, "e1", {}, ("new", 1)),
        (row(), "e1", {}, ("unchanged", None)),
        (row(), "e2", {}, ("changed", 1)),
        (row(options=OTHER), "e2", KEEP, ("changed", 1)),
        (row(etag=None), "e1", {}, ("unchanged", None)),
        (row(), None, {}, ("unchanged", None)),
        (row(options=OTHER), "e1", {}, ("stale", 1)),
        (row(options=OTHER), "e1", KEEP, ("kept_stale", None)),
        (row(error="internal", attempt=3), "e2", {}, ("changed", 1)),
        (row(error="internal", attempt=1), "e1", {}, ("retry", 2)),
        (row(error="internal", attempt=2), "e1", {}, ("retry", 3)),
        (row(error="internal", attempt=3), "e1", {}, ("unchanged", None)),
        (row(error="internal", attempt=3), "e1", {"max_attempts": 4}, ("retry", 4)),
        (row(error="internal", attempt=1), "e1", {"max_attempts": 1}, ("unchanged", None)),
        (row(error="internal", attempt=3, options=OTHER), "e1", {}, ("stale", 1)),
        (row(error="internal", attempt=1, options=OTHER), "e1", KEEP, ("retry", 2)),
        (row(error="internal", attempt=3, options=OTHER), "e1", KEEP, ("kept_stale", None)),
        (row(error="too_long"), "e1", {}, ("unchanged", None)),
        (row(error="too_long", options=OTHER), "e1", {}, ("stale", 1)),
        (row(error="too_long", options=OTHER), "e1", KEEP, ("kept_stale", None)),
    ],
)
def test_what_becomes_of_a_file(
    held: pa.RecordBatch | None, etag: str | None, rules: dict[str, Any], decision: tuple[str, int | None]
) -> None:
    assert decide(held, etag, **rules) == decision


def test_errors_that_lie_in_the_file_are_final_and_all_others_are_tried_again() -> None:
    assert {code: decide(row(error=code))[0] for code in FINAL_ERRORS} == dict.fromkeys(
        FINAL_ERRORS, "unchanged"
    )
    assert {code: decide(row(error=code))[0] for code in TRANSIENT_ERRORS} == dict.fromkeys(
        TRANSIENT_ERRORS, "retry"
    )


@pytest.mark.parametrize(("on_removed", "count"), [("keep", "kept_removed"), ("delete", "removed")])
def test_row_whose_audio_is_gone(on_removed: Any, count: str) -> None:
    with Comparison() as comparison:
        comparison.add_rows([row()])
        counts = comparison.compare(OPTIONS.fingerprint(), Rules(on_removed=on_removed), "s3://calls")
        assert [name for name, n in counts.files.items() if n] == [count]
        assert [*comparison.removed()] == ([[("s3://calls/a.wav",)]] if on_removed == "delete" else [])
        assert counts.nothing_to_do is (on_removed == "keep")


def test_two_rows_for_one_file_are_an_error() -> None:
    with Comparison() as comparison:
        comparison.add_rows([row(), row()])
        with pytest.raises(ValueError, match=r"more than one row for s3://calls/a\.wav"):
            comparison.compare(OPTIONS.fingerprint(), Rules(), "s3://calls")


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("s3://calls", "removed"),
        ("s3://calls/", "removed"),
        ("s3a://calls/", "removed"),
        ("s3://calls/a", "kept_elsewhere"),
        ("s3://calls/a.wav", "kept_elsewhere"),
        ("s3://calls/b", "kept_elsewhere"),
        ("s3://call", "kept_elsewhere"),
        ("s3://calls2", "kept_elsewhere"),
        ("gs://calls", "kept_elsewhere"),
        ("s3://Calls", "kept_elsewhere"),
    ],
)
def test_only_rows_below_the_source_are_removed(source: str, count: str) -> None:
    with Comparison() as comparison:
        comparison.add_rows([row()])
        counts = comparison.compare(OPTIONS.fingerprint(), Rules(on_removed="delete"), source)
        assert [name for name, n in counts.files.items() if n] == [count]


@pytest.mark.parametrize("kind", ["hidden", "sidecar", "unmatched", "other_time"])
def test_row_whose_audio_is_only_left_out_stays(kind: str) -> None:
    with Comparison() as comparison:
        comparison.add_rows([row()])
        comparison.add_listing(listing("e1"), [kind])
        counts = comparison.compare(OPTIONS.fingerprint(), Rules(on_removed="delete"), "s3://calls")
        assert [name for name, n in counts.files.items() if n] == ["kept_left_out"]
        assert comparison.left_out() == {kind: 1}


def test_counts_for_people() -> None:
    files = {
        "new": 1200,
        "changed": 0,
        "stale": 0,
        "retry": 1,
        "unchanged": 22,
        "kept_stale": 0,
        "removed": 0,
    }
    kept = {"kept_removed": 3, "kept_left_out": 2, "kept_elsewhere": 1}
    assert str(Counts({**files, **kept})) == (
        "1,200 new, 1 retry, 22 unchanged, 3 kept though the audio is gone, "
        "2 kept though this run leaves their audio out, 1 kept from other sources"
    )


# --- the operator, on real folders, buckets and tables -----------------------------------------------------


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    catalog_env: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> SimpleNamespace:
    """A source of three files, a place for staging, and an empty catalog."""
    if request.param == "local":
        storage, base, conn_id = ObjectStorage(), f"file://{tmp_path}", None
    else:
        server: S3Server = request.getfixturevalue("s3")
        monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", server.connection)
        storage, base, conn_id = ObjectStorage(server.config), f"s3://{server.bucket('discover')}", "seaweed"
    source = f"{base}/raw/dt=2026-11-01"
    for name, size in (("b.wav", 20), ("a b#1.wav", 30), ("deep/c.wav", 10)):
        storage.write_bytes(f"{source}/{name}", b"x" * size)
    return SimpleNamespace(storage=storage, source=source, staging=f"{base}/staging", conn_id=conn_id)


def operator(place: SimpleNamespace, **kwargs: Any) -> DiscoverAudioOperator:
    arguments = {
        "source": place.source,
        "partition": PARTITION,
        "table": TABLE,
        "staging": place.staging,
        "options": OPTIONS,
        "source_conn_id": place.conn_id,
    }
    return DiscoverAudioOperator(task_id="discover", **(arguments | kwargs))


def discover(place: SimpleNamespace, **kwargs: Any) -> dict[str, Any]:
    return operator(place, **kwargs).execute({})


def manifest(place: SimpleNamespace, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    with open_parquet(result["manifest_uri"], place.storage) as file:
        return file.read().to_pylist()


def changes(place: SimpleNamespace, result: Mapping[str, Any]) -> dict[str, str]:
    start = len(place.source) + 1
    return {r["audio_uri"][start:]: r["change"] for r in manifest(place, result)}


def publish(
    place: SimpleNamespace,
    *,
    options: WhisperOptions = OPTIONS,
    errors: Mapping[str, str] | None = None,
    attempt: int = 1,
    partition: Mapping[str, str] = PARTITION,
) -> int | None:
    """Puts a row for each file of the source into the table; returns the snapshot id."""
    rows = []
    for batch in place.storage.list(place.source):
        for file in batch.to_pylist():
            code = (errors or {}).get(file["audio_uri"].removeprefix(f"{place.source}/"))
            transcript = Transcript(
                audio_uri=file["audio_uri"],
                audio_etag=file["audio_etag"],
                audio_bytes=file["audio_bytes"],
                status="error" if code else "ok",
                error_code=code,
                attempt=attempt,
                fingerprint=options.fingerprint(),
            )
            rows.append({**transcript.to_row(), **partition})
    catalog = open_catalog(None)
    table = ensure_table(catalog, TABLE, partition)
    table.append(pa.Table.from_pylist(rows, schema=transcript_schema(partition)))
    return current_snapshot_id(catalog, TABLE)


def test_first_run_takes_every_file_largest_first(place: SimpleNamespace) -> None:
    result = discover(place)
    rows = manifest(place, result)
    assert [r["audio_uri"] for r in rows] == [
        f"{place.source}/{n}" for n in ("a b#1.wav", "b.wav", "deep/c.wav")
    ]
    assert [r["audio_bytes"] for r in rows] == [30, 20, 10]
    assert {(r["change"], r["attempt"], r["dt"]) for r in rows} == {("new", 1, "2026-11-01")}
    for r in rows:
        info = place.storage.info(r["audio_uri"])
        assert (r["audio_etag"], r["last_modified"]) == (info.etag, info.last_modified)


def test_names_that_cannot_be_read_cost_themselves(
    tmp_path: Path, catalog_env: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    place = SimpleNamespace(
        storage=ObjectStorage(), source=f"{tmp_path}/raw", staging=f"{tmp_path}/staging", conn_id=None
    )
    for name in ("a.wav", "_tmp/b.wav", "c.txt"):
        place.storage.write_bytes(f"{place.source}/{name}", b"x")
    for name in (b"caf\xe9.wav", b"_tmp/gar\xe7on.wav", b"stra\xdfe.txt"):
        Path(os.fsdecode(os.fsencode(place.source) + b"/" + name)).write_bytes(b"x")
    result = discover(place, pattern="*.wav")
    assert [r["audio_uri"] for r in manifest(place, result)] == [f"file://{place.source}/a.wav"]
    # What would not count as audio anyway is worth no warning.
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "cannot be read" in line]
    assert f"1 objects under {place.source} have names that cannot be read, for example " in warning
    assert r"caf\udce9.wav" in warning


def test_odd_keys_of_s3_are_files_like_any_other(
    catalog_env: SimpleNamespace, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", s3.connection)
    base = f"s3://{s3.bucket('odd')}"
    place = SimpleNamespace(
        storage=ObjectStorage(s3.config), source=f"{base}/raw", staging=f"{base}/staging", conn_id="seaweed"
    )
    for name in ("a.wav", "two\nlines.wav", "esc\x1b.wav"):
        s3.client().put_object(Bucket=base.removeprefix("s3://"), Key=f"raw/{name}", Body=b"x")
    uris = {row["audio_uri"] for row in manifest(place, discover(place))}
    assert uris == {f"{place.source}/a.wav", f"{place.source}/two\nlines.wav", f"{place.source}/esc\x1b.wav"}
    publish(place)
    with pytest.raises(AirflowSkipException, match="up to date"):
        discover(place, on_removed="delete")


@pytest.mark.parametrize("on_missing_source", ["fail", "skip"])
def test_empty_day_is_skipped_where_only_its_own_folder_may_be_listed(
    tmp_path: Path, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, on_missing_source: Any
) -> None:
    with literal_s3({"raw/dt=2026-11-02/a.wav": b"x"}) as server:
        server.forbidden = ("", "raw/")
        extra = {"endpoint_url": server.config["aws_endpoint"], "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": "key", "password": "secret", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_LEAST", json.dumps(connection))
        place = SimpleNamespace(
            source="s3://bucket/raw/dt=2026-11-01/", staging=f"{tmp_path}/staging", conn_id="least"
        )
        with pytest.raises(AirflowSkipException, match="there is no audio under"):
            discover(place, on_missing_source=on_missing_source)
        place.source = "s3://bucket/raw/"
        with pytest.raises(ObjectForbidden):
            discover(place, on_missing_source=on_missing_source)


@pytest.mark.parametrize("where", ["source", "staging"])
@pytest.mark.parametrize("uri", ["s3://bucket//raw/", "s3://bucket/raw//", "s3://bucket/./raw/"])
def test_folder_with_an_empty_component_is_refused_and_not_emptied(
    catalog_env: SimpleNamespace, where: str, uri: str
) -> None:
    place = SimpleNamespace(source="s3://bucket/audio/", staging="s3://bucket/staging/", conn_id=None)
    with pytest.raises(ValueError, match=f"^{where}: '{uri}' has an empty.*Did you mean 's3://bucket/raw/'"):
        operator(place, **{where: uri}, on_removed="delete")
    # Templates are checked once they are rendered.
    task = operator(place, **{where: "{{ params.folder }}"})
    setattr(task, where, uri)
    with pytest.raises(ValueError, match="Did you mean"):
        task.execute({})


def test_result_is_small_and_the_run_is_in_the_manifest(place: SimpleNamespace) -> None:
    result = discover(place)
    run = read_run(result["manifest_uri"], place.storage)
    assert result == {
        "manifest_uri": run.manifest_uri,
        "manifest_id": run.manifest_id,
        "partition": "dt=2026-11-01",
        "fingerprint": OPTIONS.fingerprint(),
        "counts": run.counts,
        "audio_bytes": 60,
        "estimate": result["estimate"],
    }
    assert result["estimate"]["files"] == 3
    assert json.loads(json.dumps(result)) == result
    assert run.run_uri == f"{place.staging}/{TABLE}/dt=2026-11-01/{OPTIONS.fingerprint()}/{run.manifest_id}"
    assert (run.table, run.partition, run.options, run.base_snapshot_id) == (TABLE, PARTITION, OPTIONS, None)
    assert run.counts["new"] == 3
    assert run.counts["removed"] == 0
    assert not place.storage.exists(run.removed_uri)


def test_second_run_has_nothing_to_do(place: SimpleNamespace) -> None:
    publish(place)
    with pytest.raises(AirflowSkipException, match=rf"dt=2026-11-01 of {TABLE} is up to date: 3 unchanged"):
        discover(place)
    assert not place.storage.any_under(place.staging)


def test_late_file_costs_one_file(place: SimpleNamespace) -> None:
    snapshot_id = publish(place)
    place.storage.write_bytes(f"{place.source}/late.wav", b"late")
    result = discover(place)
    assert changes(place, result) == {"late.wav": "new"}
    assert result["counts"]["unchanged"] == 3
    assert read_run(result["manifest_uri"], place.storage).base_snapshot_id == snapshot_id


def test_uploaded_again_is_transcribed_again(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.write_bytes(f"{place.source}/b.wav", b"another recording")
    assert changes(place, discover(place)) == {"b.wav": "changed"}


def test_removed_audio_keeps_its_row_by_default(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.delete([f"{place.source}/b.wav"])
    with pytest.raises(AirflowSkipException, match="2 unchanged, 1 kept though the audio is gone"):
        discover(place)


def test_removed_audio_loses_its_row_by_choice(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.delete([f"{place.source}/b.wav"])
    result = discover(place, on_removed="delete")
    run = read_run(result["manifest_uri"], place.storage)
    assert manifest(place, result) == []
    assert result["counts"]["removed"] == 1
    with open_parquet(run.removed_uri, place.storage) as file:
        assert file.read().to_pylist() == [{"audio_uri": f"{place.source}/b.wav"}]


def test_emptied_source_removes_every_row_by_choice(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.delete([f"{place.source}/{n}" for n in ("a b#1.wav", "b.wav", "deep/c.wav")])
    with pytest.raises(AirflowSkipException, match="3 kept though the audio is gone"):
        discover(place)
    # Other partitions show that the source exists.
    place.storage.write_bytes(place.source.replace("2026-11-01", "2026-11-02") + "/x.wav", b"x")
    with pytest.raises(DiscoveryError, match=r"remove 3 of the 3 rows .*\(100%\).*max_removed_rate=0\.5"):
        discover(place, on_removed="delete")
    assert discover(place, on_removed="delete", max_removed_rate=1)["counts"]["removed"] == 3


def remaining(place: SimpleNamespace, **arguments: Any) -> int:
    """Rows that a run with ``on_removed="delete"`` leaves, of three."""
    try:
        result = discover(place, on_removed="delete", **arguments)
    except (AirflowSkipException, DiscoveryError, ObjectNotFound):
        return 3
    return 3 - int(result["counts"]["removed"])


def test_missing_source_removes_no_row_whatever_is_allowed(place: SimpleNamespace) -> None:
    publish(place)
    moved = place.source.replace("/raw/", "/moved/")
    for name in ("a b#1.wav", "b.wav", "deep/c.wav"):
        place.storage.write_bytes(f"{moved}/{name}", place.storage.read_bytes(f"{place.source}/{name}"))
        place.storage.delete([f"{place.source}/{name}"])
    if place.source.startswith("file://"):
        shutil.rmtree(place.source.removeprefix("file://"))  # as when a disk is not mounted
    with pytest.raises(DiscoveryError, match=r"does not exist.*no row of partition"):
        discover(place, on_removed="delete", max_removed_rate=1)


@pytest.mark.parametrize("wrong", ["/rwa/", "/Raw/", "/raw2/", "/ra/", "/raw/emea/"])
def test_mistyped_source_removes_no_row(place: SimpleNamespace, wrong: str) -> None:
    publish(place)
    mistyped = place.source.replace("/raw/", wrong)
    for other in ("/raw2/", "/raw/emea/"):
        neighbour = place.source.replace("/raw/", other).replace("11-01", "11-02")
        place.storage.write_bytes(f"{neighbour}/a.wav", b"x")
    assert remaining(place, source=mistyped, max_removed_rate=1) == 3


@pytest.mark.parametrize(
    "filters",
    [
        {"pattern": "*.mp3"},
        {"pattern": "deep/*"},
        {"extensions": ["flac"]},
        {"extensions": [".mp3"], "pattern": "*.wav"},
        {"partition_from_modified": {"dt": "%Y-%m-%d"}},
    ],
)
def test_filter_removes_no_row(place: SimpleNamespace, filters: dict[str, Any]) -> None:
    publish(place)
    assert remaining(place, max_removed_rate=1, **filters) == 3


def test_filter_does_not_keep_a_row_whose_audio_is_gone(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.delete([f"{place.source}/b.wav"])
    assert remaining(place, pattern="deep/*") == 2


def test_sources_of_one_partition_leave_each_others_rows_alone(place: SimpleNamespace) -> None:
    publish(place)
    other = SimpleNamespace(**{**vars(place), "source": place.source.replace("/raw/", "/raw2/")})
    for name in ("x.wav", "y.wav", "z.wav"):
        place.storage.write_bytes(f"{other.source}/{name}", b"x")
    publish(other)
    place.storage.delete([f"{place.source}/b.wav"])
    for trailing in ("", "/"):
        result = discover(place, source=place.source + trailing, on_removed="delete")
        assert (result["counts"]["removed"], result["counts"]["kept_elsewhere"]) == (1, 3)
    with pytest.raises(AirflowSkipException, match="3 unchanged, 3 kept from other sources"):
        discover(other, on_removed="delete")


def test_renamed_audio_is_removed_and_new(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.write_bytes(f"{place.source}/B.WAV", b"x" * 20)
    place.storage.delete([f"{place.source}/b.wav"])
    result = discover(place, on_removed="delete")
    assert changes(place, result) == {"B.WAV": "new"}
    assert result["counts"]["removed"] == 1


def test_share_of_rows_that_one_run_may_remove(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.delete([f"{place.source}/b.wav", f"{place.source}/deep/c.wav"])
    with pytest.raises(DiscoveryError, match=r"remove 2 of the 3 rows of partition dt=2026-11-01"):
        discover(place, on_removed="delete")
    with pytest.raises(AirflowSkipException, match="2 kept though the audio is gone"):
        discover(place)
    assert discover(place, on_removed="delete", max_removed_rate="0.67")["counts"]["removed"] == 2


def test_other_options_make_rows_stale(place: SimpleNamespace) -> None:
    publish(place, options=OTHER)
    assert set(changes(place, discover(place)).values()) == {"stale"}
    with pytest.raises(AirflowSkipException, match="3 kept as made with other options"):
        discover(place, on_stale="keep")


def test_rows_of_an_accepted_fingerprint_stay_and_others_are_stale(place: SimpleNamespace) -> None:
    publish(place, options=OTHER)
    small = WhisperOptions(model="small").fingerprint()
    with pytest.raises(AirflowSkipException, match="3 kept as made with other options"):
        discover(place, accepted_fingerprints=[small, OTHER.fingerprint()])
    # Otherwise a change of options is noticed as ever.
    found = changes(place, discover(place, accepted_fingerprints=[small]))
    assert set(found.values()) == {"stale"}


def test_options_that_only_change_speed_make_nothing_stale(place: SimpleNamespace) -> None:
    publish(place)
    with pytest.raises(AirflowSkipException, match="3 unchanged"):
        discover(place, options=WhisperOptions(model="base", batch_size=3, device="cpu"))


def test_failures_that_may_pass_are_tried_up_to_the_limit(place: SimpleNamespace) -> None:
    publish(place, errors={"b.wav": "out_of_memory", "deep/c.wav": "not_audio"}, attempt=2)
    result = discover(place)
    (only,) = manifest(place, result)
    assert (only["audio_uri"], only["change"], only["attempt"]) == (f"{place.source}/b.wav", "retry", 3)
    with pytest.raises(AirflowSkipException, match="3 unchanged"):
        discover(place, max_attempts=2)


def test_rows_of_other_partitions_do_not_count(place: SimpleNamespace) -> None:
    publish(place, partition={"dt": "2026-10-31"})
    assert set(changes(place, discover(place)).values()) == {"new"}


def test_same_work_has_the_same_manifest(place: SimpleNamespace) -> None:
    first = discover(place)
    etag = place.storage.info(first["manifest_uri"]).etag
    assert discover(place) == first
    assert place.storage.info(first["manifest_uri"]).etag == etag  # not written again
    place.storage.write_bytes(f"{place.source}/late.wav", b"late")
    assert discover(place)["manifest_id"] != first["manifest_id"]
    assert discover(place, options=OTHER)["manifest_id"] != discover(place)["manifest_id"]


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more", "a page", "the last bytes"])
def test_damaged_manifest_is_written_again(place: SimpleNamespace, damage: bytes | str) -> None:
    """As the messages of the other tasks promise: clear the discover task."""
    first = discover(place)
    uri = first["manifest_uri"]
    sound, rows = place.storage.read_bytes(uri), manifest(place, first)
    if damage == "a page":
        damage = sound[:40] + bytes(255 - byte for byte in sound[40:44]) + sound[44:]
    elif damage == "the last bytes":
        damage = sound[:-20]
    place.storage.write_bytes(uri, damage)
    assert discover(place) == first
    assert manifest(place, first) == rows
    assert place.storage.read_bytes(uri) == sound


def test_damaged_list_of_removed_rows_is_written_again(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.delete([f"{place.source}/b.wav"])
    first = discover(place, on_removed="delete")
    uri = read_run(first["manifest_uri"], place.storage).removed_uri
    sound = place.storage.read_bytes(uri)
    place.storage.write_bytes(uri, sound[:-4])
    assert discover(place, on_removed="delete") == first
    assert place.storage.read_bytes(uri) == sound


def test_sound_manifest_stays_whatever_its_id_leaves_out(place: SimpleNamespace) -> None:
    """A job may be reading it. The same upload again changes the time, and other rows change the counts."""
    publish(place, errors={"b.wav": "out_of_memory"})
    first = discover(place)
    written = place.storage.read_bytes(first["manifest_uri"])
    place.storage.delete([f"{place.source}/a b#1.wav"])
    again = discover(place)
    assert again["manifest_id"] == first["manifest_id"]
    assert again["counts"] != first["counts"]
    assert place.storage.read_bytes(first["manifest_uri"]) == written


def test_hidden_names_are_no_audio(place: SimpleNamespace) -> None:
    for name in ("_SUCCESS", ".b.wav.crc", "_tmp/d.wav", "deep/.part/e.wav", "deep_$folder$"):
        place.storage.write_bytes(f"{place.source}/{name}", b"x")
    assert set(changes(place, discover(place))) == {"a b#1.wav", "b.wav", "deep/c.wav"}


def test_hidden_folders_above_the_source_do_not_matter(place: SimpleNamespace) -> None:
    hidden = SimpleNamespace(**{**vars(place), "source": place.source.replace("/raw/", "/_raw/.x/")})
    place.storage.write_bytes(f"{hidden.source}/a.wav", b"x")
    assert changes(hidden, discover(hidden)) == {"a.wav": "new"}


def test_pattern_is_matched_below_the_source(place: SimpleNamespace) -> None:
    place.storage.write_bytes(f"{place.source}/deep/D.MP3", b"x")
    assert set(changes(place, discover(place, pattern="*.mp3"))) == {"deep/D.MP3"}
    assert set(changes(place, discover(place, pattern="deep/*"))) == {"deep/c.wav", "deep/D.MP3"}


def test_partition_can_be_what_was_modified_on_a_day(place: SimpleNamespace) -> None:
    today = place.storage.info(f"{place.source}/b.wav").last_modified.strftime("%Y-%m-%d")
    formats = {"dt": "%Y-%m-%d"}
    result = discover(place, partition={"dt": today}, partition_from_modified=formats)
    assert result["counts"]["new"] == 3
    with pytest.raises(AirflowSkipException, match="no audio"):
        discover(place, partition={"dt": "2001-01-01"}, partition_from_modified=formats)
    with pytest.raises(ValueError, match="has the key 'hour'"):
        operator(place, partition={"dt": today}, partition_from_modified={"hour": "%H"})


def test_hour_of_modification_may_be_spelled_as_in_a_column_of_numbers() -> None:
    belongs = modified_in({"dt": "%Y-%m-%d", "hour": "%H"}, {"dt": "2026-11-01", "hour": "7"})
    assert belongs is not None
    assert belongs(datetime(2026, 11, 1, 7, 30, tzinfo=UTC))
    assert not belongs(datetime(2026, 11, 1, 17, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("form", "value", "is_fine"),
    [
        ("%Y-%m-%d", "2026-11-01", True),
        ("%Y-%m-%d", "2026/11/01", False),
        ("%Y-%m-%d", "2026-11-01T00", False),
        ("%H", "7", True),
        # strptime cannot tell.
        ("%G-W%V", "2026-W44", True),
        ("%m-%d", "02-29", True),
    ],
)
def test_value_that_no_time_of_modification_gives_is_refused(form: str, value: str, is_fine: bool) -> None:
    arguments = {"partition": {"dt": value}, "partition_from_modified": {"dt": form}}
    if is_fine:
        operator(LOCAL, **arguments)
        return
    with pytest.raises(ValueError, match="no file would belong to it"):
        operator(LOCAL, **arguments)


def test_table_inside_the_source_is_refused_unless_its_files_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", str(tmp_path / "raw" / "warehouse"))
    place = SimpleNamespace(
        storage=ObjectStorage(), source=f"{tmp_path}/raw", staging=f"{tmp_path}/staging", conn_id=None
    )
    place.storage.write_bytes(f"{place.source}/a.wav", b"x")
    for _ in range(2):
        # The first time for the table that it creates, then for the one that is there.
        with pytest.raises(ConfigurationError, match="inside the source"):
            discover(place)
    assert discover(place, extensions=["wav"])["counts"]["new"] == 1


def test_names_that_would_be_too_long_are_refused_before_the_job(
    s3: S3Server, tmp_path: Path, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", s3.connection)
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", s3.lake().connection)
    bucket = f"s3://{s3.bucket('long')}"
    place = SimpleNamespace(
        storage=ObjectStorage(s3.config),
        source=f"{bucket}/raw",
        staging=f"{bucket}/staging",
        conn_id="seaweed",
    )
    place.storage.write_bytes(f"{place.source}/a.wav", b"x")
    lake = {"catalog_conn_id": "lake"}
    assert discover(place, partition={"dt": "v" * 500}, **lake)["counts"]["new"] == 1
    for too_long in ({"partition": {"dt": "v" * 900}, **lake}, {"partition": {"dt": "é" * 50}}):
        with pytest.raises(ConfigurationError, match="longer than their store allows"):
            discover(place, **too_long)


@pytest.mark.parametrize("column", ["audio_uri", "status"])
def test_row_of_another_writer_without_the_values_of_a_transcript_is_named(
    place: SimpleNamespace, column: str
) -> None:
    catalog = open_catalog(None)
    catalog.create_namespace("speech")
    schema = pa.schema([field.with_nullable(True) for field in transcript_schema(["dt"])])
    with (
        catalog.create_table_transaction(TABLE, schema) as transaction,
        transaction.update_spec() as spec,
    ):
        spec.add_identity("dt")
    publish(place)
    rows = catalog.load_table(TABLE).scan().to_arrow().slice(0, 1)
    nothing = pa.nulls(1, rows.schema.field(column).type)
    catalog.load_table(TABLE).append(rows.set_column(rows.schema.get_field_index(column), column, nothing))
    with pytest.raises(AirflowFailException, match=f"rows without a value of {column}"):
        discover(place)


def test_table_with_two_rows_for_a_file_fails_without_a_retry(place: SimpleNamespace) -> None:
    publish(place)
    publish(place)
    with pytest.raises(AirflowFailException, match=r"more than one row for .*delete the surplus rows"):
        discover(place)


def test_table_is_loaded_once(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(place, options=OTHER)
    loads = []
    monkeypatch.setattr(
        SqlCatalog,
        "load_table",
        lambda self, name, load=SqlCatalog.load_table: loads.append(name) or load(self, name),
    )
    assert discover(place)["counts"]["stale"] == 3
    assert loads == [TABLE]


def test_order_of_partition_keys_and_odd_values(place: SimpleNamespace) -> None:
    partition = {"region": "eu/west", "dt": "2026-11-01"}
    result = discover(place, partition=partition)
    assert result["partition"] == "region=eu%2Fwest/dt=2026-11-01"
    row = manifest(place, result)[0]
    assert list(row)[-2:] == ["region", "dt"]
    assert row["region"] == "eu/west"
    run, _ = read_own_manifest(result["manifest_uri"], place.storage)
    assert list(run.partition.items()) == list(partition.items())
    # The table decides as soon as there is one.
    again = discover(place, partition=dict(reversed(partition.items())))
    assert again["manifest_uri"] == result["manifest_uri"]


# --- what is not audio -------------------------------------------------------------------------------------


class Pushed:
    """A context whose XComs can be looked at."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def context(self) -> Any:
        return {"ti": SimpleNamespace(xcom_push=lambda key, value: self.xcoms.__setitem__(key, value))}


def test_sidecar_files_are_left_out_and_counted(place: SimpleNamespace) -> None:
    for name in ("b.wav.json", "b.TXT", "deep/c.srt", "a.md5", "index.csv.gz", "_SUCCESS"):
        place.storage.write_bytes(f"{place.source}/{name}", b"x")
    pushed = Pushed()
    result = operator(place).execute(pushed.context())
    assert set(changes(place, result)) == {"a b#1.wav", "b.wav", "deep/c.wav"}
    assert pushed.xcoms["left_out"] == {"hidden": 1, "sidecar": 5}


def test_left_out_is_counted_when_there_is_nothing_to_do(place: SimpleNamespace) -> None:
    publish(place)
    place.storage.write_bytes(f"{place.source}/b.json", b"x")
    pushed = Pushed()
    with pytest.raises(AirflowSkipException, match="3 unchanged"):
        operator(place).execute(pushed.context())
    assert pushed.xcoms["left_out"] == {"sidecar": 1}


def test_two_kinds_of_audio_beside_sidecar_files(place: SimpleNamespace) -> None:
    for name in ("d.MP3", "d.json", "e.ogg"):
        place.storage.write_bytes(f"{place.source}/{name}", b"x")
    result = discover(place, extensions=["wav", ".mp3"])
    assert set(changes(place, result)) == {"a b#1.wav", "b.wav", "deep/c.wav", "d.MP3"}


def test_extensions_ask_for_what_is_a_sidecar_elsewhere(place: SimpleNamespace) -> None:
    place.storage.write_bytes(f"{place.source}/call.txt", b"x")
    assert set(changes(place, discover(place, extensions=["txt"]))) == {"call.txt"}


@pytest.mark.parametrize("filters", [{"pattern": "*.wvv"}, {"extensions": ["mp3"]}, {"pattern": "*.json"}])
@pytest.mark.parametrize("published", [False, True])
def test_filter_that_matches_nothing_fails_and_says_so(
    place: SimpleNamespace, filters: dict[str, Any], published: bool
) -> None:
    place.storage.write_bytes(f"{place.source}/b.json", b"x")
    if published:
        publish(place)
    with pytest.raises(DiscoveryError, match=r"4 objects under .*3 do not match .*1 are sidecar files"):
        discover(place, **filters)
    with pytest.raises(AirflowSkipException, match="4 objects"):
        discover(place, on_missing_source="skip", **filters)


def test_sidecar_files_alone_fail_and_hidden_ones_do_not(place: SimpleNamespace) -> None:
    empty = place.source.replace("2026-11-01", "2026-11-02")
    arguments = {"source": empty, "partition": {"dt": "2026-11-02"}}
    place.storage.write_bytes(f"{empty}/_SUCCESS", b"x")
    with pytest.raises(AirflowSkipException, match="no audio under"):
        discover(place, **arguments)
    place.storage.write_bytes(f"{empty}/call.json", b"x")
    with pytest.raises(DiscoveryError, match=r"1 objects under .*call\.json"):
        discover(place, **arguments)


def test_audio_that_expired_beside_its_sidecar_files_keeps_its_rows(place: SimpleNamespace) -> None:
    publish(place)
    for name in ("a b#1.wav", "b.wav", "deep/c.wav"):
        place.storage.write_bytes(f"{place.source}/{name}.json", b"x")
        place.storage.delete([f"{place.source}/{name}"])
    with pytest.raises(AirflowSkipException, match="3 kept though the audio is gone"):
        discover(place, extensions=["wav"])
    assert remaining(place) == 3
    assert remaining(place, max_removed_rate=1) == 0


# --- sources without audio ---------------------------------------------------------------------------------


def test_partition_without_audio_is_skipped(place: SimpleNamespace) -> None:
    empty = place.source.replace("2026-11-01", "2026-11-02")
    with pytest.raises(AirflowSkipException, match=r"no audio under .*2026-11-02, and nothing in partition"):
        discover(place, source=empty, partition={"dt": "2026-11-02"})


def test_source_that_does_not_exist_fails(place: SimpleNamespace) -> None:
    missing = place.source.replace("/raw/", "/rwa/")
    with pytest.raises(ObjectNotFound, match=r"source .*/rwa/dt=2026-11-01 does not exist.*under .*/rwa/\."):
        discover(place, source=missing)
    with pytest.raises(AirflowSkipException, match="does not exist"):
        discover(place, source=missing, on_missing_source="skip")


def test_missing_bucket_always_fails(
    s3: S3Server, tmp_path: Path, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SEAWEED", s3.connection)
    place = SimpleNamespace(
        source="s3://no-such-bucket/raw", staging=f"file://{tmp_path}/s", conn_id="seaweed"
    )
    with pytest.raises(ConfigurationError, match=r"no bucket s3://no-such-bucket\. .*Check `source`"):
        discover(place, on_missing_source="skip")


def test_refused_access_always_fails(
    s3: S3Server, tmp_path: Path, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(s3.connection)
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", json.dumps({**connection, "password": "wrong-secret"}))
    place = SimpleNamespace(
        source=f"s3://{s3.bucket('closed')}/raw", staging=f"file://{tmp_path}/s", conn_id="wrong"
    )
    with pytest.raises(ConfigurationError, match="no permission to access s3://closed"):
        discover(place, on_missing_source="skip")


@pytest.mark.parametrize(
    ("source", "partition", "root"),
    [
        ("s3://calls/raw/dt=2026-11-01/", {"dt": "2026-11-01"}, "s3://calls/raw/"),
        ("s3://calls/raw/dt=2026-11-01/hour=13", {"dt": "2026-11-01", "hour": "13"}, "s3://calls/raw/"),
        ("s3://calls/raw/2026-11-01/wav/", {"dt": "2026-11-01"}, "s3://calls/raw/"),
        ("s3://calls/raw/20261101/", {"dt": "2026-11-01"}, "s3://calls/raw/"),
        ("s3://calls/raw/2026/11/01/", {"dt": "2026-11-01"}, "s3://calls/raw/"),
        ("s3://calls/raw/en/07/", {"lang": "en", "hour": "7"}, "s3://calls/raw/"),
        ("s3://calls/raw/07/", {"hour": "7"}, "s3://calls/raw/"),
        ("s3://calls/raw/hour-7/", {"hour": "07"}, "s3://calls/raw/"),
        ("s3://calls/raw/17/", {"hour": "7"}, "s3://calls/raw/17/"),
        ("s3://calls/raw/day-2026-11-01", {"dt": "2026-11-01"}, "s3://calls/raw/"),
        ("s3://calls/dt=2026-11-01", {"dt": "2026-11-01"}, "s3://calls/"),
        ("s3://calls/raw/", {"dt": "2026-11-01"}, "s3://calls/raw/"),
        ("s3://calls/open/en/", {"lang": "en"}, "s3://calls/open/"),
        ("/data/calls/dt=2026-11-01", {"dt": "2026-11-01"}, "file:///data/calls/"),
    ],
)
def test_root_is_what_all_partitions_share(source: str, partition: dict[str, str], root: str) -> None:
    assert source_root(source, partition) == root


# --- arguments -----------------------------------------------------------------------------------------


LOCAL = SimpleNamespace(source="/data/raw", staging="/data/staging", conn_id=None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": "transcripts"}, r"namespace\.table"),
        ({"partition": {}}, "at least one key"),
        ({"partition": {"day of week": "x"}}, "no column name"),
        ({"partition": {"text": "{{ ds }}"}}, "already a column"),
        ({"partition": "dt=2026-11-01"}, "must be a dict"),
        ({"source": "ftp://host/raw"}, "source: .*not supported"),
        ({"source": ""}, "source must be a URI"),
        ({"staging": None}, "staging must be a URI"),
        ({"staging": "staging/calls"}, "staging: .*'staging/calls'"),
        ({"table": None}, "table None must be written namespace.table"),
        ({"pattern": "["}, r"pattern '\[' has a '\[' without a '\]'"),
        ({"pattern": "calls-[0-9*.wav"}, "without a"),
        ({"staging": "/data/raw"}, "must not lie inside source"),
        ({"staging": "/data/raw/staging/"}, "must not lie inside source"),
        ({"source": "s3a://calls", "staging": "s3://calls/staging"}, "must not lie inside source"),
        ({"options": {"modle": "base"}}, "did you mean 'model'"),
        ({"options": {"model": "bse"}}, "unknown model"),
        ({"options": None}, "options must be"),
        ({"on_removed": "drop"}, "on_removed must be 'keep' or 'delete'"),
        ({"on_stale": "drop"}, "on_stale must be 'retranscribe' or 'keep'"),
        ({"accepted_fingerprints": ["large-v3"]}, "16 hex digits each, got 'large-v3'"),
        ({"accepted_fingerprints": "cefdb0eaf0510e80"}, "16 hex digits each, got 'c'"),
        ({"on_missing_source": "ignore"}, "on_missing_source must be"),
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"max_attempts": "three"}, "max_attempts must be"),
        ({"max_removed_rate": 1.1}, "max_removed_rate must be"),
        ({"max_removed_rate": "half"}, "max_removed_rate must be"),
        ({"max_removed_rate": True}, "max_removed_rate must be"),
        ({"extensions": "wav"}, "must be a list"),
        ({"extensions": [""]}, "must be a list"),
        ({"source": "s3://calls//raw/"}, "Did you mean 's3://calls/raw/'"),
        ({"staging": "s3://calls/staging//"}, "Did you mean 's3://calls/staging/'"),
    ],
)
def test_wrong_argument_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        operator(LOCAL, **wrong)


def test_staging_beside_the_source_is_fine() -> None:
    operator(LOCAL, source="/data/raw", staging="/data/raw-staging")


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("given", ["{{ accepted }}", ["{{ accepted }}"], "[{{ accepted }}]"])
def test_accepted_fingerprints_may_be_a_template(given: Any, native: bool) -> None:
    # Digits alone, which a native template would make a number.
    accepted = "1234567890123456"
    with DAG("calls", schedule=None, render_template_as_native_obj=native):
        task = operator(LOCAL, accepted_fingerprints=given)
    task.render_template_fields({"accepted": accepted})
    task._take_rendered()
    assert task._rules().accepted_fingerprints == (accepted,)


def test_missing_connection_is_named(catalog_env: SimpleNamespace) -> None:
    with pytest.raises(InvalidConnectionError, match="no connection 'nowhere'"):
        operator(LOCAL, source="s3://calls/raw", source_conn_id="nowhere").execute({})


def test_wrong_argument_that_a_template_gives_is_not_retried(catalog_env: SimpleNamespace) -> None:
    task = operator(LOCAL, pattern="{{ v }}")
    task.pattern = "["
    with pytest.raises(AirflowFailException, match="without a"):
        task.execute({})


def test_table_that_could_not_be_written_is_refused_before_there_is_a_manifest(
    place: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    extra = {"type": "sql", "uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/file/below"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": extra}))
    with pytest.raises(AirflowFailException, match="cannot be created in the catalog of connection 'lake'"):
        discover(place, catalog_conn_id="lake")
    assert not place.storage.any_under(place.staging)
    # A dry run writes nothing, so it does not ask.
    with pytest.raises(AirflowSkipException, match="dry run"):
        discover(place, catalog_conn_id="lake", dry_run=True)


def test_remote_staging_with_the_embedded_catalog_is_a_warning(
    place: SimpleNamespace, catalog_env: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    discover(place)
    warned = "pass its id as catalog_conn_id" in "".join(capfd.readouterr())
    assert warned is place.staging.startswith("s3://")


def test_log_names_the_pool_of_the_next_task_because_airflow_starts_none_in_an_unknown_pool(
    catalog_env: SimpleNamespace, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.wav").write_bytes(b"x")
    place = SimpleNamespace(source=f"{tmp_path}/raw", staging=f"{tmp_path}/staging", conn_id=None)
    with DAG("calls", schedule=None):
        found = operator(place)
        (
            found
            >> EmptyOperator(task_id="transcribe", pool="gpus")
            >> EmptyOperator(task_id="after", pool="other")
        )
    found.execute({})
    log = "".join(capfd.readouterr())
    assert "transcribe takes a slot of pool 'gpus'" in log
    assert "airflow pools set gpus 1" in log
    assert "'other'" not in log


def rendered(task: DiscoverAudioOperator, **context: Any) -> DiscoverAudioOperator:
    task.render_template_fields(context)
    return task


def test_every_string_argument_is_a_template(place: SimpleNamespace) -> None:
    values = {
        "source": place.source,
        "dt": "2026-11-01",
        "table": TABLE,
        "staging": place.staging,
        "model": "base",
        "conn": place.conn_id or "",
        "pattern": "*.wav",
        "extensions": ["wav"],
        "rate": 0.25,
        "delete": "delete",
        "keep": "keep",
        "attempts": 2,
        "fail": "fail",
    }
    task = operator(
        place,
        source="{{ v.source }}",
        partition={"dt": "{{ v.dt }}"},
        table="{{ v.table }}",
        staging="{{ v.staging }}",
        options={"model": "{{ v.model }}"},
        source_conn_id="{{ v.conn }}",
        staging_conn_id="{{ v.conn }}",
        catalog_conn_id="{{ '' }}",
        pattern="{{ v.pattern }}",
        extensions="{{ v.extensions }}",
        max_removed_rate="{{ v.rate }}",
        on_removed="{{ v.delete }}",
        on_stale="{{ v.keep }}",
        max_attempts="{{ v.attempts }}",
        on_missing_source="{{ v.fail }}",
    )
    assert rendered(task, v=values).execute({}) == discover(place, max_attempts=2)


@pytest.mark.parametrize("value", ["2026_11_01", "007", "13", "1e3", "0x1F", "True", "(1)", "'x'", "[1]"])
def test_text_stays_text_where_templates_render_to_objects(value: str) -> None:
    context = {"v": value, "options": {"model": "base", "beam_size": 2}, "extensions": ["wav", "mp3"]}
    with DAG("native", schedule=None, render_template_as_native_obj=True):
        task = operator(
            LOCAL,
            partition={"dt": "{{ v }}", "fixed": 7},
            source="/data/{{ v }}",
            pattern="{{ v }}",
            source_conn_id="{{ none }}",
            options="{{ options }}",
            extensions="{{ extensions }}",
        )
    task = rendered(task, **context)
    assert (task.partition, task.source, task.pattern) == ({"dt": value, "fixed": 7}, f"/data/{value}", value)
    assert (task.options, task.extensions) == (context["options"], ["wav", "mp3"])
    assert optional(task.source_conn_id) is None


@pytest.mark.parametrize("given", ["wav,mp3", "wav, mp3", '["wav", "mp3"]', "['wav', 'mp3']"])
def test_extensions_may_come_as_text(place: SimpleNamespace, given: str) -> None:
    place.storage.write_bytes(f"{place.source}/d.mp3", b"x")
    place.storage.write_bytes(f"{place.source}/e.ogg", b"x")
    task = rendered(operator(place, extensions="{{ v }}"), v=given)
    assert set(changes(place, task.execute({}))) == {"a b#1.wav", "b.wav", "deep/c.wav", "d.mp3"}


def test_number_of_tries_is_in_the_run(place: SimpleNamespace) -> None:
    first, second = discover(place), discover(place, max_attempts=5)
    assert first["manifest_id"] != second["manifest_id"]
    runs = [read_run(result["manifest_uri"], place.storage) for result in (first, second)]
    assert [run.max_attempts for run in runs] == [3, 5]


def test_options_may_come_as_json(place: SimpleNamespace) -> None:
    assert discover(place, options=OPTIONS.to_json()) == discover(place)


def test_options_object_is_left_alone_by_templating() -> None:
    options = WhisperOptions(model="base", initial_prompt="a prompt")
    assert rendered(operator(LOCAL, options=options)).options is options
    with pytest.raises(ValueError, match="Give the operator a dict, which it renders"):
        WhisperOptions(model="base", initial_prompt="a {{ curly }} prompt")


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("table", "transcripts", r"namespace\.table"),
        ("partition", {"dt": ""}, "non-empty string"),
        ("partition", {"dt": None}, "did the task that returns it run"),
        ("staging", "/data/raw/x", "must not lie inside"),
        ("on_removed", "drop", "on_removed must be"),
    ],
)
def test_template_that_renders_wrong_is_refused_before_any_work(
    argument: str, value: Any, message: str
) -> None:
    template = dict.fromkeys(value, "{{ v }}") if isinstance(value, dict) else "{{ v }}"
    task = operator(LOCAL, **{argument: template})
    context = {"v": next(iter(value.values())) if isinstance(value, dict) else value}
    with pytest.raises(ValueError, match=message):
        rendered(task, **context).execute({})


# --- size ----------------------------------------------------------------------------------------------


COMPARE_MANY = """
import resource, sys
import pyarrow as pa
from airflow_whisper.discovery.comparison import Comparison, Rules

def batches(count):
    for start in range(0, count, 10_000):
        ids = range(start, start + 10_000)
        yield pa.record_batch({
            "audio_uri": [f"s3://calls/raw/dt=2026-11-01/{i * 7919 % 1_000_003:032d}.wav" for i in ids],
            "audio_etag": [f"{i:032x}" for i in ids],
            "audio_bytes": pa.array(ids, pa.int64()),
            "last_modified": pa.array([0] * len(ids), pa.timestamp("us", tz="UTC")),
        })

with Comparison() as comparison:
    for batch in batches(int(sys.argv[1])):
        comparison.add_listing(batch, ["audio"] * batch.num_rows)
    comparison.compare("0" * 16, Rules(), "s3://calls/raw/")
    assert sum(len(chunk) for chunk in comparison.files()) == int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_files() -> None:
    def peak_mib(files: int) -> int:
        command = [sys.executable, "-c", COMPARE_MANY, str(files)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # SQLite's cache may fill up to 64 MiB; the listing as Python objects would be more than twice that.
    assert peak_mib(400_000) - peak_mib(20_000) < 100
