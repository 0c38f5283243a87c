"""What a run of the whole task group leaves for people and for other systems to look at."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dag_runs import DagRun, run_dag
from servers import S3Server, free_ports

pytestmark = pytest.mark.timeout(600)

STANDIN = Path(__file__).parents[1] / "support" / "standin_engine.py"
USER, PASSWORD = "reader", "a-password-for-tests"
TASKS = ("discover", "transcribe", "validate", "register")

DAG = """
import os
from datetime import datetime

from airflow.sdk import DAG, Asset
from airflow_whisper import WhisperOptions, transcribe_partition

with DAG("observed", schedule=None, start_date=datetime(2026, 11, 1)):
    transcribe_partition(
        source=os.environ["AUDIO"],
        partition={"dt": "2026-11-01"},
        table="speech.observed",
        staging=os.environ["STAGING"],
        options=WhisperOptions(model="base"),
        staging_conn_id="calls_s3",
        max_error_rate=0.5,
        outlets=[Asset("observed_transcripts")],
        spark={
            "py_files": os.environ["STANDIN"],
            "application_args": ["--engine", "standin_engine:get_engine"],
            "history_server": "https://history.example/",
        },
    )
"""


@dataclass(frozen=True)
class Observed:
    """One run of the DAG, and where it happened."""

    run: DagRun
    events: list[dict[str, Any]]
    environment: dict[str, str]
    audio: str
    staging: str

    def last(self, task: str) -> dict[str, Any]:
        """The last OpenLineage event of a task."""
        return [event for event in self.events if event["job"]["name"] == f"observed.transcribe.{task}"][-1]


@pytest.fixture(scope="module")
def observed(s3: S3Server, airflow_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder = tmp_path_factory.mktemp("observed")
    audio = folder / "raw" / "dt=2026-11-01"
    audio.mkdir(parents=True)
    for name, order in (("a", ""), ("b", ""), ("c", "error")):
        (audio / f"{name}.wav").write_text(order)
    (folder / "dags").mkdir()
    (folder / "dags" / "observed.py").write_text(DAG)
    staging = f"s3://{s3.bucket('observed')}/staging/"
    transport = {"type": "file", "log_file_path": str(folder / "lineage.jsonl"), "append": True}
    environment = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
        "AIRFLOW__API__BASE_URL": "https://airflow.example/team",
        "AIRFLOW_CONN_CALLS_S3": s3.connection,
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        "AIRFLOW_WHISPER_WAREHOUSE": str(folder / "warehouse"),
        "AUDIO": f"file://{audio}/",
        "STAGING": staging,
        "STANDIN": str(STANDIN),
    }
    run = run_dag(airflow_home, "observed", environment)
    assert run.returncode == 0, run.log[-8000:]
    assert run.states == dict.fromkeys(TASKS, "success")
    events = [json.loads(line) for line in (folder / "lineage.jsonl").read_text().splitlines()]
    return Observed(run, events, environment, str(audio), staging)


# --- links, log and XComs --------------------------------------------------------------------------------


def test_spark_ui_is_linked_while_the_job_runs_and_its_history_afterwards(observed: Observed) -> None:
    said = re.search(r"whisper: Spark application (\S+), UI at (http://\S+)", observed.run.log)
    assert said is not None
    assert observed.run.xcoms["transcribe._link_SparkUILink"] == f"https://history.example/history/{said[1]}/"


def test_report_is_linked_by_validate_and_register(observed: Observed) -> None:
    for task in ("validate", "register"):
        link = urllib.parse.urlsplit(observed.run.xcoms[f"{task}._link_ReportLink"])
        assert f"{link.scheme}://{link.netloc}{link.path}" == "https://airflow.example/team/whisper/report"
        query = urllib.parse.parse_qs(link.query)
        assert (query["dag_id"], query["task_id"]) == (["observed"], [f"transcribe.{task}"])
    # No catalog page was named, so the link is there without an address.
    assert observed.run.xcoms["register._link_TableLink"] == ""


def test_task_log_has_the_lines_of_the_job(observed: Observed) -> None:
    lines = [line for line in observed.run.log.splitlines() if "whisper: " in line]
    assert any("whisper: 3 files for speech.observed dt=2026-11-01" in line for line in lines)
    assert any(re.search(r"whisper: done in \d+ s: 2 ok, 1 errors", line) for line in lines)


def test_event_of_the_asset_reads_without_knowing_the_code(observed: Observed) -> None:
    (extra,) = observed.run.events
    assert {key: extra[key] for key in ("table", "partition", "rows", "errors", "removed")} == {
        "table": "speech.observed",
        "partition": "dt=2026-11-01",
        "rows": 3,
        "errors": 1,
        "removed": 0,
    }
    assert extra["report_uri"].startswith(observed.staging)
    assert isinstance(extra["snapshot_id"], int)


# --- the report in the API server ------------------------------------------------------------------------


@dataclass(frozen=True)
class ApiServer:
    """A running API server with one user."""

    url: str

    def get(self, path: str, token: str | None = None) -> tuple[int, dict[str, str], str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read().decode()

    def token(self) -> str:
        request = urllib.request.Request(
            f"{self.url}/auth/token",
            json.dumps({"username": USER, "password": PASSWORD}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.loads(answer.read())["access_token"])


@pytest.fixture(scope="module")
def api_server(observed: Observed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("api") / "log"
    passwords = log.with_name("passwords.json")
    passwords.write_text(json.dumps({USER: PASSWORD}))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "api-server", "--port", str(port), "--workers", "1"],
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={
                **os.environ,
                **observed.environment,
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:viewer",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
                "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
            },
        )
    server = ApiServer(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()[-5000:]
            assert time.monotonic() < deadline, log.read_text()[-5000:]
            try:
                server.get("/api/v2/version")
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def report_path(observed: Observed, task: str, **changes: str) -> str:
    link = urllib.parse.urlsplit(observed.run.xcoms[f"{task}._link_ReportLink"])
    query = dict(urllib.parse.parse_qsl(link.query)) | changes
    return f"/whisper/report?{urllib.parse.urlencode(query)}"


@pytest.mark.parametrize("task", ["validate", "register"])
def test_api_server_shows_the_report_to_users(observed: Observed, api_server: ApiServer, task: str) -> None:
    status, headers, page = api_server.get(report_path(observed, task), api_server.token())
    assert status == 200, page
    assert "All 9 checks passed." in page
    assert f"file://{observed.audio}/c.wav" in page
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy


def test_api_server_shows_no_report_to_strangers(observed: Observed, api_server: ApiServer) -> None:
    status, _, page = api_server.get(report_path(observed, "validate"))
    assert status == 401
    assert "speech.observed" not in page


def test_api_server_says_when_there_is_no_report(observed: Observed, api_server: ApiServer) -> None:
    path = report_path(observed, "validate", task_id="transcribe.discover")
    status, _, page = api_server.get(path, api_server.token())
    assert status == 404
    assert "has not written a report" in page


# --- OpenLineage -----------------------------------------------------------------------------------------


def conditions(condition: dict[str, Any]) -> dict[str, Any]:
    """The parts of a subset by their type."""
    sides = (condition["left"], condition["right"]) if condition["type"] == "binary" else (condition,)
    return {side["type"]: side for side in sides}


def test_every_task_tells_openlineage_when_it_begins_and_ends(observed: Observed) -> None:
    told = {(event["job"]["name"].rpartition(".")[2], event["eventType"]) for event in observed.events}
    assert {(task, kind) for task in TASKS for kind in ("START", "COMPLETE")} <= told


def test_lineage_leads_from_the_audio_to_the_version_of_the_table(observed: Observed) -> None:
    discover, transcribe, register = map(observed.last, ("discover", "transcribe", "register"))
    (audio,) = discover["inputs"]
    assert (audio["namespace"], audio["name"]) == ("file", str(Path(observed.audio).parent))
    part = conditions(audio["inputFacets"]["subset"]["inputCondition"])
    assert part["partition"]["partitions"][0]["dimensions"] == {"dt": "2026-11-01"}
    assert audio["inputFacets"]["inputStatistics"]["fileCount"] == 3

    assert transcribe["inputs"][0]["name"] == audio["name"]
    (staged,) = transcribe["outputs"]
    bucket = observed.staging.split("/")[2]
    assert (staged["namespace"], staged["name"]) == (f"s3://{bucket}", "staging/speech.observed")
    assert staged["outputFacets"]["outputStatistics"]["rowCount"] == 3
    parameters = transcribe["run"]["facets"]["executionParameters"]["parameters"]
    assert {"key": "model", "value": "base"}.items() <= parameters[0].items() or any(
        parameter["key"] == "model" and parameter["value"] == "base" for parameter in parameters
    )

    assert register["inputs"][0]["name"] == staged["name"]
    (table,) = register["outputs"]
    assert table["facets"]["version"]["datasetVersion"] == str(observed.run.events[0]["snapshot_id"])
    assert table["facets"]["symlinks"]["identifiers"][0]["name"] == "speech.observed"
    assert {"audio_uri", "text", "dt"} <= {field["name"] for field in table["facets"]["schema"]["fields"]}
    assert table["outputFacets"]["outputStatistics"]["rowCount"] == 3
    part = conditions(table["outputFacets"]["subset"]["outputCondition"])
    assert part["partition"]["partitions"][0]["identifier"] == "dt=2026-11-01"


def test_checks_are_data_quality_assertions(observed: Observed) -> None:
    (staged,) = observed.last("validate")["inputs"]
    assertions = staged["inputFacets"]["dataQualityAssertions"]["assertions"]
    by_name = {assertion["assertion"]: assertion for assertion in assertions}
    assert len(by_name) == 9
    assert by_name["error rate"]["success"] is True
    assert (by_name["error rate"]["expected"], by_name["error rate"]["actual"]) == (
        "at most 50 %",
        "33.33 % (1 of 3 files)",
    )
