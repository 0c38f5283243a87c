"""Compaction, merged manifests and expired snapshots: fewer files, the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lakes import FINGERPRINT, TABLE, Lake, change, data_files, data_files_on_disk, row_keys, uris
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table
from pyiceberg.table.update import SetPartitionStatisticsUpdate
from transcripts import PARTITION

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table import compaction
from airflow_whisper.table.commit import PreparedCommit
from airflow_whisper.table.compaction import compact_partition, merge_manifests, partitions_with_small_files
from airflow_whisper.table.expiry import Expired, expire_snapshots
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.replace import replace_rows

AT_ONCE = timedelta(0)
OTHER_DAY = {"dt": "2026-11-02"}


def late_files(catalog: Catalog, count: int, partition: Mapping[str, str] = PARTITION) -> None:
    """One run for each of some late files."""
    for i in range(count):
        base = current_snapshot_id(catalog, TABLE)
        replace_rows(catalog, TABLE, change([f"late {i}"], partition=partition, base=base))


def on_disk(table: Table, warehouse: Path) -> bool:
    """Whether exactly those files exist that the table's snapshots refer to."""
    manifests = {m.manifest_path: m for s in table.snapshots() for m in s.manifests(table.io)}
    data = {e.data_file.file_path for m in manifests.values() for e in m.fetch_manifest_entry(table.io)}
    lists = {snapshot.manifest_list for snapshot in table.snapshots()}
    avro = {f"file://{path}" for path in warehouse.rglob("*.avro")}
    return data_files_on_disk(warehouse) == data and avro == {*manifests, *lists}


def test_late_files_become_one_data_file_of_the_same_rows(lake: Lake) -> None:
    catalog = lake.open()
    late_files(catalog, 6)
    late_files(catalog, 1, OTHER_DAY)
    before, snapshots = row_keys(catalog), len(catalog.load_table(TABLE).snapshots())
    elsewhere = uris(catalog, OTHER_DAY)
    assert compact_partition(catalog, TABLE, PARTITION) == 6
    table = catalog.load_table(TABLE)
    assert len(data_files(table)) == 2
    assert row_keys(catalog) == before
    assert uris(catalog, OTHER_DAY) == elsewhere
    assert len(table.snapshots()) == snapshots + 1
    # Done again, it finds nothing to do.
    assert compact_partition(catalog, TABLE, PARTITION) == 0
    assert len(catalog.load_table(TABLE).snapshots()) == snapshots + 1


def test_partitions_that_are_worth_it_are_found(sqlite: Lake) -> None:
    catalog = sqlite.open()
    late_files(catalog, 5)
    late_files(catalog, 2, OTHER_DAY)
    assert list(partitions_with_small_files(catalog.load_table(TABLE))) == [PARTITION]


def test_manifests_of_many_commits_become_one(lake: Lake) -> None:
    catalog = lake.open()
    late_files(catalog, 3)
    late_files(catalog, 3, OTHER_DAY)
    assert merge_manifests(catalog, TABLE, min_manifests=7) == 0
    assert merge_manifests(catalog, TABLE, min_manifests=6) == 6
    table = catalog.load_table(TABLE)
    assert len(table.current_snapshot().manifests(table.io)) == 1
    assert len(uris(catalog)) == len(uris(catalog, OTHER_DAY)) == 3
    # Later runs go on from there.
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["late 0"], why="changed", etag="e2", base=base))
    assert ("late 0", "e2", FINGERPRINT, 1) in row_keys(catalog)
    assert len(uris(catalog, OTHER_DAY)) == 3


def test_compaction_while_a_run_transcribes_is_no_conflict(lake: Lake) -> None:
    catalog = lake.open()
    late_files(catalog, 5)
    base = current_snapshot_id(catalog, TABLE)
    compact_partition(catalog, TABLE, PARTITION)
    merge_manifests(catalog, TABLE, min_manifests=2)
    expire_snapshots(catalog, TABLE, older_than=AT_ONCE)
    assert len(catalog.load_table(TABLE).snapshots()) == 1
    assert replace_rows(catalog, TABLE, change(["late 1"], why="changed", etag="e2", base=base)) is not None
    assert len(uris(catalog)) == 5
    assert ("late 1", "e2", FINGERPRINT, 1) in row_keys(catalog)


