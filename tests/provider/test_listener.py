"""The note of a DAG run, which says what became of a partition when all its tasks were skipped."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_whisper import transcribe_partition
from airflow_whisper.listener import PREFIX, discover_tasks, note_text
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.maintain import MaintainTableOperator
from airflow_whisper.outcome import OUTCOME_KEY

DAG_FILE = """
from datetime import UTC, datetime
from airflow.sdk import DAG
from airflow_whisper import transcribe_partition

with DAG("noted", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), params={{"dry_run": True}}):
    transcribe_partition(
        source="{folder}/dt=2026-11-01/",
        partition={{"dt": "2026-11-01"}},
        table="speech.transcripts",
        staging="{folder}_staging",
        export="{folder}_export/{{name}}.{{format}}",
        dry_run="{{{{ params.dry_run }}}}",
    )
"""


class Ended:
    """A run in Airflow's database whose tasks have all been skipped, as the scheduler finds it."""

    def __init__(self, dag: DAG, session: Any) -> None:
        from airflow.models.dagbundle import DagBundleModel
        from airflow.models.dagrun import DagRun
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        self.session = session
        scheduled = DagSerialization.from_dict(DagSerialization.to_dict(dag))
        if session.get(DagBundleModel, "test") is None:
            session.add(DagBundleModel(name="test"))
            session.flush()
        scheduled.bulk_write_to_db("test", None, [LazyDeserializedDAG.from_dag(dag)], session=session)
        SerializedDagModel.write_dag(LazyDeserializedDAG.from_dag(dag), bundle_name="test", session=session)
        session.flush()
        made = scheduled.create_dagrun(
            run_id=f"manual__{datetime.now(UTC).isoformat()}",
            run_after=datetime.now(UTC),
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )
        session.flush()
        self.run: DagRun = made
        self.run.dag = scheduled

    def discover_says(self, outcome: str | None, task_id: str = "transcribe.discover") -> None:
        from airflow.models.xcom import XComModel

        where = {"dag_id": self.run.dag_id, "run_id": self.run.run_id, "task_id": task_id}
        if outcome is None:
            XComModel.clear(**where, session=self.session)
        else:
            # Without serialising it first, as the API server stores what a task pushes.
            XComModel.set(OUTCOME_KEY, outcome, **where, serialize=False, session=self.session)
        self.session.flush()

    def start(self, then: str = "RUNNING") -> str | None:
        """What the scheduler does when it starts the run, or sees it fail; returns the note."""
        from airflow.utils.state import DagRunState

        self.run.state = DagRunState[then]
        self.run.notify_dagrun_state_changed(msg="started")
        self.session.flush()
        self.session.expire(self.run)
        note: str | None = self.run.note
        return note

    def end(self) -> str | None:
        from airflow.utils.state import DagRunState

        for instance in self.run.get_task_instances(session=self.session):
            instance.state = "skipped"
        self.run.state = DagRunState.RUNNING
        self.run.update_state(session=self.session, execute_callbacks=False)
        self.session.flush()
        self.session.expire(self.run)
        assert self.run.state == DagRunState.SUCCESS
        note: str | None = self.run.note
        return note


@pytest.fixture
def session(airflow_home: Path) -> Iterator[Any]:
    """A session of Airflow's database that is rolled back."""
    from airflow.listeners.listener import get_listener_manager
    from airflow.utils.session import create_session

    from airflow_whisper.listener import RunNotes

    notes = RunNotes()
    get_listener_manager().add_listener(notes)
    with create_session() as session:
        yield session
        session.rollback()
    get_listener_manager().pm.unregister(notes)


