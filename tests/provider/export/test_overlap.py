"""Exports of one partition that overlap leave the files of the table's rows, in whatever order they work."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from interleaving import SteppedWork
from lakes import TABLE, change
from pyiceberg.table import Table
from transcripts import PARTITION

from airflow_whisper.export import entries
from airflow_whisper.export import run as export_run
from airflow_whisper.export.run import Exported, ExportSettings, export_partition
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from whisper_spark.storage.objects import ObjectStorage
from whisper_spark.subtitles import Layout

A, B, C, D = (f"s3://calls/{name}.wav" for name in "abcd")


class Serial:
    """A thread pool without threads, so that the operations of a run have one order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.map = map

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lake:
    """The history of a table. Every run sees the state that is current when it looks."""

    def __init__(self, folder: Path, states: list[Table]) -> None:
        self._folder, self._states = folder, states
        self._folders = 0
        self.now = 0

    @property
    def is_latest(self) -> bool:
        return self.now == len(self._states) - 1

    def table(self, *_: Any) -> Table:
        return self._states[self.now]

    def export(self, out: str, storage: ObjectStorage | None = None) -> Exported:
        template = f"{out}/{{name}}.{{format}}"
        settings = ExportSettings(template=template, formats=("txt", "json"), layout=Layout())
        catalog: Any = None
        return export_partition(catalog, TABLE, PARTITION, settings, storage or ObjectStorage())

    def expected(self) -> dict[str, bytes]:
        """The files of the current rows."""
        fresh = self._folder / f"expected-{self.now}"
        if not fresh.exists():
            self.export(str(fresh))
        return content(fresh)

    def folder(self) -> Path:
        """A folder with the files of the first state."""
        self._folders += 1
        out = self._folder / f"out-{self._folders}"
        self.now = 0
        self.export(str(out))
        return out


def content(out: Path) -> dict[str, bytes]:
    paths = (p for p in out.rglob("*") if p.is_file() and "_exports" not in p.parts)
    return {p.name: p.read_bytes() for p in paths}