def test_run_that_commits_while_its_partition_is_compacted_wins(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog(None)
    late_files(catalog, 6)
    prepare, registered = compaction.prepare_commit, []

    def prepare_while_a_run_registers(table: Table, **changes: Any) -> PreparedCommit:
        commit = prepare(table, **changes)
        if not registered:
            base = current_snapshot_id(catalog, TABLE)
            wanted = change(["late 0"], why="changed", etag="e2", base=base)
            registered.append(replace_rows(open_catalog(None), TABLE, wanted))
        return commit

    monkeypatch.setattr(compaction, "prepare_commit", prepare_while_a_run_registers)
    assert compact_partition(catalog, TABLE, PARTITION) == 6
    assert row_keys(catalog) == sorted((f"late {i}", "e1" if i else "e2", FINGERPRINT, 1) for i in range(6))
    table = catalog.load_table(TABLE)
    assert len(data_files(table)) == 1
    # Neither the compaction's first files nor its first manifests are left.
    assert on_disk(table, catalog_env.warehouse)


def test_expired_snapshots_take_along_the_files_that_only_they_need(catalog_env: SimpleNamespace) -> None:
    catalog = open_catalog(None)
    late_files(catalog, 6)
    compact_partition(catalog, TABLE, PARTITION)
    merge_manifests(catalog, TABLE, min_manifests=2)
    before = row_keys(catalog)
    expired = expire_snapshots(catalog, TABLE, older_than=AT_ONCE)
    table = catalog.load_table(TABLE)
    assert expired.snapshots == 7
    assert expired.files >= 6 + 6 + 7
    assert len(table.snapshots()) == 1
    assert row_keys(catalog) == before
    assert on_disk(table, catalog_env.warehouse)
    assert expire_snapshots(catalog, TABLE, older_than=AT_ONCE) == Expired()


def test_text_of_erased_rows_is_nowhere_on_disk_after_expiry(catalog_env: SimpleNamespace) -> None:
    catalog = open_catalog(None)
    replace_rows(catalog, TABLE, change(["kept", "erased"], text=lambda uri: f"{uri} words " * 50))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(removed=["erased"], base=base))
    expire_snapshots(catalog, TABLE, older_than=AT_ONCE)
    table = catalog.load_table(TABLE)
    assert uris(catalog) == ["kept"]
    assert data_files_on_disk(catalog_env.warehouse) == data_files(table)
    assert b"erased" not in b"".join(p.read_bytes() for p in catalog_env.warehouse.rglob("*.avro"))


def test_statistics_of_other_engines_go_with_their_snapshots(sqlite: Lake) -> None:
    catalog = sqlite.open()
    late_files(catalog, 3)
    table = catalog.load_table(TABLE)
    folder = Path(table.location().removeprefix("file://"))
    ids = [snapshot.snapshot_id for snapshot in table.snapshots()]
    updates = []
    for snapshot_id in ids:
        path = folder / f"{snapshot_id}-partitions.parquet"
        path.write_bytes(b"PAR1")
        statistics = {
            "snapshot-id": snapshot_id,
            "statistics-path": f"file://{path}",
            "file-size-in-bytes": 4,
        }
        updates.append(SetPartitionStatisticsUpdate.model_validate({"partition-statistics": statistics}))
    catalog.commit_table(table, (), tuple(updates))
    expire_snapshots(catalog, TABLE, older_than=AT_ONCE)
    left = [file.snapshot_id for file in catalog.load_table(TABLE).metadata.partition_statistics]
    assert left == ids[-1:]
    assert [path.name for path in folder.glob("*-partitions.parquet")] == [f"{ids[-1]}-partitions.parquet"]


def test_snapshots_that_are_young_newest_tagged_or_of_a_branch_are_kept(catalog_env: SimpleNamespace) -> None:
    catalog = open_catalog(None)
    late_files(catalog, 6)
    ids = [snapshot.snapshot_id for snapshot in catalog.load_table(TABLE).snapshots()]
    assert expire_snapshots(catalog, TABLE, older_than=timedelta(days=1)) == Expired()
    table = catalog.load_table(TABLE)
    table.manage_snapshots().create_tag(ids[0], "audit").create_branch(ids[2], "branch").commit()
    expire_snapshots(catalog, TABLE, older_than=AT_ONCE, keep=2)
    table = catalog.load_table(TABLE)
    # The tag, the branch with the snapshot before it, and the two newest.
    assert [snapshot.snapshot_id for snapshot in table.snapshots()] == [
        ids[0],
        ids[1],
        ids[2],
        ids[4],
        ids[5],
    ]
    assert on_disk(table, catalog_env.warehouse)
    assert table.scan(snapshot_id=ids[0]).count() == 1


def test_table_whose_files_belong_to_others_is_left_alone(sqlite: Lake) -> None:
    catalog = sqlite.open()
    late_files(catalog, 2)
    with catalog.load_table(TABLE).transaction() as transaction:
        transaction.set_properties({"gc.enabled": "false"})
    with pytest.raises(ConfigurationError, match=r"gc\.enabled=false"):
        expire_snapshots(catalog, TABLE, older_than=AT_ONCE)
    assert len(catalog.load_table(TABLE).snapshots()) == 2
