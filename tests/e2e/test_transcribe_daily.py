"""The example DAG on a real S3 server and a real Iceberg REST catalog, run after run.

Each fixture is one more run of the same partition, in this order:
first_run -> rerun -> late_file -> reuploaded -> removed_kept -> removed_deleted -> other_options
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import pytest
from dag_runs import DagRun, run_dag, watched_arguments
from servers import ACCESS_KEY, SECRET_KEY, Lake, S3Server
from speech import Clip
from whisper_normalizer.english import EnglishTextNormalizer

from whisper_spark.contract import CHANGES

pytestmark = pytest.mark.timeout(900)

DAG_ID = "transcribe_daily"
TABLE = "speech.transcripts"
DT = "2026-11-01"
TASKS = ("discover", "transcribe", "validate", "register")
ALL = dict.fromkeys(TASKS, "success")
NONE = dict.fromkeys(TASKS, "skipped")
AWKWARD = "Gespräch #1 100%25 'a+b'?"


@dataclass
class Partition:
    """One day of calls in a bucket, its table, and everything that was seen while the DAG ran."""

    s3: S3Server
    lake: Lake
    bucket: str
    home: Path
    environment: dict[str, str]
    clips: list[Clip]
    runs: list[DagRun] = field(default_factory=list)
    command_lines: set[str] = field(default_factory=set)

    def put(self, name: str, body: bytes) -> None:
        self.s3.client().put_object(Bucket=self.bucket, Key=f"raw/dt={DT}/{name}", Body=body)

    def remove(self, name: str) -> None:
        self.s3.client().delete_object(Bucket=self.bucket, Key=f"raw/dt={DT}/{name}")

    def run(self, **conf: Any) -> DagRun:
        with watched_arguments() as seen:
            run = run_dag(self.home, DAG_ID, self.environment, {"dt": DT, "max_error_rate": 0.5, **conf})
        self.command_lines |= seen
        self.runs.append(run)
        return run

    def table(self) -> Any:
        from pyiceberg.catalog.rest import RestCatalog

        return RestCatalog("lake", **self.lake.properties).load_table(TABLE)

    def rows(self) -> dict[str, dict[str, Any]]:
        found = self.table().scan().to_arrow().to_pylist()
        by_name = {row["audio_uri"].rpartition("/")[2]: row for row in found}
        assert len(by_name) == len(found), "two rows for one file"
        return by_name

    def snapshots(self) -> list[int]:
        return [snapshot.snapshot_id for snapshot in self.table().snapshots()]


@dataclass(frozen=True)
class Seen:
    """What there is to see after one run."""

    run: DagRun
    rows: dict[str, dict[str, Any]]
    snapshots: list[int]

    @property
    def counts(self) -> dict[str, int]:
        counts = self.run.xcoms["discover.counts"]
        return {change: counts[change] for change in (*CHANGES, "removed", "unchanged") if counts[change]}


def see(partition: Partition, **conf: Any) -> Seen:
    run = partition.run(**conf)
    assert run.returncode == 0, run.log[-8000:]
    return Seen(run, partition.rows(), partition.snapshots())


@pytest.fixture(scope="module")
def partition(s3: S3Server, airflow_home: Path, model_dir: Path, librivox: list[Clip]) -> Partition:
    bucket, lake = s3.bucket("calls"), s3.lake()
    environment = {
        "AIRFLOW_WHISPER_SOURCE": f"s3://{bucket}/raw/dt={{dt}}/",
        "AIRFLOW_WHISPER_STAGING": f"s3://{bucket}/staging/",
        "AIRFLOW_WHISPER_TABLE": TABLE,
        "AIRFLOW_WHISPER_MODEL": str(model_dir),
        "AIRFLOW_WHISPER_SOURCE_CONN_ID": "calls",
        "AIRFLOW_WHISPER_CATALOG_CONN_ID": "lake",
        "AIRFLOW_WHISPER_RETRIES": "0",
        "AIRFLOW_WHISPER_SPARK_CONF": json.dumps({"spark.ui.enabled": "false"}),
        "AIRFLOW_CONN_CALLS": s3.connection,
        "AIRFLOW_CONN_LAKE": lake.connection,
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
    }
    return Partition(s3, lake, bucket, airflow_home, environment, librivox)


@pytest.fixture(scope="module")
def first_run(partition: Partition) -> Seen:
    partition.put("one.wav", partition.clips[0].path.read_bytes())
    partition.put(AWKWARD, partition.clips[1].path.read_bytes())
    partition.put("empty.wav", b"")
    return see(partition)


@pytest.fixture(scope="module")
def rerun(partition: Partition, first_run: Seen) -> Seen:
    return see(partition)


@pytest.fixture(scope="module")
def late_file(partition: Partition, rerun: Seen) -> Seen:
    partition.put("late.wav", partition.clips[2].path.read_bytes())
    return see(partition)


@pytest.fixture(scope="module")
def reuploaded(partition: Partition, late_file: Seen) -> Seen:
    partition.put("one.wav", partition.clips[3].path.read_bytes())
    return see(partition)


@pytest.fixture(scope="module")
def removed_kept(partition: Partition, reuploaded: Seen) -> Seen:
    partition.remove("late.wav")
    return see(partition)


@pytest.fixture(scope="module")
def removed_deleted(partition: Partition, removed_kept: Seen) -> Seen:
    return see(partition, on_removed="delete")


@pytest.fixture(scope="module")
def other_options(partition: Partition, removed_deleted: Seen) -> Seen:
    return see(partition, language="en", initial_prompt="Sense and Sensibility")


def word_error_rate(clip: Clip, row: dict[str, Any]) -> float:
    normalise = EnglishTextNormalizer()
    return float(jiwer.wer(normalise(clip.text), normalise(row["text"])))


def test_first_run_publishes_every_file_once(first_run: Seen, partition: Partition) -> None:
    assert first_run.run.states == ALL
    assert first_run.counts == {"new": 3}
    assert len(first_run.snapshots) == 1
    assert set(first_run.rows) == {"one.wav", AWKWARD, "empty.wav"}
    assert {row["dt"] for row in first_run.rows.values()} == {DT}
    for name, clip in (("one.wav", partition.clips[0]), (AWKWARD, partition.clips[1])):
        row = first_run.rows[name]
        assert row["status"] == "ok"
        assert row["language"] == "en"
        assert row["duration_s"] == pytest.approx(clip.seconds, abs=0.1)
        assert word_error_rate(clip, row) <= 0.15


def test_bad_file_is_an_error_row_beside_good_ones(first_run: Seen) -> None:
    row = first_run.rows["empty.wav"]
    assert (row["status"], row["error_code"]) == ("error", "empty")


def test_first_run_tells_downstream_dags_what_was_published(first_run: Seen) -> None:
    (extra,) = first_run.run.events
    assert f"dt={DT}" in json.dumps(extra)
    assert str(first_run.snapshots[-1]) in json.dumps(extra)
    assert first_run.run.xcoms["validate.report_uri"] in json.dumps(extra)


def test_rerun_skips_and_publishes_nothing(rerun: Seen, first_run: Seen) -> None:
    assert rerun.run.states == NONE
    assert rerun.run.events == []
    assert rerun.snapshots == first_run.snapshots


def test_late_file_costs_one_file(late_file: Seen, rerun: Seen) -> None:
    assert late_file.run.states == ALL
    assert late_file.counts == {"new": 1, "unchanged": 3}
    assert len(late_file.snapshots) == 2
    assert set(late_file.rows) == {*rerun.rows, "late.wav"}
    for name, row in rerun.rows.items():
        assert late_file.rows[name] == row


def test_reuploaded_file_replaces_its_row(reuploaded: Seen, late_file: Seen, partition: Partition) -> None:
    assert reuploaded.counts == {"changed": 1, "unchanged": 3}
    assert set(reuploaded.rows) == set(late_file.rows)
    assert reuploaded.rows["one.wav"]["audio_etag"] != late_file.rows["one.wav"]["audio_etag"]
    assert word_error_rate(partition.clips[3], reuploaded.rows["one.wav"]) <= 0.15


def test_row_of_a_removed_file_is_kept_by_default(removed_kept: Seen, reuploaded: Seen) -> None:
    assert removed_kept.run.states == NONE
    assert removed_kept.snapshots == reuploaded.snapshots
    assert "late.wav" in removed_kept.rows


def test_row_of_a_removed_file_is_deleted_on_request(removed_deleted: Seen, removed_kept: Seen) -> None:
    assert removed_deleted.run.states == ALL
    assert removed_deleted.counts == {"removed": 1, "unchanged": 3}
    assert set(removed_deleted.rows) == set(removed_kept.rows) - {"late.wav"}
    assert len(removed_deleted.snapshots) == len(removed_kept.snapshots) + 1


def test_changed_options_transcribe_again(other_options: Seen, removed_deleted: Seen) -> None:
    assert other_options.run.states == ALL
    assert other_options.counts == {"stale": 3}
    assert set(other_options.rows) == set(removed_deleted.rows)
    before = {row["fingerprint"] for row in removed_deleted.rows.values()}
    after = {row["fingerprint"] for row in other_options.rows.values()}
    assert len(after) == 1
    assert after.isdisjoint(before)


def test_secrets_are_nowhere(other_options: Seen, partition: Partition) -> None:
    places = dict(everything_written(partition))
    assert {"command lines", "Airflow's database"} < set(places)
    assert any(place.startswith("log of run") for place in places)
    assert any("manifest.parquet" in place for place in places)
    assert any("/rows/" in place for place in places)
    assert any(".metadata.json" in place for place in places)
    # Not the script spark-submit, which becomes this process within milliseconds.
    submitted = "org.apache.spark.deploy.SparkSubmit"
    assert any(submitted in line for line in partition.command_lines), "nothing was watched"
    for credential in (SECRET_KEY, ACCESS_KEY):
        for form in (credential, *in_base64(credential)):
            assert [place for place, text in places.items() if form in text] == []


def in_base64(secret: str) -> list[str]:
    """What is always in the base64 form of a longer text that holds the secret, wherever in it."""
    forms = [base64.b64encode(b"\0" * before + secret.encode()).decode() for before in range(3)]
    return [form[4 if before else 0 : -4] for before, form in enumerate(forms)]


def test_in_base64_finds_a_secret_anywhere() -> None:
    for before in range(6):
        text = base64.b64encode(b"x" * before + SECRET_KEY.encode() + b"yz").decode()
        assert any(form in text for form in in_base64(SECRET_KEY))


def everything_written(partition: Partition) -> Iterator[tuple[str, str]]:
    """Every place where a credential could have ended up, with its content as text."""
    yield "command lines", "\n".join(partition.command_lines)
    yield "Airflow's database", (partition.home / "airflow.db").read_bytes().decode("latin-1")
    for number, run in enumerate(partition.runs):
        yield f"log of run {number}", run.log
    for path in (partition.home / "logs").rglob("*"):
        if path.is_file():
            yield str(path), path.read_text(errors="replace")
    client = partition.s3.client()
    for bucket, prefix in ((partition.bucket, "staging/"), (partition.lake.name, "")):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                body = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
                yield f"s3://{bucket}/{item['Key']}", as_text(item["Key"], body)


def as_text(name: str, body: bytes) -> str:
    if not name.endswith(".parquet"):
        return body.decode("latin-1")
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(body))
    return f"{file.schema_arrow.metadata} {file.metadata.metadata} {file.read().to_pylist()}"
