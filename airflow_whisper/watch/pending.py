"""Which audio is new: what was seen, what is waited for, and what is reported together.

State is kept in a temporary SQLite database, so that ten million files need disk space instead of memory.
What has to survive the process is small: :meth:`Arrivals.floor` and :meth:`Arrivals.reported`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.contract import parse_partition_path

MAX_PARTITIONS = 100
"""Partitions in one batch. Airflow maps a task over at most 1,024 (``[core] max_map_length``)."""

NEVER = -(2**62)
"""A time before all others, in microseconds."""

_PAGE_COUNTS = ("freelist_count", "page_count")
_MOST_FREE_PAGES = 16_384
# Of 4 KiB, SQLite's default: 64 MiB.

File = tuple[str, str | None, int, int, str]
"""URI, etag, bytes, time of modification in microseconds, canonical partition."""

_TABLES = """
CREATE TABLE reported (uri TEXT PRIMARY KEY, etag TEXT, modified INTEGER) WITHOUT ROWID;
CREATE TABLE waiting (uri TEXT PRIMARY KEY, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT,
                      polls INTEGER) WITHOUT ROWID;
CREATE TABLE listed (uri TEXT, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT);
CREATE TABLE ready (uri TEXT, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT);
"""

# An etag that either side lacks says nothing, so it counts as the same.
_DROP_REPORTED = """
DELETE FROM {table} WHERE EXISTS (
    SELECT 1 FROM reported r WHERE r.uri = {table}.uri
    AND (r.etag = {table}.etag OR r.etag IS NULL OR {table}.etag IS NULL))
"""

_WAIT = """
INSERT OR REPLACE INTO waiting
SELECT l.uri, l.etag, l.bytes, l.modified, l.partition,
       iif(w.etag IS l.etag AND w.bytes = l.bytes, w.polls + 1, 1)
