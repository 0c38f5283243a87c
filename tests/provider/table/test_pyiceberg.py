"""What the table relies on in PyIceberg. One of these fails when a new version of it does something else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lakes import TABLE, Lake, change
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.table.metadata import TableMetadataV2
from transcripts import PARTITION

import airflow_whisper
from airflow_whisper.table.commit import prepare_commit
from airflow_whisper.table.pinned import PinnedTable
from airflow_whisper.table.replace import replace_rows


def test_no_private_name_of_pyiceberg_is_used() -> None:
    used = []
    for path in Path(airflow_whisper.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyiceberg"):
                parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                used += [f"{path.name}: {node.module}" for part in parts if part.startswith("_")]
        used += re.findall(r"\b(?:transaction|producer|commit|scan|catalog)\._\w+", path.read_text())
    assert used == []


@pytest.fixture
def failing(sqlite: Lake, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, Any]]]:
    """Every commit fails; gives what was sent."""
    replace_rows(sqlite.open(), TABLE, change(["a"]))
    sent: list[tuple[Any, Any]] = []

    def refuse(self: SqlCatalog, table: Any, requirements: Any, updates: Any) -> None:
        sent.append((requirements, updates))
        raise CommitFailedException("refused")

    monkeypatch.setattr(SqlCatalog, "commit_table", refuse)
    return sent


def test_failed_commit_asks_whether_it_landed_before_it_deletes_its_manifests(
    sqlite: Lake, failing: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = prepare_commit(sqlite.open().load_table(TABLE), added=[], deleted=[], summary={})
    written = len(list(tmp_path.rglob("*.avro")))
    asked: list[int] = []
    refresh = PinnedTable.refresh

    def note(self: PinnedTable) -> Any:
        asked.append(len(list(tmp_path.rglob("*.avro"))))
        return refresh(self)

    monkeypatch.setattr(PinnedTable, "refresh", note)
    with pytest.raises(CommitFailedException):
        commit.send()
    assert asked == [written]
    assert len(list(tmp_path.rglob("*.avro"))) < written
    # Once: PyIceberg does not make the commit again on top of what others did.
    assert len(failing) == 1


def test_commit_holds_for_the_snapshot_it_was_made_on(sqlite: Lake, failing: list[tuple[Any, Any]]) -> None:
    table = sqlite.open().load_table(TABLE)
    with pytest.raises(CommitFailedException):
        prepare_commit(table, added=[], deleted=[], summary={}).send()
    requirements, updates = failing[0]
    on = {requirement.type: requirement for requirement in requirements}
    assert on["assert-ref-snapshot-id"].snapshot_id == table.current_snapshot().snapshot_id
    assert on["assert-table-uuid"].uuid == table.metadata.table_uuid
    # Nothing of the history that was left out, nor the properties that are meant for this process alone.
    assert [update.action for update in updates] == ["add-snapshot", "set-snapshot-ref"]


def test_history_is_not_copied_for_a_commit(sqlite: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = sqlite.open()
    for i in range(6):
        replace_rows(catalog, TABLE, change([f"{i}"], base=None, partition={"dt": f"day {i}"}))
    copied: list[int] = []
    copy = TableMetadataV2.model_copy

    def note(self: TableMetadataV2, *, update: Any = None, deep: bool = False) -> Any:
        if deep:
            copied.append(len(self.snapshots))
        return copy(self, update=update, deep=deep)

    monkeypatch.setattr(TableMetadataV2, "model_copy", note)
    replace_rows(catalog, TABLE, change(["a"], partition=PARTITION))
    # The one that is left is the catalog's own, and it is none in a catalog behind REST.
    assert sorted(n for n in copied if n > 2) == [7]
    assert len(catalog.load_table(TABLE).snapshots()) == 7
