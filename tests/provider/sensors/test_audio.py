"""NewAudioSensor: audio that the table lacks is new. Real folders, buckets, tables and task runs.

Deferral is driven here as the triggerer does it; a whole DAG run with it is in tests/e2e.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import (
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from servers import SECRET_KEY, S3Server, free_ports

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.sensors.audio import NewAudioSensor
from airflow_whisper.table.schema import ensure_table
from airflow_whisper.triggers.sensor import AudioToTranscribeTrigger
from whisper_spark.contract import Transcript, transcript_schema
from whisper_spark.storage.objects import ObjectStorage

TABLE = "speech.transcripts"


class Place:
    """Calls of two days, and a table."""

    def __init__(self, storage: ObjectStorage, base: str, conn_id: str | None) -> None:
        self.storage, self.base, self.conn_id = storage, base, conn_id

    def put(self, key: str, body: bytes = b"x") -> None:
        self.storage.write_bytes(f"{self.base}/{key}", body)

    def folder(self, dt: str) -> dict[str, Any]:
        return {"source": f"{self.base}/dt={dt}/", "partition": {"dt": dt}}

    def sensor(self, **arguments: Any) -> NewAudioSensor:
        defaults = {
            "source": f"{self.base}/dt={{dt}}/",
            "table": TABLE,
            "source_conn_id": self.conn_id,
            "stable_polls": 1,
            "poke_interval": 0.05,
            "timeout": 30,
            "deferrable": False,
        }
        return NewAudioSensor(task_id="arrived", **{**defaults, **arguments})

    def publish(self, dt: str, status: str = "ok") -> None:
        """Puts a row for each file of a day into the table."""
        rows = []
        for batch in self.storage.list(f"{self.base}/dt={dt}/"):
            for file in batch.to_pylist():
                transcript = Transcript(
                    audio_uri=file["audio_uri"],
                    audio_etag=file["audio_etag"],
                    audio_bytes=file["audio_bytes"],
                    status=status,
                    error_code="corrupt" if status == "error" else None,
                    attempt=1,
                    fingerprint="any",
                )
                rows.append({**transcript.to_row(), "dt": dt})
        table = ensure_table(open_catalog(None), TABLE, ["dt"])
        table.append(pa.Table.from_pylist(rows, schema=transcript_schema(["dt"])))


@pytest.fixture(params=["local", "s3"])
def place(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    catalog_env: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    if request.param == "local":
        return Place(ObjectStorage(), f"file://{tmp_path}/raw", None)
    server: S3Server = request.getfixturevalue("s3")
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", server.connection)
    return Place(ObjectStorage(server.config), f"s3://{server.bucket('calls')}/raw", "calls_s3")


@pytest.fixture
def local(tmp_path: Path, catalog_env: SimpleNamespace) -> Place:
    return Place(ObjectStorage(), f"file://{tmp_path}/raw", None)


class Task:
    """Stands for the parts of a task's context that the sensor uses."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}
        self.state: dict[str, str] = {}

    def context(self) -> dict[str, Any]:
        ti = SimpleNamespace(
            xcom_push=lambda key, value: self.xcoms.__setitem__(key, value),
            get_first_reschedule_date=lambda context: None,
        )
        store = SimpleNamespace(
            get=lambda key: json.loads(self.state[key]) if key in self.state else None,
            set=lambda key, value: self.state.__setitem__(key, json.dumps(value)),
        )
        return {"ti": ti, "task_state_store": store}


def run(sensor: NewAudioSensor, task: Task | None = None) -> Any:
    return sensor.execute((task or Task()).context())


def test_sensor_returns_partitions_that_the_table_lacks(place: Place) -> None:
    place.put("dt=2026-11-01/a.wav", b"123")
    place.put("dt=2026-11-02/b.wav")
    task = Task()
    assert run(place.sensor(), task) == [place.folder("2026-11-01"), place.folder("2026-11-02")]
    assert [(e["files"], e["bytes"]) for e in task.xcoms["arrivals"]] == [(1, 3), (1, 1)]
    place.publish("2026-11-01")
    assert run(place.sensor()) == [place.folder("2026-11-02")]


