"""Publish a validated run in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_whisper.errors import wrong_configuration
from airflow_whisper.links import ReportLink, TableLink, push_report
from airflow_whisper.operators.run_manifest import check_uri
from airflow_whisper.templates import is_final, optional
from whisper_spark.contract import partition_path

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_whisper.table.replace import Registered
    from whisper_spark.contract import Run
    from whisper_spark.storage.objects import ObjectStorage


class RegisterTranscriptsOperator(BaseOperator):
    """Publish a run's transcripts to the table, in one commit that replaces exactly the changed rows.

    .. code-block:: python

        RegisterTranscriptsOperator(
            task_id="register",
            manifest="{{ ti.xcom_pull(task_ids='discover')['manifest_uri'] }}",
            outlets=[Asset("speech_transcripts")],
        )

    Returns ``{"table", "partition", "snapshot_id", "rows", "errors", "removed", "audio_hours", "report_uri",
    "table_location"}``. The counts refer to this run, not to the whole partition. The event of each asset in
    ``outlets`` carries the same in its ``extra``, plus ``manifest_uri`` and ``idempotency_key``.

    Readers see the partition either before or after the commit, never in between. Running the task again
    returns the first commit. The task is skipped if another run has already done the same work. It fails
    without a retry if another run changed the same rows since discovery. In this case clear the discover
    task; the new run reuses the finished transcripts from staging.

    :param manifest: URI of the run's manifest, from ``DiscoverAudioOperator``.
    :param table: ``namespace.table`` that this task may write to; a manifest for another table is rejected.
        ``None``: the table that the manifest names.
    :param staging_conn_id: Airflow connection for staging; ``None``: ambient credentials.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded SQLite catalog.
    :param report: URI of the validation report; ``None``: ``report.json`` beside the manifest.
    :param require_report: whether to register only with a report in which all checks passed.
    :param table_url: page of the table in your catalog or query engine; the task's link *Table* opens it.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task starts.
    """

    template_fields: Sequence[str] = (
        "manifest",
        "table",
        "staging_conn_id",
        "catalog_conn_id",
        "report",
        "table_url",
    )
    operator_extra_links = (ReportLink(), TableLink())

    def __init__(
        self,
        *,
        manifest: str,
        table: str | None = None,
        staging_conn_id: str | None = None,
        catalog_conn_id: str | None = None,
        report: str | None = None,
        require_report: bool = True,
        table_url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.table = table
        self.staging_conn_id = staging_conn_id
        self.catalog_conn_id = catalog_conn_id
        self.report = report
        self.require_report = require_report
        self.table_url = table_url
        self._registered: tuple[Run, Registered] | None = None
        if isinstance(manifest, str) and is_final(manifest):
            check_uri("manifest", manifest)
        if isinstance(report, str) and is_final(report):
            check_uri("report", report)

    def execute(self, context: Context) -> dict[str, Any]:
        """Register the run, add the result to the asset events, and log it."""
        with wrong_configuration():
            check_uri("manifest", self.manifest)
            if self.report is not None:
                check_uri("report", self.report)

        from airflow_whisper.hooks.catalog import open_catalog
        from airflow_whisper.hooks.object_storage import object_storage
        from airflow_whisper.table.errors import PartitionConflictError, TableMismatchError
        from airflow_whisper.table.publish import register_run, result_of

        storage = object_storage(optional(self.staging_conn_id), self.manifest)
        run = self._read_run(storage)
        name = f"{partition_path(run.partition)} of {run.table}"
        catalog = open_catalog(optional(self.catalog_conn_id))
        try:
            registered = register_run(
                run,
                storage,
                catalog,
                report_uri=self.report,
                require_report=self.require_report,
            )
        except (PartitionConflictError, TableMismatchError) as error:
            # A retry would find the same state.
            raise AirflowFailException(str(error)) from error
        if registered is None:
            raise AirflowSkipException(
                f"Nothing left to do for {name}, which holds every row as this run wants it: another run did "
                "the same work, or the audio was gone or replaced before it could be transcribed."
            )
        self._registered = run, registered
        result = result_of(run, registered, self.report)
        if self.require_report:
            push_report(context, result["report_uri"], optional(self.staging_conn_id))
        self.log.info(
            "%s %d rows (%d of them errors; %.2f h of audio) and deleted %d, as snapshot %d: %s, "
            "in catalog %r at %s",
            "Had registered before" if registered.again else "Registered",
            registered.rows,
            registered.errors,
            registered.audio_seconds / 3600,
            registered.removed,
            registered.snapshot_id,
            name,
            catalog.name,
            registered.table_location,
        )
        self._tell_assets(context, run, result)
        return result

    def _read_run(self, storage: ObjectStorage) -> Run:
        from airflow_whisper.operators.run_manifest import read_any_manifest
        from airflow_whisper.validation.staged import at_place

        run = at_place(read_any_manifest(self.manifest, storage)[0], self.manifest)
        if self.table and run.table != self.table:
            raise AirflowFailException(
                f"the manifest {self.manifest} is for the table {run.table}, but this task may only write to "
                f"{self.table}"
            )
        return run

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_registration

        return of_registration(*self._registered) if self._registered else None

    def _tell_assets(self, context: Context, run: Run, result: dict[str, Any]) -> None:
        extra = {**result, "manifest_uri": self.manifest, "idempotency_key": run.idempotency_key}
        for outlet in self.outlets or ():
            if isinstance(outlet, Asset):
                context["outlet_events"][outlet].extra.update(extra)
