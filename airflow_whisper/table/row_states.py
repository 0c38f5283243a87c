"""Compare the rows that a run wants with those of the partition, on disk, for any number of rows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

from airflow_whisper.scratch import ScratchDatabase
from airflow_whisper.table.errors import RunNotReadyError

if TYPE_CHECKING:
    import pyarrow as pa

NOW, BASE = 1, 0
"""The states of a partition: the one to commit on top of, and the one that discovery saw."""

_EXAMPLES = 3

_CREATE = """
CREATE TABLE wanted (
    uri TEXT PRIMARY KEY, etag TEXT, change TEXT NOT NULL, attempt INTEGER NOT NULL, staged INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE left_alone (uri TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE found (
    uri TEXT NOT NULL, state INTEGER NOT NULL, file INTEGER NOT NULL, untouched INTEGER NOT NULL,
    etag TEXT, status TEXT, attempt INTEGER, fingerprint TEXT
);
"""

# A row is `done` if it already is as this run wants it, because another run did the same work. It `stands` if
# it is still as discovery saw it, so that this run may replace it. What discovery saw is known exactly as
# long as its snapshot exists. Afterwards, a row stands if discovery would still add it to the manifest for
# the same reason; of a row to remove nothing tells whether its audio has come back since. If either side
# lacks an etag, the etags count as equal.
_VERDICT = """
WITH state AS (
SELECT wanted.uri AS uri,
    CASE WHEN change = 'removed' THEN now.uri IS NULL
         ELSE now.uri IS NOT NULL AND NOT coalesce(now.etag <> wanted.etag, 0)
              AND now.fingerprint IS :fingerprint AND now.attempt >= wanted.attempt
    END AS done,
    CASE WHEN now.uri IS NULL THEN change IN ('new', 'removed')
         WHEN change = 'new' THEN 0
         WHEN now.untouched THEN 1
         WHEN :base_known THEN EXISTS (
             SELECT 1 FROM found AS base WHERE base.uri = wanted.uri AND base.state = 0
             AND base.etag IS now.etag AND base.status IS now.status
             AND base.attempt IS now.attempt AND base.fingerprint IS now.fingerprint)
         WHEN change = 'removed' THEN 0
         WHEN change = 'changed' THEN coalesce(now.etag <> wanted.etag, 0)
         WHEN change = 'stale' THEN now.fingerprint IS NOT :fingerprint
         WHEN change = 'retry' THEN now.status = 'error' AND now.attempt = wanted.attempt - 1
         ELSE 1
    END AS stands
FROM wanted LEFT JOIN found AS now ON now.uri = wanted.uri AND now.state = 1
), files AS (
    -- A URI has several rows only if another writer added them. It is done, or stands, if all its rows do.
    SELECT uri, MIN(done) AS done, MIN(stands) AS stands FROM state GROUP BY uri
)
SELECT COUNT(*), COALESCE(SUM(NOT done), 0), COALESCE(SUM(NOT stands), 0),
    (SELECT json_group_array(uri) FROM (SELECT uri FROM files WHERE NOT stands LIMIT :examples))
FROM files
"""

_FIND = """
INSERT INTO found SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8 WHERE EXISTS (SELECT 1 FROM wanted WHERE uri = ?1)
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of a run with a partition, in numbers of files.

    :param wanted: files that the run wants to change.
    :param pending: files whose rows are not yet as the run wants them.
    :param touched: files whose rows are no longer as discovery saw them.
    :param examples: a few URIs of touched files.
    """

    wanted: int
    pending: int
    touched: int
    examples: tuple[str, ...]


@contextmanager
def open_row_states() -> Iterator[RowStates]:
    """Open row states in a temporary database, which is deleted at the end."""
    with ScratchDatabase("whisper-register-", _CREATE) as database:
        yield RowStates(database)


class RowStates:
    """The files of one run: wanted, found in the partition, and staged. See :func:`open_row_states`."""

    def __init__(self, database: ScratchDatabase) -> None:
        self._db = database

    def want(self, manifest: Iterable[pa.RecordBatch]) -> None:
        """Add the rows of a manifest.

        :raises RunNotReadyError: if it contains a file twice.
        """
        for batch in manifest:
            columns = (
                batch.column(name).to_pylist() for name in ("audio_uri", "audio_etag", "change", "attempt")
            )
            self._insert_wanted(zip(*columns, strict=True))

    def want_removed(self, removed: Iterable[pa.RecordBatch]) -> None:
        """Add the files whose rows are to be deleted.

        :raises RunNotReadyError: if it contains a file twice, or one that is also in the manifest.
        """
        for batch in removed:
            self._insert_wanted((uri, None, "removed", 0) for uri in batch.column("audio_uri").to_pylist())

    def leave(self, gone: Iterable[pa.RecordBatch]) -> None:
        """Leave the rows as they are that the table has of these files. Call it after :meth:`want`."""
        for batch in gone:
            uris = [(uri,) for uri in batch.column("audio_uri").to_pylist()]
            self._db.run_for_each(
                "INSERT OR IGNORE INTO left_alone SELECT uri FROM wanted WHERE uri = ? AND change <> 'new'",
                uris,
            )
        self._db.execute("DELETE FROM wanted WHERE uri IN (SELECT uri FROM left_alone)")

    def without_left(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return staged rows without those of files that :meth:`leave` has left alone."""
        import pyarrow as pa

        if not self._db.first("SELECT EXISTS (SELECT 1 FROM left_alone)")[0]:
            return rows
        query = "SELECT 1 FROM left_alone WHERE uri = ?"
        uris = rows.column("audio_uri").to_pylist()
        return rows.filter(pa.array([not self._db.first(query, (uri,)) for uri in uris], pa.bool_()))

    def _insert_wanted(self, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            self._db.run_for_each("INSERT INTO wanted VALUES (?, ?, ?, ?, 0)", rows)
        except sqlite3.IntegrityError as error:
            raise RunNotReadyError(
                f"the manifest asks for the same file twice, or for a file without a URI ({error}): "
                "clear the discover task to write it again"
            ) from error

    def forget_found(self) -> None:
        """Delete the rows found in the partition, to compare with another state of it."""
        self._db.script("DROP INDEX IF EXISTS found_uri; DELETE FROM found")

    def find(
        self, state: int, file: int, rows: Iterable[pa.RecordBatch], *, untouched: bool
    ) -> tuple[int, int]:
        """Record which wanted files have a row in one data file.

        :param state: :data:`NOW` or :data:`BASE`.
        :param file: a number that identifies the data file.
        :param rows: its rows, with the columns of ``requirements.STATE_COLUMNS``.
        :param untouched: whether the data file already existed at discovery.
        :return: number of rows in the file, and how many of them are wanted.
        """
        total = found = 0
        names = ("audio_etag", "status", "attempt", "fingerprint")
        for batch in rows:
            total += batch.num_rows
            same = (repeat(value, batch.num_rows) for value in (state, file, untouched))
            columns = (batch.column(name).to_pylist() for name in names)
            uris = batch.column("audio_uri").to_pylist()
            found += self._db.run_for_each(_FIND, zip(uris, *same, *columns, strict=True))
        return total, found

    def verdict(self, fingerprint: str, *, base_known: bool) -> Verdict:
        """Compare the wanted files with the rows found.

        :param fingerprint: fingerprint of the options with which the run's rows were made.
        :param base_known: whether the rows that discovery saw were recorded, too, where they differ.
        """
        self._db.execute("CREATE INDEX IF NOT EXISTS found_uri ON found (uri, state)")
        parameters = {"fingerprint": fingerprint, "base_known": base_known, "examples": _EXAMPLES}
        wanted, pending, touched, examples = self._db.first(_VERDICT, parameters)
        return Verdict(wanted, pending, touched, tuple(json.loads(examples)))

    def found_in(self, file: int) -> list[str]:
        """Return the wanted files that have a row in one data file of the current partition."""
        query = "SELECT DISTINCT uri FROM found WHERE state = ? AND file = ?"
        return [uri for (uri,) in self._db.execute(query, (NOW, file))]

    def removed_rows(self) -> int:
        """Number of rows of the current partition that are to be deleted without replacement."""
        query = "SELECT COUNT(*) FROM found JOIN wanted USING (uri) WHERE state = ? AND change = 'removed'"
        return int(self._db.first(query, (NOW,))[0])

    def stage(self, uris: list[str]) -> None:
        """Record staged rows. Each must be wanted and not staged before.

        :raises RunNotReadyError: if one is not wanted, or staged twice.
        """
        staged = self._db.run_for_each(
            "UPDATE wanted SET staged = 1 WHERE uri = ? AND staged = 0 AND change <> 'removed'",
            ((uri,) for uri in uris),
        )
        if staged != len(uris):
            raise RunNotReadyError(self._staging_problem(uris))

    def _staging_problem(self, uris: list[str]) -> str:
        query = "SELECT 1 FROM wanted WHERE uri = ? AND change <> 'removed'"
        strange = [uri for uri in uris if not self._db.first(query, (uri,))]
        what = "is not in the manifest" if strange else "is staged more than once"
        example = strange[0] if strange else next((u for u in uris if uris.count(u) > 1), uris[0])
        return f"a staged row {what}, for example {example}: clear the validate task, and see its report"

    def check_all_staged(self) -> None:
        """:raises RunNotReadyError: if a manifest row has no staged row."""
        missing = "FROM wanted WHERE staged = 0 AND change <> 'removed'"
        (count,) = self._db.first(f"SELECT COUNT(*) {missing}")
        if count:
            (example,) = self._db.first(f"SELECT uri {missing} LIMIT 1")
            raise RunNotReadyError(
                f"{count} files of the manifest have no staged row, for example {example}: clear the "
                "transcribe task, which does only what is missing"
            )
