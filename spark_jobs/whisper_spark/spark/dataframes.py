"""The rows of a run as Spark DataFrames: the manifest, the staged rows, and files partitioned by size.

The driver handles only file names and counts. Rows are read, joined and rewritten on the executors, so a
small driver is enough for a manifest of ten million files.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - as in Spark's own documentation
from pyspark.sql.window import Window

from whisper_spark.contract import FINAL_ERRORS, Run
from whisper_spark.staging.result import StagedFile
from whisper_spark.staging.rows import INDEX_COLUMNS, StagedRows, read_index, read_rows
from whisper_spark.storage.objects import ObjectNotFound, ObjectStorage
from whisper_spark.storage.parquet import open_parquet

log = logging.getLogger(__name__)

MANIFEST_COLUMNS = ("audio_uri", "audio_etag", "audio_bytes", "attempt")
_MANIFEST_DDL = (
    "audio_uri string, audio_etag string, audio_bytes bigint, attempt int, row_group int, position bigint"
)
_INDEX_DDL = (
    "audio_uri string, audio_etag string, status string, error_code string, attempt int, language string, "
    "duration_s double, speech_s double, engine_version string, transcribed_at timestamp, `row` int, file int"
)

_Batches = Iterator[pa.RecordBatch]


def manifest_rows(
    spark: SparkSession, uri: str, row_groups: Sequence[int], staging: Mapping[str, str], tasks: int
) -> DataFrame:
    """The rows of the manifest, each with its ``row_group`` and its ``position`` in the whole file.

    :param row_groups: number of rows in each row group.
    :param staging: configuration of the storage that holds the manifest.
    :param tasks: maximum number of tasks that read it.
    """
    starts = [0, *itertools.accumulate(row_groups)]
    config = dict(staging)

    def read(batches: _Batches) -> _Batches:
        groups = [group for batch in batches for group in batch.column("id").to_pylist()]
        if not groups:
            return
        with open_parquet(uri, ObjectStorage(config)) as parquet:
            for group in groups:
                rows = parquet.read_row_group(group, columns=list(MANIFEST_COLUMNS))
                positions = range(starts[group], starts[group] + rows.num_rows)
                rows = rows.append_column("row_group", pa.array([group] * rows.num_rows, pa.int32()))
                rows = rows.append_column("position", pa.array(positions, pa.int64()))
                yield from rows.to_batches()

    return _per_item(spark, len(row_groups), tasks).mapInArrow(read, _MANIFEST_DDL)


def staged_index(
    spark: SparkSession, files: Sequence[StagedFile], staging: Mapping[str, str], tasks: int
) -> DataFrame:
    """The index columns of staged rows, without the text. ``file`` is a position in ``files``."""
    uris = [file.uri for file in files]
    config = dict(staging)

    def read(batches: _Batches) -> _Batches:
        storage = ObjectStorage(config)
        for batch in batches:
            for number in batch.column("id").to_pylist():
                for index in read_index(storage, uris[number]):
                    file = pa.array([number] * index.num_rows, pa.int32())
                    yield pa.RecordBatch.from_arrays(
                        [*index.columns, file], names=[*INDEX_COLUMNS, "row", "file"]
                    )

    return _per_item(spark, len(uris), tasks).mapInArrow(read, _INDEX_DDL)


def _per_item(spark: SparkSession, items: int, tasks: int) -> DataFrame:
    return spark.range(0, items, 1, max(1, min(tasks, items)))


def is_final() -> Column:
    """Whether a staged row is final: a transcript, or one of :data:`FINAL_ERRORS`."""
    return (F.col("status") == "ok") | F.coalesce(
        F.col("error_code").isin(*sorted(FINAL_ERRORS)), F.lit(False)
    )


def is_settled(max_attempts: int) -> Column:
    """Whether a staged row needs no further try: it is final, or ``max_attempts`` is reached."""
    return is_final() | (F.col("attempt") >= max_attempts)


def unsettled(manifest: DataFrame, index: DataFrame, max_attempts: int) -> DataFrame:
    """The rows of the manifest that have to be transcribed. ``attempt`` continues from staged errors."""
    tried = index.groupBy("audio_uri").agg(
        F.max("attempt").alias("tried"), F.max(is_settled(max_attempts)).alias("settled")
    )
    left = manifest.join(tried, "audio_uri", "left").where(~F.coalesce("settled", F.lit(False)))
    attempt = F.greatest("attempt", F.coalesce(F.col("tried") + 1, F.lit(1)))
    return left.withColumn("attempt", attempt.cast("int")).drop("tried", "settled")


def ranked(index: DataFrame, preferred: Sequence[Sequence[int]] = ()) -> DataFrame:
    """The index with a column ``rank``: rank 1 is the row to keep for a file, all others are superseded.

    Transcripts rank before final errors, and these before transient errors, of which the one with the most
    tries ranks first. Among equals, rows in preferred files rank first, then the latest. File and position
    decide last, so that the order is deterministic.

    :param preferred: numbers of files, in sequences of decreasing priority.
    """
    quality = F.when(F.col("status") == "ok", 0).when(is_final(), 1).otherwise(2)
    best = Window.partitionBy("audio_uri").orderBy(
        quality,
        F.when(is_final(), 0).otherwise(-F.col("attempt")),
        *[F.when(F.col("file").isin(*files), 0).otherwise(1) for files in preferred if files],
        F.col("transcribed_at").desc_nulls_last(),
        F.col("file"),
        F.col("row"),
    )
    return index.withColumn("rank", F.row_number().over(best))


def reusable(pending: DataFrame, siblings: DataFrame) -> DataFrame:
    """Final rows of other runs for files of this run: same URI and etag, same options.

    Files without an etag are transcribed again, because their content may differ.
    """
    wanted = pending.select("audio_uri", "audio_etag").where(F.col("audio_etag").isNotNull())
    matches = siblings.where(is_final()).join(wanted, ["audio_uri", "audio_etag"], "left_semi")
    return ranked(matches).where("rank = 1")


def partitioned_by_size(rows: DataFrame, row_groups: Mapping[int, int], tasks: int) -> DataFrame:
    """Partition files by size into one partition per task, of about equal total size, largest file first.

    The manifest is sorted by size. Its rows are assigned to the tasks back and forth (0 1 2 2 1 0 0 1 2 ...),
    so that the sizes of two tasks differ by at most one file.

    :param rows: any subset of :func:`manifest_rows`.
    :param row_groups: how many of these rows are in each row group.
    """
    # Ranks count only these rows. With the positions in the whole manifest, all files of a failed task would
    # be assigned to a single task again.
    counts = [row_groups.get(group, 0) for group in range(max(row_groups, default=0) + 1)]
    starts = list(itertools.accumulate(counts, initial=0))
    in_group = Window.partitionBy("row_group").orderBy("position")
    assigned = (
        rows.withColumn("rank", F.lit(starts)[F.col("row_group")] + F.row_number().over(in_group) - 1)
        .withColumn("turn", F.col("rank") % tasks)
        .withColumn("back", F.floor(F.col("rank") / tasks) % 2 == 1)
        .withColumn("task", F.when(F.col("back"), tasks - 1 - F.col("turn")).otherwise(F.col("turn")))
    )
    # Adaptive execution does not change the number of partitions, because it is given explicitly.
    return assigned.repartitionById(tasks, F.col("task").cast("int")).sortWithinPartitions("rank")


def copy_rows(
    chosen: DataFrame, files: Sequence[StagedFile], run: Run, staging: Mapping[str, str], job: str
) -> list[int]:
    """Copy rows of other runs to this run, unchanged.

    Another job may delete what it has superseded, and a lifecycle rule what is old, while rows are copied.

    :param chosen: the rows, with columns ``file`` and ``row``.
    :return: the positions in ``files`` of those that are gone or damaged, whose rows must be made again.
    """
    uris = [file.uri for file in files]
    config = dict(staging)

    def copy(batches: _Batches) -> _Batches:
        storage = ObjectStorage(config)
        with StagedRows(storage, run, "reused", job) as staged:
            lost = [
                number
                for number, rows in _grouped(batches)
                if not _is_copied(storage, uris[number], rows, run.partition, staged)
            ]
        yield pa.RecordBatch.from_arrays([pa.array(lost, pa.int32())], names=["file"])

    return [row["file"] for row in _by_file(chosen).mapInArrow(copy, "file int").collect()]


def _is_copied(
    storage: ObjectStorage, uri: str, rows: Sequence[int], partition: Mapping[str, str], staged: StagedRows
) -> bool:
    try:
        for batch in read_rows(storage, uri, rows, partition):
            staged.add_batch(batch)
    except ObjectNotFound:
        return False
    except (pa.ArrowException, OSError, ValueError) as error:
        log.warning("%s is damaged, so its rows are made again: %s", uri, error)
        return False
    return True


def keep_rows(
    kept: DataFrame, files: Sequence[StagedFile], run: Run, staging: Mapping[str, str], job: str
) -> list[StagedFile]:
    """Write selected rows of staged files to new files. Returns the new files.

    The old files are not deleted, because another job may use them.

    :param kept: the rows, with columns ``file`` and ``row``.
    """
    uris = [file.uri for file in files]
    config = dict(staging)

    def keep(batches: _Batches) -> _Batches:
        storage = ObjectStorage(config)
        written: list[StagedFile] = []
        for number, rows in _grouped(batches):
            with StagedRows(storage, run, "kept", job) as staged:
                for batch in read_rows(storage, uris[number], rows, run.partition):
                    staged.add_batch(batch)
            written += staged.written
        yield pa.RecordBatch.from_pylist([dataclasses.asdict(file) for file in written], schema=_STAGED)

    found = _by_file(kept).mapInArrow(keep, "uri string, rows bigint, bytes bigint").collect()
    return [StagedFile(**row.asDict()) for row in found]


_STAGED = pa.schema([("uri", pa.string()), ("rows", pa.int64()), ("bytes", pa.int64())])


def _by_file(rows: DataFrame) -> DataFrame:
    return rows.groupBy("file").agg(F.collect_list("row").alias("rows"))


def _grouped(batches: _Batches) -> Iterator[tuple[int, list[int]]]:
    for batch in batches:
        yield from zip(batch.column("file").to_pylist(), batch.column("rows").to_pylist(), strict=True)
