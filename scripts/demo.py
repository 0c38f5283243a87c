"""Transcribe audio into a table with Airflow and Spark on this machine: ``make demo``.

    python scripts/demo.py                      the project's recordings, in five languages
    python scripts/demo.py FOLDER_OR_S3_URI     your own audio

Runs the example DAG ``transcribe_daily``. All output is in ``.demo``, or in the folder that the environment
variable ``WHISPER_DEMO_DIR`` names.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assemble_model import assemble
from demo_audio import DAY, prepare_recordings

ROOT = Path(__file__).resolve().parents[1]
DEMO = Path(os.environ.get("WHISPER_DEMO_DIR") or ROOT / ".demo")
HOME = DEMO / "airflow"
WAREHOUSE = DEMO / "warehouse"
LOGS = DEMO / "logs"
CATALOG_URI = f"sqlite:///{WAREHOUSE / 'catalog.db'}"
DAG_ID = "transcribe_daily"
TASKS = ("discover", "transcribe", "validate", "register")
LONGEST_TABLE = 40
COLUMNS = (
    *("audio_uri", "language", "duration_s", "status", "error_code"),
    *("quality_flags", "text", "transcribed_at"),
)


class DemoError(Exception):
    """The demo cannot continue. The message is shown to the user."""


@dataclass(frozen=True)
class Work:
    """One day of a source, and the table for its transcripts."""

    source: str
    table: str
    dt: str
    max_error_rate: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Audio to table through real Airflow and Spark.")
    parser.add_argument("audio", nargs="?", help="folder or s3:// URI; default: bundled recordings")
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        work = own_audio(arguments.audio) if arguments.audio else bundled_audio()
        environment = airflow_environment(work)
        migrate(environment)
        before = snapshot(work)
        print(f"Airflow runs {DAG_ID}: {' > '.join(TASKS)}   (log: {log_path(DAG_ID)})", flush=True)
        began = datetime.datetime.now(datetime.UTC)
        run_dag(work, environment)
        report(work, began, changed=snapshot(work) != before)
    except DemoError as error:
        sys.exit(f"\ndemo: {error}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: stopped. What was finished is kept: run it again to go on.")


def bundled_audio() -> Work:
    """The project's recordings, and calls in five languages if Debian's packages can be downloaded."""
    problem = prepare_recordings(DEMO / "audio" / f"dt={DAY}")
    if problem:
        print(f"Only the English recordings are used: {problem}", flush=True)
    return Work(f"{DEMO / 'audio'}/dt={{dt}}/", "demo.transcripts", DAY, 0.05)


def own_audio(audio: str) -> Work:
    """The user's audio, with a table per source, so that a second run updates the same partition."""
    source = audio
    if "://" not in audio:
        folder = Path(audio).expanduser().resolve()
        if not folder.is_dir():
            raise DemoError(f"{audio} is no folder. AUDIO is a folder, or a URI such as s3://bucket/calls/")
        source = str(folder)
    source = source.rstrip("/") + "/"
    name = re.sub(r"[^a-z0-9]+", "_", source.rstrip("/").rpartition("/")[2].lower()).strip("_")
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    # The result shows files that are not audio as errors. Only a folder without any audio fails.
    work = Work(source, f"demo.{name or 'audio'}_{digest}", today, max_error_rate=0.99)
    first_day = min((row["dt"] for row in rows(work, ("dt",), every_day=True)), default=today)
    return replace(work, dt=first_day)


def airflow_environment(work: Work) -> dict[str, str]:
    """Environment variables that separate this Airflow and Spark from others on this machine."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("AIRFLOW_")}
    spark_conf = {"spark.ui.enabled": "false", "spark.local.dir": str(DEMO / "spark")}
    return {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYSPARK_PYTHON": sys.executable,
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(LOGS),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[*]"}),
        "AIRFLOW_WHISPER_MODEL": os.environ.get("AIRFLOW_WHISPER_MODEL") or str(assemble()),
        "AIRFLOW_WHISPER_SOURCE": work.source,
        "AIRFLOW_WHISPER_TABLE": work.table,
        "AIRFLOW_WHISPER_STAGING": str(DEMO / "staging"),
        "AIRFLOW_WHISPER_WAREHOUSE": str(WAREHOUSE),
        "AIRFLOW_WHISPER_SPARK_CONF": json.dumps(spark_conf),
        "AIRFLOW_WHISPER_RETRIES": "0",
    }


def migrate(environment: dict[str, str]) -> None:
    """Create Airflow's database on the first run."""
    done = HOME / "migrated"
    if done.is_file():
        return
    print("Creating Airflow's database ...", flush=True)
    HOME.mkdir(parents=True, exist_ok=True)
    airflow(["db", "migrate"], environment, "migrate")
    done.touch()


def run_dag(work: Work, environment: dict[str, str]) -> None:
    conf = {"dt": work.dt, "max_error_rate": work.max_error_rate}
    # Each run needs its own logical date, as the scheduler would set it.
    now = datetime.datetime.now(datetime.UTC).isoformat()
    try:
        airflow(["dags", "test", DAG_ID, now, "--conf", json.dumps(conf)], environment, DAG_ID)
    finally:
        states = task_times()
        if states:
            print("  " + ", ".join(states), flush=True)