def test_late_and_overwritten_files_make_a_partition_new(place: Place) -> None:
    place.put("dt=2026-11-01/a.wav")
    place.put("dt=2026-11-02/b.wav")
    for dt in ("2026-11-01", "2026-11-02"):
        place.publish(dt)
    with pytest.raises(AirflowSensorTimeout):
        run(place.sensor(timeout=0))
    place.put("dt=2026-11-01/late.wav")
    place.put("dt=2026-11-02/b.wav", b"another take")
    assert run(place.sensor()) == [place.folder("2026-11-01"), place.folder("2026-11-02")]


def test_error_row_ends_no_waiting(local: Place) -> None:
    local.put("dt=2026-11-01/a.wav")
    local.publish("2026-11-01", status="error")
    with pytest.raises(AirflowSensorTimeout):
        run(local.sensor(timeout=0))


def test_partition_can_be_fixed_and_the_rest_come_from_the_path(local: Place) -> None:
    local.put("dt=2026-11-01/hour=13/a.wav")
    sensor = local.sensor(source=f"{local.base}/dt=2026-11-01/hour={{hour}}/", partition={"dt": "2026-11-01"})
    assert run(sensor) == [
        {
            "source": f"{local.base}/dt=2026-11-01/hour=13/",
            "partition": {"dt": "2026-11-01", "hour": "13"},
        }
    ]


def test_poke_mode_waits_until_a_file_is_stable(local: Place) -> None:
    local.put("dt=2026-11-01/a.wav")
    began = time.monotonic()
    assert run(local.sensor(stable_polls=4)) == [local.folder("2026-11-01")]
    assert time.monotonic() - began >= 3 * 0.05


def test_rescheduled_pokes_tell_stability_together(local: Place) -> None:
    local.put("dt=2026-11-01/a.wav")
    task = Task()
    arguments = {"mode": "reschedule", "stable_polls": 3}
    for _ in range(2):
        with pytest.raises(AirflowRescheduleException):
            run(local.sensor(**arguments), task)
    assert run(local.sensor(**arguments), task) == [local.folder("2026-11-01")]


def test_too_few_files_are_waited_for(local: Place) -> None:
    local.put("dt=2026-11-01/a.wav")
    with pytest.raises(AirflowSensorTimeout):
        run(local.sensor(min_files=2, timeout=0))
    local.put("dt=2026-11-02/b.wav")
    assert len(run(local.sensor(min_files=2))) == 2
    assert len(run(local.sensor(min_files=3, max_file_wait=0))) == 2


def test_timeout_fails_or_with_soft_fail_skips(local: Place) -> None:
    with pytest.raises(AirflowSensorTimeout):
        run(local.sensor(timeout=0))
    with pytest.raises(AirflowSkipException):
        run(local.sensor(timeout=0, soft_fail=True))


