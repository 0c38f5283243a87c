"""Find out what a partition lacks, before any of it is paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_whisper.templates import is_final, text
from airflow_whisper.watch.partition_templates import check_formats, modified_partition
from whisper_spark.contract import WhisperOptions, check_partition, partition_path

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_whisper.discovery.comparison import Comparison, Counts
    from airflow_whisper.discovery.manifest import Target
    from whisper_spark.contract import Run
    from whisper_spark.storage.objects import ObjectStorage


class DiscoverAudioOperator(BaseOperator):
    """Compare a partition's audio with its table and write down what has to be transcribed.

    .. code-block:: python

        discover = DiscoverAudioOperator(
            task_id="discover",
            source="s3://calls/raw/dt={{ ds }}/",
            partition={"dt": "{{ ds }}"},
            table="speech.transcripts",
            staging="s3://calls/staging/",
            options=WhisperOptions(model="large-v3-turbo"),
            source_conn_id="calls_s3",
        )

    A file is transcribed when the table does not have it (``new``), when its etag differs (``changed``),
    when its row was made with other options (``stale``), or when it failed for a reason that may pass and has
    attempts left (``retry``). Everything else costs nothing. If that leaves nothing to do the task is
    skipped, and so is what comes after it.

    Returns ``{"manifest_uri", "manifest_id", "partition", "fingerprint", "counts", "audio_bytes"}``, each
    also as an XCom of its own: ``discover.output["manifest_uri"]`` is the argument of the tasks that follow.

    Names that start with ``_`` or ``.``, and what lies in folders with such names, are not audio.

    :param source: folder with the partition's audio, listed recursively: ``s3://``, ``gs://``, ``az://``,
        ``abfss://``, ``file://`` or a path of the worker.
    :param partition: the partition of the table, for example ``{"dt": "{{ ds }}"}``.
    :param table: ``namespace.table``. It need not exist yet.
    :param staging: folder where runs keep their files until they are registered; not inside ``source``.
    :param options: what the transcripts are made with: :class:`WhisperOptions`, or a dict of its fields, for
        example from Airflow Params, or the same as JSON.
    :param source_conn_id: Airflow connection for the source; ``None``: ambient credentials.
    :param staging_conn_id: Airflow connection for staging; ``None``: the same as for the source.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded catalog.
    :param pattern: glob on the path below ``source``, in any case, for example ``"*.wav"``.
    :param partition_from_modified: keys of ``partition`` that files belong to by the time they were modified,
        in UTC, with their ``strftime`` formats: ``{"dt": "%Y-%m-%d"}`` takes of the source what was modified
        on the day ``partition["dt"]``. ``None``: all audio below ``source`` belongs to the partition.
    :param on_removed: rows whose audio is gone: ``"keep"``, or ``"delete"`` for erasure requests.
    :param on_stale: rows made with other options: ``"retranscribe"`` or ``"keep"``.
    :param max_attempts: how often a file is tried, for one etag, while its error may pass.
    :param on_missing_source: ``"fail"`` or ``"skip"`` when there is nothing at the source nor above the part
        of it that depends on the partition. An empty partition of a source that exists is skipped either way.
    :raises ValueError: when an argument is wrong; before any work for values that are templates.
    """

    template_fields: Sequence[str] = (
        "source",
        "partition",
        "table",
        "staging",
        "options",
        "source_conn_id",
        "staging_conn_id",
        "catalog_conn_id",
        "pattern",
        "partition_from_modified",
        "on_removed",
        "on_stale",
        "max_attempts",
        "on_missing_source",
    )
    template_fields_renderers = {"partition": "json", "options": "py"}  # noqa: RUF012
    ui_color = "#cfe2f3"

    def __init__(
        self,
        *,
        source: str,
        partition: Mapping[str, str],
        table: str,
        staging: str,
        options: WhisperOptions | dict[str, Any] | str = WhisperOptions(),  # noqa: B008
        source_conn_id: str | None = None,
        staging_conn_id: str | None = None,
        catalog_conn_id: str | None = None,
        pattern: str | None = None,
        partition_from_modified: Mapping[str, str] | None = None,
        on_removed: Literal["keep", "delete"] = "keep",
        on_stale: Literal["retranscribe", "keep"] = "retranscribe",
        max_attempts: int = 3,
        on_missing_source: Literal["fail", "skip"] = "fail",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("multiple_outputs", True)
        super().__init__(**kwargs)
        self.source = source
        self.partition = partition
        self.table = table
        self.staging = staging
        self.options = options
        self.source_conn_id = source_conn_id
        self.staging_conn_id = staging_conn_id
        self.catalog_conn_id = catalog_conn_id
        self.pattern = pattern
        self.partition_from_modified = partition_from_modified
        self.on_removed = on_removed
        self.on_stale = on_stale
        self.max_attempts = max_attempts
        self.on_missing_source = on_missing_source
        self._run: Run | None = None
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Checks what is no template yet, or no template any more."""
        from airflow_whisper.discovery.comparison import Rules
        from airflow_whisper.discovery.locations import check_locations
        from airflow_whisper.table.schema import check_table_name

        if isinstance(self.partition, Mapping) and all(is_final(v) for v in self.partition.values()):
            check_partition(self.partition)
        elif isinstance(self.partition, Mapping):
            check_partition(dict.fromkeys(self.partition, "template"))
        elif not hasattr(self.partition, "resolve"):  # what another task will have returned
            raise ValueError(
                f"partition must be a dict such as {{'dt': '{{{{ ds }}}}'}}, got {self.partition!r}"
            )
        if self.partition_from_modified and isinstance(self.partition, Mapping):
            self._check_formats(self.partition_from_modified)
        if is_final(self.table):
            check_table_name(self.table)
        locations = {"source": self.source, "staging": self.staging}
        check_locations({argument: uri for argument, uri in locations.items() if is_final(uri)})
        if is_final(self.options):
            _whisper_options(self.options)
        if all(is_final(v) for v in (self.on_removed, self.on_stale, self.max_attempts)):
            Rules(on_removed=self.on_removed, on_stale=self.on_stale, max_attempts=int(self.max_attempts))
        if is_final(self.on_missing_source) and self.on_missing_source not in ("fail", "skip"):
            raise ValueError(f"on_missing_source must be 'fail' or 'skip', got {self.on_missing_source!r}")

    def _check_formats(self, formats: Mapping[str, str]) -> None:
        unknown = sorted(set(formats) - set(self.partition))
        if unknown:
            raise ValueError(
                f"partition_from_modified has the key {unknown[0]!r}, which partition {self.partition!r} "
                f"has not"
            )
        check_formats(formats)

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare, and write the manifest."""
        from airflow_whisper.discovery.comparison import Comparison
        from airflow_whisper.discovery.manifest import write_run
        from airflow_whisper.hooks.object_storage import object_storage

        if isinstance(self.partition, Mapping):
            self.partition = {key: text(value) for key, value in self.partition.items()}
        self._check_arguments()
        source_storage = object_storage(self.source_conn_id or None, self.source)
        staging_storage = object_storage(self.staging_conn_id or self.source_conn_id or None, self.staging)
        with Comparison() as comparison:
            target, rows = self._add_rows(comparison)
            files = self._add_listing(comparison, source_storage)
            if files == 0:
                self._check_empty_source(source_storage, target, rows)
            counts = self._compare(comparison, target)
            run = write_run(comparison, counts, target, staging_storage)
        self._run = run
        self._log_summary(run, counts)
        return {
            "manifest_uri": run.manifest_uri,
            "manifest_id": run.manifest_id,
            "partition": partition_path(run.partition),
            "fingerprint": run.options.fingerprint(),
            "counts": run.counts,
            "audio_bytes": run.audio_bytes,
        }

    def get_openlineage_facets_on_start(self) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_discovery

        return of_discovery(self.source, self.partition)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_discovery

        return of_discovery(self.source, self.partition, self._run)

    def _add_rows(self, comparison: Comparison) -> tuple[Target, int]:
        """Reads the table, before the listing: what is committed meanwhile must not look like compared."""
        from airflow_whisper.discovery.manifest import Target
        from airflow_whisper.hooks.catalog import open_catalog
        from airflow_whisper.table.read import current_rows, current_snapshot_id, table_partition
        from whisper_spark.storage.objects import normalise_uri

        catalog = open_catalog(self.catalog_conn_id or None)
        partition = table_partition(catalog, self.table, self.partition)
        snapshot_id = current_snapshot_id(catalog, self.table)
        target = Target(
            table=self.table,
            partition=partition,
            source=normalise_uri(self.source),
            staging=normalise_uri(self.staging),
            options=_whisper_options(self.options),
            base_snapshot_id=snapshot_id,
            max_attempts=int(self.max_attempts),
        )
        rows = current_rows(catalog, self.table, partition, snapshot_id=snapshot_id)
        return target, comparison.add_rows(rows)

    def _add_listing(self, comparison: Comparison, storage: ObjectStorage) -> int:
        from airflow_whisper.discovery.listing import audio_files
        from whisper_spark.storage.objects import UnreadableNames

        names = UnreadableNames(self.source)
        ignored: list[int] = []
        formats = self.partition_from_modified or {}
        wanted = {key: self.partition[key] for key in formats}
        files = audio_files(
            storage,
            self.source,
            self.pattern or None,
            belongs=(lambda modified: modified_partition(formats, modified) == wanted) if formats else None,
            ignored=ignored.append,
            unreadable=names.add,
        )
        count = comparison.add_listing(files)
        if names.count:
            self.log.warning("%s.", names)
        if ignored:
            reason = f"hidden, or not matching {self.pattern!r}" if self.pattern else "hidden"
            self.log.info("Left out %s objects under %s: %s.", f"{sum(ignored):,}", self.source, reason)
        return count

    def _check_empty_source(self, storage: ObjectStorage, target: Target, rows: int) -> None:
        from airflow_whisper.discovery.locations import check_source_exists
        from whisper_spark.storage.objects import ObjectNotFound

        if rows:
            self.log.warning(
                "No audio under %s, but the table has %s rows for this partition: on_removed=%r decides.",
                self.source,
                f"{rows:,}",
                self.on_removed,
            )
            return
        try:
            check_source_exists(storage, target.source, self.partition)
        except ObjectNotFound as error:
            if self.on_missing_source == "fail":
                raise
            raise AirflowSkipException(str(error)) from None
        raise AirflowSkipException(
            f"there is no audio under {self.source}, and nothing in partition "
            f"{partition_path(target.partition)} of {target.table}"
        )

    def _compare(self, comparison: Comparison, target: Target) -> Counts:
        from airflow_whisper.discovery.comparison import Rules

        rules = Rules(on_removed=self.on_removed, on_stale=self.on_stale, max_attempts=int(self.max_attempts))
        counts = comparison.compare(target.options.fingerprint(), rules)
        if counts.nothing_to_do:
            raise AirflowSkipException(
                f"partition {partition_path(target.partition)} of {target.table} is up to date: {counts}"
            )
        return counts

    def _log_summary(self, run: Run, counts: Counts) -> None:
        self.log.info(
            "Partition %s of %s: %s.\nTo transcribe: %s files, %s. Manifest: %s",
            partition_path(run.partition),
            run.table,
            counts,
            f"{counts.to_transcribe:,}",
            _size(run.audio_bytes),
            run.manifest_uri,
        )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _whisper_options(options: WhisperOptions | Mapping[str, Any] | str) -> WhisperOptions:
    if isinstance(options, WhisperOptions):
        return options
    if isinstance(options, Mapping):
        return WhisperOptions.from_dict(dict(options))
    if isinstance(options, str):
        return WhisperOptions.from_json(options)
    raise ValueError(f"options must be WhisperOptions, a dict of its fields or JSON, got {options!r}")
