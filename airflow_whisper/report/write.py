"""Write the report of a run to staging, as JSON and as a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_whisper.report.page import report_page

if TYPE_CHECKING:
    from airflow_whisper.validation.report import Report
    from whisper_spark.contract import Run
    from whisper_spark.storage.objects import ObjectStorage


def write_report(report: Report, run: Run, storage: ObjectStorage) -> str:
    """Write ``RUN/report.html`` and ``RUN/report.json``, overwriting earlier ones; return the JSON's URI."""
    storage.write_bytes(run.report_page_uri, report_page(report).encode())
    storage.write_bytes(run.report_uri, report.to_json().encode())
    return run.report_uri
