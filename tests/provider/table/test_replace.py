"""The table of transcripts in real catalogs: SQLite, and SeaweedFS's Iceberg REST catalog on its own S3."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from pyiceberg.expressions import EqualTo
from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
from pyiceberg.table import Table
from pyiceberg.types import IntegerType, LongType, StringType
from transcripts import OPTIONS, PARTITION, make_manifest_rows, make_transcript_rows

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table import replace as replacement
from airflow_whisper.table import schema as tables
from airflow_whisper.table.errors import (
    CatalogConnectionError,
    PartitionConflictError,
    RegistrationError,
    TableMismatchError,
)
from airflow_whisper.table.read import current_rows, current_snapshot_id, partition_rows
from airflow_whisper.table.replace import PartitionChange, Registered, replace_rows
from airflow_whisper.table.schema import STATE_COLUMNS, check_table_name, ensure_table
from whisper_spark.contract import WhisperOptions, partition_path, transcript_schema

TABLE = "speech.transcripts"
FINGERPRINT = OPTIONS.fingerprint()
OTHER = WhisperOptions(model="tiny").fingerprint()


@dataclass(frozen=True)
class Lake:
    """Somewhere to keep tables. Each call of ``open`` is another client, as each run has its own."""

    open: Callable[[], Catalog]


@pytest.fixture
def sqlite(catalog_env: SimpleNamespace) -> Lake:
    return Lake(lambda: open_catalog(None))


@pytest.fixture(params=["sqlite", "rest"])
def lake(request: pytest.FixtureRequest) -> Lake:
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite")
    warehouse = request.getfixturevalue("s3").lake()
    return Lake(lambda: RestCatalog(warehouse.name, **warehouse.properties))


def change(
    uris: Iterable[str] = (),
    *,
    base: int | None = None,
    why: str = "new",
    etag: str = "e1",
    attempt: int = 1,
    removed: Iterable[str] = (),
    partition: Mapping[str, str] = PARTITION,
    fingerprint: str = FINGERPRINT,
    rows: pa.Table | None = None,
    key: str | None = None,
    **row: Any,
) -> PartitionChange:
    """What a run wants whose discovery saw the snapshot ``base``."""
    uris, removed = list(uris), list(removed)
    manifest = make_manifest_rows(uris, partition=partition, change=why, audio_etag=etag, attempt=attempt)
    if rows is None:
        values = {"audio_etag": etag, "attempt": attempt, "fingerprint": fingerprint, **row}
        rows = make_transcript_rows(uris, partition=partition, **values)
    return PartitionChange(
        partition=partition,
        fingerprint=fingerprint,
        idempotency_key=key
        or f"{partition_path(partition)}#{base}-{why}-{etag}-{attempt}-{fingerprint}-{uris}-{removed}",
        base_snapshot_id=base,
        manifest=manifest.to_batches(),
        removed=pa.table({"audio_uri": pa.array(removed, pa.string())}).to_batches(),
        rows=rows.to_batches(max_chunksize=2),
    )


def held(
    catalog: Catalog, partition: Mapping[str, str] = PARTITION
) -> list[tuple[str, str | None, str, int]]:
    """(uri, etag, fingerprint, attempt) of every row of a partition, sorted."""
    rows = [row for batch in current_rows(catalog, TABLE, partition) for row in batch.to_pylist()]
    return sorted((r["audio_uri"], r["audio_etag"], r["fingerprint"], r["attempt"]) for r in rows)


def uris(catalog: Catalog, partition: Mapping[str, str] = PARTITION) -> list[str]:
    return [row[0] for row in held(catalog, partition)]


def files(table: Table) -> set[str]:
    return set(table.inspect.files()["file_path"].to_pylist())


def data_files_on_disk(warehouse: Path) -> set[str]:
    return {f"file://{path}" for path in warehouse.rglob("*.parquet")}


# --- the catalog -------------------------------------------------------------------------------------


def test_embedded_catalog_lies_in_the_folder_of_the_variable(catalog_env: SimpleNamespace) -> None:
    replace_rows(open_catalog(None), TABLE, change(["a"]))
    assert (catalog_env.warehouse / "catalog.db").is_file()
    assert data_files_on_disk(catalog_env.warehouse)
    # What the documentation tells people to paste must find the same table.
    folder = catalog_env.warehouse
    own = SqlCatalog("whisper", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}")
    assert own.load_table(TABLE).scan().count() == 1


def test_embedded_catalog_defaults_to_airflow_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW_WHISPER_WAREHOUSE", raising=False)
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home of airflow"))
    replace_rows(open_catalog(None), TABLE, change(["a"]))
    assert (tmp_path / "home of airflow" / "whisper_warehouse" / "catalog.db").is_file()
    assert uris(open_catalog(None)) == ["a"]


@pytest.mark.parametrize("folder", ["s3://lake/warehouse", "/tmp/a#b", "/tmp/a?b"])
def test_embedded_catalog_refuses_a_folder_it_cannot_use(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", folder)
    with pytest.raises(CatalogConnectionError, match="AIRFLOW_WHISPER_WAREHOUSE"):
        open_catalog(None)


def test_missing_connection_says_how_to_create_it() -> None:
    with pytest.raises(
        CatalogConnectionError, match=r"airflow connections add no_such_catalog --conn-type iceberg"
    ):
        open_catalog("no_such_catalog")


def test_connection_of_another_type_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "aws", "login": "k", "password": "s3cret-s3cret"})
    )
    with pytest.raises(CatalogConnectionError, match="is of type 'aws'") as refused:
        open_catalog("lake")
    assert "s3cret" not in str(refused.value)


def test_iceberg_connection_reaches_a_rest_catalog_that_checks_signatures(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", s3.lake().connection)
    registered = replace_rows(open_catalog("lake"), TABLE, change(["a", "b"]))
    assert registered is not None
    assert registered.table_location.startswith("s3://")
    assert uris(open_catalog("lake")) == ["a", "b"]


def test_iceberg_connection_reaches_a_sql_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lake").mkdir()
    extra = {"type": "sql", "uri": f"sqlite:///{tmp_path}/lake/c.db", "warehouse": f"file://{tmp_path}/lake"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": extra}))
    replace_rows(open_catalog("lake"), TABLE, change(["a"]))
    assert uris(open_catalog("lake")) == ["a"]


def test_secrets_of_a_connection_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    masked: list[str] = []
    monkeypatch.setattr("airflow.sdk.log.mask_secret", lambda secret, name=None: masked.append(str(secret)))
    extra = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/c.db",
        "s3.secret-access-key": "storage-secret",
        "token-refresh-enabled": "true",
        "auth": {"oauth2": {"client_secret": "oauth-secret"}},
        "backup": "postgresql://user:database-secret@host/db",
    }
    connection = {"conn_type": "iceberg", "password": "catalog-secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(connection))
    open_catalog("lake")
    assert {"storage-secret", "oauth-secret", "database-secret", "catalog-secret"} <= set(masked)
    assert "true" not in masked  # would black out half of every log


@pytest.mark.parametrize("name", ["transcripts", "", ".transcripts", "speech.", "speech. transcripts"])
def test_table_without_namespace_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be written namespace\.table"):
        check_table_name(name)


# --- the table ---------------------------------------------------------------------------------------


def test_new_table_has_schema_partition_and_properties(lake: Lake) -> None:
    table = ensure_table(lake.open(), TABLE, ["dt", "hour"])
    assert [
        (str(f.transform), table.schema().find_column_name(f.source_id)) for f in table.spec().fields
    ] == [
        ("identity", "dt"),
        ("identity", "hour"),
    ]
    ours = transcript_schema(["dt", "hour"])
    assert [field.name for field in table.schema().fields] == ours.names
    for name in ours.names:
        assert table.schema().find_field(name).required is not ours.field(name).nullable
    assert table.format_version == 2
    assert table.properties["write.parquet.compression-codec"] == "zstd"
    assert int(table.properties["commit.retry.num-retries"]) >= 20


def test_runs_that_create_the_table_at_once_share_it(sqlite: Lake) -> None:
    # Not on SeaweedFS, which tells each of several creators that a table of its own was made.
    sqlite.open()
    start = threading.Barrier(6)

    def create(_: int) -> str:
        catalog = sqlite.open()
        start.wait(30)
        return str(ensure_table(catalog, TABLE, ["dt"]).metadata.table_uuid)

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(create, range(6)))) == 1


def test_no_table_means_no_rows_and_no_snapshot(lake: Lake) -> None:
    catalog = lake.open()
    assert current_snapshot_id(catalog, TABLE) is None
    assert list(current_rows(catalog, TABLE, PARTITION)) == []
    ensure_table(catalog, TABLE, ["dt"])
    assert current_snapshot_id(catalog, TABLE) is None
    assert list(current_rows(catalog, TABLE, PARTITION)) == []


def test_current_rows_holds_only_the_partition_and_the_columns_asked_for(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    replace_rows(
        catalog,
        TABLE,
        change(["c"], partition={"dt": "2026-11-02"}, base=current_snapshot_id(catalog, TABLE)),
    )
    batches = list(current_rows(catalog, TABLE, {"dt": "2026-11-02"}))
    assert pa.Table.from_batches(batches).to_pylist() == [
        {
            "audio_uri": "c",
            "audio_etag": "e1",
            "status": "ok",
            "error_code": None,
            "attempt": 1,
            "fingerprint": FINGERPRINT,
        }
    ]
    assert batches[0].schema.names == list(STATE_COLUMNS)


def test_current_rows_of_an_older_snapshot(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"]))
    first = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["b"], base=first))
    then = [
        r
        for b in current_rows(catalog, TABLE, PARTITION, snapshot_id=first)
        for r in b["audio_uri"].to_pylist()
    ]
    assert then == ["a"]


def test_table_that_does_not_fit_is_refused_with_every_difference(sqlite: Lake) -> None:
    catalog = sqlite.open()
    catalog.create_namespace("speech")
    schema = transcript_schema([]).remove(transcript_schema([]).get_field_index("fingerprint"))
    schema = schema.set(schema.get_field_index("duration_s"), pa.field("duration_s", pa.string()))
    schema = schema.append(pa.field("dt", pa.date32())).append(
        pa.field("tenant", pa.string(), nullable=False)
    )
    catalog.create_table(TABLE, schema)
    differences = (
        "fingerprint is missing",
        "duration_s has type",
        "dt has type date32",
        "tenant is required",
    )
    for use in (
        lambda: replace_rows(catalog, TABLE, change(["a"])),
        # Before any audio is transcribed, not after.
        lambda: list(current_rows(catalog, TABLE, PARTITION)),
    ):
        with pytest.raises(TableMismatchError, match="partitioned by nothing, expected identity") as refused:
            use()
        assert all(difference in str(refused.value) for difference in differences)


def test_table_with_other_partition_keys_is_refused(sqlite: Lake) -> None:
    catalog = sqlite.open()
    ensure_table(catalog, TABLE, ["dt"])
    with pytest.raises(TableMismatchError, match=r"column hour is missing"):
        ensure_table(catalog, TABLE, ["dt", "hour"])
    table = catalog.load_table(TABLE)
    with table.update_spec() as update:
        update.add_identity("language")
    with pytest.raises(TableMismatchError, match=r"partitioned by identity\(dt\), identity\(language\)"):
        ensure_table(catalog, TABLE, ["dt"])


def test_table_may_have_optional_columns_of_its_own(lake: Lake) -> None:
    catalog = lake.open()
    ensure_table(catalog, TABLE, ["dt"])
    table = catalog.load_table(TABLE)
    with table.update_schema() as update:
        update.add_column("reviewer", StringType())
        update.add_column(("segments", "element", "speaker"), StringType())
        update.move_first("reviewer")
    replace_rows(catalog, TABLE, change(["a", "b"]))
    rows = catalog.load_table(TABLE).scan().to_arrow().to_pylist()
    assert [row["reviewer"] for row in rows] == [None, None]
    assert rows[0]["segments"][0]["speaker"] is None
    assert rows[0]["segments"][0]["words"][1] == {
        "start": 0.9,
        "end": 2.5,
        "word": " words",
        "probability": 0.8,
    }


def test_columns_of_a_newer_version_are_added(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))

    def newer(partition_keys: Iterable[str] = ()) -> pa.Schema:
        schema = transcript_schema(partition_keys)
        return schema.insert(3, pa.field("speakers", pa.int32()))

    monkeypatch.setattr(tables, "transcript_schema", newer)
    rows = make_transcript_rows(["a"], audio_etag="e2").append_column("speakers", pa.array([2], pa.int32()))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, rows=rows))
    after = {r["audio_uri"]: r for r in catalog.load_table(TABLE).scan().to_arrow().to_pylist()}
    assert {uri: row["speakers"] for uri, row in after.items()} == {"a": 2, "b": None}
    assert after["b"]["segments"][0]["words"][0]["word"] == "The"  # rewritten under the new schema, whole


def test_int_columns_may_be_wider_than_ours(sqlite: Lake) -> None:
    catalog = sqlite.open()
    ensure_table(catalog, TABLE, ["dt"])
    table = catalog.load_table(TABLE)
    assert table.schema().find_type("channels") == IntegerType()
    with table.update_schema() as update:
        update.update_column("channels", LongType())
    replace_rows(catalog, TABLE, change(["a"], channels=2))
    assert catalog.load_table(TABLE).scan().to_arrow()["channels"].to_pylist() == [2]


# --- what a run does to a partition --------------------------------------------------------------------


def test_first_run_makes_one_snapshot_that_names_the_run(lake: Lake) -> None:
    catalog = lake.open()
    registered = replace_rows(catalog, TABLE, change(["a", "b", "c"], key="dt=2026-11-01#abc"))
    table = catalog.load_table(TABLE)
    assert isinstance(registered, Registered)
    assert (registered.rows, registered.errors, registered.removed, registered.again) == (3, 0, 0, False)
    assert registered.audio_seconds == pytest.approx(3 * 36.0)
    assert [s.snapshot_id for s in table.snapshots()] == [registered.snapshot_id]
    summary = table.current_snapshot().summary
    assert summary["whisper.idempotency-key"] == "dt=2026-11-01#abc"
    assert summary["whisper.partition"] == "dt=2026-11-01"
    assert summary["whisper.fingerprint"] == FINGERPRINT


def test_registering_twice_gives_the_first_snapshot(lake: Lake) -> None:
    catalog = lake.open()
    first = replace_rows(catalog, TABLE, change(["a", "b"], key="k"))
    other_day = change(["z"], partition={"dt": "2026-11-02"}, base=current_snapshot_id(catalog, TABLE))
    replace_rows(catalog, TABLE, other_day)
    again = replace_rows(lake.open(), TABLE, change(["a", "b"], key="k"))
    assert first is not None
    assert again is not None
    assert again.snapshot_id == first.snapshot_id
    assert again.again
    assert len(catalog.load_table(TABLE).snapshots()) == 2
    assert uris(catalog) == ["a", "b"]


def test_registering_again_after_a_rollback_registers(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"]))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["b"], base=base, key="k"))
    catalog.load_table(TABLE).manage_snapshots().rollback_to_snapshot(base).commit()
    assert uris(catalog) == ["a"]
    # A snapshot that no reader sees is no proof that the rows are there.
    replace_rows(catalog, TABLE, change(["b"], base=base, key="k"))
    assert uris(catalog) == ["a", "b"]


def test_late_file_is_a_pure_append(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    before = files(catalog.load_table(TABLE))
    replace_rows(catalog, TABLE, change(["c"], base=current_snapshot_id(catalog, TABLE)))
    table = catalog.load_table(TABLE)
    assert before < files(table)
    assert table.current_snapshot().summary.operation.value == "append"
    assert uris(catalog) == ["a", "b", "c"]


def test_changed_file_replaces_its_row_and_leaves_other_files_alone(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    replace_rows(catalog, TABLE, change(["c", "d"], base=current_snapshot_id(catalog, TABLE)))
    table = catalog.load_table(TABLE)
    of_c = {f for f in files(table) if "c" in pq.read_table(*_open(table, f))["audio_uri"].to_pylist()}
    base = current_snapshot_id(catalog, TABLE)
    registered = replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert held(catalog) == [
        (u, e, FINGERPRINT, 1) for u, e in [("a", "e2"), ("b", "e1"), ("c", "e1"), ("d", "e1")]
    ]
    table = catalog.load_table(TABLE)
    assert of_c <= files(table)
    # One snapshot for delete and append together: there is nothing between that a reader could see.
    assert table.current_snapshot().parent_snapshot_id == base
    assert registered is not None
    assert len(table.snapshots()) == 3


def _open(table: Table, path: str) -> tuple[Any]:
    return (table.io.new_input(path).open(),)


def test_changed_options_replace_the_whole_partition_without_reading_its_text(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    before = files(catalog.load_table(TABLE))
    monkeypatch.setattr(replacement._Replacement, "_kept", None)  # would raise if it were called
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a", "b", "c"], why="stale", base=base, fingerprint=OTHER))
    assert held(catalog) == [(u, "e1", OTHER, 1) for u in "abc"]
    assert not before & files(catalog.load_table(TABLE))


def test_rest_of_a_data_file_is_rewritten_batch_by_batch(
    sqlite: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    whole_files: list[int] = []
    read = ArrowScan.to_record_batches

    def spy(self: ArrowScan, tasks: Any) -> Any:
        if len(self._projected_schema.fields) > len(STATE_COLUMNS):
            whole_files.append(1)
        return read(self, tasks)

    monkeypatch.setattr(ArrowScan, "to_record_batches", spy)
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert not whole_files
    with catalog.load_table(TABLE).update_schema() as update:
        update.rename_column("model", "whisper_model")
    with catalog.load_table(TABLE).update_schema() as update:
        update.add_column("model", StringType())
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["b"], why="changed", etag="e3", base=base))
    assert whole_files  # names match, field ids do not: PyIceberg has to sort that out
    rows = {r["audio_uri"]: r for r in catalog.load_table(TABLE).scan().to_arrow().to_pylist()}
    assert (rows["b"]["model"], rows["c"]["model"], rows["c"]["whisper_model"]) == ("base", None, "base")
    assert rows["c"]["segments"][0]["words"][1]["word"] == " words"


def test_retried_error_row_is_replaced(sqlite: Lake) -> None:
    catalog = sqlite.open()
    registered = replace_rows(
        catalog, TABLE, change(["a", "b"], status=lambda u: "error" if u == "a" else "ok")
    )
    assert registered is not None
    assert registered.errors == 1
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="retry", attempt=2, base=base))
    assert held(catalog) == [("a", "e1", FINGERPRINT, 2), ("b", "e1", FINGERPRINT, 1)]


def test_removed_rows_are_deleted_and_counted(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    base = current_snapshot_id(catalog, TABLE)
    registered = replace_rows(catalog, TABLE, change(["d"], removed=["a", "b"], base=base))
    assert registered is not None
    assert (registered.rows, registered.removed) == (1, 2)
    assert uris(catalog) == ["c", "d"]


def test_emptied_partition_really_empties(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["z"], partition={"dt": "2026-11-02"}, base=base))
    base = current_snapshot_id(catalog, TABLE)
    registered = replace_rows(catalog, TABLE, change(removed=["a", "b"], base=base))
    assert registered is not None
    assert (registered.rows, registered.removed) == (0, 2)
    assert uris(catalog) == []
    assert uris(catalog, {"dt": "2026-11-02"}) == ["z"]


def test_partition_values_of_any_kind_and_length(lake: Lake) -> None:
    # Column statistics keep 16 characters, so these two differ only where statistics do not look.
    long = [{"region": f"eu-central-1/customer é%+#?'{i}", "hour": "01"} for i in (1, 2)]
    catalog = lake.open()
    for partition in long:
        replace_rows(
            catalog, TABLE, change(["a", "b"], partition=partition, base=current_snapshot_id(catalog, TABLE))
        )
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(removed=["a", "b"], partition=long[0], base=base))
    assert uris(catalog, long[0]) == []
    assert uris(catalog, long[1]) == ["a", "b"]
    rows = pa.Table.from_batches(partition_rows(catalog, TABLE, long[1]))
    assert set(rows["region"].to_pylist()) == {long[1]["region"]}
    assert rows.schema.names == transcript_schema(["region", "hour"]).names


def test_duplicate_rows_of_others_are_mended(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    table = catalog.load_table(TABLE)
    schema = schema_to_pyarrow(table.schema(), include_field_ids=False)
    table.append(make_transcript_rows(["a"]).cast(schema))
    assert uris(catalog) == ["a", "a", "b"]
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert uris(catalog) == ["a", "b"]


def test_data_files_carry_field_ids_at_every_level(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"]))
    table = catalog.load_table(TABLE)
    written = pq.ParquetFile(*_open(table, files(table).pop()))
    assert written.metadata.row_group(0).column(0).compression == "ZSTD"
    text = str(written.schema)
    for name in ("audio_uri", "segments.element.words.element.word", "quality_flags.element", "dt"):
        assert f"field_id={table.schema().find_field(name).field_id} {name.split('.')[-1]}" in text
    assert table.name_mapping() is None  # not needed, and so nobody has to keep it in step


def test_renamed_column_still_reads_right(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"]))
    with catalog.load_table(TABLE).update_schema() as update:
        update.rename_column("text", "transcript")
        update.rename_column("segments.element.words.element.word", "token")
    row = catalog.load_table(TABLE).scan().to_arrow().to_pylist()[0]
    assert row["transcript"] == "The words of a."
    assert row["segments"][0]["words"][0]["token"] == "The"


def test_rows_become_files_of_the_size_asked_for(sqlite: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = sqlite.open()
    table = ensure_table(catalog, TABLE, ["dt"])
    with table.transaction() as transaction:
        transaction.set_properties({"write.target-file-size-bytes": "20000"})
    monkeypatch.setattr("airflow_whisper.table.data_files._ROW_GROUP_BYTES", 10_000)
    names = [f"{i:04}" for i in range(600)]
    replace_rows(catalog, TABLE, change(names, text=lambda u: u * 20))
    table = catalog.load_table(TABLE)
    sizes = table.inspect.files()["file_size_in_bytes"].to_pylist()
    assert len(sizes) > 2
    assert max(sizes) < 60_000
    assert uris(catalog) == names
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(names[::7], why="changed", etag="e2", base=base))
    assert uris(catalog) == names


# --- what a run must not do ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["a"], "1 files of the manifest have no staged row, for example b"),
        (["a", "b", "b"], "staged more than once, for example b"),
        (["a", "b", "c"], "not in the manifest, for example c"),
    ],
)
def test_rows_that_are_not_the_manifests_are_refused(
    catalog_env: SimpleNamespace, rows: list[str], problem: str
) -> None:
    catalog = open_catalog(None)
    with pytest.raises(RegistrationError, match=problem):
        replace_rows(catalog, TABLE, change(["a", "b"], rows=make_transcript_rows(rows)))
    assert current_snapshot_id(catalog, TABLE) is None
    assert data_files_on_disk(catalog_env.warehouse) == set()


def test_rows_of_another_partition_are_refused(catalog_env: SimpleNamespace) -> None:
    rows = make_transcript_rows(["a"], partition={"dt": "2026-11-02"})
    with pytest.raises(RegistrationError, match="value of dt other than '2026-11-01'"):
        replace_rows(open_catalog(None), TABLE, change(["a"], rows=rows))
    assert data_files_on_disk(catalog_env.warehouse) == set()


def test_manifest_that_names_a_file_twice_is_refused(sqlite: Lake) -> None:
    with pytest.raises(RegistrationError, match="same file twice"):
        replace_rows(sqlite.open(), TABLE, change(["a"], removed=["a"]))


# --- two runs of one partition -------------------------------------------------------------------------


def test_run_whose_files_another_run_registered_finds_nothing_to_do(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"], key="first"))
    assert replace_rows(catalog, TABLE, change(["a", "b"], key="second")) is None
    assert len(catalog.load_table(TABLE).snapshots()) == 1


@pytest.mark.parametrize(
    "late",
    [
        {"uris": ["a", "b"]},  # only half of it is there
        {"uris": ["a"], "etag": "e0"},  # another version of the file
        {"uris": ["a"], "fingerprint": OTHER},  # made with other options
    ],
)
def test_run_that_overlaps_with_another_fails_clearly(sqlite: Lake, late: dict[str, Any]) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"], key="first"))
    with pytest.raises(
        PartitionConflictError, match=r"dt=2026-11-01 of speech\.transcripts.*Clear the discover task"
    ):
        replace_rows(catalog, TABLE, change(**late, key="second"))
    assert held(catalog) == [("a", "e1", FINGERPRINT, 1)]


@pytest.mark.parametrize("expired", [False, True], ids=["base known", "base expired"])
@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ({"why": "changed", "etag": "e2"}, {"why": "changed", "etag": "e2", "key": "2"}, "nothing"),
        ({"why": "changed", "etag": "e3"}, {"why": "stale", "fingerprint": OTHER}, "conflict"),
        (
            {"why": "stale", "fingerprint": OTHER},
            {"why": "stale", "fingerprint": OTHER, "key": "2"},
            "nothing",
        ),
        ({"removed": True}, {"why": "changed", "etag": "e2"}, "conflict"),
        ({"removed": True}, {"removed": True, "key": "2"}, "nothing"),
        ({"why": "changed", "etag": "e2"}, {"removed": True}, "conflict"),
    ],
)
def test_second_run_from_the_same_snapshot(
    sqlite: Lake, first: dict[str, Any], second: dict[str, Any], outcome: str, expired: bool
) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)

    def run(what: dict[str, Any]) -> Registered | None:
        what = dict(what)
        if what.pop("removed", False):
            return replace_rows(catalog, TABLE, change(removed=["a"], base=base, **what))
        return replace_rows(catalog, TABLE, change(["a"], base=base, **what))

    run(first)
    after_first = held(catalog)
    if expired:
        catalog.load_table(TABLE).maintenance.expire_snapshots().by_id(base).commit()
    if outcome == "nothing":
        assert run(second) is None
    elif expired and second.get("why") == "stale":
        # Without the old snapshot the run cannot know more than this: the row is stale, as discovery said.
        assert run(second) is not None
        return
    elif expired and second.get("removed"):
        assert run(second) is not None
        return
    else:
        with pytest.raises(PartitionConflictError):
            run(second)
    assert held(catalog) == after_first


def test_compaction_by_others_is_no_conflict(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)
    table = catalog.load_table(TABLE)
    table.overwrite(table.scan().to_arrow(), EqualTo("dt", PARTITION["dt"]))
    assert replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base)) is not None
    assert held(catalog) == [("a", "e2", FINGERPRINT, 1), ("b", "e1", FINGERPRINT, 1)]


def test_runs_of_one_partition_with_different_files_both_commit(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    replace_rows(catalog, TABLE, change(["c"], removed=["b"], base=base))
    assert held(catalog) == [("a", "e2", FINGERPRINT, 1), ("c", "e1", FINGERPRINT, 1)]


def race(
    lake: Lake, changes: list[Callable[[], PartitionChange]], monkeypatch: pytest.MonkeyPatch
) -> list[Registered | BaseException | None]:
    """Runs all changes at once; each has planned its commit on the same snapshot before the first is sent."""
    start, planned = threading.Barrier(len(changes)), threading.Barrier(len(changes))
    met = threading.local()
    pin = replacement.pin

    def pin_and_wait(table: Table, snapshot_id: int) -> None:
        pin(table, snapshot_id)
        if not getattr(met, "already", False):
            met.already = True
            planned.wait(60)

    monkeypatch.setattr(replacement, "pin", pin_and_wait)

    def run(make: Callable[[], PartitionChange]) -> Registered | BaseException | None:
        catalog = lake.open()
        wanted = make()
        start.wait(60)
        try:
            return replace_rows(catalog, TABLE, wanted)
        except PartitionConflictError as error:
            return error

    with ThreadPoolExecutor(len(changes)) as pool:
        return list(pool.map(run, changes))


def test_first_runs_of_one_partition_at_once_give_one_commit_and_one_conflict(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    # Appends to an empty partition are what PyIceberg itself takes for no conflict.
    outcomes = race(lake, [lambda u=u: change(["a", "b", u], key=u) for u in "xy"], monkeypatch)
    assert sorted(type(o).__name__ for o in outcomes) == ["PartitionConflictError", "Registered"]
    catalog = lake.open()
    assert len(catalog.load_table(TABLE).snapshots()) == 1
    assert uris(catalog) == ["a", "b", "x" if isinstance(outcomes[0], Registered) else "y"]


def test_equal_first_runs_at_once_give_one_commit_and_nothing_to_do(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    outcomes = race(lake, [lambda k=k: change(["a", "b"], key=k) for k in "123"], monkeypatch)
    assert sorted(type(o).__name__ for o in outcomes) == ["NoneType", "NoneType", "Registered"]
    assert uris(lake.open()) == ["a", "b"]


def test_one_run_registered_twice_at_once_gives_one_snapshot(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    outcomes = race(lake, [lambda: change(["a", "b"], key="same")] * 2, monkeypatch)
    assert len({o.snapshot_id for o in outcomes if isinstance(o, Registered)}) == 1
    assert sorted(o.again for o in outcomes if isinstance(o, Registered)) == [False, True]
    catalog = lake.open()
    assert uris(catalog) == ["a", "b"]
    pa.Table.from_batches(partition_rows(catalog, TABLE, PARTITION))  # its files are there, too


def test_runs_that_change_one_row_at_once_give_one_commit_and_one_conflict(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_rows(lake.open(), TABLE, change(["a", "b"]))
    base = current_snapshot_id(lake.open(), TABLE)
    outcomes = race(
        lake,
        [
            lambda: change(["a"], why="changed", etag="e2", base=base),
            lambda: change(["a", "b"], why="stale", fingerprint=OTHER, base=base),
        ],
        monkeypatch,
    )
    assert sorted(type(o).__name__ for o in outcomes) == ["PartitionConflictError", "Registered"]
    assert uris(lake.open()) == ["a", "b"]


def test_eight_partitions_at_once_all_commit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    days = [{"dt": f"2026-11-{day:02}"} for day in range(1, 9)]
    outcomes = race(lake, [lambda d=d: change(["a", "b"], partition=d) for d in days], monkeypatch)
    assert all(isinstance(o, Registered) for o in outcomes), outcomes
    catalog = lake.open()
    assert len(catalog.load_table(TABLE).snapshots()) == 8
    for day in days:
        assert uris(catalog, day) == ["a", "b"]


def test_compaction_between_plan_and_commit_is_taken_in(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog(None)
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    base = current_snapshot_id(catalog, TABLE)
    pin, compacted = replacement.pin, []

    def pin_while_others_compact(table: Table, snapshot_id: int) -> None:
        pin(table, snapshot_id)
        if not compacted:
            compacted.append(1)
            others = open_catalog(None).load_table(TABLE)
            others.overwrite(others.scan().to_arrow(), EqualTo("dt", PARTITION["dt"]))

    monkeypatch.setattr(replacement, "pin", pin_while_others_compact)
    before = data_files_on_disk(catalog_env.warehouse)
    registered = replace_rows(catalog, TABLE, change(["b"], why="changed", etag="e2", base=base))
    assert registered is not None
    assert held(catalog) == [(u, e, FINGERPRINT, 1) for u, e in [("a", "e1"), ("b", "e2"), ("c", "e1")]]
    table = catalog.load_table(TABLE)
    compaction = table.snapshot_by_id(table.current_snapshot().parent_snapshot_id)
    theirs = {
        e.data_file.file_path
        for m in compaction.manifests(table.io)
        for e in m.fetch_manifest_entry(table.io)
    }
    assert data_files_on_disk(catalog_env.warehouse) == before | theirs | files(table)


def _register_in_process(name: str, start: Any, outcomes: Any) -> None:
    wanted = change(["a", "b", name], key=name)
    start.wait(240)
    try:
        outcomes.put(type(replace_rows(open_catalog(None), TABLE, wanted)).__name__)
    except Exception as error:
        outcomes.put(type(error).__name__)


def test_processes_that_create_catalog_table_and_partition_at_once(catalog_env: SimpleNamespace) -> None:
    context = multiprocessing.get_context("spawn")
    start, outcomes = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_register_in_process, args=(u, start, outcomes)) for u in "xy"]
    for process in processes:
        process.start()
    assert sorted(outcomes.get(timeout=300) for _ in processes) == ["PartitionConflictError", "Registered"]
    for process in processes:
        process.join(60)
    assert len(uris(open_catalog(None))) == 3


def test_loser_leaves_no_files_behind(catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite = Lake(lambda: open_catalog(None))
    ensure_table(sqlite.open(), TABLE, ["dt"])
    race(sqlite, [lambda k=k: change(["a", "b"], key=k) for k in "12"], monkeypatch)
    table = sqlite.open().load_table(TABLE)
    assert data_files_on_disk(catalog_env.warehouse) == files(table)
    manifests = {m.manifest_path for s in table.snapshots() for m in s.manifests(table.io)}
    lists = {s.manifest_list for s in table.snapshots()}
    assert {f"file://{p}" for p in catalog_env.warehouse.rglob("*.avro")} == manifests | lists


# --- commits whose answer is lost ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CommitFailedException, CommitStateUnknownException, ConnectionResetError])
def test_commit_that_landed_without_an_answer_is_found_again(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    commit_table, commits = SqlCatalog.commit_table, []

    def commit_and_lose_the_answer(self: SqlCatalog, *args: Any) -> Any:
        answer = commit_table(self, *args)
        commits.append(answer)
        if len(commits) == 1:
            raise _as_requests_does(error)
        return answer

    ensure_table(open_catalog(None), TABLE, ["dt"])
    monkeypatch.setattr(SqlCatalog, "commit_table", commit_and_lose_the_answer)
    registered = replace_rows(open_catalog(None), TABLE, change(["a", "b"]))
    assert registered is not None
    assert not registered.again
    assert len(commits) == 1
    table = open_catalog(None).load_table(TABLE)
    assert [s.snapshot_id for s in table.snapshots()] == [registered.snapshot_id]
    assert table.scan().to_arrow().num_rows == 2  # manifests and data files were not cleaned away
    assert data_files_on_disk(catalog_env.warehouse) == files(table)


def _as_requests_does(error: type[Exception]) -> Exception:
    import requests

    return requests.ConnectionError("reset") if error is ConnectionResetError else error("lost")


def test_task_killed_right_after_its_commit_keeps_the_files_of_the_commit(
    sqlite: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_table = SqlCatalog.commit_table

    def commit_and_die(self: SqlCatalog, *args: Any) -> Any:
        commit_table(self, *args)
        raise KeyboardInterrupt

    ensure_table(sqlite.open(), TABLE, ["dt"])
    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", commit_and_die)
        with pytest.raises(KeyboardInterrupt):
            replace_rows(sqlite.open(), TABLE, change(["a", "b"], key="k"))
    again = replace_rows(sqlite.open(), TABLE, change(["a", "b"], key="k"))
    assert again is not None
    assert again.again
    assert sqlite.open().load_table(TABLE).scan().to_arrow().num_rows == 2


def test_table_created_again_meanwhile_is_noticed(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_then_new_table() -> Iterator[pa.RecordBatch]:
        yield from make_transcript_rows(["a"]).to_batches()
        catalog = open_catalog(None)
        catalog.drop_table(TABLE)
        ensure_table(catalog, TABLE, ["dt"])

    wanted = dataclasses.replace(change(["a"]), rows=rows_then_new_table())
    with pytest.raises(RegistrationError, match="created it again"):
        replace_rows(open_catalog(None), TABLE, wanted)
    assert data_files_on_disk(catalog_env.warehouse) == set()


def test_commit_that_never_succeeds_gives_up_and_cleans_up(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise CommitFailedException("always too late")

    replace_rows(open_catalog(None), TABLE, change(["a", "b"]))
    base = current_snapshot_id(open_catalog(None), TABLE)
    before = data_files_on_disk(catalog_env.warehouse)
    monkeypatch.setattr(replacement, "COMMIT_TRIES", 3)
    monkeypatch.setattr(SqlCatalog, "commit_table", refuse)
    with pytest.raises(RegistrationError, match="after 3 tries"):
        replace_rows(open_catalog(None), TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert data_files_on_disk(catalog_env.warehouse) == before
