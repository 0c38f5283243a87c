"""A full-text index of all transcripts, which each commit to the table brings up to date.

The table's asset triggers this DAG. It compares the partitions that the events name with the index, and
adds, replaces and deletes what differs. So a run that is repeated changes nothing, a run that failed is
caught up by the next one, and rows that were deleted from the table leave the index. Triggered by hand,
without an event, it compares all partitions.

The index is a SQLite database with FTS5, which is part of Python: one passage for each segment, with its
time in the recording. ``docs/full-text-search.md`` shows how to search it, and what to change for another
search engine or for embeddings.

The environment variables are named under "settings" below.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, task

from airflow_whisper.events import pending_events

# --- settings -----------------------------------------------------------------------------------------------
# Write your values here, or set the environment variables on the scheduler, the DAG processor, the triggerer
# and the workers.


def env(name: str, default: Any = None) -> Any:
    return os.environ.get(f"AIRFLOW_WHISPER_{name}") or default


# namespace.table
TABLE = env("TABLE", "speech.transcripts")
# Airflow connection of the catalog. Without it, the embedded catalog is used.
CATALOG_CONN_ID = env("CATALOG_CONN_ID")
# The index. All workers must see the same file.
HOME = Path(os.environ.get("AIRFLOW_HOME") or "~/airflow").expanduser()
INDEX = env("SEARCH_INDEX", f"{HOME}/transcripts_search.db")
# ------------------------------------------------------------------------------------------------------------

TRANSCRIPTS = Asset(TABLE)

# `passage` holds the texts, and `passages` is the index of them, which the triggers keep equal to it.
SCHEMA = """
CREATE TABLE IF NOT EXISTS recording (
    id INTEGER PRIMARY KEY, part TEXT NOT NULL, audio_uri TEXT NOT NULL, version TEXT NOT NULL,
    UNIQUE (part, audio_uri)
);
CREATE TABLE IF NOT EXISTS passage (
    id INTEGER PRIMARY KEY, recording INTEGER NOT NULL, start REAL, speaker TEXT, text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS passage_recording ON passage (recording);
CREATE VIRTUAL TABLE IF NOT EXISTS passages USING fts5(
    text, content = 'passage', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
);
CREATE TRIGGER IF NOT EXISTS passage_added AFTER INSERT ON passage BEGIN
    INSERT INTO passages (rowid, text) VALUES (new.id, new.text);
END;
CREATE TRIGGER IF NOT EXISTS passage_deleted AFTER DELETE ON passage BEGIN
    INSERT INTO passages (passages, rowid, text) VALUES ('delete', old.id, old.text);
END;
"""


@task(inlets=[TRANSCRIPTS])
def update_index(*, triggering_asset_events: Any, inlet_events: Any) -> list[dict[str, Any]]:
    """Bring the index of the partitions that changed up to date, and return what was done."""
    events = pending_events(triggering_asset_events, inlet_events)
    changed = {event.extra["partition"] for event in events if event.extra.get("table") == TABLE}
    done = []
    with closing(open_index(INDEX)) as index:
        for part in sorted(changed or all_partitions(index)):
            added, deleted = update_partition(index, part)
            print(f"{part}: {added} recordings added or replaced, {deleted} deleted")
            done.append({"partition": part, "added": added, "deleted": deleted})
    return done


def open_index(path: str) -> sqlite3.Connection:
    """Open the index, and create it if it does not exist."""
    index = sqlite3.connect(path, timeout=600)
    index.executescript(SCHEMA)
    # What is deleted is overwritten with zeros.
    index.execute("PRAGMA secure_delete = ON")
    return index


def all_partitions(index: sqlite3.Connection) -> set[str]:
    """The partitions of the table, and those that the index knows."""
    from airflow_whisper.catalog import load_table, open_catalog
    from whisper_spark.contract import partition_path

    table = load_table(open_catalog(CATALOG_CONN_ID), TABLE)
    found = table.inspect.partitions().to_pylist() if table else []
    values = ({key: str(value) for key, value in row["partition"].items()} for row in found)
    known = index.execute("SELECT DISTINCT part FROM recording")
    return {partition_path(partition) for partition in values} | {part for (part,) in known}


def update_partition(index: sqlite3.Connection, part: str) -> tuple[int, int]:
    """Make the index of one partition equal to the table, in one transaction.

    :return: number of recordings added or replaced, and number of those deleted.
    """
    from airflow_whisper.catalog import current_snapshot_id, open_catalog

    catalog = open_catalog(CATALOG_CONN_ID)
    snapshot_id = current_snapshot_id(catalog, TABLE)
    columns = ("audio_uri", "status", "transcribed_at")
    rows = read_rows(catalog, part, columns, snapshot_id)
    wanted = {row["audio_uri"]: str(row["transcribed_at"]) for row in rows if row["status"] == "ok"}
    known = dict(index.execute("SELECT audio_uri, version FROM recording WHERE part = ?", (part,)))
    changed = {uri for uri, version in wanted.items() if known.get(uri) != version}
    gone = known.keys() - wanted.keys()
    outdated = gone | (changed & known.keys())
    with index:
        for uri in outdated:
            delete_recording(index, part, uri)
        if changed:
            for row in read_rows(catalog, part, ("audio_uri", "segments"), snapshot_id):
                if row["audio_uri"] in changed:
                    add_recording(index, part, row, wanted[row["audio_uri"]])
        if outdated:
            # Until its parts are merged, the index still holds the words that were deleted.
            index.execute("INSERT INTO passages (passages) VALUES ('optimize')")
    return len(changed), len(gone)


def read_rows(
    catalog: Any, part: str, columns: tuple[str, ...], snapshot_id: int | None
) -> Iterator[dict[str, Any]]:
    """The rows of a partition in one snapshot."""
    from airflow_whisper.catalog import partition_rows
    from whisper_spark.contract import parse_partition_path

    partition = parse_partition_path(part)
    for batch in partition_rows(catalog, TABLE, partition, columns=columns, snapshot_id=snapshot_id):
        yield from batch.to_pylist()


def delete_recording(index: sqlite3.Connection, part: str, uri: str) -> None:
    found = index.execute("SELECT id FROM recording WHERE part = ? AND audio_uri = ?", (part, uri))
    for (recording,) in found.fetchall():
        index.execute("DELETE FROM passage WHERE recording = ?", (recording,))
        index.execute("DELETE FROM recording WHERE id = ?", (recording,))


def add_recording(index: sqlite3.Connection, part: str, row: Mapping[str, Any], version: str) -> None:
    """Add the segments of a row. Put another search engine, or a model for embeddings, here."""
    statement = "INSERT INTO recording (part, audio_uri, version) VALUES (?, ?, ?)"
    recording = index.execute(statement, (part, row["audio_uri"], version)).lastrowid
    passages = (
        (recording, segment["start"], segment.get("speaker"), segment["text"])
        for segment in row["segments"] or ()
    )
    index.executemany("INSERT INTO passage (recording, start, speaker, text) VALUES (?, ?, ?, ?)", passages)


with DAG(
    "search_index",
    description="New transcripts -> full-text index",
    schedule=[TRANSCRIPTS],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    # One writer at a time.
    max_active_runs=1,
    doc_md=__doc__,
    tags=["whisper"],
):
    update_index()
