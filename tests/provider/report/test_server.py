"""The report's endpoint in Airflow's API server: permissions, locations, and invalid requests and reports."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.api_fastapi.core_api import security
from airflow.models.connection import Connection
from fastapi.testclient import TestClient
from sqlalchemy import event
from staged_runs import STORAGE, row, staged_run

from airflow_whisper.plugin import WhisperPlugin
from airflow_whisper.report import server
from airflow_whisper.report.server import Place, Task
from airflow_whisper.report.write import write_report
from airflow_whisper.validation.run import validate_run
from whisper_spark.contract import Run

QUERY = {"dag_id": "d", "run_id": "r", "task_id": "t"}
FOLDER = "speech.transcripts/dt=2026-11-01/3ebd40757f909d2d/" + "0" * 32


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the application, with all permissions."""
    allow = SimpleNamespace(is_authorized_dag=lambda **_: True)
    monkeypatch.setattr(security, "get_auth_manager", lambda: allow)
    app = server.create_app()
    app.dependency_overrides[security.get_user] = lambda: SimpleNamespace(name="viewer")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def reported(tmp_path: Path) -> Run:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    write_report(validate_run(run, STORAGE, max_error_rate=0.0), run, STORAGE)
    return run


def show(client: TestClient, monkeypatch: pytest.MonkeyPatch, place: Place) -> Any:
    monkeypatch.setattr(server, "_find", lambda task: place)
    monkeypatch.setattr(security, "DagModel", SimpleNamespace(get_team_name=lambda dag_id: None))
    return client.get("/report", params=QUERY)


# --- what is shown ---------------------------------------------------------------------------------------


def test_report_is_shown(client: TestClient, monkeypatch: pytest.MonkeyPatch, reported: Run) -> None:
    answer = show(client, monkeypatch, Place(reported.report_uri, None))
    assert answer.status_code == 200
    assert "All 9 checks passed." in answer.text


@pytest.mark.parametrize(
    "query",
    [
        {"map_index": "x"},
        {"map_index": str(2**70)},
        {"map_index": "-2"},
        {"dag_id": ""},
        {"dag_id": "a\x00b"},
        {"run_id": "\n"},
        {"task_id": "t" * 10_000},
        {"task_id": None},
    ],
    ids=lambda query: str(query)[:30],
)
def test_odd_parameters_are_refused_before_the_database_is_asked(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, query: dict[str, str | None]
) -> None:
    def asked(*_: object) -> None:
        pytest.fail("the database was asked")

    monkeypatch.setattr(server, "_find", asked)
    monkeypatch.setattr(security, "DagModel", SimpleNamespace(get_team_name=asked))
    parameters = {key: value for key, value in {**QUERY, **query}.items() if value is not None}
    assert client.get("/report", params=parameters).status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"passed": "yes"},
        {"checks": [{"check": 1}]},
        {"checks": [{"check": "c", "expected": 1, "found": [], "passed": True, "offenders": 3}]},
        {"counts": []},
        {"counts": {"files": "many"}},
        {"counts": {"languages": {"en": "all"}}},
        {"totals": {"audio_seconds": None}},
        {"distributions": {"duration_s": {"edges": [], "counts": []}}},
        {"distributions": {"throughput": 7}},
        {"worst": [{"avg_logprob": "low"}]},
        {"worst": [3]},
        {"job": {"real_time_factor": "fast"}},
        {"warnings": {"repetitive": "often"}},
    ],
    ids=str,
)
def test_malformed_report_is_a_message_and_no_server_error(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, reported: Run, change: dict[str, Any]
) -> None:
    values = json.loads(STORAGE.read_bytes(reported.report_uri))
    STORAGE.write_bytes(reported.report_uri, json.dumps(values | change).encode())
    answer = show(client, monkeypatch, Place(reported.report_uri, None))
    # Some of these are odd and can be shown all the same.
    assert answer.status_code in (200, 404)
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"3"], ids=len)
def test_what_is_no_report_is_a_message(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, reported: Run, content: bytes
) -> None:
    STORAGE.write_bytes(reported.report_uri, content)
    answer = show(client, monkeypatch, Place(reported.report_uri, None))
    assert (answer.status_code, "cannot show it" in answer.text) == (404, True)


def test_page_stays_small_whatever_the_report_says(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, reported: Run
) -> None:
    values = json.loads(STORAGE.read_bytes(reported.report_uri))
    check = {"check": "c", "expected": "e", "found": "\x00" * 300, "passed": False}
    row = {"audio_uri": "s3://b/" + '"' * 400, "text": "<" * 400, "quality_flags": ["&" * 400] * 3}
    values["checks"] = [{**check, "offenders": ["\x1b" * 400]}] * 100
    values["worst"] = [row] * 100
    values["counts"]["languages"] = {f"{number:x}\x00": number for number in range(10_000)}
    report = json.dumps(values).encode()
    assert len(report) < server.MAX_REPORT_BYTES
    STORAGE.write_bytes(reported.report_uri, report)
    answer = show(client, monkeypatch, Place(reported.report_uri, None))
    assert answer.status_code == 200
    assert len(answer.content) < 2 * server.MAX_REPORT_BYTES
    STORAGE.write_bytes(reported.report_uri, b" " * (server.MAX_REPORT_BYTES + 1))
    assert show(client, monkeypatch, Place(reported.report_uri, None)).status_code == 404


def test_uri_cannot_forge_records_in_the_log(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger=server.__name__):
        show(client, monkeypatch, Place("file:///x\n2026-11-01 [error] forged\x1b[2J/report.json", None))
    (record,) = caplog.records
    assert "\n" not in caplog.text.strip()
    assert "\x1b" not in caplog.text
    assert record.exc_info is None
    assert r"x\u000a2026-11-01 [error] forged\u001b[2J" in record.getMessage()