def airflow(arguments: list[str], environment: dict[str, str], name: str) -> None:
    log = log_path(name)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "airflow", *arguments]
        done = subprocess.run(command, env=environment, stdout=out, stderr=out, check=False, cwd=DEMO)
    if done.returncode:
        raise DemoError(f"airflow {' '.join(arguments[:2])} failed. {why(log)}\nThe whole log: {log}")


def log_path(name: str) -> Path:
    return LOGS / f"{name}.log"


def why(log: Path) -> str:
    """The lines of a log that name the cause, or its last lines."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")).splitlines()
    reasons = [line for line in lines if re.match(r"\s*[\w.]*(Error|Exception|Exit)\b.*:", line)]
    chosen = list(dict.fromkeys(reasons))[:5] or lines[-20:]
    return "The log says:\n  " + "\n  ".join(line.strip()[:1000] for line in chosen)


def task_times() -> list[str]:
    """State and duration of each task in the last run, from Airflow's database."""
    query = (
        "select task_id, state, (julianday(end_date) - julianday(start_date)) * 86400 from task_instance "
        "where run_id = (select run_id from dag_run where dag_id = ? order by id desc limit 1)"
    )
    try:
        with sqlite3.connect(f"file:{HOME / 'airflow.db'}?mode=ro", uri=True) as database:
            times = {row[0].rpartition(".")[2]: row[1:] for row in database.execute(query, [DAG_ID])}
    except sqlite3.Error:
        return []
    return [
        f"{task} {times[task][0]}" + (f" in {times[task][1]:.0f} s" if times[task][1] else "")
        for task in TASKS
        if task in times
    ]


# --- the table ---------------------------------------------------------------------------------------


def load(work: Work) -> Any:
    """The Iceberg table, or ``None`` before the first run."""
    if not (WAREHOUSE / "catalog.db").is_file():
        return None
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.exceptions import NoSuchTableError

    catalog = SqlCatalog("whisper", uri=CATALOG_URI, warehouse=f"file://{WAREHOUSE}")
    try:
        return catalog.load_table(work.table)
    except NoSuchTableError:
        return None


def snapshot(work: Work) -> int | None:
    table = load(work)
    current = table.current_snapshot() if table else None
    return current.snapshot_id if current else None


def rows(work: Work, columns: tuple[str, ...], *, every_day: bool = False) -> list[dict[str, Any]]:
    table = load(work)
    if table is None:
        return []
    from pyiceberg.expressions import AlwaysTrue, EqualTo

    day = AlwaysTrue() if every_day else EqualTo("dt", work.dt)
    return table.scan(row_filter=day, selected_fields=columns).to_arrow().to_pylist()


def report(work: Work, began: datetime.datetime, *, changed: bool) -> None:
    """Print the rows, their counts, the speed, and how to query the table."""
    seconds = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    found = sorted(rows(work, COLUMNS), key=lambda row: row["audio_uri"])
    print()
    print_table(found)
    audio = sum(row["duration_s"] or 0 for row in found)
    errors = sum(row["status"] == "error" for row in found)
    print()
    print(f"{len(found)} files, {errors} with errors, {audio / 3600:.3f} hours of audio ({audio:.0f} s).")
    if changed:
        now = [row["duration_s"] or 0 for row in found if row["transcribed_at"] >= began]
        speed = f"{sum(now) / seconds:.1f} times real time"
        print(f"This run transcribed {len(now)} files in {seconds:.0f} s, all start-up included: {speed}.")
    else:
        print(f"Nothing to do: the table holds the transcript of every file. It took {seconds:.0f} s to see.")
    python = os.path.relpath(sys.executable, ROOT)
    print(f"\nTable {work.table}, partition dt={work.dt}, in {WAREHOUSE}. Query it in {python}:\n")
    print(snippet(work))


def snippet(work: Work) -> str:
    """Three lines of Python that query the table."""
    catalog = f'SqlCatalog("whisper", uri="{CATALOG_URI}")'
    return (
        "from pyiceberg.catalog.sql import SqlCatalog\n"
        f'rows = {catalog}.load_table("{work.table}").scan("dt = \'{work.dt}\'").to_pandas()\n'
        'print(rows[["language", "text"]].to_string(max_colwidth=90))'
    )


def print_table(found: list[dict[str, Any]]) -> None:
    lines = [("file", "lang", "seconds", "text")]
    for row in found[:LONGEST_TABLE]:
        text = row["text"] if row["status"] == "ok" else f"[{row['error_code']}]"
        if row["quality_flags"]:
            text = f"[{', '.join(row['quality_flags'])}] {text}"
        seconds = "" if row["duration_s"] is None else f"{row['duration_s']:.1f}"
        lines.append((row["audio_uri"].rpartition("/")[2], row["language"] or "", seconds, text or ""))
    name_width = min(max(width(line[0]) for line in lines), 48)
    room = max(shutil.get_terminal_size((120, 24)).columns - name_width - 18, 20)
    for name, language, seconds, text in lines:
        print(f"{cut(name, name_width)}  {language:<4}  {seconds:>8}  {cut(text.strip(), room).rstrip()}")
    if len(found) > LONGEST_TABLE:
        print(f"... and {len(found) - LONGEST_TABLE} more")


def width(text: str) -> int:
    """Number of terminal columns that a text occupies."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def cut(text: str, columns: int) -> str:
    """Shorten or pad a text to exactly this many columns."""
    text = " ".join(text.split())
    if width(text) > columns:
        while width(text) > columns - 3:
            text = text[:-1]
        text += "..."
    return text + " " * (columns - width(text))


if __name__ == "__main__":
    main()
