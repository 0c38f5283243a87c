"""Which partition a file belongs to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from airflow_whisper.discovery.audio_filter import AudioFilter
from airflow_whisper.watch.assignment import PartitionAssignment
from airflow_whisper.watch.partition_templates import (
    Partitioning,
    PartitionTemplate,
    modified_partition,
    period_end,
)
from airflow_whisper.watch.pending import NEVER
from whisper_spark.contract import parse_partition_path

HOURLY = "s3://calls/raw/dt={dt}/hour={hour}/"


@pytest.mark.parametrize(
    ("source", "key", "partition"),
    [
        (HOURLY, "raw/dt=2026-11-01/hour=13/a.wav", {"dt": "2026-11-01", "hour": "13"}),
        (HOURLY, "raw/dt=2026-11-01/hour=13/line 1/a.wav", {"dt": "2026-11-01", "hour": "13"}),
        (HOURLY, "raw/dt=2026-11-01/a.wav", None),
        (HOURLY, "raw/dt=/hour=13/a.wav", None),
        (HOURLY, "raw/day=2026-11-01/hour=13/a.wav", None),
        (HOURLY, "elsewhere/dt=2026-11-01/hour=13/a.wav", None),
        ("s3://calls/{customer}/{dt}", "acme/2026-11-01/a.wav", {"customer": "acme", "dt": "2026-11-01"}),
        ("s3://calls/{customer}/{dt}", "_staging/2026-11-01/a.wav", None),
        ("s3://calls/{customer}/{dt}", ".trash/2026-11-01/a.wav", None),
        ("s3://calls/{y}-{m}/audio", "2026-11/audio/a.wav", {"y": "2026", "m": "11"}),
        ("s3://calls/{y}-{m}/audio", "2026-11/video/a.wav", None),
        ("s3://calls/{dt}/from-{dt}", "1/from-1/a.wav", {"dt": "1"}),
        ("s3://calls/{dt}/from-{dt}", "1/from-2/a.wav", None),
        ("s3://calls/a+b/{dt}", "a+b/Größe 1/a.wav", {"dt": "Größe 1"}),
        ("s3://calls/raw", "raw/a.wav", {}),
    ],
)
def test_path_names_the_partition(source: str, key: str, partition: dict[str, str] | None) -> None:
    template = PartitionTemplate.parse(source)
    assert template.partition_of(f"s3://calls/{key}") == partition
    if partition:
        assert f"s3://calls/{key}".startswith(template.source_of(partition))


def test_root_is_what_has_to_be_listed() -> None:
    assert PartitionTemplate.parse(HOURLY).root == "s3://calls/raw/"
    assert PartitionTemplate.parse("s3://calls/{dt}").root == "s3://calls/"
    assert PartitionTemplate.parse("/calls/{dt}").root == "file:///calls/"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://{bucket}/raw/", "bucket cannot be a placeholder"),
        ("s3://calls/{dt}{hour}/", "where one placeholder ends"),
        ("s3://calls/dt={}/", "no placeholder"),
        ("s3://calls/dt={0}/", "no placeholder"),
        ("s3://calls/dt={dt/", "not closed"),
        ("s3://calls/{audio_uri}/", "already a column"),
        ("ftp://calls/{dt}/", "not supported"),
        ("s3://calls/raw/", "does not say which partition"),
    ],
)
def test_wrong_source_says_what_to_write(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partitioning.of(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition_from_modified": {"dt": "day"}}, "strftime"),
        ({"partition_from_modified": {"dt": "%d"}, "partition": {"dt": "1"}}, "more than once"),
        ({"partition": {"d-t": "1"}}, "no column name"),
    ],
)
def test_wrong_partition_says_what_to_write(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partitioning.of("s3://calls/raw/", **arguments)


def test_partition_can_come_from_path_time_and_constant_together() -> None:
    partitioning = Partitioning.of("s3://calls/{line}/", {"dt": "%Y-%m-%d"}, {"region": "eu"})
    listed = pa.record_batch(
        {
            "audio_uri": ["s3://calls/7/a.wav"],
            "audio_etag": ["e"],
            "audio_bytes": [1],
            "last_modified": pa.array(
                [datetime(2026, 11, 1, 23, 59, tzinfo=UTC)], pa.timestamp("us", tz="UTC")
            ),
        }
    )
    ((*_, path),), _ = PartitionAssignment(partitioning, AudioFilter()).files(listed, NEVER)
    partition = parse_partition_path(path)
    assert partition == {"region": "eu", "line": "7", "dt": "2026-11-01"}
    assert partitioning.source_of(partition) == "s3://calls/7/"


def test_modification_time_counts_in_utc() -> None:
    local = datetime.fromisoformat("2026-11-01T23:30:00-05:00")
    assert modified_partition({"dt": "%Y-%m-%d", "hour": "%H"}, local) == {"dt": "2026-11-02", "hour": "04"}


@pytest.mark.parametrize(
    ("values", "end"),
    [
        ({"dt": "2026-11-01"}, datetime(2026, 11, 2)),
        ({"anything": "20261101"}, datetime(2026, 11, 2)),
        ({"dt": "2026-11-01", "hour": "13"}, datetime(2026, 11, 1, 14)),
        ({"ts": "2026-11-01T13"}, datetime(2026, 11, 1, 14)),
        ({"ts": "20261101-1330"}, datetime(2026, 11, 1, 14)),
        ({"year": "2026", "month": "11", "day": "01"}, datetime(2026, 11, 2)),
        ({"yyyy": "2026", "mm": "11", "dd": "1", "hh": "0"}, datetime(2026, 11, 1, 1)),
        ({"dt": "2026-02"}, datetime(2026, 3, 4)),
        ({"year": "2026"}, datetime(2027, 1, 2)),
        ({"customer": "acme"}, None),
        ({"dt": "2026-13-40"}, None),
        ({"month": "11"}, None),
    ],
)
def test_end_of_the_time_that_a_partition_stands_for(values: dict[str, str], end: datetime | None) -> None:
    assert period_end(values) == (end.replace(tzinfo=UTC) if end else None)
