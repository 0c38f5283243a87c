"""Where the links on the tasks lead."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.serialization.serialized_objects import DagSerialization

from airflow_whisper.hooks.spark_submit import spark_application
from airflow_whisper.links import SparkUILink, TableLink, report_address
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator, application_name

KEY: Any = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=-1)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "whisper: Spark application local-1700, UI at http://10.0.0.7:4040\n",
            ("local-1700", "http://10.0.0.7:4040"),
        ),
        ("whisper: Spark application app-2026-0001", ("app-2026-0001", None)),
        # A name of a file in the output is not the line that the job says.
        ("a.wav whisper: Spark application x, UI at http://evil.example", (None, None)),
        ("whisper: Spark application x, UI at javascript:alert(1)", (None, None)),
    ],
)
def test_job_says_where_its_ui_is(line: str, found: tuple[str | None, str | None]) -> None:
    assert spark_application(line) == found


def test_spark_link_leads_nowhere_after_the_end_unless_a_history_server_is_named() -> None:
    without = WhisperTranscribeOperator(task_id="t", manifest="m")
    without._application_id = "app-1"
    assert SparkUILink().get_link(without, ti_key=KEY) == ""
    named = WhisperTranscribeOperator(task_id="t", manifest="m", history_server="https://history.example/")
    assert SparkUILink().get_link(named, ti_key=KEY) == ""  # Spark was not started
    named._application_id = "app-1"
    assert SparkUILink().get_link(named, ti_key=KEY) == "https://history.example/history/app-1/"


@pytest.mark.parametrize(
    ("table_url", "link"),
    [("https://catalog.example/t", "https://catalog.example/t"), (None, ""), ("javascript:alert(1)", "")],
)
def test_table_link_is_an_address_for_browsers_or_none(table_url: str | None, link: str) -> None:
    operator = RegisterTranscriptsOperator(task_id="r", manifest="s3://b/m", table_url=table_url)
    assert TableLink().get_link(operator, ti_key=KEY) == link


def test_log_names_the_report_by_a_url_that_the_log_viewer_makes_a_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ti = SimpleNamespace(
        dag_id="d", run_id="manual__2026-11-01T00:00:00+00:00", task_id="t.validate", map_index=2
    )
    assert report_address(ti, "s3://b/report.html") == "s3://b/report.html"
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://localhost:8080/")
    text = f"Report: {report_address(ti, 's3://b/report.html')}"
    # The pattern of Airflow's log viewer.
    links = re.findall(r"(?:\s|^)(https?://(?:www\.|(?!www))[^\s.]+\.\S{2,}|www\.\S+\.\S{2,})", text)
    (link,) = links
    assert link == (
        "http://localhost:8080/whisper/report?dag_id=d&run_id=manual__2026-11-01T00%3A00%3A00%2B00%3A00"
        "&task_id=t.validate&map_index=2"
    )
    assert "s3://b/report.html" in text


def test_spark_application_is_named_after_dag_task_and_partition() -> None:
    ti = SimpleNamespace(dag_id="calls", task_id="transcribe.transcribe")
    run = SimpleNamespace(partition={"dt": "2026-11-01", "hour": "13"})
    name = application_name(ti, run)  # type: ignore[arg-type]
    assert name == "calls.transcribe.transcribe dt=2026-11-01/hour=13"


def test_links_survive_serialisation_into_the_web_interface() -> None:
    with DAG("d", schedule=None) as dag:
        tasks: list[BaseOperator] = [
            WhisperTranscribeOperator(task_id="transcribe", manifest="m"),
            RegisterTranscriptsOperator(task_id="register", manifest="s3://b/m"),
        ]
    restored = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    names = {task.task_id: sorted(restored.get_task(task.task_id).extra_links) for task in tasks}
    assert names == {"transcribe": ["Spark UI"], "register": ["Table", "Transcription report"]}
