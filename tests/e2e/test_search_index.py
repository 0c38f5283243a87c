"""The example DAG ``search_index``: what the table holds is found, and what it no longer holds is not."""

from __future__ import annotations

import importlib.util
import re
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.execution_time.context import OutletEventAccessors
from dag_runs import run_dag
from lakes import TABLE, change
from transcripts import make_transcript_rows, stage_run

from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.table.read import current_snapshot_id
from airflow_whisper.table.replace import replace_rows
from whisper_spark.contract import Segment

ROOT = Path(__file__).resolve().parents[2]
LATER = datetime(2026, 11, 3, tzinfo=UTC)


def segments(*texts: str) -> tuple[Segment, ...]:
    return tuple(
        Segment(n, None, float(n), n + 1.0, text, "en", -0.1, 1.0, 0.0) for n, text in enumerate(texts)
    )


def register(*uris: str, **arguments: Any) -> None:
    base = current_snapshot_id(open_catalog(None), TABLE)
    assert replace_rows(open_catalog(None), TABLE, change(uris, base=base, **arguments)) is not None


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog_env: SimpleNamespace) -> Path:
    """The file of the index, in an environment of its own."""
    monkeypatch.setenv("AIRFLOW_WHISPER_SEARCH_INDEX", str(tmp_path / "search.db"))
    return tmp_path / "search.db"


@pytest.fixture
def example(index: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("search_index", ROOT / "dags" / "search_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def search(index: Path) -> Any:
    """The function of docs/full-text-search.md."""
    page = (ROOT / "docs" / "full-text-search.md").read_text()
    (text,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(text, "full-text-search.md", "exec"), names)
    return names["search"]


def update(example: ModuleType, *partitions: str) -> list[dict[str, Any]]:
    """Run the task with events of these partitions."""
    events = [
        SimpleNamespace(extra={"partition": part, "table": TABLE}, timestamp=LATER) for part in partitions
    ]
    done: list[dict[str, Any]] = example.update_index.function(
        triggering_asset_events={Asset(TABLE): events}, inlet_events=None
    )
    return done


DAY = "dt=2026-11-01"


def test_new_rows_are_found_at_their_time(example: ModuleType, search: Any) -> None:
    register("s3://calls/a.wav", segments=segments("good morning", "I want a refund for my order"))
    assert update(example, DAY) == [{"partition": DAY, "added": 1, "deleted": 0}]
    assert search("refund") == [("s3://calls/a.wav", 1.0, None, "I want a [refund] for my order")]
    assert search("refunds") == []


def test_event_of_register_says_what_to_index(example: ModuleType, search: Any, tmp_path: Path) -> None:
    asset, context = Asset(TABLE), {"outlet_events": OutletEventAccessors()}
    rows = make_transcript_rows(["s3://calls/a.wav"], segments=segments("a refund"))
    run = stage_run(tmp_path, ["s3://calls/a.wav"], rows=rows)
    operator = RegisterTranscriptsOperator(task_id="register", manifest=run.manifest_uri, outlets=[asset])
    operator.execute(context)  # type: ignore[arg-type]
    event = SimpleNamespace(extra=context["outlet_events"][asset].extra, timestamp=LATER)
    example.update_index.function(triggering_asset_events={asset: [event]}, inlet_events=None)
    assert len(search("refund")) == 1


def test_running_again_changes_nothing(example: ModuleType, index: Path, search: Any) -> None:
    register("s3://calls/a.wav", segments=segments("a refund"))
    update(example, DAY)
    before = index.read_bytes()
    assert update(example, DAY, DAY) == [{"partition": DAY, "added": 0, "deleted": 0}]
    assert index.read_bytes() == before


def test_changed_row_is_replaced_and_others_stay(example: ModuleType, search: Any) -> None:
    register("s3://calls/a.wav", segments=segments("a refund"))
    register("s3://calls/b.wav", segments=segments("an invoice"))
    update(example, DAY)
    register(
        "s3://calls/a.wav", why="changed", etag="e2", segments=segments("a complaint"), transcribed_at=LATER
    )
    assert update(example, DAY) == [{"partition": DAY, "added": 1, "deleted": 0}]
    assert search("refund") == []
    assert sorted(hit[0] for hit in search("complaint OR invoice")) == [
        "s3://calls/a.wav",
        "s3://calls/b.wav",
    ]


def test_deleted_rows_leave_the_index_and_its_file(example: ModuleType, index: Path, search: Any) -> None:
    register("s3://calls/a.wav", segments=segments("zanzibar"))
    register("s3://calls/b.wav", segments=segments("an invoice"))
    update(example, DAY)
    assert b"zanzibar" in index.read_bytes()
    register(removed=["s3://calls/a.wav"])
    assert update(example, DAY) == [{"partition": DAY, "added": 0, "deleted": 1}]
    assert search("zanzibar") == []
    assert b"zanzibar" not in index.read_bytes()
    assert len(search("invoice")) == 1


def test_run_that_failed_half_way_is_caught_up(
    example: ModuleType, search: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    register("s3://calls/a.wav", "s3://calls/b.wav", segments=segments("a refund"))
    add, calls = example.add_recording, []

    def fails(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("disk full")
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(example, "add_recording", fails)
        with pytest.raises(OSError, match="disk full"):
            update(example, DAY)
    assert search("refund") == []
    update(example, DAY)
    assert len(search("refund")) == 2


def test_run_by_hand_indexes_all_partitions(
    index: Path, airflow_home: Path, catalog_env: SimpleNamespace, search: Any
) -> None:
    register("s3://calls/a.wav", segments=segments("a refund"))
    register("s3://calls/b.wav", segments=segments("a refund"), partition={"dt": "2026-11-02"})
    environment = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW_WHISPER_WAREHOUSE": str(catalog_env.warehouse),
        "AIRFLOW_WHISPER_SEARCH_INDEX": str(index),
    }
    run = run_dag(airflow_home, "search_index", environment)
    assert run.returncode == 0, run.log[-4000:]
    assert run.states == {"update_index": "success"}
    assert sorted(hit[0] for hit in search("refund")) == ["s3://calls/a.wav", "s3://calls/b.wav"]
    with sqlite3.connect(index) as database:
        parts = database.execute("SELECT DISTINCT part FROM recording ORDER BY part").fetchall()
    assert parts == [("dt=2026-11-01",), ("dt=2026-11-02",)]
