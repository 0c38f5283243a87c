"""Commits whose answer is lost, that never succeed, or that lose their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from lakes import (
    TABLE,
    Lake,
    change,
    data_files,
    data_files_on_disk,
)
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
from transcripts import make_transcript_rows

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table import commit as commits
from airflow_whisper.table.errors import (
    RegistrationError,
)
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from airflow_whisper.table.schema import ensure_table


@pytest.mark.parametrize("error", [CommitFailedException, CommitStateUnknownException, ConnectionResetError])
def test_commit_that_landed_without_an_answer_is_found_again(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    commit_table, commits = SqlCatalog.commit_table, []

    def commit_and_lose_the_answer(self: SqlCatalog, *args: Any) -> Any:
        answer = commit_table(self, *args)
        commits.append(answer)
        if len(commits) == 1:
            raise _as_requests_does(error)
        return answer

    ensure_table(open_catalog(None), TABLE, ["dt"])
    monkeypatch.setattr(SqlCatalog, "commit_table", commit_and_lose_the_answer)
    registered = replace_rows(open_catalog(None), TABLE, change(["a", "b"]))
    assert registered is not None
    assert not registered.again
    assert len(commits) == 1
    table = open_catalog(None).load_table(TABLE)
    assert [s.snapshot_id for s in table.snapshots()] == [registered.snapshot_id]
    assert table.scan().to_arrow().num_rows == 2  # manifests and data files were not cleaned away
    assert data_files_on_disk(catalog_env.warehouse) == data_files(table)


def _as_requests_does(error: type[Exception]) -> Exception:
    import requests

    return requests.ConnectionError("reset") if error is ConnectionResetError else error("lost")


def test_task_killed_right_after_its_commit_keeps_the_files_of_the_commit(
    sqlite: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_table = SqlCatalog.commit_table

    def commit_and_die(self: SqlCatalog, *args: Any) -> Any:
        commit_table(self, *args)
        raise KeyboardInterrupt

    ensure_table(sqlite.open(), TABLE, ["dt"])
    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", commit_and_die)
        with pytest.raises(KeyboardInterrupt):
            replace_rows(sqlite.open(), TABLE, change(["a", "b"], key="k"))
    again = replace_rows(sqlite.open(), TABLE, change(["a", "b"], key="k"))
    assert again is not None
    assert again.again
    assert sqlite.open().load_table(TABLE).scan().to_arrow().num_rows == 2


def test_table_created_again_meanwhile_is_noticed(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows_then_new_table() -> Iterator[pa.RecordBatch]:
        yield from make_transcript_rows(["a"]).to_batches()
        catalog = open_catalog(None)
        catalog.drop_table(TABLE)
        ensure_table(catalog, TABLE, ["dt"])

    wanted = dataclasses.replace(change(["a"]), rows=rows_then_new_table())
    with pytest.raises(RegistrationError, match="created it again"):
        replace_rows(open_catalog(None), TABLE, wanted)
    assert data_files_on_disk(catalog_env.warehouse) == set()


def test_table_partitioned_otherwise_meanwhile_is_noticed(catalog_env: SimpleNamespace) -> None:
    def rows_then_other_partitioning() -> Iterator[pa.RecordBatch]:
        yield from make_transcript_rows(["a"]).to_batches()
        with open_catalog(None).load_table(TABLE).update_spec() as update:
            update.add_identity("language")

    wanted = dataclasses.replace(change(["a"]), rows=rows_then_other_partitioning())
    with pytest.raises(RegistrationError, match="changed how the table is partitioned"):
        replace_rows(open_catalog(None), TABLE, wanted)
    assert data_files_on_disk(catalog_env.warehouse) == set()


def test_commit_that_never_succeeds_gives_up_and_cleans_up(
    catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise CommitFailedException("always too late")

    replace_rows(open_catalog(None), TABLE, change(["a", "b"]))
    base = current_snapshot_id(open_catalog(None), TABLE)
    before = data_files_on_disk(catalog_env.warehouse)
    monkeypatch.setattr(commits, "COMMIT_TRIES", 3)
    monkeypatch.setattr(SqlCatalog, "commit_table", refuse)
    with pytest.raises(RegistrationError, match="after 3 tries"):
        replace_rows(open_catalog(None), TABLE, change(["a"], why="changed", etag="e2", base=base))
    assert data_files_on_disk(catalog_env.warehouse) == before
