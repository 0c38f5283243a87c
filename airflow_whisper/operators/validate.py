"""Check staged transcripts before anyone may read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_whisper.links import ReportLink, push_report

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_whisper.validation.run import Report
    from whisper_spark.contract import Run


class ValidateTranscriptsOperator(BaseOperator):
    """Check what a run has staged, and write a report next to it.

    .. code-block:: python

        ValidateTranscriptsOperator(
            task_id="validate",
            manifest="{{ ti.xcom_pull(task_ids='discover')['manifest_uri'] }}",
            max_error_rate=0.01,
            block_on=["repetitive", "empty_text_over_speech"],
        )

    Returns ``{"report_uri", "passed", "files", "errors", "warnings"}``: counts of this run, and rows per
    quality flag. Also pushes ``report_uri`` as an XCom of its own, which is there when checks fail, too.

    A failed check fails the task without a retry: the same staged rows would fail again. The log shows which
    checks failed and the first offenders. ``RUN/report.json`` in staging has everything; the task's link
    *Transcription report* shows it as a page with plots, which also lies in staging, as ``RUN/report.html``.

    :param manifest: URI of the run's manifest, from ``DiscoverAudioOperator``.
    :param staging_conn_id: Airflow connection for staging; ``None``: ambient credentials.
    :param max_error_rate: largest allowed share of error rows, 0 to 1, in the partition as it will be once
        this run is registered: rows that the table holds already and this run leaves alone count as well.
    :param block_on: quality flags that fail the task when any row of this run has them, or a mapping from
        flag to the largest share of rows that may. By default flags are only warnings.
    :raises ValueError: when an argument is wrong; before any work for values that are templates.
    """

    template_fields: Sequence[str] = ("manifest", "staging_conn_id", "max_error_rate", "block_on")
    operator_extra_links = (ReportLink(),)
    ui_color = "#d9ead3"

    def __init__(
        self,
        *,
        manifest: str,
        staging_conn_id: str | None = None,
        max_error_rate: float | str = 0.05,
        block_on: Sequence[str] | Mapping[str, float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.staging_conn_id = staging_conn_id
        self.max_error_rate = max_error_rate
        self.block_on = block_on
        self._checked: tuple[Run, Report] | None = None
        if not _is_template(max_error_rate):
            error_rate(max_error_rate)
        if isinstance(block_on, str) or not any(_is_template(flag) for flag in block_on):
            _flag_limits(block_on)

    def execute(self, context: Context) -> dict[str, Any]:
        """Check, report, and fail when a check did."""
        max_error_rate = error_rate(self.max_error_rate)
        limits = _flag_limits(self.block_on)

        from airflow_whisper.hooks.object_storage import object_storage
        from airflow_whisper.validation.run import check_table, validate_run, write_report
        from whisper_spark.storage.parquet import read_run

        storage = object_storage(self.staging_conn_id, self.manifest)
        run = read_run(self.manifest, storage)
        report = validate_run(run, storage, max_error_rate=max_error_rate, block_on=limits)
        self._checked = run, report
        report_uri = write_report(report, run, storage)
        context["ti"].xcom_push(key="report_uri", value=report_uri)
        push_report(context, report_uri, self.staging_conn_id)
        files, errors = report.counts["files"], report.counts["errors"]
        if not report.passed:
            for line in check_table(report.failed).splitlines():  # a log viewer prefixes each record
                self.log.error("%s", line)
            raise AirflowFailException(
                f"{len(report.failed)} of {len(report.checks)} checks failed for {run.table} "
                f"{report.partition} ({', '.join(check.check for check in report.failed)}); "
                f"nothing was published. Report: {run.report_page_uri}"
            )
        self.log.info(
            "All %d checks passed for %s %s: %d files, %d errors. Warnings: %s. Report: %s",
            len(report.checks),
            run.table,
            report.partition,
            files,
            errors,
            ", ".join(f"{flag} {count}" for flag, count in report.warnings.items()) or "none",
            run.report_page_uri,
        )
        return {
            "report_uri": report_uri,
            "passed": True,
            "files": files,
            "errors": errors,
            "warnings": dict(report.warnings),
        }

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_validation

        return of_validation(*self._checked) if self._checked else None


def error_rate(value: float | str) -> float:
    """A share from 0 to 1, from a number or from what a template rendered to.

    :raises ValueError: when it is none.
    """
    try:
        rate = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 <= rate <= 1:
        raise ValueError(f"max_error_rate must be a number from 0 to 1 (0.05 is 5 %), got {value!r}")
    return rate


def _flag_limits(block_on: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    from airflow_whisper.validation.checks import flag_limits

    return flag_limits(block_on)


def _is_template(value: object) -> bool:
    return isinstance(value, str) and "{{" in value
