"""A source under watch: a real S3 server and real folders, poll after poll."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from servers import SECRET_KEY, S3Server

from airflow_whisper.watch.cursor import INLINE_BYTES, CursorState
from airflow_whisper.watch.payload import INLINE_URIS
from airflow_whisper.watch.pending import BatchRules
from airflow_whisper.watch.source import WatchedSource
from airflow_whisper.watch.watcher import SourceWatch
from whisper_spark.storage.objects import ObjectStorage, StorageError

TODAY = datetime.now(UTC).date()
AT_ONCE = BatchRules(stable_polls=1)
HOUR = 3600.0


def day(ago: int) -> str:
    return str(TODAY - timedelta(days=ago))


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: Any, *args: Any, **kwargs: Any) -> None:
        self.lines.append(str(event) % args)

    warning = info


class Bucket:
    """Calls in a bucket, and a watch on them."""

    def __init__(self, s3: S3Server) -> None:
        self.s3 = s3
        self.name = s3.bucket("calls")
        self.client = s3.client()
        self.log = Log()

    def put(self, key: str, body: bytes = b"x") -> None:
        self.client.put_object(Bucket=self.name, Key=f"raw/{key}", Body=body)

    def staged(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name, Prefix="staging/").get("Contents", [])
        return [item["Key"] for item in found]

    @contextmanager
    def watch(self, template: str = "dt={dt}/", **arguments: Any) -> Iterator[SourceWatch]:
        arguments = {"rules": AT_ONCE, "staging": f"s3://{self.name}/staging/", **arguments}
        watched = WatchedSource(
            source=f"s3://{self.name}/raw/{template}", source_conn_id="calls_s3", **arguments
        )
        made = SourceWatch(watched, self.log)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", s3.connection)
    return Bucket(s3)


def later(seconds: float) -> Callable[[], float]:
    return lambda: time.time() + seconds


def names(payloads: list[dict[str, Any]]) -> list[str]:
    return sorted(uri.rpartition("/")[2] for payload in payloads for uri in payload["uris"])


def counts(payloads: list[dict[str, Any]]) -> dict[str, int]:
    return {entry["partition"]["dt"]: entry["files"] for p in payloads for entry in p["partitions"]}


# --- what is reported ------------------------------------------------------------------------------------


def test_event_names_partitions_with_counts_and_bytes(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/hour=13/a.wav", b"12345")
    bucket.put(f"dt={day(0)}/hour=13/b.wav", b"123")
    bucket.put(f"dt={day(1)}/hour=02/c.wav", b"1")
    root = f"s3://{bucket.name}/raw/"
    with bucket.watch("dt={dt}/hour={hour}/") as watch:
        (payload,) = watch.poll()
    assert {**payload, "uris": sorted(payload["uris"])} == {
        "source": f"{root}dt={{dt}}/hour={{hour}}/",
        "files": 3,
        "bytes": 9,
        "partitions": [
            {
                "source": f"{root}dt={dt}/hour={hour}/",
                "partition": {"dt": dt, "hour": hour},
                "files": files,
                "bytes": size,
            }
            for dt, hour, files, size in ((day(1), "02", 1, 1), (day(0), "13", 2, 8))
        ],
        "uris": [
            f"{root}dt={day(1)}/hour=02/c.wav",
            f"{root}dt={day(0)}/hour=13/a.wav",
            f"{root}dt={day(0)}/hour=13/b.wav",
        ],
        "list_uri": None,
    }


def test_new_and_overwritten_files_are_reported_and_nothing_twice(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch() as watch:
        assert names(watch.poll()) == ["a.wav"]
        assert watch.poll() == []
        bucket.put(f"dt={day(0)}/a.wav", b"other")
        bucket.put(f"dt={day(0)}/b.wav")
        assert names(watch.poll()) == ["a.wav", "b.wav"]
        assert watch.poll() == []


def test_what_is_no_audio_is_left_out(bucket: Bucket) -> None:
    for key in ("a.WAV", "b.mp3", "c.txt", "_SUCCESS", ".d.wav", "_tmp/e.wav", "calls/f.wav"):
        bucket.put(f"dt={day(0)}/{key}")
    bucket.put("g.wav")
    with bucket.watch(extensions=("wav", ".mp3")) as watch:
        assert names(watch.poll()) == ["a.WAV", "b.mp3", "f.wav"]
    assert any("Left out 1 objects" in line for line in bucket.log.lines)
    root = f"s3://{bucket.name}/raw/"
    assert (
        f"Left out 1 sidecar files under {root}, and 0 objects not matching extensions ['wav', '.mp3']."
        in bucket.log.lines
    )
    with bucket.watch(pattern="calls/*") as watch:
        assert names(watch.poll()) == ["f.wav"]
    with bucket.watch() as watch:
        assert names(watch.poll()) == ["a.WAV", "b.mp3", "f.wav"]


def test_name_that_cannot_be_read_costs_itself(tmp_path: Path) -> None:
    source, log = tmp_path / "raw" / f"dt={day(0)}", Log()
    source.mkdir(parents=True)
    (source / "a.wav").write_bytes(b"x")
    for name in (b"/caf\xe9.wav", b"/gar\xe7on"):
        Path(os.fsdecode(os.fsencode(source) + name)).mkdir()
    watch = SourceWatch(WatchedSource(source=f"{tmp_path}/raw/dt={{dt}}/", rules=AT_ONCE), log)
    try:
        assert names(watch.poll()) == ["a.wav"]
        watch.poll(later(2 * HOUR))
    finally:
        watch.close()
    (line,) = [line for line in log.lines if "cannot be read" in line]
    assert line.startswith(f"2 objects under file://{tmp_path}/raw/ have names that cannot be read")


def test_odd_names_of_objects_and_folders_are_reported_as_they_are(bucket: Bucket) -> None:
    for key in ("two\nlines.wav", "b.wav", "\x1b/c.wav"):
        bucket.put(f"dt={day(0)}/{key}")
    bucket.put(f"dt={day(1)}\t/d.wav")
    with bucket.watch() as watch:
        assert names(watch.poll()) == ["b.wav", "c.wav", "d.wav", "two\nlines.wav"]
        bucket.put(f"dt={day(0)}/e.wav")
        assert names(watch.poll()) == ["e.wav"]


def test_partition_can_come_from_the_time_of_modification(bucket: Bucket) -> None:
    bucket.put("inbox/a.wav")
    modified = bucket.client.head_object(Bucket=bucket.name, Key="raw/inbox/a.wav")["LastModified"]
    with bucket.watch("inbox/", partition_from_modified={"dt": "%Y-%m-%d"}) as watch:
        assert counts(watch.poll()) == {f"{modified:%Y-%m-%d}": 1}


def test_long_list_is_an_object_in_staging(bucket: Bucket) -> None:
    for i in range(INLINE_URIS + 1):
        bucket.put(f"dt={day(i % 2)}/{i}.wav", b"x" * i)
    with bucket.watch() as watch:
        (payload,) = watch.poll()
    assert payload["uris"] is None
    assert len(json.dumps(payload)) < 2_000
    with ObjectStorage(bucket.s3.config).open(payload["list_uri"]) as file:
        table = pq.read_table(file)
    assert table.num_rows == payload["files"] == INLINE_URIS + 1
    assert sum(table["audio_bytes"].to_pylist()) == payload["bytes"]
    assert set(table["partition"].to_pylist()) == {f"dt={day(0)}", f"dt={day(1)}"}


def test_staging_that_cannot_be_used_costs_the_list_and_not_the_event(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_WRONG", bucket.s3.connection.replace(SECRET_KEY, "another-secret"))
    for i in range(INLINE_URIS + 1):
        bucket.put(f"dt={day(0)}/{i}.wav")
    with bucket.watch(staging_conn_id="wrong") as watch:
        (payload,) = watch.poll()
    assert (payload["list_uri"], payload["files"]) == (None, INLINE_URIS + 1)
    assert any("was not written" in line for line in bucket.log.lines)


def test_long_list_without_staging_is_left_out(bucket: Bucket) -> None:
    for i in range(INLINE_URIS + 1):
        bucket.put(f"dt={day(0)}/{i}.wav")
    with bucket.watch(staging=None) as watch:
        (payload,) = watch.poll()
    assert (payload["uris"], payload["list_uri"], payload["files"]) == (None, None, INLINE_URIS + 1)


def test_since_leaves_out_what_is_older(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch(since=(datetime.now(UTC) + timedelta(minutes=1)).isoformat()) as watch:
        assert watch.poll() == []


def test_large_backlog_is_reported_over_several_polls(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_whisper.watch.watcher.MAX_EVENTS", 2)
    for i in range(5):
        bucket.put(f"dt={day(0)}/{i}.wav")
    with bucket.watch(rules=BatchRules(stable_polls=1, max_files=1)) as watch:
        reported = [len(watch.poll()) for _ in range(4)]
    assert reported == [2, 2, 1, 0]


# --- what is listed --------------------------------------------------------------------------------------


@pytest.fixture
def two_years(bucket: Bucket) -> Bucket:
    for ago in range(0, 730, 10):
        bucket.put(f"dt={day(ago)}/a.wav")
    return bucket


def test_idle_poll_lists_only_what_can_have_changed(two_years: Bucket) -> None:
    with two_years.watch(sweep_interval=HOUR) as watch:
        assert sum(payload["files"] for payload in watch.poll()) == 73
        before = two_years.s3.list_requests()
        # Nothing came into any of the 73 folders for two hours, and only today is recent.
        watch._lister._swept = time.time() + 2 * HOUR
        assert watch.poll(later(2 * HOUR)) == []
        assert two_years.s3.list_requests() - before == 2


def test_file_in_a_folder_never_met_is_found_at_once(two_years: Bucket) -> None:
    with two_years.watch() as watch:
        watch.poll()
        two_years.put(f"dt={day(365)}/a.wav")
        two_years.put("dt=2001-01-01/b.wav")
        assert counts(watch.poll()) == {day(365): 1, "2001-01-01": 1}


def test_late_file_in_an_old_folder_is_found_by_the_next_sweep(two_years: Bucket) -> None:
    with two_years.watch(sweep_interval=HOUR) as watch:
        watch.poll()
        watch._active.clear()  # as after an hour without new files
        two_years.put(f"dt={day(300)}/late.wav")
        assert watch.poll(later(HOUR - 60)) == []
        assert names(watch.poll(later(HOUR))) == ["late.wav"]


def test_folder_with_recent_arrivals_is_looked_into_however_old_its_date(two_years: Bucket) -> None:
    with two_years.watch() as watch:
        watch.poll()
        two_years.put(f"dt={day(300)}/b.wav")
        assert names(watch.poll()) == ["b.wav"]


def test_local_folder_is_watched_too(tmp_path: Path) -> None:
    old = datetime(2020, 1, 1).timestamp()
    for ago in (0, 300):
        (tmp_path / f"dt={day(ago)}").mkdir()
        (tmp_path / f"dt={day(ago)}" / "a.wav").write_bytes(b"x")
    watch = SourceWatch(WatchedSource(source=f"{tmp_path}/dt={{dt}}/", rules=AT_ONCE))
    assert counts(watch.poll()) == {day(0): 1, day(300): 1}
    watch.pending.raise_watermark(time.time_ns() // 1000)
    moved = tmp_path / "moved.wav"
    moved.write_bytes(b"y")
    os.utime(moved, (old, old))
    moved.rename(tmp_path / f"dt={day(0)}" / "moved.wav")
    assert names(watch.poll()) == ["moved.wav"]
    watch.close()


# --- the cursor ------------------------------------------------------------------------------------------


def through_json(state: CursorState | None) -> dict[str, Any]:
    assert state is not None
    text = json.dumps(state.values)
    assert len(text) <= 64 * 1024
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_restarted_watch_repeats_nothing_and_misses_nothing(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch() as watch:
        watch.poll()
        state = through_json(watch.cursor.to_write())
    assert list(state["files"]) == [f"dt={day(0)}/a.wav"]
    bucket.put(f"dt={day(300)}/b.wav")
    with bucket.watch() as watch:
        watch.cursor.restore(state)
        assert names(watch.poll()) == ["b.wav"]


def test_restarted_watch_still_reports_what_it_had_not(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    rules = BatchRules(stable_polls=1, min_files=2, max_wait=9 * HOUR)
    with bucket.watch(rules=rules, overlap=0) as watch:
        assert watch.poll(later(5 * HOUR)) == []
        state = through_json(watch.cursor.to_write())
    bucket.put(f"dt={day(0)}/b.wav")
    with bucket.watch(rules=rules, overlap=0) as watch:
        watch.cursor.restore(state)
        assert names(watch.poll(later(5 * HOUR))) == ["a.wav", "b.wav"]


def test_cursor_is_written_only_when_it_changed(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch("dt={dt}/", sweep_interval=0) as watch:
        watch.poll()
        first = watch.cursor.to_write()
        assert first is not None
        watch.poll(later(60))
        assert watch.cursor.to_write() is None
        watch.cursor.was_not_stored(first)
        assert watch.cursor.to_write() is not None
        watch.poll(later(HOUR))
        assert watch.cursor.to_write() is not None


def test_old_files_are_not_remembered_by_name(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch(overlap=HOUR) as watch:
        watch.poll()
        watch.poll(later(3 * HOUR))
        state = through_json(watch.cursor.to_write())
        assert state["files"] == {}
        assert watch.poll(later(3 * HOUR)) == []


def report_many(watch: SourceWatch, count: int) -> None:
    root, now = watch._watched.partitioning.template.root, time.time_ns() // 1000
    watch.pending.add_reported((f"{root}dt={day(0)}/{i:06d}.wav", f"{i:032x}", now) for i in range(count))


def written(watch: SourceWatch) -> CursorState:
    state = watch.cursor.to_write()
    assert state is not None
    through_json(state)
    return state


def test_long_cursor_goes_to_staging_and_the_old_one_is_removed(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/000007.wav")
    many = INLINE_BYTES // 20
    with bucket.watch() as watch:
        report_many(watch, many)
        state = written(watch)
        assert state.values["files"] == {}
        watch.cursor.was_stored(state)
        (first,) = bucket.staged()
    with bucket.watch() as watch:
        watch.cursor.restore(state.values)
        assert watch.pending.reported_count() == many
        assert names(watch.poll()) == ["000007.wav"]  # its etag is another
        watch.pending.start_generation()
        report_many(watch, many)
        state = written(watch)
        assert len(bucket.staged()) == 2  # until the new one is stored, the old one counts
        watch.cursor.was_stored(state)
        (second,) = bucket.staged()
    assert first != second


def test_what_came_after_a_long_cursor_is_stored_at_once(bucket: Bucket) -> None:
    with bucket.watch() as watch:
        report_many(watch, INLINE_BYTES // 20)
        watch.cursor.was_stored(written(watch))
        states = []
        for name in ("a.wav", "b.wav"):
            bucket.put(f"dt={day(0)}/{name}")
            assert names(watch.poll()) == [name]
            states.append(written(watch))
        assert len(bucket.staged()) == 1
    for restarts in range(2):
        with bucket.watch() as watch:
            watch.cursor.restore(states[-1].values)
            assert watch.poll() == []
            bucket.put(f"dt={day(0)}/{restarts}.wav")
            assert names(watch.poll()) == [f"{restarts}.wav"]
            states.append(written(watch))


def test_object_in_staging_stays_while_any_stored_cursor_needs_it(bucket: Bucket) -> None:
    with bucket.watch() as watch:
        states = []
        for _ in range(3):
            watch.pending.start_generation()
            report_many(watch, INLINE_BYTES // 20)
            states.append(written(watch))
        # Each state is stored a while after it was made.
        watch.cursor.was_stored(states[0])
        assert len(bucket.staged()) == 3
        watch.cursor.was_not_stored(states[1])
        watch.cursor.was_stored(states[2])
        assert len(bucket.staged()) == 2
        last = written(watch)
        watch.cursor.was_stored(last)
        assert [f"s3://{bucket.name}/{key}" for key in bucket.staged()] == [last.values["files_uri"]]


@pytest.mark.parametrize("with_object", [False, True])
def test_cursor_of_an_earlier_release_is_read(bucket: Bucket, with_object: bool) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch() as watch:
        watch.poll()
        ((uri, etag, _),) = watch.pending.reported()
    key = uri.removeprefix(f"s3://{bucket.name}/raw/")
    state: dict[str, Any] = {"version": 1, "floor": 0, "saved": time.time_ns() // 1000}
    if with_object:
        state["files_uri"] = f"s3://{bucket.name}/staging/memory-1.json.gz"
        data = gzip.compress((json.dumps([key, etag]) + "\n").encode())
        bucket.client.put_object(Bucket=bucket.name, Key="staging/memory-1.json.gz", Body=data)
    else:
        state["files"] = {key: etag}
    with bucket.watch() as watch:
        watch.cursor.restore(state)
        assert watch.poll() == []


def test_long_cursor_without_staging_keeps_the_newest_and_says_so(bucket: Bucket) -> None:
    with bucket.watch(staging=None) as watch:
        report_many(watch, INLINE_BYTES // 20)
        state = through_json(watch.cursor.to_write())
        assert 500 < len(state["files"]) < INLINE_BYTES // 20
    assert any("`staging`" in line for line in bucket.log.lines)


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        {"version": 2},
        {"version": 2, "watermark": "x", "saved": 1},
        {"version": 2, "watermark": 1, "saved": 1, "files": [1]},
    ],
)
def test_cursor_that_is_damaged_repeats_instead_of_failing(bucket: Bucket, values: Any) -> None:
    bucket.put("dt=2026-11-01/a.wav")
    with bucket.watch() as watch:
        watch.cursor.restore(values)
        assert len(watch.poll()) == 1


def test_lost_object_in_staging_repeats_instead_of_failing(bucket: Bucket) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch() as watch:
        uri = f"s3://{bucket.name}/staging/gone"
        watch.cursor.restore({"version": 2, "watermark": 0, "saved": 0, "files": {}, "files_uri": uri})
        assert names(watch.poll()) == ["a.wav"]
    assert any("is gone" in line for line in bucket.log.lines)


# --- what goes wrong -------------------------------------------------------------------------------------


def test_store_that_refuses_is_an_error_that_leaves_the_cursor_alone(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put(f"dt={day(0)}/a.wav")
    with bucket.watch() as watch:
        watch.poll()
        wrong = bucket.s3.connection.replace(SECRET_KEY, "another-secret")
        monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", wrong)
        watch._lister._connection = None
        with pytest.raises(StorageError) as caught:
            watch.poll()
        assert "another-secret" not in str(caught.value)
        monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", bucket.s3.connection)
        bucket.put(f"dt={day(0)}/b.wav")
        assert names(watch.poll()) == ["b.wav"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"staging": "s3://calls/raw/dt=1/"}, "must not lie inside"),
        ({"since": "2026-11-01"}, "time zone"),
        ({"since": "yesterday"}, "time zone"),
        ({"overlap": -1}, "overlap"),
        ({"extensions": ("",)}, "extensions"),
        ({"source": ""}, "source"),
        ({"source": "s3://calls//raw/dt={dt}/"}, "Did you mean 's3://calls/raw/dt={dt}/'"),
        ({"staging": "s3://calls/staging//"}, "Did you mean 's3://calls/staging/'"),
    ],
)
def test_wrong_argument_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatchedSource(**{"source": "s3://calls/raw/dt={dt}/", **wrong})


def test_staging_beside_the_partitions_is_fine() -> None:
    WatchedSource(source="s3://calls/dt={dt}/", staging="s3://calls/staging/")
