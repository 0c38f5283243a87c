"""The application inside Airflow's API server that shows validation reports."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI, status
from fastapi.responses import HTMLResponse

from airflow_whisper.links import REPORT_KEY
from airflow_whisper.report.page import POLICY, message_page, report_page

if TYPE_CHECKING:
    from airflow_whisper.validation.run import Report

log = logging.getLogger(__name__)

MAX_REPORT_BYTES = 16 << 20
"""A report holds counts and a few dozen rows: a few hundred kilobytes at most."""

_HEADERS = {
    "Content-Security-Policy": f"{POLICY}; sandbox allow-popups; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def create_app() -> FastAPI:
    """An application with one page, ``/report``."""
    app = FastAPI(title="Whisper", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report", dependencies=[Depends(requires_access_dag("GET", DagAccessEntity.XCOM))])
    def report(
        dag_id: str, run_id: str, task_id: str, session: SessionDep, map_index: int = -1
    ) -> HTMLResponse:
        place = _pushed(session, dag_id, run_id, task_id, map_index)
        if place is None:
            return _message(f"Task {task_id} of run {run_id} has not written a report.")
        uri = place["uri"]
        try:
            found = _read(uri, place.get("conn_id"))
        except Exception as error:
            # Whatever keeps this server from reading it: no such connection, no route, no permission.
            log.warning("the report %s cannot be shown", uri, exc_info=True)
            return _message(
                f"The report is {uri}, but Airflow's API server cannot show it: {type(error).__name__}. Its "
                "log says more. It needs network access to that storage and the connection of the task."
            )
        return HTMLResponse(report_page(found), headers=_HEADERS)

    return app


def _pushed(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int) -> dict[str, Any] | None:
    from airflow.models.xcom import XComModel

    row = session.execute(
        XComModel.get_many(
            key=REPORT_KEY, run_id=run_id, dag_ids=dag_id, task_ids=task_id, map_indexes=map_index
        ).with_only_columns(XComModel.value)
    ).first()
    value = XComModel.deserialize_value(row) if row else None
    return value if isinstance(value, dict) and isinstance(value.get("uri"), str) else None


def _read(uri: str, conn_id: str | None) -> Report:
    from airflow_whisper.hooks.object_storage import object_storage
    from airflow_whisper.validation.run import Report

    storage = object_storage(conn_id, uri)
    size = storage.info(uri).size
    if size > MAX_REPORT_BYTES:
        raise ValueError(f"{uri} has {size:,} bytes: this is no report")
    return Report.from_json(storage.read_bytes(uri))


def _message(message: str) -> HTMLResponse:
    return HTMLResponse(message_page(message), status.HTTP_404_NOT_FOUND, headers=_HEADERS)