@pytest.fixture
def ended(session: Any) -> Ended:
    with DAG("noted_runs", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        transcribe_partition(source="s3://b/a", partition={"dt": "1"}, table="a.b", staging="s3://b/s")
    return Ended(dag, session)


def test_note_says_what_discover_said(ended: Ended) -> None:
    ended.discover_says("dt=2026-11-01 is up to date: 22 unchanged")
    assert ended.end() == "whisper: dt=2026-11-01 is up to date: 22 unchanged"


def test_note_of_a_person_stays(ended: Ended) -> None:
    ended.run.note = "asked for by the legal team"
    ended.discover_says("up to date")
    assert ended.end() == "asked for by the legal team"


def test_note_goes_when_a_cleared_run_has_done_something(ended: Ended) -> None:
    ended.discover_says("up to date")
    assert ended.end() == f"{PREFIX}up to date"
    ended.discover_says(None)
    assert ended.end() is None


def test_runs_of_other_dags_are_left_alone(session: Any) -> None:
    from airflow.providers.standard.operators.empty import EmptyOperator

    with DAG("other_runs", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        EmptyOperator(task_id="nothing")
    other = Ended(dag, session)
    other.discover_says("up to date", task_id="nothing")
    assert other.end() is None


def in_pool(session: Any, dag_id: str, pool: str | None, pool_of_all: str | None = None) -> Ended:
    with DAG(dag_id, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        transcribe_partition(
            source="s3://b/a",
            partition={"dt": "1"},
            table="a.b",
            staging="s3://b/s",
            pool=pool,
            default_args={"pool": pool_of_all} if pool_of_all else {},
        )
    return Ended(dag, session)


def create_pool(session: Any, name: str) -> None:
    from airflow.models.pool import Pool

    session.add(Pool(pool=name, slots=1, include_deferred=False))
    session.flush()


def test_note_names_a_pool_that_does_not_exist_as_soon_as_the_run_starts(session: Any) -> None:
    run = in_pool(session, "waits", "gpu jobs")
    note = run.start()
    assert note
    assert note.startswith(f"{PREFIX}the pool 'gpu jobs' does not exist")
    assert "transcribe.transcribe" in note
    assert "airflow pools set 'gpu jobs' 1" in note
    create_pool(session, "gpu jobs")
    # It was cleared, or failed for another reason.
    assert run.start("FAILED") is None
    assert run.start() is None


def test_note_names_the_pool_of_discover_as_well(session: Any) -> None:
    note = in_pool(session, "waits_at_once", None, "nowhere").start()
    assert note
    assert "so Airflow never starts transcribe.discover" in note


def test_run_with_pools_that_exist_has_no_note(session: Any) -> None:
    create_pool(session, "there")
    assert in_pool(session, "goes_on", "there").start() is None
    assert in_pool(session, "needs_none", None).start() is None


def test_note_of_an_earlier_try_goes_when_the_run_starts_again(ended: Ended) -> None:
    ended.discover_says("up to date")
    assert ended.end()
    assert ended.start() is None


class OurDiscovery(DiscoverAudioOperator):
    """An operator of a user."""

    template_fields = (*DiscoverAudioOperator.template_fields, "another")
    another = ""


def test_outcome_of_a_subclass_is_noted(session: Any) -> None:
    where = {"source": "s3://b/a", "partition": {"dt": "1"}, "table": "a.b", "staging": "s3://b/s"}
    with DAG("our_runs", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC)) as dag:
        OurDiscovery(task_id="ours", **where)
    ended = Ended(dag, session)
    ended.discover_says("up to date", task_id="ours")
    assert ended.end() == "whisper: up to date"


def test_outcomes_of_mapped_tasks_are_noted() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    where = {"source": "s3://b/a", "table": "a.b", "staging": "s3://b/s"}
    with DAG("mapped_runs", schedule=None) as dag:
        OurDiscovery.partial(task_id="ours", **where).expand(partition=[{"dt": "1"}, {"dt": "2"}])
        MaintainTableOperator(task_id="maintain", table="a.b")
    scheduled = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert discover_tasks(scheduled) == ["ours"]


def test_note_of_a_run_over_many_partitions_is_short() -> None:
    note = note_text([f"dt={day} is up to date" for day in range(500)])
    assert note.endswith("and 497 more partitions")
    assert note.count("up to date") == 3
    assert len(note_text(["x" * 5000])) == 1000


def test_plugin_brings_the_listener() -> None:
    from airflow_whisper.listener import RunNotes
    from airflow_whisper.plugin import WhisperPlugin

    (listener,) = WhisperPlugin().listeners
    assert isinstance(listener, RunNotes)


@pytest.mark.airflow
def test_dry_run_skips_every_task_and_writes_nothing(
    tmp_path: Path, airflow_home: Path, catalog_env: SimpleNamespace
) -> None:
    calls, dags = tmp_path / "calls", tmp_path / "dags"
    (calls / "dt=2026-11-01").mkdir(parents=True)
    (calls / "dt=2026-11-01/a.mp3").write_bytes(b"x" * 12_000 * 60)
    dags.mkdir()
    (dags / "noted.py").write_text(DAG_FILE.format(folder=calls))
    done = subprocess.run(
        [sys.executable, "-m", "airflow", "dags", "test", "noted", "2026-11-02"],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(dags)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "60 s of audio, 18 s to 3 min (from the typical size of .mp3)" in done.stdout + done.stderr
    assert "Error while calling listener" not in done.stdout + done.stderr
    with sqlite3.connect(airflow_home / "airflow.db") as database:
        states = database.execute("SELECT state FROM task_instance WHERE dag_id = 'noted'").fetchall()
    assert states == [("skipped",)] * 5
    assert not [path for path in tmp_path.iterdir() if path.name in ("calls_staging", "calls_export")]
