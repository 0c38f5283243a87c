"""Expire old snapshots, and delete the files that only they refer to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.table.commit import until_committed

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.refs import SnapshotRef
    from pyiceberg.table.snapshots import Snapshot

_THREADS = 16
# Removing n snapshots in one commit takes time proportional to n², so many are removed in several commits.
_SNAPSHOTS_AT_ONCE = 1_000

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Expired:
    """The counts of an expiry.

    :param snapshots: number of expired snapshots.
    :param files: number of deleted data files, manifests, manifest lists, statistics and metadata files.
    """

    snapshots: int = 0
    files: int = 0


def expire_snapshots(catalog: Catalog, table: str, *, older_than: timedelta, keep: int = 1) -> Expired:
    """Expire old snapshots of a table, and delete the files that no other snapshot refers to.

    Tags and the newest snapshots of each branch are kept. A branch's own settings may keep more snapshots.

    :param older_than: age above which snapshots expire. Use days rather than minutes, because running jobs
        compare rows with the snapshot they started from, and users query older snapshots.
    :param keep: number of newest snapshots of each branch to keep regardless of age, at least 1.
    :raises ValueError: if ``keep`` is less than 1.
    :raises ConfigurationError: if the table forbids deleting files (``gc.enabled``).
    :raises RegistrationError: if no commit succeeded.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}: the newest snapshot is the table")
    before = catalog.load_table(table)
    if before.properties.get("gc.enabled", "true").lower() == "false":
        raise ConfigurationError(
            f"table {table} has gc.enabled=false, so its files may belong to other tables too: expire its "
            "snapshots with the tool that owns them"
        )
    now = int(time.time() * 1000)
    gone = _old_snapshots(before.metadata, now, int(older_than.total_seconds() * 1000), keep)
    for start in range(0, len(gone), _SNAPSHOTS_AT_ONCE):
        _forget(catalog, before, gone[start : start + _SNAPSHOTS_AT_ONCE])
    if not gone:
        return Expired()
    files = _unreferenced_files(before, gone, catalog.load_table(table))
    _each(lambda path: _delete(before, path), files)
    return Expired(snapshots=len(gone), files=len(files))


def _old_snapshots(metadata: TableMetadata, now: int, age: int, keep: int) -> list[Snapshot]:
    by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    kept: set[int] = set()
    for ref in metadata.refs.values():
        kept.update(_kept_by(ref, by_id, now, age, keep))
    return [s for s in metadata.snapshots if s.snapshot_id not in kept and s.timestamp_ms < now - age]


def _kept_by(ref: SnapshotRef, by_id: dict[int, Snapshot], now: int, age: int, keep: int) -> Iterator[int]:
    if ref.snapshot_ref_type == "tag":
        yield ref.snapshot_id
        return
    age, keep = max(age, ref.max_snapshot_age_ms or 0), max(keep, ref.min_snapshots_to_keep or 0)
    snapshot = by_id.get(ref.snapshot_id)
    count = 0
    while snapshot is not None and (count < keep or snapshot.timestamp_ms >= now - age):
        yield snapshot.snapshot_id
        count += 1
        parent = snapshot.parent_snapshot_id
        snapshot = by_id.get(parent) if parent is not None else None


def _forget(catalog: Catalog, table: Table, snapshots: list[Snapshot]) -> None:
    from pyiceberg.table.update import (
        AssertTableUUID,
        RemovePartitionStatisticsUpdate,
        RemoveSnapshotsUpdate,
    )

    ids = {snapshot.snapshot_id for snapshot in snapshots}

    def commit() -> None:
        newest = catalog.load_table(table.name())
        # Another writer may have expired some of them, or created a branch from one.
        heads = {ref.snapshot_id for ref in newest.metadata.refs.values()}
        left = [s.snapshot_id for s in newest.snapshots() if s.snapshot_id in ids - heads]
        # PyIceberg drops only the other kind of statistics together with a snapshot.
        listed = {file.snapshot_id for file in newest.metadata.partition_statistics}
        statistics = [
            RemovePartitionStatisticsUpdate.model_validate({"snapshot-id": snapshot_id})
            for snapshot_id in left
            if snapshot_id in listed
        ]
        if left:
            catalog.commit_table(
                newest,
                (AssertTableUUID(uuid=table.metadata.table_uuid),),
                (*statistics, RemoveSnapshotsUpdate.model_validate({"snapshot-ids": left})),
            )

    until_committed(f"the expiry of snapshots of {'.'.join(table.name())}", commit)


def _unreferenced_files(before: Table, gone: list[Snapshot], after: Table) -> list[str]:
    """Files that only the expired snapshots refer to, with data files before the files that list them."""
    io = before.io
    there = {snapshot.snapshot_id for snapshot in after.snapshots()}
    gone = [snapshot for snapshot in gone if snapshot.snapshot_id not in there]
    kept = _manifests(io, after.snapshots())
    manifests = {path: m for path, m in _manifests(io, gone).items() if path not in kept}
    data = _data_files(io, manifests.values())
    if data:
        data -= _data_files(io, kept.values())
    ids = {snapshot.snapshot_id for snapshot in gone}
    listed = [*before.metadata.statistics, *before.metadata.partition_statistics]
    statistics = [file.statistics_path for file in listed if file.snapshot_id in ids]
    metadata_files = _old_metadata(before, after)
    return [*data, *manifests, *statistics, *(s.manifest_list for s in gone), *metadata_files]


def _old_metadata(before: Table, after: Table) -> set[str]:
    """Metadata files that the commits have removed from the metadata log, if they are to be deleted."""
    name = "write.metadata.delete-after-commit.enabled"
    if after.properties.get(name, "false").lower() != "true":
        return set()
    logs = [{entry.metadata_file for entry in table.metadata.metadata_log} for table in (before, after)]
    return logs[0] - logs[1] - {after.metadata_location}


def _manifests(io: Any, snapshots: Iterable[Snapshot]) -> dict[str, ManifestFile]:
    lists = _each(lambda snapshot: snapshot.manifests(io), snapshots)
    return {manifest.manifest_path: manifest for manifests in lists for manifest in manifests}


def _data_files(io: Any, manifests: Iterable[ManifestFile]) -> set[str]:
    def live(manifest: ManifestFile) -> list[str]:
        entries = manifest.fetch_manifest_entry(io, discard_deleted=True)
        return [entry.data_file.file_path for entry in entries]

    return {path for paths in _each(live, manifests) for path in paths}


def _delete(table: Table, path: str) -> None:
    try:
        table.io.delete(path)
    except FileNotFoundError:
        pass
    except Exception as error:
        # Go on with the other files: this one only costs space, because no snapshot refers to it.
        log.warning("Could not delete %s, which no snapshot refers to: %s", path, error)


def _each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="expire") as threads:
        return list(threads.map(function, items))
