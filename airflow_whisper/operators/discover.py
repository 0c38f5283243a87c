"""Find the audio of a partition that must be transcribed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from airflow_whisper.discovery.audio_filter import AudioFilter, extension_tuple
from airflow_whisper.discovery.errors import DiscoveryError
from airflow_whisper.discovery.estimate import work_text
from airflow_whisper.discovery.guards import check_removals, check_some_match
from airflow_whisper.discovery.locations import (
    check_lengths,
    check_locations,
    check_source_exists,
    check_table_outside,
    source_root,
)
from airflow_whisper.errors import wrong_configuration
from airflow_whisper.operators.discover_log import (
    log_left_out,
    log_pools,
    log_run,
    warn_of_embedded_catalog,
)
from airflow_whisper.outcome import push_outcome
from airflow_whisper.templates import (
    TextTemplates,
    boolean,
    check_rendered,
    collection,
    is_final,
    number,
    optional,
    text,
    whisper_options,
)
from airflow_whisper.watch.partition_templates import check_formats, check_values, modified_in
from whisper_spark.contract import WhisperOptions, check_partition, partition_path
from whisper_spark.storage.objects import ObjectNotFound

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from airflow_whisper.discovery.comparison import Comparison, Counts, Rules
    from airflow_whisper.discovery.estimate import Estimate
    from airflow_whisper.discovery.manifest import Target
    from whisper_spark.contract import Run
    from whisper_spark.storage.objects import ObjectStorage


class DiscoverAudioOperator(TextTemplates, BaseOperator):
    """Compare a partition's audio with its table and write a manifest of what must be transcribed.

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

    A file is transcribed if the table has no row for it (``new``), if its etag differs (``changed``), if its
    row was made with other options (``stale``), or if it failed with a transient error and has tries left
    (``retry``). If there is nothing to transcribe or remove, the task is skipped, and with it the downstream
    tasks.

    Returns ``{"manifest_uri", "manifest_id", "partition", "fingerprint", "counts", "audio_bytes",
    "estimate"}``. Each key is also a separate XCom: pass ``discover.output["manifest_uri"]`` to the
    downstream tasks. ``estimate`` holds the hours of audio that the run is going to transcribe and, from the
    table's latest runs, how long that takes: see :class:`airflow_whisper.discovery.estimate.Estimate`.

    Files and folders whose names start with ``_`` or ``.`` are ignored. So are sidecar files, such as
    ``.json``, ``.txt`` or ``.srt``, and uploads that are not complete, such as ``.part``, unless
    ``extensions`` selects them. The log and the XCom ``left_out`` give the number of ignored objects.

    :param source: folder with the partition's audio, listed recursively: ``s3://``, ``gs://``, ``az://``,
        ``abfss://``, ``file://`` or a local path on the worker.
    :param partition: the partition of the table, for example ``{"dt": "{{ ds }}"}``.
    :param table: ``namespace.table``. If it does not exist and there is audio to transcribe, it is created,
        empty, and its folder is checked to be writable.
    :param staging: folder in which runs keep their files until they are registered; must be outside
        ``source``.
    :param options: transcription options: :class:`WhisperOptions`, or a dict of its fields, for example from
        Airflow Params, or the same as JSON.
    :param source_conn_id: Airflow connection for the source; ``None``: ambient credentials.
    :param staging_conn_id: Airflow connection for staging; ``None``: the same as for the source.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded catalog.
    :param pattern: case-insensitive glob on the path below ``source``, for example ``"*.wav"``.
    :param extensions: file name extensions, case-insensitive: ``["wav", "mp3"]``; ``None``: any except those
        of sidecar files.
    :param partition_from_modified: ``strftime`` formats of partition keys that depend on a file's
        modification time, in UTC: ``{"dt": "%Y-%m-%d"}`` selects the files modified on the day
        ``partition["dt"]``. ``None``: all audio below ``source`` belongs to the partition.
    :param on_removed: what to do with rows whose audio has been removed: ``"keep"``, or ``"delete"`` for
        erasure requests. Audio counts as removed if its URI lies below ``source`` and no object there has
        this URI, not even one that ``pattern`` and ``extensions`` ignore. Rows of other sources are kept.
    :param max_removed_rate: largest fraction of the partition's rows that one run may remove, 0 to 1. A run
        that would remove more fails and removes nothing.
    :param on_stale: what to do with rows made with other options: ``"retranscribe"`` or ``"keep"``.
    :param accepted_fingerprints: values of the column ``fingerprint`` whose rows are kept although they were
        made with other options, for example with the defaults of an earlier release. A template may render
        to JSON or to values separated by commas.
    :param max_attempts: how often to try a file, per etag, that fails with a transient error.
    :param on_missing_source: ``"fail"`` or ``"skip"`` if there is no object at the source nor above the part
        of it that depends on the partition, or if there are objects, but ``pattern`` and ``extensions``
        select none of them. An empty partition of an existing source is skipped in either case.
    :param dry_run: only estimate: log what a run would cost, push ``estimate``, ``counts`` and
        ``audio_bytes`` as XComs, write nothing, and skip this task and the downstream tasks.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task starts.
    :raises DiscoveryError: if no object is audio, or too many rows would be removed.
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
        "extensions",
        "partition_from_modified",
        "on_removed",
        "on_stale",
        "accepted_fingerprints",
        "max_attempts",
        "max_removed_rate",
        "on_missing_source",
        "is_dry_run",
    )
    text_fields = frozenset(template_fields) - {
        "options",
        "extensions",
        "partition_from_modified",
        "max_attempts",
        "max_removed_rate",
        "is_dry_run",
    }
    template_fields_renderers = {"partition": "json", "options": "py"}  # noqa: RUF012

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
        extensions: Sequence[str] | str | None = None,
        partition_from_modified: Mapping[str, str] | None = None,
        on_removed: Literal["keep", "delete"] = "keep",
        on_stale: Literal["retranscribe", "keep"] = "retranscribe",
        accepted_fingerprints: Sequence[str] | str = (),
        max_attempts: int = 3,
        max_removed_rate: float | str = 0.5,
        on_missing_source: Literal["fail", "skip"] = "fail",
        dry_run: bool | str = False,
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
        self.extensions = extensions
        self.partition_from_modified = partition_from_modified
        self.on_removed = on_removed
        self.on_stale = on_stale
        self.accepted_fingerprints = accepted_fingerprints
        self.max_attempts = max_attempts
        self.max_removed_rate = max_removed_rate
        self.on_missing_source = on_missing_source
        # BaseOperator has a method `dry_run`.
        self.is_dry_run = dry_run
        self._run: Run | None = None
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Check the arguments that are not templates, or already rendered."""
        from airflow_whisper.table.schema import check_table_name

        if isinstance(self.partition, Mapping) and all(is_final(v) for v in self.partition.values()):
            check_partition(self.partition)
        elif isinstance(self.partition, Mapping):
            check_partition(dict.fromkeys(self.partition, "template"))
        # An object with `resolve` is the output of a task that has not run yet.
        elif not hasattr(self.partition, "resolve"):
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
            whisper_options(self.options)
        if is_final([self.pattern, self.extensions]):
            self._audio_filter()
        self._check_choices()

    def _check_choices(self) -> None:
        choices = [self.on_removed, self.on_stale, self.max_attempts, self.max_removed_rate]
        if is_final([*choices, self.accepted_fingerprints]):
            self._rules()
        if is_final(self.on_missing_source) and self.on_missing_source not in ("fail", "skip"):
            raise ValueError(f"on_missing_source must be 'fail' or 'skip', got {self.on_missing_source!r}")
        if is_final(self.is_dry_run):
            boolean("dry_run", self.is_dry_run)

    def _check_formats(self, formats: Mapping[str, str]) -> None:
        unknown = sorted(set(formats) - set(self.partition))
        if unknown:
            raise ValueError(
                f"partition_from_modified has the key {unknown[0]!r}, which partition {self.partition!r} "
                f"has not"
            )
        check_formats(formats)
        check_values({key: self.partition[key] for key in formats if is_final(self.partition[key])}, formats)

    def _audio_filter(self) -> AudioFilter:
        return AudioFilter(optional(self.pattern), extension_tuple(self.extensions))

    def _rules(self) -> Rules:
        from airflow_whisper.discovery.comparison import Rules

        return Rules(
            on_removed=self.on_removed,
            on_stale=self.on_stale,
            # JSON makes a number of digits alone.
            accepted_fingerprints=tuple(map(str, self.accepted_fingerprints)),
            max_attempts=number("max_attempts", int, self.max_attempts),
            max_removed_rate=number("max_removed_rate", float, self.max_removed_rate),
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare the source with the table and write the manifest."""
        from airflow_whisper.discovery.comparison import Comparison
        from airflow_whisper.discovery.manifest import write_run
        from airflow_whisper.hooks.catalog import open_catalog
        from airflow_whisper.hooks.object_storage import explained_access, object_storage
        from airflow_whisper.operators.run_comparison import add_listing, add_rows
        from airflow_whisper.operators.run_estimate import run_estimate
        from airflow_whisper.table.schema import load_table

        with wrong_configuration():
            self._take_rendered()
        warn_of_embedded_catalog(self.log, optional(self.catalog_conn_id), self.staging)
        source_conn_id, staging_conn_id = optional(self.source_conn_id), optional(self.staging_conn_id)
        source_storage = object_storage(source_conn_id, self.source)
        staging_storage = object_storage(staging_conn_id or source_conn_id, self.staging)
        catalog = open_catalog(optional(self.catalog_conn_id))
        table = load_table(catalog, self.table)
        with Comparison() as comparison:
            target = self._target(table)
            if table is not None:
                self._check_table_location(table, target)
            root = source_root(target.source, self.partition)
            rows = add_rows(comparison, table, target)
            belongs = modified_in(self.partition_from_modified or {}, self.partition)
            with explained_access("source", source_conn_id, source_storage, self.source):
                add_listing(comparison, source_storage, self.source, self._audio_filter(), belongs, self.log)
            left_out = comparison.left_out()
            _push(context, {"left_out": left_out})
            log_left_out(self.log, self.source, left_out)
            # A table with two rows for a file stays as it is, however often this is tried.
            with wrong_configuration():
                counts = comparison.compare(target.options.fingerprint(), self._rules(), target.source)
            if counts.audio == 0:
                self._check_no_audio(context, comparison, counts, target, rows, source_storage, root)
            if counts.files["removed"]:
                check_removals(comparison, counts, self._rules(), target, rows, source_storage, root)
            if counts.nothing_to_do:
                self._skip(
                    context,
                    f"partition {partition_path(target.partition)} of {target.table} is up to date: {counts}",
                )
            expected = run_estimate(comparison, target, root, table, source_storage)
            if boolean("dry_run", self.is_dry_run):
                self._end_dry_run(context, target, counts, expected)
            self._prepare_table(catalog, target)
            used = staging_conn_id or source_conn_id
            with explained_access("staging", used, staging_storage, self.staging):
                run = write_run(comparison, counts, target, staging_storage)
        self._run = run
        log_run(self.log, run, counts, expected)
        log_pools(self.log, self.downstream_list if self.get_dag() else ())
        return {
            "manifest_uri": run.manifest_uri,
            "manifest_id": run.manifest_id,
            "partition": partition_path(run.partition),
            "fingerprint": run.options.fingerprint(),
            "counts": run.counts,
            "audio_bytes": run.audio_bytes,
            "estimate": expected.to_dict() if expected else None,
        }

    def _target(self, table: Table | None) -> Target:
        from airflow_whisper.discovery.manifest import Target
        from airflow_whisper.table.read import snapshot_id_of, table_partition
        from whisper_spark.storage.objects import normalise_uri

        return Target(
            table=self.table,
            partition=table_partition(table, self.partition),
            source=normalise_uri(self.source),
            staging=normalise_uri(self.staging),
            options=whisper_options(self.options),
            base_snapshot_id=snapshot_id_of(table),
            max_attempts=int(self.max_attempts),
        )

    def _prepare_table(self, catalog: Catalog, target: Target) -> None:
        """Create the table if nothing has been published yet: better to fail now than after the job."""
        from airflow_whisper.table.warehouse import prepare_new_table

        if target.base_snapshot_id is None:
            conn_id = optional(self.catalog_conn_id)
            name = f"connection {conn_id!r}" if conn_id else "this machine"
            created = prepare_new_table(catalog, target.table, target.partition, name)
            self._check_table_location(created, target)

    def _check_table_location(self, table: Table, target: Target) -> None:
        check_table_outside(target.source, table.location(), self._audio_filter())
        check_lengths(target.run_uri("0" * 32), table.location(), target.partition)

    def _skip(self, context: Context, reason: str) -> NoReturn:
        push_outcome(context, reason)
        raise AirflowSkipException(reason)

    def _end_dry_run(
        self, context: Context, target: Target, counts: Counts, expected: Estimate | None
    ) -> NoReturn:
        """Push what a run would do and cost, and skip this task and those downstream."""
        estimate = expected.to_dict() if expected else None
        _push(context, {"counts": counts.files, "audio_bytes": counts.audio_bytes, "estimate": estimate})
        self._skip(
            context,
            f"dry run of partition {partition_path(target.partition)} of {target.table}: {counts}. "
            f"To transcribe: {work_text(counts.to_transcribe, counts.audio_bytes, expected)}",
        )

    def _take_rendered(self) -> None:
        """Normalise and check the values of templates and of other tasks' outputs."""
        if isinstance(self.partition, Mapping):
            self.partition = {key: text(value) for key, value in self.partition.items()}
            check_rendered(self.partition)
        self.extensions = collection(self.extensions)
        self.accepted_fingerprints = collection(self.accepted_fingerprints)
        self._check_arguments()

    def _check_no_audio(
        self,
        context: Context,
        comparison: Comparison,
        counts: Counts,
        target: Target,
        rows: int,
        storage: ObjectStorage,
        root: str,
    ) -> None:
        """Distinguish an empty partition from deleted audio, a wrong filter and a wrong source."""
        gone = counts.files["removed"] + counts.files["kept_removed"]
        if gone:
            self.log.warning(
                "No audio under %s, but the table has %s rows of audio that was there: on_removed=%r "
                "decides.",
                self.source,
                f"{gone:,}",
                self.on_removed,
            )
            return
        try:
            check_some_match(comparison, target.source, self._audio_filter())
            check_source_exists(storage, target.source, root)
        except (DiscoveryError, ObjectNotFound) as error:
            if self.on_missing_source == "fail":
                raise
            self._skip(context, str(error))
        held = f"no row of it among the {rows:,}" if rows else "nothing"
        self._skip(
            context,
            f"there is no audio under {self.source}, and {held} in partition "
            f"{partition_path(target.partition)} of {target.table}",
        )

    def get_openlineage_facets_on_start(self) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_discovery

        return of_discovery(self.source, self.partition)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_discovery

        return of_discovery(self.source, self.partition, self._run)


def _push(context: Context, values: Mapping[str, Any]) -> None:
    if "ti" in context:
        for key, value in values.items():
            context["ti"].xcom_push(key=key, value=value)
