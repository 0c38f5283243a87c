"""Run a DAG with ``airflow dags test``, and read its outcome from Airflow's database."""

from __future__ import annotations

import datetime
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DagRun:
    """The outcome of one DAG run. Task names omit the group id; those of mapped tasks include the index."""

    returncode: int
    log: str
    states: dict[str, str]
    xcoms: dict[str, Any]
    """``{"discover.manifest_uri": ...}``; for mapped tasks ``discover[0].manifest_uri``."""
    events: list[dict[str, Any]]
    """``extra`` of the asset events that this run emitted."""


def run_dag(
    home: Path,
    dag_id: str,
    environment: Mapping[str, str],
    conf: Mapping[str, Any] | None = None,
    *,
    logical_date: str | None = None,
    timeout_seconds: float = 800,
) -> DagRun:
    """Run a DAG with all its tasks in a separate process."""
    logical_date = logical_date or datetime.datetime.now(datetime.UTC).isoformat()
    command = [sys.executable, "-m", "airflow", "dags", "test", dag_id, logical_date]
    command += ["--conf", json.dumps(dict(conf or {}))]
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": _path(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )
    with sqlite3.connect(home / "airflow.db") as database:
        return DagRun(done.returncode, done.stdout, *_outcome(database, dag_id))


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _outcome(database: sqlite3.Connection, dag_id: str) -> tuple[dict[str, str], dict[str, Any], list[Any]]:
    (run_id,) = database.execute(
        "select run_id from dag_run where dag_id = ? order by id desc limit 1", [dag_id]
    ).fetchone()
    this_run = [dag_id, run_id]
    where = "where dag_id = ? and run_id = ?"
    states = {
        _name(task, index): state
        for task, index, state in database.execute(
            f"select task_id, map_index, state from task_instance {where}", this_run
        )
    }
    xcoms = {
        # SQLite returns a JSON number as a number instead of text.
        f"{_name(task, index)}.{key}": json.loads(value) if isinstance(value, str) else value
        for task, index, key, value in database.execute(
            f"select task_id, map_index, key, value from xcom {where}", this_run
        )
    }
    events = [
        json.loads(extra)
        for (extra,) in database.execute(
            "select extra from asset_event where source_dag_id = ? and source_run_id = ?", this_run
        )
    ]
    return states, xcoms, events


def _name(task_id: str, map_index: int) -> str:
    name = task_id.rpartition(".")[2]
    return name if map_index < 0 else f"{name}[{map_index}]"


@contextmanager
def watched_arguments() -> Iterator[set[str]]:
    """Collect the command lines of all processes that run inside the context, as ``ps`` would show them."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            seen.update(_command_lines(Path("/proc").glob("[0-9]*/cmdline")))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _command_lines(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        try:
            yield path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        # The process has ended.
        except OSError:
            continue
