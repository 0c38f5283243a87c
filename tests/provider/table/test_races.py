"""Two runs of one partition: one commits, the other finds nothing to do or a conflict."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from lakes import (
    FINGERPRINT,
    OTHER,
    TABLE,
    Lake,
    change,
    data_files,
    data_files_on_disk,
    row_keys,
    uris,
)
from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table
from transcripts import PARTITION

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table import replace as replacement
from airflow_whisper.table.commit import PreparedCommit
from airflow_whisper.table.errors import (
    PartitionConflictError,
)
from airflow_whisper.table.read import current_snapshot_id, partition_rows
from airflow_whisper.table.replace import PartitionChange, Registered, replace_rows
from airflow_whisper.table.schema import ensure_table


def test_run_whose_files_another_run_registered_finds_nothing_to_do(lake: Lake) -> None:
    catalog = lake.open()
    replace_rows(catalog, TABLE, change(["a", "b"], key="first"))
    assert replace_rows(catalog, TABLE, change(["a", "b"], key="second")) is None
    assert len(catalog.load_table(TABLE).snapshots()) == 1


@pytest.mark.parametrize(
    "late",
    [
        {"uris": ["a", "b"]},  # only half of it is there
        {"uris": ["a"], "etag": "e0"},  # another version of the file
        {"uris": ["a"], "fingerprint": OTHER},  # made with other options
    ],
)
def test_run_that_overlaps_with_another_fails_clearly(sqlite: Lake, late: dict[str, Any]) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a"], key="first"))
    with pytest.raises(
        PartitionConflictError, match=r"dt=2026-11-01 of speech\.transcripts.*Clear the discover task"
    ):
        replace_rows(catalog, TABLE, change(**late, key="second"))
    assert row_keys(catalog) == [("a", "e1", FINGERPRINT, 1)]


@pytest.mark.parametrize("expired", [False, True], ids=["base known", "base expired"])
@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ({"why": "changed", "etag": "e2"}, {"why": "changed", "etag": "e2", "key": "2"}, "nothing"),
        ({"why": "changed", "etag": "e3"}, {"why": "stale", "fingerprint": OTHER}, "conflict"),
        (
            {"why": "stale", "fingerprint": OTHER},
            {"why": "stale", "fingerprint": OTHER, "key": "2"},
            "nothing",
        ),
        ({"removed": True}, {"why": "changed", "etag": "e2"}, "conflict"),
        ({"removed": True}, {"removed": True, "key": "2"}, "nothing"),
        ({"why": "changed", "etag": "e2"}, {"removed": True}, "conflict"),
    ],
)
def test_second_run_from_the_same_snapshot(
    sqlite: Lake, first: dict[str, Any], second: dict[str, Any], outcome: str, expired: bool
) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)

    def run(what: dict[str, Any]) -> Registered | None:
        what = dict(what)
        if what.pop("removed", False):
            return replace_rows(catalog, TABLE, change(removed=["a"], base=base, **what))
        return replace_rows(catalog, TABLE, change(["a"], base=base, **what))

    run(first)
    after_first = row_keys(catalog)
    if expired:
        catalog.load_table(TABLE).maintenance.expire_snapshots().by_id(base).commit()
    if outcome == "nothing":
        assert run(second) is None
    elif expired and second.get("why") == "stale":
        # Without the old snapshot the run cannot know more than this: the row is stale, as discovery said.
        assert run(second) is not None
        return
    else:
        with pytest.raises(PartitionConflictError):
            run(second)
    assert row_keys(catalog) == after_first


def test_compaction_by_others_is_no_conflict(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)
    table = catalog.load_table(TABLE)
    table.overwrite(table.scan().to_arrow(), EqualTo("dt", PARTITION["dt"]))
    assert replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base)) is not None
    assert row_keys(catalog) == [("a", "e2", FINGERPRINT, 1), ("b", "e1", FINGERPRINT, 1)]


def test_runs_of_one_partition_with_different_files_both_commit(sqlite: Lake) -> None:
    catalog = sqlite.open()
    replace_rows(catalog, TABLE, change(["a", "b"]))
    base = current_snapshot_id(catalog, TABLE)
    replace_rows(catalog, TABLE, change(["a"], why="changed", etag="e2", base=base))
    replace_rows(catalog, TABLE, change(["c"], removed=["b"], base=base))
    assert row_keys(catalog) == [("a", "e2", FINGERPRINT, 1), ("c", "e1", FINGERPRINT, 1)]


def race(
    lake: Lake, changes: list[Callable[[], PartitionChange]], monkeypatch: pytest.MonkeyPatch
) -> list[Registered | BaseException | None]:
    """Runs all changes at once; each has planned its commit on the same snapshot before the first is sent."""
    start, planned = threading.Barrier(len(changes)), threading.Barrier(len(changes))
    met = threading.local()
    prepare = replacement.prepare_commit

    def prepare_and_wait(table: Table, **changes: Any) -> PreparedCommit:
        commit = prepare(table, **changes)
        if not getattr(met, "already", False):
            met.already = True
            planned.wait(60)
        return commit

    monkeypatch.setattr(replacement, "prepare_commit", prepare_and_wait)

    def run(make: Callable[[], PartitionChange]) -> Registered | BaseException | None:
        catalog = lake.open()
        wanted = make()
        start.wait(60)
        try:
            return replace_rows(catalog, TABLE, wanted)
        except PartitionConflictError as error:
            return error

    with ThreadPoolExecutor(len(changes)) as pool:
        return list(pool.map(run, changes))


def test_first_runs_of_one_partition_at_once_give_one_commit_and_one_conflict(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    # Appends to an empty partition are what PyIceberg itself takes for no conflict.
    outcomes = race(lake, [lambda u=u: change(["a", "b", u], key=u) for u in "xy"], monkeypatch)
    assert sorted(type(o).__name__ for o in outcomes) == ["PartitionConflictError", "Registered"]
    catalog = lake.open()
    assert len(catalog.load_table(TABLE).snapshots()) == 1
    assert uris(catalog) == ["a", "b", "x" if isinstance(outcomes[0], Registered) else "y"]


def test_equal_first_runs_at_once_give_one_commit_and_nothing_to_do(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    outcomes = race(lake, [lambda k=k: change(["a", "b"], key=k) for k in "123"], monkeypatch)
    assert sorted(type(o).__name__ for o in outcomes) == ["NoneType", "NoneType", "Registered"]
    assert uris(lake.open()) == ["a", "b"]


def test_one_run_registered_twice_at_once_gives_one_snapshot(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    outcomes = race(lake, [lambda: change(["a", "b"], key="same")] * 2, monkeypatch)
    assert len({o.snapshot_id for o in outcomes if isinstance(o, Registered)}) == 1
    assert sorted(o.again for o in outcomes if isinstance(o, Registered)) == [False, True]
    catalog = lake.open()
    assert uris(catalog) == ["a", "b"]
    pa.Table.from_batches(partition_rows(catalog, TABLE, PARTITION))  # its files are there, too


def test_runs_that_change_one_row_at_once_give_one_commit_and_one_conflict(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_rows(lake.open(), TABLE, change(["a", "b"]))
    base = current_snapshot_id(lake.open(), TABLE)
    outcomes = race(
        lake,
        [
            lambda: change(["a"], why="changed", etag="e2", base=base),
            lambda: change(["a", "b"], why="stale", fingerprint=OTHER, base=base),
        ],
        monkeypatch,
    )
    assert sorted(type(o).__name__ for o in outcomes) == ["PartitionConflictError", "Registered"]
    assert uris(lake.open()) == ["a", "b"]


@pytest.mark.slow
def test_eight_partitions_at_once_all_commit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_table(lake.open(), TABLE, ["dt"])
    days = [{"dt": f"2026-11-{day:02}"} for day in range(1, 9)]
    outcomes = race(lake, [lambda d=d: change(["a", "b"], partition=d) for d in days], monkeypatch)
    assert all(isinstance(o, Registered) for o in outcomes), outcomes
    catalog = lake.open()
    assert len(catalog.load_table(TABLE).snapshots()) == 8
    for day in days:
        assert uris(catalog, day) == ["a", "b"]


def test_compaction_between_plan_and_commit_is_taken_in(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog(None)
    replace_rows(catalog, TABLE, change(["a", "b", "c"]))
    base = current_snapshot_id(catalog, TABLE)
    prepare, compacted = replacement.prepare_commit, []

    def prepare_while_others_compact(table: Table, **changes: Any) -> PreparedCommit:
        commit = prepare(table, **changes)
        if not compacted:
            compacted.append(1)
            others = open_catalog(None).load_table(TABLE)
            others.overwrite(others.scan().to_arrow(), EqualTo("dt", PARTITION["dt"]))
        return commit

    monkeypatch.setattr(replacement, "prepare_commit", prepare_while_others_compact)
    before = data_files_on_disk(catalog_env.warehouse)
    registered = replace_rows(catalog, TABLE, change(["b"], why="changed", etag="e2", base=base))
    assert registered is not None
    assert row_keys(catalog) == [(u, e, FINGERPRINT, 1) for u, e in [("a", "e1"), ("b", "e2"), ("c", "e1")]]
    table = catalog.load_table(TABLE)
    compaction = table.snapshot_by_id(table.current_snapshot().parent_snapshot_id)
    theirs = {
        e.data_file.file_path
        for m in compaction.manifests(table.io)
        for e in m.fetch_manifest_entry(table.io)
    }
    assert data_files_on_disk(catalog_env.warehouse) == before | theirs | data_files(table)


def _register_in_process(name: str, start: Any, outcomes: Any) -> None:
    wanted = change(["a", "b", name], key=name)
    start.wait(240)
    try:
        outcomes.put(type(replace_rows(open_catalog(None), TABLE, wanted)).__name__)
    except Exception as error:
        outcomes.put(type(error).__name__)


@pytest.mark.slow
def test_processes_that_create_catalog_table_and_partition_at_once(catalog_env: SimpleNamespace) -> None:
    context = multiprocessing.get_context("spawn")
    start, outcomes = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_register_in_process, args=(u, start, outcomes)) for u in "xy"]
    for process in processes:
        process.start()
    assert sorted(outcomes.get(timeout=300) for _ in processes) == ["PartitionConflictError", "Registered"]
    for process in processes:
        process.join(60)
    assert len(uris(open_catalog(None))) == 3


def test_loser_leaves_no_files_behind(catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite = Lake(lambda: open_catalog(None))
    ensure_table(sqlite.open(), TABLE, ["dt"])
    race(sqlite, [lambda k=k: change(["a", "b"], key=k) for k in "12"], monkeypatch)
    table = sqlite.open().load_table(TABLE)
    assert data_files_on_disk(catalog_env.warehouse) == data_files(table)
    manifests = {m.manifest_path for s in table.snapshots() for m in s.manifests(table.io)}
    lists = {s.manifest_list for s in table.snapshots()}
    assert {f"file://{p}" for p in catalog_env.warehouse.rglob("*.avro")} == manifests | lists
