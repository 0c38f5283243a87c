"""The DAG of ``test_marked_failed.py``: a stand-in job that stays busy until a file tells it to stop."""

from __future__ import annotations

import os
from datetime import datetime

from airflow.sdk import DAG, Param

from airflow_whisper.operators.transcribe import WhisperTranscribeOperator

with DAG(
    "stopped",
    schedule=None,
    start_date=datetime(2026, 11, 1),
    params={"manifest": Param("", type="string")},
):
    WhisperTranscribeOperator(
        task_id="transcribe",
        manifest="{{ params.manifest }}",
        py_files=os.environ["STANDIN_ENGINE"],
        application_args=["--engine", "standin_engine:get_engine", "--flush-seconds", 0.3, "--tasks", 1],
        history_server="https://history.example",
    )
