"""Listener in the scheduler: the note of a DAG run tells what became of a partition without any work.

A run that finds nothing to do skips all its tasks, and looks in the web interface as if nothing had ever
happened. A task cannot write the note of its run, but the scheduler can when the run ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.listeners import hookimpl

from airflow_whisper.outcome import OUTCOME_KEY

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import Session

PREFIX = "whisper: "
"""Beginning of the notes that this listener writes. It never changes another note."""

_OPERATOR = "DiscoverAudioOperator"
_MOST_OUTCOMES = 3
_LONGEST_NOTE = 1000


class RunNotes:
    """Writes the notes. Airflow logs an exception of a listener and goes on."""

    @hookimpl
    def on_dag_run_success(self, dag_run: DagRun, msg: str) -> None:
        """Called by the scheduler in its database session, which it commits afterwards."""
        write_note(dag_run)


def write_note(dag_run: DagRun) -> None:
    """Write the outcomes of a run's ``discover`` tasks as its note, or remove the note of an earlier try."""
    from sqlalchemy.orm import object_session

    dag, session = dag_run.dag, object_session(dag_run)
    # `airflow dags test` has no session here.
    if dag is None or session is None:
        return
    tasks = [task.task_id for task in dag.tasks if task.task_type == _OPERATOR]
    if not tasks or (dag_run.note and not dag_run.note.startswith(PREFIX)):
        return
    note = note_text(_outcomes(dag_run, tasks, session))
    if note:
        dag_run.note = note
    elif dag_run.note:
        dag_run.dag_run_note = None


def note_text(outcomes: list[str]) -> str:
    """Return the note for the outcomes of a run; empty if there are none."""
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