def test_unreachable_store_is_waited_for(
    s3: S3Server, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(ObjectStorage(s3.config), f"s3://{s3.bucket('calls')}/raw", "calls_s3")
    place.put("dt=2026-11-01/a.wav")
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", s3.connection.replace(SECRET_KEY, "wrong-secret-key"))
    with pytest.raises(AirflowSensorTimeout):
        run(place.sensor(timeout=0))
    pokes = []
    sensor = place.sensor()
    original = sensor.poke

    def poke(context: Any) -> Any:
        pokes.append(1)
        if len(pokes) == 2:
            monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", s3.connection)
        return original(context)

    monkeypatch.setattr(sensor, "poke", poke)
    assert run(sensor) == [place.folder("2026-11-01")]


def test_catalog_that_does_not_answer_is_waited_for(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.put("dt=2026-11-01/a.wav")
    (port,) = free_ports(1)
    down = {"conn_type": "iceberg", "host": f"http://127.0.0.1:{port}", "extra": {"type": "rest"}}
    up = {
        "conn_type": "iceberg",
        "host": f"sqlite:///{tmp_path}/lake.db",
        "extra": {"type": "sql", "warehouse": f"file://{tmp_path}/lake"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(down))
    with pytest.raises(AirflowSensorTimeout):
        run(local.sensor(timeout=0, catalog_conn_id="lake"))
    sensor = local.sensor(catalog_conn_id="lake")
    original = sensor.poke

    def poke(context: Any) -> Any:
        found = original(context)
        monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps(up))
        return found

    monkeypatch.setattr(sensor, "poke", poke)
    assert run(sensor) == [local.folder("2026-11-01")]


def test_missing_connection_fails_at_once(local: Place, airflow_home: Path) -> None:
    with pytest.raises(InvalidConnectionError, match="there is no connection 'nowhere'"):
        run(local.sensor(source="s3://calls/dt={dt}/", source_conn_id="nowhere"))


# --- deferred --------------------------------------------------------------------------------------------


def deferred(sensor: NewAudioSensor) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        run(sensor)
    return caught.value


def revived(trigger: Any) -> AudioToTranscribeTrigger:
    from airflow.serialization.serialized_objects import BaseSerialization

    stored = json.loads(json.dumps(BaseSerialization.serialize(trigger.serialize()[1])))
    return AudioToTranscribeTrigger(**BaseSerialization.deserialize(stored))


def first_event(trigger: AudioToTranscribeTrigger, meanwhile: Any = None) -> Mapping[str, Any]:
    async def wait() -> Any:
        async def first() -> Any:
            async for event in trigger.run():
                return event.payload

        waiting = asyncio.create_task(first())
        await asyncio.sleep(0.3)
        if meanwhile:
            assert not waiting.done()
            meanwhile()
        return await asyncio.wait_for(waiting, 30)

    payload: Mapping[str, Any] = asyncio.run(wait())
    return payload


def test_audio_that_is_there_already_needs_no_deferral(local: Place) -> None:
    local.put("dt=2026-11-01/a.wav")
    assert run(local.sensor(deferrable=True)) == [local.folder("2026-11-01")]


def test_deferred_sensor_goes_on_when_audio_has_come(place: Place) -> None:
    place.put("dt=2026-11-01/a.wav")
    place.publish("2026-11-01")
    sensor = place.sensor(deferrable=True)
    deferral = deferred(sensor)
    trigger = revived(deferral.trigger)
    assert SECRET_KEY not in str(trigger.serialize())
    event = first_event(trigger, lambda: place.put("dt=2026-11-02/b.wav"))
    task = Task()
    result = getattr(sensor, deferral.method_name)(task.context(), dict(event))
    assert result == [place.folder("2026-11-02")]
    assert task.xcoms["arrivals"][0]["files"] == 1


def test_deferred_sensor_whose_connection_is_gone_fails_with_the_reason(
    s3: S3Server, catalog_env: SimpleNamespace, airflow_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", s3.connection)
    sensor = Place(ObjectStorage(), f"s3://{s3.bucket('calls')}", "calls_s3").sensor(deferrable=True)
    deferral = deferred(sensor)
    monkeypatch.delenv("AIRFLOW_CONN_CALLS_S3")
    event = first_event(revived(deferral.trigger))
    with pytest.raises(RuntimeError, match="there is no connection 'calls_s3'"):
        sensor.execute_complete(Task().context(), dict(event))


def test_task_deferred_by_an_earlier_release_goes_on(local: Place) -> None:
    local.put("dt=2026-11-01/a.wav")
    watched = {
        "source": f"{local.base}/dt={{dt}}/",
        "rules": {"stable_polls": 1, "min_age": 60, "min_files": 1, "max_wait": 300, "max_files": 10_000},
        "partition_from_modified": None,
        "partition": {},
        "pattern": None,
        "extensions": ("wav",),
        "since": None,
        "lookback": 172_800,
        "overlap": 3600,
        "sweep_interval": 3600,
        "source_conn_id": None,
        "staging": None,
        "staging_conn_id": None,
    }
    trigger = AudioToTranscribeTrigger(watched=watched, table=TABLE, catalog_conn_id=None, poll_interval=1)
    (entry,) = first_event(revived(trigger))["partitions"]
    assert entry["partition"] == {"dt": "2026-11-01"}


def test_deferral_ends_with_the_timeout(local: Place) -> None:
    deferral = deferred(local.sensor(deferrable=True, timeout=77))
    assert deferral.timeout.total_seconds() == 77
    for soft_fail, outcome in ((False, AirflowSensorTimeout), (True, AirflowSkipException)):
        sensor = local.sensor(deferrable=True, soft_fail=soft_fail)
        with pytest.raises(outcome):
            sensor.resume_execution("__fail__", {"error": "Trigger timeout"}, Task().context())  # type: ignore[arg-type]


# --- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": "transcripts"}, "namespace"),
        ({"source": "s3://calls/raw/"}, "which partition"),
        ({"partition": {"dt": "1"}}, "more than once"),
        ({"min_files": 0}, "min_files"),
        ({"min_files": "ten"}, "min_files must be a whole number"),
        ({"extensions": "wav"}, "must be a list"),
        ({"since": "yesterday"}, "since"),
    ],
)
def test_wrong_argument_fails_while_the_dag_file_is_parsed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NewAudioSensor(task_id="s", **{"source": "s3://calls/dt={dt}/", "table": TABLE, **wrong})


def test_text_stays_text_where_templates_render_to_objects() -> None:
    with DAG("native", schedule=None, render_template_as_native_obj=True):
        sensor = NewAudioSensor(
            task_id="s",
            source="s3://calls/dt={{ v }}/hour={hour}/",
            partition={"dt": "{{ v }}"},
            table=TABLE,
            since="{{ none }}",
        )
    sensor.render_template_fields({"v": "2026_11_01"})
    watched = sensor._watched()
    assert (watched.source, watched.partition) == (
        "s3://calls/dt=2026_11_01/hour={hour}/",
        {"dt": "2026_11_01"},
    )
    assert watched.since is None


def test_templates_are_checked_when_the_task_runs(local: Place) -> None:
    sensor = local.sensor(source="{{ params.source }}", table="{{ params.table }}", since="{{ ds }}")
    sensor.source, sensor.table, sensor.since = "s3://calls/", TABLE, ""
    with pytest.raises(ValueError, match="which partition"):
        run(sensor)


RESCHEDULED = """
from datetime import datetime
from airflow.sdk import DAG
from airflow_whisper.sensors.audio import NewAudioSensor

with DAG("waits", schedule=None, start_date=datetime(2026, 1, 1)):
    NewAudioSensor(
        task_id="arrived", source={source!r}, table="speech.transcripts", mode={mode!r},
        poke_interval=1, timeout=60, deferrable={deferrable}, stable_polls=2,
    )
"""


@pytest.mark.airflow
@pytest.mark.parametrize(("mode", "deferrable"), [("reschedule", False), ("poke", True)])
def test_airflow_runs_the_sensor_to_its_end(
    local: Place, airflow_home: Path, tmp_path: Path, mode: str, deferrable: bool
) -> None:
    (tmp_path / "dags").mkdir()
    text = RESCHEDULED.format(source=f"{local.base}/dt={{dt}}/", mode=mode, deferrable=deferrable)
    (tmp_path / "dags" / "waits.py").write_text(text)
    local.put("dt=2026-11-01/a.wav")
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "dags", "test", "waits", f"2026-11-0{1 + deferrable}"],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "1 files, 0.0 MB, in 1 partitions are not in speech.transcripts" in done.stdout + done.stderr
