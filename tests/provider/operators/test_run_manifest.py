"""What the tasks after discovery say about a manifest that they were not given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk import BaseOperator

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from airflow_whisper.operators.validate import ValidateTranscriptsOperator


@pytest.mark.parametrize(
    "operator", [WhisperTranscribeOperator, ValidateTranscriptsOperator, RegisterTranscriptsOperator]
)
@pytest.mark.parametrize("manifest", [None, "", "None"])
def test_manifest_that_no_task_returned_is_told(
    operator: type[BaseOperator], manifest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spark = {"conn_type": "spark", "host": "local[1]"}
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps(spark))
    task: Any = operator(task_id="t", manifest="{{ ti.xcom_pull(task_ids='discover') }}")
    task.manifest = manifest
    with pytest.raises(ConfigurationError, match=r"manifest is .*did the task .* run, .*do_xcom_push"):
        task.execute({})
