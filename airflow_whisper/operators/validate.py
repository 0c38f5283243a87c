"""Check staged transcripts before they are published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.links import ReportLink, push_report, report_address
from airflow_whisper.operators.run_manifest import check_uri, read_any_manifest
from airflow_whisper.templates import collection, is_final, number, optional

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_whisper.validation.report import Report
    from whisper_spark.contract import Run
    from whisper_spark.storage.objects import ObjectStorage


class ValidateTranscriptsOperator(BaseOperator):
    """Check the rows that a run has staged, and write a report next to them.

    .. code-block:: python

        ValidateTranscriptsOperator(
            task_id="validate",
            manifest="{{ ti.xcom_pull(task_ids='discover')['manifest_uri'] }}",
            max_error_rate=0.01,
            block_on=["repetitive", "empty_text_over_speech"],
        )

    Returns ``{"report_uri", "passed", "files", "errors", "warnings"}``: counts of this run, and the number of
    rows per quality flag. Also pushes ``report_uri`` as a separate XCom, even if checks fail.

    A failed check fails the task without a retry, because the same staged rows would fail again. The log
    shows the failed checks with the first offending files. ``RUN/report.json`` in staging is the complete
    report. The task's link *Transcription report* shows it as a page with plots, which is also in staging as
    ``RUN/report.html``.

    The job's own ``result.json`` determines which staged files belong to the run. A damaged manifest, result
    or row file fails a check. Damaged row files are deleted, so that clearing the transcribe task recreates
    them.

    :param manifest: URI of the run's manifest, from ``DiscoverAudioOperator``.
    :param staging_conn_id: Airflow connection for staging; ``None``: ambient credentials.
    :param max_error_rate: largest allowed fraction of error rows, 0 to 1, in the partition as it will be
        after this run is registered. Existing rows that this run does not change are included.
    :param block_on: quality flags that fail the task if any row of this run has them, or a mapping from flag
        to the largest fraction of rows that may have it. By default flags are only warnings. May be a
        template that renders to JSON or to comma-separated flags.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task starts.
    """

    template_fields: Sequence[str] = ("manifest", "staging_conn_id", "max_error_rate", "block_on")
    operator_extra_links = (ReportLink(),)

    def __init__(
        self,
        *,
        manifest: str,
        staging_conn_id: str | None = None,
        max_error_rate: float | str = 0.05,
        block_on: Sequence[str] | Mapping[str, float] | str = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.staging_conn_id = staging_conn_id
        self.max_error_rate = max_error_rate
        self.block_on = block_on
        self._checked: tuple[Run, Report] | None = None
        if is_final(max_error_rate):
            error_rate(max_error_rate)
        if is_final(block_on):
            _flag_limits(block_on)

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the checks, write the report, and fail the task if a check failed."""
        try:
            check_uri("manifest", self.manifest)
            max_error_rate = error_rate(self.max_error_rate)
            limits = _flag_limits(collection(self.block_on))
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

        from airflow_whisper.hooks.object_storage import object_storage
        from airflow_whisper.report.write import write_report
        from airflow_whisper.validation.run import validate_run
        from airflow_whisper.validation.staged import at_place

        # A template that renders to an empty value means no connection.
        conn_id = optional(self.staging_conn_id)
        storage = object_storage(conn_id, self.manifest)
        run, _ = read_any_manifest(self.manifest, storage)
        report = validate_run(
            run, storage, max_error_rate=max_error_rate, block_on=limits, manifest_uri=self.manifest
        )
        run = at_place(run, self.manifest)
        self._checked = run, report
        report_uri = write_report(report, run, storage)
        context["ti"].xcom_push(key="report_uri", value=report_uri)
        push_report(context, report_uri, conn_id)
        address = report_address(context["ti"], run.report_page_uri)
        if not report.passed:
            self._fail(run, report, storage, address)
        files, errors = report.counts["files"], report.counts["errors"]
        self.log.info(
            "All %d checks passed for %s %s: %d files, %d errors. Warnings: %s. Report: %s",
            len(report.checks),
            run.table,
            report.partition,
            files,
            errors,
            ", ".join(f"{flag} {count}" for flag, count in report.warnings.items()) or "none",
            address,
        )
        return {
            "report_uri": report_uri,
            "passed": True,
            "files": files,
            "errors": errors,
            "warnings": dict(report.warnings),
        }

    def _fail(self, run: Run, report: Report, storage: ObjectStorage, address: str) -> NoReturn:
        from airflow_whisper.validation.report import check_table

        # Log line by line, because log viewers prefix each record and would break the table's alignment.
        for line in check_table(report.failed).split("\n"):
            self.log.error("%s", line)
        again = ""
        if report.damaged:
            # Delete the damaged files, because the job does not transcribe files again that are staged.
            storage.delete(report.damaged)
            again = (
                f". {len(report.damaged)} damaged files were deleted: clear the transcribe task, which makes "
                "them again"
            )
        else:
            failed = {check.check for check in report.failed}
            if "manifest" in failed:
                again = ". Clear the discover task, which writes the manifest again"
            elif "staged files" in failed:
                again = ". Clear the transcribe task, which makes what is missing"
        raise AirflowFailException(
            f"{len(report.failed)} of {len(report.checks)} checks failed for {run.table} "
            f"{report.partition} ({', '.join(check.check for check in report.failed)}); "
            f"nothing was published. Report: {address}{again}"
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_validation

        return of_validation(*self._checked) if self._checked else None


def error_rate(value: float | str) -> float:
    """Parse a fraction from 0 to 1, given as a number or as rendered text.

    :raises ValueError: if it is not such a fraction.
    """
    try:
        rate = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 <= rate <= 1:
        raise ValueError(f"max_error_rate must be a number from 0 to 1 (0.05 is 5 %), got {value!r}")
    return rate


def _flag_limits(block_on: Sequence[str] | Mapping[str, float] | str) -> dict[str, float]:
    from airflow_whisper.validation.checks import flag_limits

    if isinstance(block_on, Mapping):
        name = "block_on: the share of {!r}"
        block_on = {flag: number(name.format(flag), float, share) for flag, share in block_on.items()}
    return flag_limits(block_on)
