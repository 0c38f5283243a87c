"""Reading the rows of one partition."""

from __future__ import annotations

import pyarrow as pa
from lakes import (
    FINGERPRINT,
    TABLE,
    Lake,
    change,
)
from transcripts import PARTITION

from airflow_whisper.table.read import current_rows, current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from airflow_whisper.table.schema import STATE_COLUMNS, ensure_table


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
