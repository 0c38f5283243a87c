"""Listener in the scheduler: the note of a DAG run tells what no task can tell.

A run that finds nothing to do skips all its tasks, and looks in the web interface as if nothing had ever
happened: when it ends, its note says what became of the partition. A task whose pool does not exist is never
started, so it has no log: when its run starts, the note names the pool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from airflow_whisper.outcome import OUTCOME_KEY
from airflow_whisper.pools import DEFAULT_POOL, creating_command

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.serialization.definitions.dag import SerializedDAG
    from sqlalchemy.orm import Session

PREFIX = "whisper: "
"""Beginning of the notes that this listener writes. It never changes another note."""

# The scheduler knows a task only as the DAG was serialised, with the name of its class but not those of its
# parents. These template fields tell a DiscoverAudioOperator, a subclass, and a mapped one from other tasks.
_FIELDS = frozenset({"accepted_fingerprints", "max_removed_rate", "is_dry_run"})

_MOST_OUTCOMES = 3
_LONGEST_NOTE = 1000


class RunNotes:
    """Writes the notes. Airflow logs an exception of a listener and goes on."""

    @hookimpl
    def on_dag_run_running(self, dag_run: DagRun, msg: str) -> None:
        """Called by the scheduler in its database session, before any task of the run starts."""
        write_pool_note(dag_run)

    @hookimpl
    def on_dag_run_failed(self, dag_run: DagRun, msg: str) -> None:
        """Called like :meth:`on_dag_run_success`. Somebody may have created the pool meanwhile."""
        write_pool_note(dag_run)

    @hookimpl
    def on_dag_run_success(self, dag_run: DagRun, msg: str) -> None:
        """Called by the scheduler in its database session, which it commits afterwards."""
        write_note(dag_run)


def write_note(dag_run: DagRun) -> None:
    """Write the outcomes of a run's ``discover`` tasks as its note, or remove the note of an earlier try."""
    tasks, session = _discover_tasks(dag_run)
    if session is not None and tasks:
        _write(dag_run, note_text(_outcomes(dag_run, tasks, session)))


def write_pool_note(dag_run: DagRun) -> None:
    """Name the pools that a run's tasks need and that do not exist, or remove the note of an earlier try."""
    tasks, session = _discover_tasks(dag_run)
    if session is not None and tasks:
        _write(dag_run, note_text(_missing_pools(dag_run, session)))


def _discover_tasks(dag_run: DagRun) -> tuple[list[str], Session | None]:
    """Ids of the run's ``discover`` tasks, and the scheduler's session."""
    from sqlalchemy.orm import object_session

    # `airflow dags test` has no session here.
    dag, session = dag_run.dag, object_session(dag_run)
    return discover_tasks(dag) if dag else [], session


def _write(dag_run: DagRun, note: str) -> None:
    """Write or remove the note of this listener, unless there is one of a person."""
    if dag_run.note and not dag_run.note.startswith(PREFIX):
        return
    if note:
        dag_run.note = note
    elif dag_run.note:
        dag_run.dag_run_note = None


def _missing_pools(dag_run: DagRun, session: Session) -> list[str]:
    """A sentence for each pool that does not exist."""
    from airflow.models.pool import Pool
    from sqlalchemy import select

    needed: dict[str, str] = {}
    for task in dag_run.dag.tasks if dag_run.dag else ():
        if task.pool != DEFAULT_POOL:
            needed.setdefault(task.pool, task.task_id)
    if not needed:
        return []
    present = set(session.scalars(select(Pool.pool).where(Pool.pool.in_(needed))))
    return [
        f"the pool {pool!r} does not exist, so Airflow never starts {task_id}. Create it with "
        f"`{creating_command(pool)}`, and the run goes on"
        for pool, task_id in needed.items()
        if pool not in present
    ]


def discover_tasks(dag: SerializedDAG) -> list[str]:
    """Return the ids of the tasks whose outcome a note tells."""
    return [task.task_id for task in dag.tasks if _FIELDS.issubset(task.template_fields)]


def note_text(outcomes: list[str]) -> str:
    """Return the note for the outcomes of a run, or for its missing pools; empty if there are none."""
    if not outcomes:
        return ""
    more = len(outcomes) - _MOST_OUTCOMES
    lines = [*outcomes[:_MOST_OUTCOMES], *([f"and {more} more partitions"] if more > 0 else [])]
    return (PREFIX + "\n\n".join(lines))[:_LONGEST_NOTE]


def _outcomes(dag_run: DagRun, task_ids: list[str], session: Session) -> list[str]:
    from airflow.models.xcom import XComModel

    query = XComModel.get_many(
        key=OUTCOME_KEY, run_id=dag_run.run_id, dag_ids=dag_run.dag_id, task_ids=task_ids
    )
    rows = session.execute(query.with_only_columns(XComModel.value))
    return sorted(str(XComModel.deserialize_value(row)) for row in rows)
