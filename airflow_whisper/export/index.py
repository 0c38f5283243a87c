"""The index of a partition's exports: which files each row has, and from which version of the row."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_whisper.export.entries import Entry, Outcome, Version
from airflow_whisper.export.index_file import for_database, index_schema, noted, write_index
from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.storage.objects import ObjectNotFound, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage
    from whisper_spark.storage.objects import Version as StoredVersion

log = logging.getLogger(__name__)

# The version of a row: whenever it is replaced, one of these differs.
VERSION_COLUMNS = ("audio_etag", "fingerprint", "transcribed_at")

# `exported` is the index; see Entry for its columns. `done` is what this run has done.
_CREATE = """
CREATE TABLE exported (
    uri TEXT PRIMARY KEY, etag TEXT, fingerprint TEXT, at INTEGER, settings TEXT,
    files TEXT NOT NULL, hashes TEXT NOT NULL, runs TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE row (
    uri TEXT PRIMARY KEY, etag TEXT, fingerprint TEXT, at INTEGER, data_file INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE done (
    uri TEXT PRIMARY KEY, etag TEXT, fingerprint TEXT, at INTEGER, settings TEXT, hashes TEXT NOT NULL
) WITHOUT ROWID;
"""

_ENTRY = "exported.etag, exported.fingerprint, exported.at, exported.settings, files, exported.hashes, runs"

_CHANGED = """
SELECT row.uri, row.etag, row.fingerprint, row.at, exported.files
FROM row LEFT JOIN exported USING (uri)
WHERE data_file = ?1 AND NOT (
    exported.uri IS NOT NULL AND exported.settings IS ?2 AND exported.etag IS row.etag
    AND exported.fingerprint IS row.fingerprint AND exported.at IS row.at
)
"""
_GONE = "SELECT uri, files FROM exported WHERE settings IS NOT '' AND uri NOT IN (SELECT uri FROM row)"
_WITH_RUNS = f"SELECT uri, {_ENTRY} FROM exported WHERE runs <> '[]'"  # noqa: S608
_DONE = f"""
SELECT done.*, {_ENTRY} FROM done LEFT JOIN exported USING (uri) WHERE uri > ? ORDER BY uri LIMIT ?
"""  # noqa: S608

_CHUNK = 10_000
_CHECKED = 1_000

MOST_CONFLICTS = 100
"""How often a run tries to store the index while other runs do."""


def never_stored(uri: str) -> StorageError:
    """The error after :data:`MOST_CONFLICTS`."""
    return StorageError(
        f"the index {uri} was changed by others {MOST_CONFLICTS} times while this run tried to change it. Do "
        "many exports of this partition run at a time?"
    )


@dataclass(frozen=True, slots=True)
class ChangedRow:
    """A row whose files have to be written.

    :param files: URIs of files that were written from an earlier version, or that a run began to write.
    """

    uri: str
    version: Version
    files: tuple[str, ...]


class ExportIndex:
    """The index as it is stored, compared with the rows of the table. A context manager.

    :param uri: where it is stored.
    :param settings: identifies the template, formats and layout; files written with others are written again.
    :param run: the id of this run, see :mod:`airflow_whisper.export.entries`.
    """

    def __init__(self, storage: ObjectStorage, uri: str, settings: str, run: str) -> None:
        self._storage, self.uri, self._settings, self._run = storage, uri, settings, run
        self._db = ScratchDatabase("whisper-export-", _CREATE)
        # The version of the stored index that `exported` was read from; `None`: there was none.
        self._stored: StoredVersion | None = None
        # The snapshot that the files are equal to, if the last run had these settings and came to its end.
        self.snapshot_id: int | None = None

    def __enter__(self) -> ExportIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    # --- the stored index --------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the stored index. One that does not exist, or is damaged, is empty: all files are written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._db.script("DELETE FROM exported")
        self._stored = self.snapshot_id = None
        try:
            stream, self._stored = self._storage.open_version(self.uri)
        except ObjectNotFound:
            return
        try:
            with stream, pq.ParquetFile(stream) as file:
                note = noted(file.schema_arrow)
                self._db.insert("exported", map(for_database, file.iter_batches()), index_schema().names)
            if note.get("settings") == self._settings:
                self.snapshot_id = note.get("snapshot_id")
        except (pa.ArrowException, ValueError, KeyError) as error:
            log.warning("The index %s is damaged (%s): all files are written again", self.uri, error)
            self._db.script("DELETE FROM exported")

    def save(self, snapshot_id: int | None = None) -> bool:
        """Store the index unless another run has stored it since it was loaded, and return whether it is.

        :param snapshot_id: the snapshot of the table that the files are equal to; ``None`` before the end,
            and while other runs may change files.
        """
        path = self._db.folder / "index.parquet"
        chunks = self._db.chunks("SELECT * FROM exported ORDER BY uri", size=_CHUNK)
        write_index(path, chunks, {"settings": self._settings, "snapshot_id": snapshot_id})
        stored = self._storage.replace(path, self.uri, self._stored)
        if stored is not None:
            self._stored = stored
        return stored is not None

    # --- the comparison ----------------------------------------------------------------------------------

    def add_rows(self, batches: Iterable[pa.RecordBatch], data_file: int) -> None:
        """Add the rows of one data file that have a transcript.

        :param batches: with ``audio_uri`` and :data:`VERSION_COLUMNS`.
        """
        import pyarrow as pa

        for batch in batches:
            columns = [batch.column(name) for name in ("audio_uri", "audio_etag", "fingerprint")]
            columns.append(batch.column("transcribed_at").cast(pa.int64()))
            rows = zip(
                *(c.to_pylist() for c in columns), itertools.repeat(data_file, batch.num_rows), strict=True
            )
            # Another writer may have added a second row of a file.
            self._db.run_for_each("INSERT OR REPLACE INTO row VALUES (?, ?, ?, ?, ?)", rows)

    def changed(self, data_file: int) -> list[ChangedRow]:
        """The rows of one data file whose files have to be written."""
        found = self._db.execute(_CHANGED, (data_file, self._settings)).fetchall()
        return [
            ChangedRow(uri, (etag, fingerprint, at), tuple(json.loads(files or "[]")))
            for uri, etag, fingerprint, at, files in found
        ]

    def gone(self) -> list[tuple[str, tuple[str, ...]]]:
        """Rows with files that the table has no longer: their audio URI and files."""
        return [(uri, tuple(json.loads(files))) for uri, files in self._db.execute(_GONE).fetchall()]

    def check(self, hashes_of: Callable[[Collection[str]], Mapping[str, str | None]]) -> None:
        """Look at the files that other runs may have changed since they were settled.

        :param hashes_of: the hashes of files by URI; ``None`` for one that does not exist.
        """
        found = self._db.execute(_WITH_RUNS).fetchall()
        for start in range(0, len(found), _CHECKED):
            entries = {uri: Entry.of(tuple(columns)) for uri, *columns in found[start : start + _CHECKED]}
            settled = (entry for entry in entries.values() if entry.settings is not None)
            hashes = hashes_of([file for entry in settled for file in entry.files])
            for uri, entry in entries.items():
                self._put(uri, entry.checked(hashes.get))

    # --- the steps of a run ------------------------------------------------------------------------------

    def begin(self, uri: str, files: Iterable[str] = ()) -> None:
        """Enter this run at a row before it writes these files and deletes all others."""
        self._put(uri, self._entry(uri).begun({*files}, self._run))

    def finish(self, row: ChangedRow, hashes: dict[str, str]) -> None:
        """Note that exactly these files of a row were written."""
        self._note(row.uri, Outcome(row.version, self._settings, hashes))

    def forget(self, uris: Iterable[str]) -> None:
        """Note that all files of these rows were deleted."""
        for uri in uris:
            self._note(uri, Outcome.deleted())

    def settle(self, snapshot_id: int) -> bool:
        """Store what this run has done. Returns ``False`` if other runs interfered: then it has to run again.

        :param snapshot_id: the snapshot of the table that this run has exported.
        """
        known: int | None = snapshot_id
        for _ in range(MOST_CONFLICTS):
            alone = self._apply()
            contested = self._db.first(_WITH_RUNS) is not None
            if self.save(None if contested else known):
                return alone
            self.load()
            known = None
        raise never_stored(self.uri)

    def abandon(self) -> None:
        """Store what this run has done before it failed."""
        for _ in range(MOST_CONFLICTS):
            self._apply()
            for uri, *columns in self._db.execute(_WITH_RUNS).fetchall():
                self._put(uri, Entry.of(tuple(columns)).abandoned(self._run))
            if self.save():
                return
            self.load()
        raise never_stored(self.uri)

    def _apply(self) -> bool:
        """Settle the rows that are done. Returns whether none of them has to be done again."""
        alone = True
        for uri, outcome, entry in self._done():
            settled = entry.settled(outcome, self._run)
            alone = alone and settled.settings is not None
            self._put(uri, settled)
        return alone

    def _done(self) -> Iterator[tuple[str, Outcome, Entry]]:
        last = ""
        while chunk := self._db.execute(_DONE, (last, _CHUNK)).fetchall():
            for uri, etag, fingerprint, at, settings, hashes, *columns in chunk:
                # Without an entry, all columns are NULL.
                entry = Entry() if columns[-1] is None else Entry.of(tuple(columns))
                yield uri, Outcome((etag, fingerprint, at), settings, json.loads(hashes)), entry
            last = chunk[-1][0]

    def _note(self, uri: str, outcome: Outcome) -> None:
        values = (uri, *outcome.version, outcome.settings, json.dumps(outcome.hashes))
        self._db.execute("INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?)", values)

    def _entry(self, uri: str) -> Entry:
        columns = self._db.first(f"SELECT {_ENTRY} FROM exported WHERE uri = ?", (uri,))  # noqa: S608
        return Entry.of(columns) if columns else Entry()

    def _put(self, uri: str, entry: Entry) -> None:
        if entry.is_empty:
            self._db.execute("DELETE FROM exported WHERE uri = ?", (uri,))
            return
        statement = "INSERT OR REPLACE INTO exported VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        self._db.execute(statement, (uri, *entry.columns()))