FROM listed l LEFT JOIN waiting w ON w.uri = l.uri
"""

_READY = """
INSERT INTO ready SELECT uri, etag, bytes, modified, partition FROM waiting
WHERE polls >= :stable_polls OR modified <= :old ORDER BY modified, uri
"""


@dataclass(frozen=True)
class Batch:
    """Files that are reported together."""

    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(file[2] for file in self.files)

    def partitions(self) -> Iterator[tuple[dict[str, str], int, int]]:
        """Each partition once, with how many files of the batch it has, and their bytes."""
        totals: dict[str, list[int]] = {}
        for _, _, size, _, partition in self.files:
            total = totals.setdefault(partition, [0, 0])
            total[0] += 1
            total[1] += size
        for path, (files, size) in sorted(totals.items()):
            yield parse_partition_path(path), files, size


@dataclass(frozen=True, kw_only=True)
class BatchRules:
    """When a file counts, and how many files are reported together.

    :param stable_polls: a file counts when this many polls in a row saw the same size and etag ...
    :param min_age: ... or when it was modified this many seconds ago.
    :param min_files: report when this many files are ready ...
    :param max_wait: ... or when one of them was modified this many seconds ago.
    :param max_files: report at most this many at once.
    """

    stable_polls: int = 2
    min_age: float = 60
    min_files: int = 1
    max_wait: float = 300
    max_files: int = 10_000

    def __post_init__(self) -> None:
        for name in ("stable_polls", "min_files", "max_files"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("min_age", "max_wait"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {value!r}")
        if self.min_files > self.max_files:
            raise ValueError(
                f"min_files ({self.min_files}) must not be greater than max_files ({self.max_files})"
            )


class Arrivals:
    """Tells new and changed files from those that were reported. Close it: it owns temporary files.

    A file modified at or before :attr:`floor` has been reported, or was there before anything was to be;
    later ones are compared with what was reported. Belongs to the thread that made it.
    """

    def __init__(self, rules: BatchRules) -> None:
        self.rules = rules
        self.floor = NEVER
        self.reports = 0
        """Files reported by this object."""
        # A triggerer has many watches, so each gets little memory.
        self._db = ScratchDatabase("whisper-arrivals-", _TABLES, cache_mib=16)

    def close(self) -> None:
        """Removes the temporary files."""
        self._db.close()

    # --- what was reported -------------------------------------------------------------------------------

    def add_reported(self, files: Iterable[tuple[str, str | None, int]]) -> None:
        """Takes in what needs no report: URI, etag, and time of modification in microseconds."""
        self._db.run_for_each("INSERT OR REPLACE INTO reported VALUES (?, ?, ?)", files)

    def reported(self) -> Iterator[tuple[str, str | None, int]]:
        """What was reported and modified after :attr:`floor`, newest first."""
        yield from self._db.execute("SELECT uri, etag, modified FROM reported ORDER BY modified DESC, uri")

    def reported_count(self) -> int:
        """How many files :meth:`reported` gives."""
        return int(self._db.first("SELECT count(*) FROM reported")[0])

    def raise_floor(self, floor: int) -> None:
        """Forgets what was reported and modified at or before ``floor``, but not what is still to be
        reported.

        Call it when everything modified by then has been observed.
        """
        (oldest,) = self._db.first("SELECT min(modified) FROM waiting")
        if oldest is not None:
            # Not reported yet: after a restart it has to be found above the floor again.
            floor = min(floor, oldest - 1)
        if floor > self.floor:
            self.floor = floor
            self._db.execute("DELETE FROM reported WHERE modified <= ?", (floor,))

    # --- what is there -----------------------------------------------------------------------------------

    def observe(self, files: Iterable[Iterable[File]]) -> None:
        """Takes in one complete listing of every place where files are waited for.

        Nothing changes when the listing breaks off with an exception.
        """
        self._db.execute("DELETE FROM listed")
        for chunk in files:
            self._db.run_for_each("INSERT INTO listed VALUES (?, ?, ?, ?, ?)", chunk)
        with self._db.transaction():
            if self.reported_count():
                self._db.execute(_DROP_REPORTED.format(table="listed"))
            self._db.execute("DELETE FROM waiting WHERE uri NOT IN (SELECT uri FROM listed)")
            self._db.execute(_WAIT)
            self._db.execute("DELETE FROM listed")
        self._give_back_space()

    def _give_back_space(self) -> None:
        # A watch runs for months, and its first listing may have been a large one.
        (free,), (pages,) = (self._db.first(f"PRAGMA {name}") for name in _PAGE_COUNTS)
        if free > _MOST_FREE_PAGES and free > pages // 2:
            self._db.execute("VACUUM")

    def disk_bytes(self) -> int:
        """Size of the temporary files."""
        return sum(path.stat().st_size for path in self._db.folder.iterdir())

    def drop_reported(self) -> None:
        """Ends the waiting for files that meanwhile were added as reported."""
        self._db.execute(_DROP_REPORTED.format(table="waiting"))

    def waiting_partitions(self) -> list[str]:
        """Canonical partitions of the files that are not reported yet."""
        return [partition for (partition,) in self._db.execute("SELECT DISTINCT partition FROM waiting")]

    def waiting(self) -> Iterator[tuple[str, str | None, int, int, str, int]]:
        """Files that are not reported yet: a :data:`File` each, and how many polls saw it unchanged."""
        yield from self._db.execute("SELECT * FROM waiting")

    def add_waiting(self, files: Iterable[tuple[str, str | None, int, int, str, int]]) -> None:
        """Goes on with what :meth:`waiting` gave earlier."""
        self._db.run_for_each("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?)", files)

    def waiting_count(self) -> int:
        """How many files are not reported yet."""
        return int(self._db.first("SELECT count(*) FROM waiting")[0])

    # --- what is to be reported --------------------------------------------------------------------------

    def batches(self, now: int, *, at_most: int) -> Iterator[Batch]:
        """Files to report now, oldest first; each counts as reported as soon as it is given.

        :param now: in microseconds, by the clock that :data:`File` has.
        :param at_most: batches; what is left is given by the next call.
        """
        count = self._find_ready(now)
        position = 0
        for _ in range(at_most):
            if position >= count or not self._is_due(position, count, now):
                return
            batch = self._batch_at(position)
            position += len(batch.files)
            self.reports += len(batch.files)
            self._db.run_for_each("DELETE FROM waiting WHERE uri = ?", ((f[0],) for f in batch.files))
            self.add_reported((uri, etag, modified) for uri, etag, _, modified, _ in batch.files)
            yield batch

    def ready_partitions(self, now: int) -> list[tuple[str, int, int]]:
        """Partitions with files to report now, if there are any: canonical string, files, bytes.

        Unlike :meth:`batches` this gives all that is ready, and does not count it as reported.
        """
        count = self._find_ready(now)
        if count == 0 or not self._is_due(0, count, now):
            return []
        query = "SELECT partition, count(*), sum(bytes) FROM ready GROUP BY partition ORDER BY partition"
        return self._db.execute(query).fetchall()

    def _find_ready(self, now: int) -> int:
        rules = self.rules
        values = {"stable_polls": rules.stable_polls, "old": now - int(rules.min_age * 1e6)}
        self._db.execute("DELETE FROM ready")
        return self._db.execute(_READY, values).rowcount

    def _is_due(self, position: int, count: int, now: int) -> bool:
        if count - position >= self.rules.min_files:
            return True
        query = "SELECT modified FROM ready WHERE rowid = ?"
        (modified,) = self._db.first(query, (position + 1,))
        return bool(modified <= now - int(self.rules.max_wait * 1e6))

    def _batch_at(self, position: int) -> Batch:
        query = "SELECT * FROM ready WHERE rowid > ? ORDER BY rowid LIMIT ?"
        files: list[File] = []
        partitions: set[str] = set()
        for file in self._db.execute(query, (position, self.rules.max_files)):
            partitions.add(file[4])
            if len(partitions) > MAX_PARTITIONS:
                break
            files.append(file)
        return Batch(tuple(files))
