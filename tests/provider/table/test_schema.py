"""Creating the table, and checking that an existing one can hold transcripts."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from lakes import (
    TABLE,
    Lake,
    change,
)
from pyiceberg.table import Table
from pyiceberg.types import IntegerType, LongType, StringType
from transcripts import PARTITION, make_transcript_rows

from airflow_whisper.table import schema as tables
from airflow_whisper.table.column_docs import COLUMN_DOCS
from airflow_whisper.table.errors import (
    TableMismatchError,
)
from airflow_whisper.table.read import current_rows, current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from airflow_whisper.table.schema import check_table_name, ensure_table
from whisper_spark.contract import Segment, Word, earlier_transcript_schema, transcript_schema


@pytest.mark.parametrize("name", ["transcripts", "", ".transcripts", "speech.", "speech. transcripts"])
def test_table_without_namespace_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be written namespace\.table"):
        check_table_name(name)


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


def test_table_that_does_not_fit_is_refused_with_every_difference(sqlite: Lake) -> None:
    catalog = sqlite.open()
    catalog.create_namespace("speech")
    schema = transcript_schema([]).remove(transcript_schema([]).get_field_index("fingerprint"))
    schema = schema.set(schema.get_field_index("duration_s"), pa.field("duration_s", pa.string()))
    schema = schema.append(pa.field("dt", pa.timestamp("us"))).append(
        pa.field("tenant", pa.string(), nullable=False)
    )
    catalog.create_table(TABLE, schema)
    differences = (
        "fingerprint is missing",
        "duration_s has type",
        "dt has type timestamp, but a partition column must be string, date, int, long",
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
        update.add_column(("segments", "element", "mood"), StringType())
        update.move_first("reviewer")
    replace_rows(catalog, TABLE, change(["a", "b"]))
    rows = catalog.load_table(TABLE).scan().to_arrow().to_pylist()
    assert [row["reviewer"] for row in rows] == [None, None]
    assert rows[0]["segments"][0]["mood"] is None
    assert rows[0]["segments"][0]["words"][1] == {
        "start": 0.9,
        "end": 2.5,
        "word": " words",
        "probability": 0.8,
        "speaker": None,
    }


def test_columns_of_a_newer_version_are_added(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))

    def newer(partition_keys: Iterable[str] = ()) -> pa.Schema:
        schema = transcript_schema(partition_keys)
        return schema.insert(3, pa.field("topics", pa.int32()))

    monkeypatch.setattr(tables, "transcript_schema", newer)
    rows = make_transcript_rows(["a"], audio_etag="e2").append_column("topics", pa.array([2], pa.int32()))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, rows=rows))
    after = {r["audio_uri"]: r for r in catalog.load_table(TABLE).scan().to_arrow().to_pylist()}
    assert {uri: row["topics"] for uri, row in after.items()} == {"a": 2, "b": None}
    assert after["b"]["segments"][0]["words"][0]["word"] == "The"  # rewritten under the new schema, whole


def test_tables_of_earlier_releases_get_the_columns_for_speakers(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = lake.open()
    with monkeypatch.context() as earlier:
        earlier.setattr(tables, "transcript_schema", earlier_transcript_schema)
        table = ensure_table(catalog, TABLE, ["dt"])
    new = {"speakers", "segments.element.speaker", "segments.element.words.element.speaker"}
    assert not new & set(table.schema().column_names)
    words = (Word(0.1, 0.9, "The", 0.9, "SPEAKER_01"),)
    segment = Segment(0, None, 0.1, 0.9, "The", "en", -0.2, 1.1, 0.01, words, "SPEAKER_01")
    rows = make_transcript_rows(["a"], speakers=2, segments=(segment,))
    replace_rows(catalog, TABLE, change(["a"], rows=rows))
    table = catalog.load_table(TABLE)
    assert new < set(table.schema().column_names)
    (row,) = table.scan().to_arrow().to_pylist()
    assert row["speakers"] == 2
    assert row["segments"][0]["speaker"] == row["segments"][0]["words"][0]["speaker"] == "SPEAKER_01"


def test_int_columns_may_be_wider_than_ours(sqlite: Lake) -> None:
    catalog = sqlite.open()
    ensure_table(catalog, TABLE, ["dt"])
    table = catalog.load_table(TABLE)
    assert table.schema().find_type("channels") == IntegerType()
    with table.update_schema() as update:
        update.update_column("channels", LongType())
    replace_rows(catalog, TABLE, change(["a"], channels=2))
    assert catalog.load_table(TABLE).scan().to_arrow()["channels"].to_pylist() == [2]


def comments(table: Table) -> dict[str, str | None]:
    """The comment of every column and nested field, except the elements of lists, which have none."""
    schema = table.schema()
    paths = [path for path in schema.column_names if not path.endswith("element")]
    return {path: schema.find_field(path).doc for path in paths}


def test_every_column_of_a_new_table_has_a_comment(lake: Lake) -> None:
    found = comments(ensure_table(lake.open(), TABLE, ["dt"]))
    assert {"dt", "text", "segments.element.words.element.start"} <= set(found)
    assert [path for path, comment in found.items() if not comment] == []
    # None is left over from a column that no longer exists.
    assert {*COLUMN_DOCS, "dt"} == set(found)


def test_new_columns_of_an_existing_table_get_comments_and_others_keep_theirs(sqlite: Lake) -> None:
    catalog = sqlite.open()
    table = ensure_table(catalog, TABLE, ["dt"])
    with table.update_schema() as update:
        update.update_column("text", doc="What our callers said")
        update.update_column("language", doc="")
        update.delete_column("speakers")
    # As a table that an earlier release made: the column has never been there.
    older = catalog.load_table(TABLE).schema()
    catalog.drop_table(TABLE)
    catalog.create_table(TABLE, older, partition_spec=table.spec())
    found = comments(ensure_table(catalog, TABLE, ["dt"]))
    assert found["speakers"] == COLUMN_DOCS["speakers"]
    assert (found["text"], found["language"]) == ("What our callers said", "")
