"""Links on the tasks: to Spark, to the validation report, to the table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

REPORT_KEY = "report"
"""XCom of validate and register: ``{"uri", "conn_id"}`` of the report."""

REPORT_PATH = "/whisper/report"
"""Where the API server shows reports, below its base URL."""


class SparkUILink(BaseOperatorLink):
    """The UI of the Spark application while the job runs; then its page in the history server, if named.

    Airflow asks for links only when a task has ended, so the operator itself pushes the first of the two.
    """

    name = "Spark UI"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Where the link leads after the end; empty when that is nowhere."""
        server, application = operator.history_server, operator._application_id
        return f"{server.rstrip('/')}/history/{application}/" if server and application else ""


class ReportLink(BaseOperatorLink):
    """The validation report, shown by Airflow's API server: see :mod:`airflow_whisper.plugin`.

    Browsers open neither ``s3://`` nor, from a page of the web, ``file://``, and a presigned URL is a secret.
    """

    name = "Transcription report"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Where the report of this task instance is shown; empty when there is none."""
        from airflow.sdk.configuration import conf
        from airflow.sdk.execution_time.xcom import XCom

        if XCom.get_value(ti_key=ti_key, key=REPORT_KEY) is None:
            return ""
        query = {name: getattr(ti_key, name) for name in ("dag_id", "run_id", "task_id", "map_index")}
        return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}{REPORT_PATH}?{urlencode(query)}"


class TableLink(BaseOperatorLink):
    """The page of the table that the operator was given: catalogs have no address for it in common."""

    name = "Table"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The argument ``table_url``, if it is an address for browsers."""
        url = operator.table_url or ""
        return url if url.startswith(("http://", "https://")) else ""


def push_report(context: Context, uri: str, conn_id: str | None) -> None:
    """Tell the API server where a task's report is and with which connection to read it."""
    if "ti" in context:
        context["ti"].xcom_push(key=REPORT_KEY, value={"uri": uri, "conn_id": conn_id or None})
