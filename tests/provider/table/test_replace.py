"""What one run does to a partition of the table, in SQLite and in an Iceberg REST catalog."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lakes import (
    FINGERPRINT,
    OTHER,
    TABLE,
    Lake,
    change,
    data_files,
    data_files_on_disk,
    open_file,
    row_keys,
    uris,
)
from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
from pyiceberg.types import StringType
from transcripts import make_transcript_rows

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table import replace as replacement
from airflow_whisper.table.errors import (
    RegistrationError,
)
from airflow_whisper.table.read import current_snapshot_id, partition_rows
from airflow_whisper.table.replace import Registered, replace_rows
from airflow_whisper.table.schema import STATE_COLUMNS, ensure_table
from whisper_spark.contract import transcript_schema


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
    before = data_files(catalog.load_table(TABLE))
    replace_rows(catalog, TABLE, change(["c"], base=current_snapshot_id(catalog, TABLE)))
    table = catalog.load_table(TABLE)
    assert before < data_files(table)
    assert table.current_snapshot().summary.operation.value == "append"
    assert uris(catalog) == ["a", "b", "c"]


def test_changed_file_replaces_its_row_and_leaves_other_files_alone(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    replace_rows(catalog, TABLE, change(["c", "d"], base=current_snapshot_id(catalog, TABLE)))
    table = catalog.load_table(TABLE)
    of_c = {
        f for f in data_files(table) if "c" in pq.read_table(*open_file(table, f))["audio_uri"].to_pylist()
    }
    base = current_snapshot_id(catalog, TABLE)
    registered = replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert row_keys(catalog) == [
        (u, e, FINGERPRINT, 1) for u, e in [("a", "e2"), ("b", "e1"), ("c", "e1"), ("d", "e1")]
    ]
    table = catalog.load_table(TABLE)
    assert of_c <= data_files(table)
    # One snapshot for delete and append together: there is nothing between that a reader could see.
    assert table.current_snapshot().parent_snapshot_id == base
    assert registered is not None
    assert len(table.snapshots()) == 3


def test_changed_options_replace_the_whole_partition_without_reading_its_text(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    before = data_files(catalog.load_table(TABLE))
    monkeypatch.setattr(replacement._Replacement, "_kept", None)  # would raise if it were called
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a", "b", "c"], why="stale", base=base, fingerprint=OTHER))
    assert row_keys(catalog) == [(u, "e1", OTHER, 1) for u in "abc"]
    assert not before & data_files(catalog.load_table(TABLE))


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
    assert row_keys(catalog) == [("a", "e1", FINGERPRINT, 2), ("b", "e1", FINGERPRINT, 1)]


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


def test_duplicate_rows_of_others_are_fixed(sqlite: Lake) -> None:
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
    written = pq.ParquetFile(*open_file(table, data_files(table).pop()))
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
    sizes = table.inspect.data_files()["file_size_in_bytes"].to_pylist()
    assert len(sizes) > 2
    assert max(sizes) < 60_000
    assert uris(catalog) == names
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(names[::7], why="changed", etag="e2", base=base))
    assert uris(catalog) == names


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