def test_stores_that_do_not_answer_take_only_some_threads(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, reported: Run
) -> None:
    monkeypatch.setattr(server, "_WAIT_SECONDS", 0.1)
    answered = threading.Event()
    reading = threading.Semaphore(0)
    read = server._read

    def slow(place: Place) -> Any:
        reading.release()
        assert answered.wait(60)
        return read(place)

    monkeypatch.setattr(server, "_read", slow)
    codes: list[int] = []

    def click() -> None:
        codes.append(show(client, monkeypatch, Place(reported.report_uri, None)).status_code)

    threads = [threading.Thread(target=click) for _ in range(server.MAX_READERS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert reading.acquire(timeout=60)
    click()
    assert codes == [503]
    answered.set()
    for thread in threads:
        thread.join()
    assert codes[1:] == [200] * server.MAX_READERS


# --- whose report it is ----------------------------------------------------------------------------------


class Database:
    """A stand-in for Airflow's database, with one task."""

    def __init__(self, **pushed: Any) -> None:
        self.pushed = {"uri": f"s3://calls/staging/{FOLDER}/report.json", "conn_id": "calls"} | pushed
        self.fields: dict[str, Any] | None = {
            "manifest": f"s3://calls/staging/{FOLDER}/manifest.parquet",
            "staging_conn_id": "calls",
        }
        self.operator = "ValidateTranscriptsOperator"

    def find(self, monkeypatch: pytest.MonkeyPatch) -> Place | None:
        answers = iter((self.fields, self.operator))
        session = SimpleNamespace(scalar=lambda _: next(answers))

        class Opened:
            def __enter__(self) -> Any:
                return session

            def __exit__(self, *_: object) -> None:
                """Nothing to close."""

        monkeypatch.setattr("airflow.utils.session.create_session", lambda **_: Opened())
        monkeypatch.setattr(server, "_pushed", lambda session, task: self.pushed)
        return server._find(Task("d", "r", "t", -1))


def test_report_of_the_tasks_own_run_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database()
    expected = Place(f"s3://calls/staging/{FOLDER}/report.json", "calls")
    assert database.find(monkeypatch) == expected
    # Airflow keeps the rendered arguments of the last runs only.
    database.fields = None
    assert database.find(monkeypatch) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/steal",
        "s3://secrets/passwords.json",
        "file:///etc/passwd",
        f"s3://calls/other/{FOLDER}/report.json",
        f"s3://calls/staging/{FOLDER}/../../secret/report.json",
        7,
        None,
    ],
)
def test_other_places_that_an_xcom_names_are_not_read(monkeypatch: pytest.MonkeyPatch, uri: Any) -> None:
    assert Database(uri=uri).find(monkeypatch) is None


def test_connection_is_that_of_the_task_and_not_of_the_xcom(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Database(conn_id="somebody_elses").find(monkeypatch)
    assert place is not None
    assert place.conn_id == "calls"


def test_report_in_an_xcom_of_another_kind_of_task_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database()
    database.operator, database.fields = "PythonOperator", {"op_args": []}
    assert database.find(monkeypatch) is None


def test_no_connection_to_the_database_is_held_while_the_store_answers(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, airflow_home: Path, reported: Run
) -> None:
    from airflow import settings

    held: list[int] = []
    taken = SimpleNamespace(count=0, ever=0)

    def checkout(*_: object) -> None:
        taken.count += 1
        taken.ever += 1

    def checkin(*_: object) -> None:
        taken.count -= 1

    def read(place: Place) -> Any:
        held.append(taken.count)
        raise OSError("slow")

    monkeypatch.setattr(server, "_pushed", lambda session, task: {"uri": reported.report_uri})
    monkeypatch.setattr(server, "_OPERATORS", (None,))
    monkeypatch.setattr(server, "_read", read)
    event.listen(settings.engine, "checkout", checkout)
    event.listen(settings.engine, "checkin", checkin)
    try:
        assert client.get("/report", params=QUERY).status_code == 404
    finally:
        event.remove(settings.engine, "checkout", checkout)
        event.remove(settings.engine, "checkin", checkin)
    assert taken.ever > 0
    assert held == [0]


@pytest.mark.slow
def test_connection_of_the_team_is_used(monkeypatch: pytest.MonkeyPatch, reported: Run) -> None:
    asked: list[Any] = []
    connection = Connection(
        conn_id="calls",
        conn_type="aws",
        login="k",
        password="s",
        extra='{"endpoint_url": "http://127.0.0.1:1"}',
    )

    def get(conn_id: str, team_name: str | None = None) -> Any:
        asked.append((conn_id, team_name))
        return connection

    monkeypatch.setattr("airflow.models.connection.Connection.get_connection_from_secrets", get)
    with pytest.raises(Exception, match="s3://calls"):
        server._read(Place(f"s3://calls/{FOLDER}/report.json", "calls", "speech"))
    assert asked == [("calls", "speech")]


# --- the plugin ------------------------------------------------------------------------------------------


def test_airflow_starts_when_something_that_the_report_needs_has_moved(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "airflow_whisper.report.server")
    # As an import of a name that is not there any more.
    monkeypatch.setitem(sys.modules, "airflow.api_fastapi.core_api.security", None)
    assert WhisperPlugin().fastapi_apps == []
    assert "validation reports cannot be shown" in caplog.text
    monkeypatch.undo()
    assert [app["url_prefix"] for app in WhisperPlugin().fastapi_apps] == ["/whisper"]
