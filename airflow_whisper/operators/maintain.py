"""Maintain the table and staging: compact files and delete old snapshots and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_whisper.discovery.locations import check_locations
from airflow_whisper.errors import wrong_configuration
from airflow_whisper.templates import TextTemplates, is_final, optional, text
from whisper_spark.contract import check_partition

if TYPE_CHECKING:
    from airflow.sdk import Context
    from pyiceberg.catalog import Catalog


class MaintainTableOperator(TextTemplates, BaseOperator):
    """Compact small data files, merge manifests, and expire old snapshots with the files only they need.

    .. code-block:: python

        MaintainTableOperator(task_id="maintain", table="speech.transcripts", catalog_conn_id="lake")

    Run it once a day per table. It is safe to run while jobs are running: it changes no row, commits only on
    top of other writers' commits, and keeps the snapshots that a running job may be based on. A register task
    that runs again after its snapshot has expired still finds its outcome in staging.

    Returns ``{"table", "compacted_files", "merged_manifests", "expired_snapshots", "deleted_files"}``.

    :param table: ``namespace.table``. It must exist.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded SQLite catalog.
    :param partition: compact only this partition; ``None``: every partition that has enough small files.
    :param compact: whether to rewrite small data files as larger ones.
    :param min_files: smallest number of small data files for which a partition is compacted.
    :param merge_manifests: whether to rewrite the table's manifests as fewer ones.
    :param min_manifests: smallest number of manifests for which they are merged.
    :param expire_older_than: age above which snapshots expire. It must exceed the duration of the longest
        job. ``None`` keeps all snapshots. Zero, for erasure, leaves only the newest ``keep_snapshots``.
    :param keep_snapshots: number of newest snapshots to keep regardless of age.
    :raises ValueError: if an argument is wrong.
    """

    template_fields: Sequence[str] = ("table", "catalog_conn_id", "partition")
    text_fields = frozenset(template_fields)

    def __init__(
        self,
        *,
        table: str,
        catalog_conn_id: str | None = None,
        partition: Mapping[str, str] | None = None,
        compact: bool = True,
        min_files: int = 5,
        merge_manifests: bool = True,
        min_manifests: int = 20,
        expire_older_than: timedelta | None = timedelta(days=7),
        keep_snapshots: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.catalog_conn_id = catalog_conn_id
        self.partition = partition
        self.compact = compact
        self.min_files = min_files
        self.merge_manifests = merge_manifests
        self.min_manifests = min_manifests
        self.expire_older_than = expire_older_than
        self.keep_snapshots = keep_snapshots
        for name in ("min_files", "min_manifests"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)!r}")
        _check_age("expire_older_than", expire_older_than)
        if keep_snapshots < 1:
            raise ValueError(f"keep_snapshots must be at least 1, got {keep_snapshots!r}")
        self._check_templates()

    def _check_templates(self) -> None:
        from airflow_whisper.table.schema import check_table_name

        if is_final(self.table):
            check_table_name(self.table)
        if isinstance(self.partition, Mapping) and all(is_final(v) for v in self.partition.values()):
            check_partition(self.partition)

    def execute(self, context: Context) -> dict[str, Any]:
        """Compact, merge and expire, in this order, so that files replaced by compaction can expire later."""
        from airflow_whisper.hooks.catalog import open_catalog
        from airflow_whisper.table.compaction import merge_manifests
        from airflow_whisper.table.expiry import Expired, expire_snapshots
        from airflow_whisper.table.schema import load_table

        if isinstance(self.partition, Mapping):
            self.partition = {key: text(value) for key, value in self.partition.items()}
        with wrong_configuration():
            self._check_templates()
        catalog = open_catalog(optional(self.catalog_conn_id))
        if load_table(catalog, self.table) is None:
            raise AirflowFailException(
                f"there is no table {self.table} in catalog {catalog.name!r}: check `table` and "
                "`catalog_conn_id`. The first run that finds audio creates it"
            )
        compacted = self._compact(catalog) if self.compact else 0
        merged = 0
        if self.merge_manifests:
            merged = merge_manifests(catalog, self.table, min_manifests=self.min_manifests)
        expired = Expired()
        if self.expire_older_than is not None:
            expired = expire_snapshots(
                catalog, self.table, older_than=self.expire_older_than, keep=self.keep_snapshots
            )
        self.log.info(
            "%s: compacted %s data files, merged %s manifests, expired %s snapshots and deleted %s files",
            self.table,
            f"{compacted:,}",
            f"{merged:,}",
            f"{expired.snapshots:,}",
            f"{expired.files:,}",
        )
        return {
            "table": self.table,
            "compacted_files": compacted,
            "merged_manifests": merged,
            "expired_snapshots": expired.snapshots,
            "deleted_files": expired.files,
        }

    def _compact(self, catalog: Catalog) -> int:
        from airflow_whisper.table.compaction import compact_partition, partitions_with_small_files

        if self.partition:
            return compact_partition(catalog, self.table, self.partition, min_files=self.min_files)
        found = partitions_with_small_files(catalog.load_table(self.table), min_files=self.min_files)
        return sum(compact_partition(catalog, self.table, p, min_files=self.min_files) for p in found)


class PurgeStagingOperator(TextTemplates, BaseOperator):
    """Delete old runs from staging: their manifests, staged transcripts, and reports.

    .. code-block:: python

        PurgeStagingOperator(task_id="purge", staging="s3://calls/staging/", table="speech.transcripts")

    Registered transcripts are in the table and no longer need staging. Until a run is purged, a cleared task
    reuses its transcripts from staging instead of transcribing again.

    Returns ``{"deleted_runs", "deleted_files"}``.

    :param staging: folder in which runs keep their files.
    :param table: ``namespace.table`` whose runs are deleted.
    :param partition: delete only the runs of this partition, spelled as in asset events; ``None``: of all.
    :param older_than: minimum time since the last write to a run. It must exceed the time between the tasks
        of a run that may still continue, so that no such run loses its files.
    :param staging_conn_id: Airflow connection for staging; ``None``: ambient credentials.
    :raises ValueError: when an argument is wrong.
    """

    template_fields: Sequence[str] = ("staging", "table", "partition", "staging_conn_id")
    text_fields = frozenset(template_fields)

    def __init__(
        self,
        *,
        staging: str,
        table: str,
        partition: Mapping[str, str] | None = None,
        older_than: timedelta = timedelta(days=30),
        staging_conn_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.staging = staging
        self.table = table
        self.partition = partition
        self.older_than = older_than
        self.staging_conn_id = staging_conn_id
        _check_age("older_than", older_than)
        self._check_templates()

    def _check_templates(self) -> None:
        """Check the arguments that are not templates, or already rendered."""
        from airflow_whisper.table.schema import check_table_name

        if is_final(self.table):
            check_table_name(self.table)
        if is_final(self.staging):
            check_locations({"staging": self.staging})

    def execute(self, context: Context) -> dict[str, Any]:
        """List the table's folder in staging and delete the runs that are old enough."""
        from airflow_whisper.discovery.purge import purge_staging
        from airflow_whisper.hooks.object_storage import object_storage

        partition = None
        with wrong_configuration():
            self._check_templates()
            if self.partition:
                partition = check_partition({key: text(value) for key, value in self.partition.items()})
        runs, files = purge_staging(
            object_storage(optional(self.staging_conn_id), self.staging),
            self.staging,
            self.table,
            partition,
            older_than=self.older_than,
        )
        self.log.info("Deleted %s runs of %s with %s files", f"{runs:,}", self.table, f"{files:,}")
        return {"deleted_runs": runs, "deleted_files": files}


def _check_age(name: str, age: timedelta | None) -> None:
    if age is not None and (not isinstance(age, timedelta) or age < timedelta(0)):
        raise ValueError(f"{name} must be a timedelta such as timedelta(days=7), got {age!r}")
