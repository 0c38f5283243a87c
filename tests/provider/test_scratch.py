from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa

from airflow_whisper.scratch import ScratchDatabase


def test_arrow_columns_become_rows_with_constants_behind_them():
    batch = pa.record_batch(
        {
            "unused": pa.array([1, 2]),
            "uri": pa.array(["a", None]),
            "modified": pa.array([datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC")),
        }
    )

    with ScratchDatabase("whisper-test-", "CREATE TABLE t (uri TEXT, modified INTEGER, side INTEGER)") as db:
        count = db.insert("t", [batch, batch], ("uri", "modified"), [7])

        assert count == 4
        assert [*db.chunks("SELECT * FROM t ORDER BY rowid", size=3)] == [
            [("a", 1_000_000, 7), (None, 1_000_000, 7), ("a", 1_000_000, 7)],
            [(None, 1_000_000, 7)],
        ]


def test_changed_rows_are_counted():
    with ScratchDatabase("whisper-test-", "CREATE TABLE t (uri TEXT PRIMARY KEY)") as db:
        assert db.run_for_each("INSERT OR IGNORE INTO t VALUES (?)", [("a",), ("b",), ("a",)]) == 2


def test_the_folder_goes_with_the_database():
    with ScratchDatabase("whisper-test-", "CREATE TABLE t (uri TEXT)") as db:
        assert (db.folder / "scratch.db").exists()

    assert not db.folder.exists()
