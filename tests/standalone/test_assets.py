"""DAGs that start each other through assets, in a live Airflow."""

from __future__ import annotations

import datetime

import pytest
from live_airflow import PATIENCE, wait_for
from live_site import Site
from speech import Clip

pytestmark = pytest.mark.timeout(2 * PATIENCE)

DISCOVERY, PARTITIONED = "discover_partitions", "transcribe_partitioned"
SENSOR = "transcribe_with_sensor"
CONSUMER, PARTITIONED_CONSUMER = "transcripts_consumer", "transcripts_consumer_partitioned"
TABLE = "speech.transcripts_by_hour"
TASKS = ("discover", "transcribe", "validate", "register")


def test_each_partition_key_is_transcribed_in_a_run_of_its_own(site: Site, librivox: list[Clip]) -> None:
    airflow = site.airflow
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    clips = {f"dt={today}/hour=01": librivox[1], f"dt={today}/hour=02": librivox[4]}
    for key, clip in clips.items():
        site.put(f"partitioned/{key}/a.wav", clip.path.read_bytes())
    site.put(f"partitioned/dt={today}/stray.wav", b"in no partition")
    with site.unpaused(PARTITIONED, PARTITIONED_CONSUMER, DISCOVERY):
        # Nobody triggers anything: discovery is scheduled, and the rest follows.
        wait_for(
            "two runs and their consumers",
            lambda: airflow.succeeded(PARTITIONED, 2) and airflow.succeeded(PARTITIONED_CONSUMER, 2),
            PATIENCE,
        )
        # At the full hour discovery runs twice, and may find the same: one commit all the same.
        wait_for("the end of all runs", lambda: airflow.idle(PARTITIONED, PARTITIONED_CONSUMER), PATIENCE)
        assert len(site.snapshots(TABLE)) == 2
        assert {run["partition_key"] for run in airflow.runs(PARTITIONED)} == set(clips)
        rows = {f"dt={row['dt']}/hour={row['hour']}": row for row in site.rows(TABLE)}
        assert set(rows) == set(clips)
        assert {row["status"] for row in rows.values()} == {"ok"}

        for run in airflow.runs(PARTITIONED_CONSUMER):
            key = run["partition_key"]
            log = airflow.log(PARTITIONED_CONSUMER, run["dag_run_id"], "print_new_rows")
            events = [event for event in airflow.events() if event["partition_key"] == key]
            (snapshot,) = {e["extra"]["snapshot_id"] for e in events if "snapshot_id" in e["extra"]}
            assert f"{TABLE}, {key}, snapshot {snapshot}: 1 rows, 0 of them errors" in log
            assert rows[key]["text"] in log
            assert all(other["text"] not in log for k, other in rows.items() if k != key)

        # A key by hand, as from the form: nothing is left to do, and nobody is told.
        key, told = next(iter(clips)), len(airflow.runs(PARTITIONED_CONSUMER))
        again = airflow.trigger(PARTITIONED, partition_key=key)
        assert airflow.finished(PARTITIONED, again["dag_run_id"])["partition_key"] == key
        assert airflow.states(PARTITIONED, again["dag_run_id"]) == dict.fromkeys(TASKS, "skipped")
        assert len(airflow.runs(PARTITIONED_CONSUMER)) == told
        assert len(site.snapshots(TABLE)) == 2


def test_consumer_prints_what_the_daily_dag_published(site: Site, librivox: list[Clip]) -> None:
    airflow = site.airflow
    site.put("daily/dt=2026-10-01/a.wav", librivox[1].path.read_bytes())
    site.put("daily/dt=2026-10-01/broken.wav", b"RIFF no more of it")

    def consumed() -> str:
        """The log of the consumer's run for this day; other days may have been published before."""
        newest = [run for run in airflow.runs(CONSUMER)[:3] if run["state"] == "success"]
        logs = (airflow.log(CONSUMER, run["dag_run_id"], "print_new_rows") for run in newest)
        return next((log for log in logs if "dt=2026-10-01" in log), "")

    with site.unpaused(CONSUMER, "transcribe_daily"):
        run = airflow.trigger("transcribe_daily", {"dt": "2026-10-01", "max_error_rate": 0.5})
        assert airflow.finished("transcribe_daily", run["dag_run_id"])["state"] == "success"
        log = wait_for("the consumer's run", consumed, PATIENCE)
    rows = {row["audio_uri"]: row for row in site.rows() if row["dt"] == "2026-10-01"}
    assert len(rows) == 2
    assert f"snapshot {site.snapshots()[-1]}: 2 rows, 1 of them errors, 0 removed" in log
    for uri, row in rows.items():
        assert f"{uri}: {row['text'] if row['status'] == 'ok' else row['error_code']}" in log


def test_deferred_sensor_starts_on_new_audio(site: Site, librivox: list[Clip]) -> None:
    airflow = site.airflow
    with site.unpaused(SENSOR):
        (run,) = wait_for("the scheduled run", lambda: airflow.runs(SENSOR), PATIENCE)
        wait_for(
            "the sensor to be deferred",
            lambda: airflow.states(SENSOR, run["dag_run_id"])["arrived"] == "deferred",
            PATIENCE,
        )
        site.put("daily/dt=2026-10-02/a.wav", librivox[1].path.read_bytes())
        assert airflow.finished(SENSOR, run["dag_run_id"])["state"] == "success"
        assert airflow.states(SENSOR, run["dag_run_id"]) == {
            "arrived": "success",
            **{f"{task}[0]": "success" for task in TASKS},
        }
    assert [row["status"] for row in site.rows() if row["dt"] == "2026-10-02"] == ["ok"]
