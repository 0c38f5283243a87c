"""One sentence that says what became of a partition in a run, for people in Airflow's web interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import Context

OUTCOME_KEY = "outcome"
"""Key of the XCom in which ``discover`` says why it skipped. :mod:`airflow_whisper.listener` shows it as the
note of the DAG run, because a task cannot write that note."""


def push_outcome(context: Context, text: str) -> None:
    """Push the sentence as XCom of this task instance."""
    if "ti" in context:
        context["ti"].xcom_push(key=OUTCOME_KEY, value=text)
