"""The application within Airflow's API server that shows validation reports."""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, Query, Request, status
from fastapi.responses import HTMLResponse

from airflow_whisper.links import REPORT_KEY
from airflow_whisper.report.page import POLICY, message_page, report_page
from whisper_spark.contract.text import visible

if TYPE_CHECKING:
    from airflow_whisper.validation.report import Report

log = logging.getLogger(__name__)

MAX_REPORT_BYTES = 1 << 20
"""Largest report that is read. A report holds counts and a few dozen rows, about 100 to 200 kB."""

MAX_READERS = 4
"""Maximum number of reports read at the same time, so that a store that does not respond cannot block all
threads of the API server."""

_WAIT_SECONDS = 5.0
_OPERATORS = ("ValidateTranscriptsOperator", "RegisterTranscriptsOperator")

# STAGING/TABLE/PARTITION/FINGERPRINT/MANIFEST_ID/report.json: see `contract.run_folder`.
_REPORT_URI = re.compile(
    r"^[a-z0-9]+://[^\x00-\x1f\x7f]+/[^/]+=[^/]+/[0-9a-f]{16}/[0-9a-f]{32}/report\.json$"
)

_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; sandbox allow-popups; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

# Reject identifiers that the database cannot store or would reject with its own error.
_Identifier = Annotated[str, Query(min_length=1, max_length=250, pattern=r"^[^\x00-\x1f\x7f]+$")]
_MapIndex = Annotated[int, Query(ge=-1, le=2**31 - 1)]


@dataclass(frozen=True)
class Task:
    """The task instance whose report is requested."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int


@dataclass(frozen=True)
class Place:
    """The URI of a report, the connection that reads it, and the team that the DAG belongs to."""

    uri: str
    conn_id: str | None
    team: str | None = None


def create_app() -> FastAPI:
    """Create an application with one page, ``/report``."""
    app = FastAPI(title="Whisper", docs_url=None, redoc_url=None, openapi_url=None)
    readers = threading.BoundedSemaphore(MAX_READERS)

    @app.get("/report")
    def report(task: Annotated[Task, Depends(_allowed)]) -> HTMLResponse:
        place = _find(task)
        if place is None:
            return _message(f"Task {task.task_id} of run {task.run_id} has not written a report.")
        if not readers.acquire(timeout=_WAIT_SECONDS):
            return _message(
                "Too many reports are being read. Try again.", status.HTTP_503_SERVICE_UNAVAILABLE
            )
        try:
            page = report_page(_read(place))
        except Exception as error:
            # For example a missing connection, a network problem or a damaged report.
            log.warning(
                "the report %s cannot be shown: %s: %s",
                visible(place.uri),
                type(error).__name__,
                visible(error, limit=500),
            )
            return _message(
                f"The report is {place.uri}, but Airflow's API server cannot show it: "
                f"{type(error).__name__}. Its log says more. It needs network access "
                "to that storage and the connection of the task."
            )
        finally:
            readers.release()
        return HTMLResponse(page, headers=_HEADERS)

    return app


def _task(dag_id: _Identifier, run_id: _Identifier, task_id: _Identifier, map_index: _MapIndex = -1) -> Task:
    return Task(dag_id, run_id, task_id, map_index)


def _allowed(task: Annotated[Task, Depends(_task)], request: Request, user: GetUserDep) -> Task:
    """Return the task if the user may read the XComs of its DAG. :func:`_task` checks the identifiers."""
    requires_access_dag("GET", DagAccessEntity.XCOM)(request, user)
    return task


def _find(task: Task) -> Place | None:
    """Find the task's report, if it is a task of this provider and the XCom names a report of its run.

    Anyone who can write XComs could name another URI, which this server would then read with the credentials
    of the connection. The XCom must therefore match the task's rendered arguments. Airflow keeps these only
    for the latest runs; for older runs the task's operator must be one of this provider.
    """
    from airflow.models.renderedtifields import RenderedTaskInstanceFields as Fields
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    def of_task(model: Any) -> tuple[Any, ...]:
        return tuple(getattr(model, name) == value for name, value in vars(task).items())

    # Close the session before reading the report, so that a slow store does not hold database connections.
    with create_session(scoped=False) as session:
        pushed = _pushed(session, task)
        fields = session.scalar(select(Fields.rendered_fields).where(*of_task(Fields)))
        operator = session.scalar(select(TaskInstance.operator).where(*of_task(TaskInstance)))
        team = _team(session, task.dag_id)
    uri = pushed.get("uri")
    if not isinstance(uri, str) or not _REPORT_URI.match(uri) or "/../" in uri:
        return None
    conn_id = pushed.get("conn_id")
    if isinstance(fields, dict) and "manifest" in fields:
        if not _same_run(uri, fields["manifest"]):
            return None
        conn_id = fields.get("staging_conn_id")
    elif operator not in _OPERATORS:
        return None
    return Place(uri, conn_id if isinstance(conn_id, str) and conn_id not in ("", "None") else None, team)


def _pushed(session: Any, task: Task) -> dict[str, Any]:
    from airflow.models.xcom import XComModel

    row = session.execute(
        XComModel.get_many(
            key=REPORT_KEY,
            run_id=task.run_id,
            dag_ids=task.dag_id,
            task_ids=task.task_id,
            map_indexes=task.map_index,
        ).with_only_columns(XComModel.value)
    ).first()
    value = XComModel.deserialize_value(row) if row else None
    return value if isinstance(value, dict) else {}


def _same_run(report_uri: str, manifest_uri: object) -> bool:
    from whisper_spark.storage.objects import normalise_uri

    try:
        manifest = normalise_uri(str(manifest_uri))
    except ValueError:
        return False
    return manifest.rsplit("/", 1)[0] == report_uri.rsplit("/", 1)[0]


def _team(session: Any, dag_id: str) -> str | None:
    """The team of a DAG, if Airflow runs with teams."""
    from airflow.configuration import conf
    from airflow.models.dag import DagModel

    if not conf.getboolean("core", "multi_team", fallback=False):
        return None
    return DagModel.get_team_name(dag_id, session=session)


def _read(place: Place) -> Report:
    from airflow_whisper.hooks.object_storage import object_storage
    from airflow_whisper.validation.report import Report

    storage = object_storage(place.conn_id, place.uri, connection=_team_connection(place))
    size = storage.info(place.uri).size
    if size > MAX_REPORT_BYTES:
        raise ValueError(f"{place.uri} has {size:,} bytes: this is no report")
    return Report.from_json(storage.read_bytes(place.uri))


def _team_connection(place: Place) -> Any:
    """The team's connection; ``None`` if the DAG has no team or the report needs no connection."""
    from airflow.models.connection import Connection

    if place.team is None or place.conn_id is None:
        return None
    return Connection.get_connection_from_secrets(place.conn_id, team_name=place.team)


def _message(message: str, code: int = status.HTTP_404_NOT_FOUND) -> HTMLResponse:
    return HTMLResponse(message_page(message), code, headers=_HEADERS)
