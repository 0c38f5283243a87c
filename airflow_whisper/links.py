"""Extra links of the tasks: to Spark, to the validation report and to the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

REPORT_KEY = "report"
"""Key of the XCom in which validate and register push ``{"uri", "conn_id"}`` of the report."""

REPORT_PATH = "/whisper/report"
"""Path below the base URL of the API server at which it shows reports."""


class SparkUILink(BaseOperatorLink):
    """Link to the Spark UI while the job runs; afterwards to the history server, if one is configured.

    Airflow calls :meth:`get_link` only after a task has ended, so the operator itself pushes the link to the
    running application.
    """

    name = "Spark UI"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the history server's page of the application; empty if there is none."""
        server, application = operator.history_server, operator._application_id
        return f"{server.rstrip('/')}/history/{application}/" if server and application else ""


class ReportLink(BaseOperatorLink):
    """Link to the validation report, which Airflow's API server shows: see :mod:`airflow_whisper.plugin`.

    The link cannot point to storage: browsers do not open ``s3://``, nor ``file://`` from a web page, and a
    presigned URL is a secret.
    """

    name = "Transcription report"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the URL of this task instance's report; empty if there is no report."""
        from airflow.sdk.execution_time.xcom import XCom

        return "" if XCom.get_value(ti_key=ti_key, key=REPORT_KEY) is None else report_url(ti_key)


class TableLink(BaseOperatorLink):
    """Link to the table's page in the catalog.

    The user gives the address as ``table_url``, because catalogs have no common scheme for such addresses.
    """

    name = "Table"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return ``table_url`` if it is an HTTP address, otherwise an empty string."""
        url = operator.table_url or ""
        return url if url.startswith(("http://", "https://")) else ""


def report_url(task_instance: Any) -> str:
    """Return the URL of a task instance's report in the API server; without a host if none is configured.

    :param task_instance: has ``dag_id``, ``run_id``, ``task_id`` and ``map_index``.
    """
    query = {name: getattr(task_instance, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
    return f"{_base_url()}{REPORT_PATH}?{urlencode(query)}"


def report_address(task_instance: Any, uri: str) -> str:
    """Return what a log says about the report: a URL, which the log viewer makes a link, and its URI.

    Only the URI without ``[api] base_url``, because then no URL is known that could be clicked.
    """
    return f"{report_url(task_instance)} (in storage: {uri} )" if _base_url() else uri


def _base_url() -> str:
    from airflow.sdk.configuration import conf

    return (conf.get("api", "base_url", fallback="") or "").rstrip("/")


def push_report(context: Context, uri: str, conn_id: str | None) -> None:
    """Push where a task's report is and which connection reads it, for the API server."""
    if "ti" in context:
        context["ti"].xcom_push(key=REPORT_KEY, value={"uri": uri, "conn_id": conn_id or None})