@pytest.fixture
def lake(tmp_path: Path, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A table in three states: rows change, become errors, leave and come back."""
    commits: list[list[dict[str, Any]]] = [
        [{"uris": [A, B, C]}],
        [{"uris": [A], "why": "changed", "etag": "e2"}, {"removed": [B]}, {"uris": [D]}],
        [
            {"uris": [A, C], "why": "changed", "etag": "e3"},
            {"uris": [B], "etag": "e4"},
            {"uris": [D], "why": "changed", "etag": "e5", "status": "error"},
        ],
    ]
    catalog, states = open_catalog(None), []
    for changes in commits:
        for arguments in changes:
            text = f"Said in {len(states)}"
            base = current_snapshot_id(catalog, TABLE)
            done = replace_rows(catalog, TABLE, change(base=base, **{"text": text, **arguments}))
            assert done is not None
        states.append(catalog.load_table(TABLE))
    lake = Lake(tmp_path, states)
    monkeypatch.setattr(export_run, "load_table", lake.table)
    monkeypatch.setattr(Table, "refresh", lake.table)
    monkeypatch.setattr(export_run, "ThreadPoolExecutor", Serial)
    return lake


@contextmanager
def stepped_runs(lake: Lake, out: Path, number: int) -> Iterator[list[SteppedWork]]:
    runs = [SteppedWork(lambda storage: lake.export(str(out), storage)) for _ in range(number)]
    yield runs
    for run in runs:
        run.finish()


def converges(lake: Lake, out: Path) -> None:
    """The next run makes the files those of the table's rows, and the one after it has nothing to do."""
    lake.export(str(out))
    assert content(out) == lake.expected()
    again = lake.export(str(out))
    assert (again.written, again.removed) == (0, 0)


def interleave(lake: Lake, seed: int) -> None:
    """Runs, whose table changes meanwhile and of which one may be killed, in a random order of steps."""
    order = random.Random(seed)
    out = lake.folder()
    lake.now = order.randrange(2)
    # In stretches, because one run often does all of its work while the other waits.
    lengths = [order.choice((1, 2, 3, 4, 5, 6, 25)) for _ in range(order.randint(2, 7))]
    number = order.choice((2, 2, 3))
    turns = [order.randrange(number)]
    while len(turns) < len(lengths):
        turns.append(order.choice([turn for turn in range(number) if turn != turns[-1]]))
    steps = [turn for turn, length in zip(turns, lengths, strict=True) for _ in range(length)]
    table_moves = {order.randrange(len(steps) // 2 + 1) for _ in range(order.randint(1, 2))}
    killed_at = len(steps) - 1 if order.random() < 0.5 else -1
    begun_in: dict[int, int] = {}
    with stepped_runs(lake, out, number) as runs:
        for step, turn in enumerate(steps):
            if step in table_moves and not lake.is_latest:
                lake.now += 1
            begun_in.setdefault(turn, lake.now)
            if step == killed_at:
                runs[turn].kill()
            else:
                runs[turn].step()
    if not any(run.killed for run in runs):
        index = next((out / "_exports").rglob("*.parquet"))
        entries = pq.read_table(index, partitioning=None).to_pylist()
        assert [entry for entry in entries if entry["runs"] or entry["settings"] is None] == []
        if lake.now in begun_in.values() or len(begun_in) < len(runs):
            # One of them has seen the last state of the table.
            assert content(out) == lake.expected()
    converges(lake, out)


@pytest.mark.slow
def test_files_are_those_of_the_rows_whatever_the_order_of_steps(lake: Lake) -> None:
    for seed in range(30):
        interleave(lake, seed)


def test_old_content_of_a_run_that_was_believed_dead_is_found_and_replaced(lake: Lake) -> None:
    out = lake.folder()
    lake.now = 1
    old = lake.expected().items() - content(out).items()
    paused = SteppedWork(lambda storage: lake.export(str(out), storage))
    while old.isdisjoint(content(out).items()):
        paused.step()
    # It has written the first file of a row, and is about to write the second one.
    lake.now = 2
    lake.export(str(out))
    assert content(out) == lake.expected()
    paused.step()
    paused.kill()
    (stale,) = content(out).items() - lake.expected().items()
    assert stale in old
    converges(lake, out)


def test_run_that_was_killed_is_forgotten_in_time(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    out = lake.folder()
    lake.now = 1
    killed = SteppedWork(lambda storage: lake.export(str(out), storage))
    for _ in range(4):
        killed.step()
    killed.kill()
    lake.export(str(out))
    index = next((out / "_exports").rglob("*.parquet"))

    def runs() -> list[str]:
        return [run for row in pq.read_table(index, partitioning=None).to_pylist() for run in row["runs"]]

    assert len(set(runs())) == 1
    converges(lake, out)
    assert len(set(runs())) == 1
    monkeypatch.setattr(entries, "_LONGEST_RUN", timedelta(0))
    converges(lake, out)
    assert runs() == []


def test_index_of_an_earlier_release_is_understood(lake: Lake) -> None:
    out = lake.folder()
    index = next((out / "_exports").rglob("*.parquet"))
    table = pq.read_table(index, partitioning=None)
    pq.write_table(table.drop_columns(["hashes", "runs"]), index)
    lake.now = 1
    assert lake.export(str(out)).written == 2
    assert content(out) == lake.expected()


def test_runs_in_object_storage_agree_as_well(lake: Lake, s3: Any) -> None:
    storage, bucket = ObjectStorage(s3.config), s3.bucket("exports")
    out = f"s3://{bucket}/out"
    lake.export(out, storage)
    lake.now = 1
    paused = SteppedWork(lambda stepped: lake.export(out, stepped), s3.config)
    # It has looked at the table and is about to write files.
    for _ in range(4):
        paused.step()
    lake.now = 2
    lake.export(out, storage)
    paused.finish()
    names = lake.expected()
    assert {name: storage.read_bytes(f"{out}/{name}") for name in names} == names
    assert lake.export(out, storage).written == 0
    listed = [uri for batch in storage.list(out) for uri in batch.column("audio_uri").to_pylist()]
    assert len(listed) == len(names) + 1
