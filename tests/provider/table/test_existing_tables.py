"""Tables that others made: what transcripts can be written to, and what is refused before the job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lakes import FINGERPRINT, TABLE, Lake, change, data_files, open_file, row_keys, uris
from pyiceberg.catalog import Catalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    DateType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
)
from transcripts import PARTITION, make_transcript_rows

from airflow_whisper.table.compaction import compact_partition, partitions_with_small_files
from airflow_whisper.table.errors import TableMismatchError
from airflow_whisper.table.read import current_rows, current_snapshot_id, partition_rows, table_partition
from airflow_whisper.table.replace import replace_rows
from airflow_whisper.table.schema import ensure_table
from whisper_spark.contract import transcript_schema


def create(
    catalog: Catalog,
    types: dict[str, IcebergType] | None = None,
    *,
    required: bool = False,
    transform: Any = IdentityTransform(),  # noqa: B008
    **properties: str,
) -> Table:
    """A table as somebody else might have made it: optional partition columns, first of all columns."""
    types = types or {"dt": StringType()}
    scratch = "scratch.model"
    catalog.create_namespace_if_not_exists("scratch")
    ours = catalog.create_table(scratch, transcript_schema([])).schema()
    catalog.drop_table(scratch)
    keys = [NestedField(900 + i, k, t, required=required) for i, (k, t) in enumerate(types.items())]
    schema = Schema(*keys, *ours.fields)
    suffix = "" if str(transform) == "identity" else "_key"
    spec = PartitionSpec(
        *(PartitionField(900 + i, 1000 + i, transform, k + suffix) for i, k in enumerate(types))
    )
    catalog.create_namespace_if_not_exists("speech")
    table: Table = catalog.create_table(TABLE, schema, partition_spec=spec, properties=properties)
    return table


def metrics(mode: str, **columns: str) -> dict[str, str]:
    prefix = "write.metadata.metrics."
    return {f"{prefix}default": mode, **{f"{prefix}column.{k}": v for k, v in columns.items()}}


# --- the partition is known, not read from statistics -----------------------------------------------------


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize(
    "properties",
    [
        metrics("none"),
        metrics("counts"),
        metrics("truncate(2)"),
        metrics("full", dt="none"),
        metrics("truncate(16)", dt="counts"),
    ],
    ids=str,
)
def test_partition_does_not_depend_on_column_statistics(
    sqlite: Lake, properties: dict[str, str], required: bool
) -> None:
    catalog = sqlite.open()
    create(catalog, required=required, **properties)
    partition = {"dt": "a value that is longer than statistics keep"}
    replace_rows(catalog, TABLE, change(["a", "b"], partition=partition, key="1"))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(
        catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, partition=partition, key="2")
    )
    assert row_keys(catalog, partition) == [("a", "e2", FINGERPRINT, 1), ("b", "e1", FINGERPRINT, 1)]
    found = catalog.load_table(TABLE).inspect.files()["partition"].to_pylist()
    assert {row["dt"] for row in found} == {partition["dt"]}


@pytest.mark.parametrize("mode", ["none", "counts"])
def test_own_table_may_do_without_column_statistics(lake: Lake, mode: str) -> None:
    catalog = lake.open()
    with ensure_table(catalog, TABLE, ["dt"]).transaction() as transaction:
        transaction.set_properties(metrics(mode))
    replace_rows(catalog, TABLE, change(["a"]))
    assert uris(catalog) == ["a"]


# --- partition columns of other types ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "written", "canonical", "other"),
    [
        (DateType(), "2026-11-01", "2026-11-01", "2026-11-02"),
        (DateType(), "20261101", "2026-11-01", "2026-11-02"),
        (IntegerType(), "07", "7", "8"),
        (IntegerType(), "-3", "-3", "3"),
        (LongType(), "20261101", "20261101", "20261102"),
        (StringType(), "07", "07", "7"),
    ],
    ids=str,
)
def test_partition_columns_may_be_dates_and_numbers(
    lake: Lake, kind: IcebergType, written: str, canonical: str, other: str
) -> None:
    catalog = lake.open()
    create(catalog, {"dt": kind, "tenant": StringType()})
    partition = table_partition(catalog.load_table(TABLE), {"dt": written, "tenant": "x"})
    assert partition == {"dt": canonical, "tenant": "x"}
    elsewhere = {"dt": other, "tenant": "x"}
    replace_rows(catalog, TABLE, change(["a", "b"], partition=partition, key="1"))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], partition=elsewhere, base=base, key="2"))
    # One row of a data file changes and one goes, so that a third is written again.
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["c"], partition=partition, base=base, key="3"))
    base = current_snapshot_id(catalog, TABLE)
    wanted = change(["a"], why="changed", etag="e2", removed=["c"], partition=partition, base=base, key="4")
    assert replace_rows(catalog, TABLE, wanted) is not None
    assert row_keys(catalog, partition) == [("a", "e2", FINGERPRINT, 1), ("b", "e1", FINGERPRINT, 1)]
    assert uris(catalog, elsewhere) == ["a"]
    rows = pa.Table.from_batches(partition_rows(catalog, TABLE, partition))
    assert rows["dt"].to_pylist() == [canonical] * 2
    table = catalog.load_table(TABLE)
    assert table.schema().find_type("dt") == kind
    assert table.scan(f"tenant = 'x' and dt = '{canonical}'").to_arrow().num_rows == 2


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (DateType(), "2026-11-31"),
        (DateType(), "2026-11"),
        (DateType(), "yesterday"),
        (DateType(), "2026-11-01T00:00:00"),
        (IntegerType(), "7.0"),
        (IntegerType(), "1_000"),
        (IntegerType(), " 7"),
        (IntegerType(), "٧"),
        (IntegerType(), "2147483648"),
        (LongType(), "9223372036854775808"),
        (LongType(), ""),
    ],
    ids=str,
)
def test_value_that_is_none_of_its_column_is_refused(sqlite: Lake, kind: IcebergType, value: str) -> None:
    catalog = sqlite.open()
    create(catalog, {"dt": kind})
    with pytest.raises(TableMismatchError, match=f"partition column dt of speech.transcripts.*{kind}"):
        table_partition(catalog.load_table(TABLE), {"dt": value})
    with pytest.raises(TableMismatchError, match=f"partition column dt of speech.transcripts.*{kind}"):
        list(current_rows(catalog, TABLE, {"dt": value}))


def test_partition_columns_of_other_types_are_refused(sqlite: Lake) -> None:
    catalog = sqlite.open()
    create(catalog, {"dt": TimestampType()})
    with pytest.raises(TableMismatchError, match="dt has type timestamp, but a partition column must be"):
        table_partition(catalog.load_table(TABLE), PARTITION)


def test_other_transforms_are_refused(sqlite: Lake) -> None:
    catalog = sqlite.open()
    create(catalog, transform=BucketTransform(8))
    with pytest.raises(TableMismatchError, match=r"partitioned by bucket\[8\]\(dt\), expected identity"):
        table_partition(catalog.load_table(TABLE), PARTITION)


# --- properties -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "codec"),
    [
        ({"write.parquet.compression-codec": "ZSTD"}, "ZSTD"),
        ({"write.parquet.compression-codec": "Snappy"}, "SNAPPY"),
        ({"write.parquet.compression-codec": "UNCOMPRESSED"}, "UNCOMPRESSED"),
        ({"write.parquet.compression-codec": "gzip", "write.parquet.compression-level": "9"}, "GZIP"),
        ({"write.object-storage.enabled": "true"}, "ZSTD"),
        ({"write.format.default": "PARQUET", "write.delete.mode": "merge-on-read"}, "ZSTD"),
        ({"write.distribution-mode": "hash", "write.parquet.row-group-size-bytes": "1"}, "ZSTD"),
        ({"write.avro.compression-codec": "ZSTD"}, "ZSTD"),
        ({"write.avro.compression-codec": "uncompressed"}, "ZSTD"),
        ({"commit.retry.total-timeout-ms": "soon", "commit.manifest-merge.enabled": "true"}, "ZSTD"),
        ({"write.wap.enabled": "true", "gc.enabled": "false"}, "ZSTD"),
    ],
    ids=str,
)
def test_properties_that_writers_can_honour_or_need_not(
    sqlite: Lake, properties: dict[str, str], codec: str
) -> None:
    catalog = sqlite.open()
    create(catalog, **properties)
    assert table_partition(catalog.load_table(TABLE), PARTITION) == PARTITION
    replace_rows(catalog, TABLE, change(["a", "b"], key="1"))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, key="2"))
    assert row_keys(catalog) == [("a", "e2", FINGERPRINT, 1), ("b", "e1", FINGERPRINT, 1)]
    table = catalog.load_table(TABLE)
    for path in data_files(table):
        with pq.ParquetFile(*open_file(table, path)) as file:
            assert file.metadata.row_group(0).column(0).compression == codec


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("write.parquet.compression-codec", "lzma"),
        ("write.parquet.compression-level", "high"),
        ("write.format.default", "orc"),
        ("write.format.default", "avro"),
        ("write.target-file-size-bytes", "128MB"),
        ("write.target-file-size-bytes", "0"),
        ("write.summary.partition-limit", "many"),
        ("write.avro.compression-codec", "lzo"),
        ("write.metadata.metrics.default", "some"),
        ("write.metadata.metrics.column.text", "truncate(0)"),
        ("write.location-provider.impl", "com.example.Provider"),
        ("write.folder-storage.path", "s3://elsewhere/"),
        ("encryption.key-id", "k"),
    ],
)
def test_properties_that_cannot_be_honoured_are_refused_before_the_job(
    sqlite: Lake, name: str, value: str
) -> None:
    catalog = sqlite.open()
    create(catalog, **{name: value})
    named = "write.metadata.metrics" if "metrics" in name else name
    with pytest.raises(TableMismatchError, match=named):
        table_partition(catalog.load_table(TABLE), PARTITION)
    with pytest.raises(TableMismatchError, match=named):
        list(current_rows(catalog, TABLE, PARTITION))


def edit_metadata(catalog: Catalog, edit: Callable[[dict[str, Any]], object]) -> None:
    """Changes the newest metadata file of the table, as a writer other than PyIceberg might have made it."""
    path = Path(catalog.load_table(TABLE).metadata_location.removeprefix("file://"))
    metadata = json.loads(path.read_text())
    edit(metadata)
    path.write_text(json.dumps(metadata))


def test_table_of_format_version_3_is_refused_before_the_job(sqlite: Lake) -> None:
    catalog = sqlite.open()
    create(catalog)
    edit_metadata(catalog, lambda metadata: metadata.update({"format-version": 3, "next-row-id": 0}))
    with pytest.raises(TableMismatchError, match="Iceberg format version 3"):
        table_partition(catalog.load_table(TABLE), PARTITION)


def test_location_provider_that_cannot_be_loaded_is_refused_before_the_job(sqlite: Lake) -> None:
    catalog = sqlite.open()
    create(catalog)
    provider = {"write.py-location-provider.impl": "no.such.Provider"}
    edit_metadata(catalog, lambda metadata: metadata["properties"].update(provider))
    with pytest.raises(TableMismatchError, match="location provider cannot be loaded"):
        table_partition(catalog.load_table(TABLE), PARTITION)


def test_table_of_format_version_1_is_written(sqlite: Lake) -> None:
    catalog = sqlite.open()
    create(catalog, **{"format-version": "1"})
    replace_rows(catalog, TABLE, change(["a", "b"], key="1"))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, key="2"))
    assert row_keys(catalog) == [("a", "e2", FINGERPRINT, 1), ("b", "e1", FINGERPRINT, 1)]


# --- data files -------------------------------------------------------------------------------------------


def test_table_of_format_version_1_may_have_lost_a_partition_field(sqlite: Lake) -> None:
    catalog = sqlite.open()
    catalog.create_namespace("speech")
    schema = transcript_schema(PARTITION)
    properties = {"format-version": "1"}
    with (
        catalog.create_table_transaction(TABLE, schema, properties=properties) as transaction,
        transaction.update_spec() as spec,
    ):
        spec.add_identity("dt")
    replace_rows(catalog, TABLE, change(["a"]))
    for edit in (lambda spec: spec.add_identity("language"), lambda spec: spec.remove_field("language")):
        with catalog.load_table(TABLE).update_spec() as spec:
            edit(spec)
    assert [str(field.transform) for field in catalog.load_table(TABLE).spec().fields] == ["identity", "void"]
    for uri in ("b", "c"):
        replace_rows(catalog, TABLE, change([uri], base=current_snapshot_id(catalog, TABLE)))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert [key[:2] for key in row_keys(catalog)] == [("a", "e2"), ("b", "e1"), ("c", "e1")]
    assert list(partitions_with_small_files(catalog.load_table(TABLE), min_files=2)) == [PARTITION]
    assert compact_partition(catalog, TABLE, PARTITION, min_files=2) == 3
    assert catalog.load_table(TABLE).scan("dt = '2026-11-01'").count() == 3


def test_data_file_with_several_partition_values_is_refused_before_the_job(sqlite: Lake) -> None:
    catalog = sqlite.open()
    catalog.create_namespace("speech")
    table = catalog.create_table(TABLE, transcript_schema(["dt"]))
    rows = [make_transcript_rows(["a"], partition={"dt": day}) for day in ("2026-11-01", "2026-11-02")]
    table.append(pa.concat_tables(rows))
    with table.update_spec() as update:
        update.add_identity("dt")
    with pytest.raises(TableMismatchError, match="holds rows of several partitions"):
        list(current_rows(catalog, TABLE, PARTITION))


def test_row_that_another_engine_deleted_by_its_position_stays_deleted(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    table = catalog.load_table(TABLE)
    (path,) = table.inspect.data_files()["file_path"].to_pylist()
    deletes = f"{table.location()}/data/deletes.parquet"
    ids = {"file_path": (pa.string(), "2147483546"), "pos": (pa.int64(), "2147483545")}
    schema = pa.schema(
        [pa.field(name, kind, False, {"PARQUET:field_id": number}) for name, (kind, number) in ids.items()]
    )
    with table.io.new_output(deletes).create() as file:
        pq.write_table(pa.table([[path], [0]], schema=schema), file)
    file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=deletes,
        file_format=FileFormat.PARQUET,
        partition=Record(PARTITION["dt"]),
        record_count=1,
        file_size_in_bytes=len(table.io.new_input(deletes)),
        spec_id=table.spec().spec_id,
    )
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    assert uris(catalog) == ["b", "c"]
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["b"], why="changed", etag="e2", base=base))
    assert uris(catalog) == ["b", "c"]
    assert catalog.load_table(TABLE).scan().count() == 2


def test_equality_deletes_are_refused_before_the_job(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"]))
    table = catalog.load_table(TABLE)
    deletes = DataFile.from_args(
        content=DataFileContent.EQUALITY_DELETES,
        file_path=f"{table.location()}/data/deletes.parquet",
        file_format=FileFormat.PARQUET,
        partition=Record(PARTITION["dt"]),
        record_count=1,
        file_size_in_bytes=1,
        spec_id=table.spec().spec_id,
        equality_ids=[1],
    )
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(deletes)
    with pytest.raises(TableMismatchError, match=r"equality deletes.*rewrite_data_files"):
        list(current_rows(catalog, TABLE, PARTITION))


# --- columns that somebody dropped or renamed ---------------------------------------------------------------


def test_renamed_column_is_written_under_its_new_name(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"], key="1"))
    with catalog.load_table(TABLE).update_schema() as update:
        update.rename_column("text", "transcript")
        update.rename_column("segments.element.words.element.word", "token")
    before = catalog.load_table(TABLE).schema().column_names
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, key="2"))
    table = catalog.load_table(TABLE)
    assert table.schema().column_names == before
    rows = table.scan().to_arrow().to_pylist()
    assert sorted(row["transcript"] for row in rows) == ["The words of a.", "The words of b."]
    assert {row["segments"][0]["words"][0]["token"] for row in rows} == {"The"}
    assert "text was renamed to transcript" in caplog.text


def test_dropped_column_stays_dropped(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"], key="1"))
    with catalog.load_table(TABLE).update_schema() as update:
        update.delete_column("quality_flags")
        update.delete_column("segments.element.no_speech_prob")
    # Before the job, too.
    table_partition(catalog.load_table(TABLE), PARTITION)
    assert "quality_flags was dropped" in caplog.text
    caplog.clear()
    before = catalog.load_table(TABLE).schema().column_names
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base, key="2"))
    table = catalog.load_table(TABLE)
    assert table.schema().column_names == before
    rows = {row["audio_uri"]: row for row in table.scan().to_arrow().to_pylist()}
    assert rows["a"]["audio_etag"] == "e2"
    assert rows["a"]["segments"][0].keys() == rows["b"]["segments"][0].keys()
    assert rows["a"]["segments"][0]["words"] == rows["b"]["segments"][0]["words"]
    assert "quality_flags was dropped" in caplog.text


def test_renamed_column_that_is_needed_is_refused_with_its_new_name(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"]))
    with catalog.load_table(TABLE).update_schema() as update:
        update.rename_column("audio_etag", "version")
    with pytest.raises(TableMismatchError, match="audio_etag is missing: it was renamed to version"):
        list(current_rows(catalog, TABLE, PARTITION))
