"""Track reported and pending files, and group ready files into batches.

The state is in a temporary SQLite database, so that ten million files use disk instead of memory. Only
:attr:`PendingFiles.watermark` and :meth:`PendingFiles.reported` must survive the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.contract import parse_partition_path

# Largest number of partitions in one batch. Airflow maps a task over at most 1,024 (`[core] max_map_length`).
MAX_PARTITIONS = 100

# A time in microseconds before the modification time of any file.
NEVER = -(2**62)

# Number of free pages above which the database may be vacuumed: 64 MiB with SQLite's default page of 4 KiB.
_MOST_FREE_PAGES = 16_384

File = tuple[str, str | None, int, int, str]
"""URI, etag, bytes, modification time in microseconds, canonical partition."""

_TABLES = """
CREATE TABLE reported (uri TEXT PRIMARY KEY, etag TEXT, modified INTEGER, generation INTEGER) WITHOUT ROWID;
CREATE TABLE pending (uri TEXT PRIMARY KEY, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT,
                      polls INTEGER) WITHOUT ROWID;
CREATE TABLE listed (uri TEXT, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT);
CREATE TABLE ready (uri TEXT, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT);
"""

# If either side lacks an etag, the etags count as equal.
_DROP_REPORTED = """
DELETE FROM {table} WHERE EXISTS (
    SELECT 1 FROM reported r WHERE r.uri = {table}.uri
    AND (r.etag = {table}.etag OR r.etag IS NULL OR {table}.etag IS NULL))
"""

_ADD_PENDING = """
INSERT OR REPLACE INTO pending
SELECT l.uri, l.etag, l.bytes, l.modified, l.partition,
       iif(p.etag IS l.etag AND p.bytes = l.bytes, p.polls + 1, 1)
FROM listed l LEFT JOIN pending p ON p.uri = l.uri
"""

_READY = """
INSERT INTO ready SELECT uri, etag, bytes, modified, partition FROM pending
WHERE polls >= :stable_polls OR modified <= :old ORDER BY modified, uri
"""


@dataclass(frozen=True)
class Batch:
    """Files that are reported together."""

    files: tuple[File, ...]

    @property
    def bytes(self) -> int:
        """Total size of the files."""
        return sum(file[2] for file in self.files)

    def partitions(self) -> Iterator[tuple[dict[str, str], int, int]]:
        """Yield each partition once, with the number and the total bytes of its files in the batch."""
        totals: dict[str, list[int]] = {}
        for _, _, size, _, partition in self.files:
            total = totals.setdefault(partition, [0, 0])
            total[0] += 1
            total[1] += size
        for path, (files, size) in sorted(totals.items()):
            yield parse_partition_path(path), files, size


@dataclass(frozen=True, kw_only=True)
class BatchRules:
    """When a file is ready, and how many files are reported together.

    :param stable_polls: a file is ready if this many consecutive polls saw the same size and etag, or by
        ``min_age``.
    :param min_age: a file is also ready if it was modified this many seconds ago.
    :param min_files: report if this many files are ready, or by ``max_wait``.
    :param max_wait: also report if one of the ready files was modified this many seconds ago.
    :param max_files: maximum number of files in one batch.
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


class PendingFiles:
    """Distinguishes new and changed files from reported ones. Close it, because it owns temporary files.

    A file modified at or before :attr:`watermark` has been reported, or is older than ``since``. Later files
    are compared with the reported ones. Only the thread that created the object may use it.
    """

    def __init__(self, rules: BatchRules) -> None:
        self.rules = rules
        self.watermark = NEVER
        self.generation = 0
        """Counter that increases whenever files are reported."""
        # One triggerer runs many watches, so each gets a small cache.
        self._db = ScratchDatabase("whisper-arrivals-", _TABLES, cache_mib=16)

    def close(self) -> None:
        """Delete the temporary files."""
        self._db.close()

    # --- reported files ----------------------------------------------------------------------------------

    def start_generation(self) -> None:
        """Start a new generation, to which all reported files belong that are added from now on."""
        self.generation += 1

    def add_reported(self, files: Iterable[tuple[str, str | None, int]]) -> None:
        """Add files that need no report: URI, etag, and modification time in microseconds."""
        rows = ((uri, etag, modified, self.generation) for uri, etag, modified in files)
        self._db.run_for_each("INSERT OR REPLACE INTO reported VALUES (?, ?, ?, ?)", rows)

    def reported(self, *, since: int | None = None) -> Iterator[tuple[str, str | None, int]]:
        """Yield the reported files that were modified after :attr:`watermark`, newest first.

        :param since: yield only files that were added in later generations.
        """
        query = "SELECT uri, etag, modified FROM reported WHERE generation > ? ORDER BY modified DESC, uri"
        yield from self._db.execute(query, (-1 if since is None else since,))

    def reported_count(self) -> int:
        """Number of files that :meth:`reported` yields."""
        return int(self._db.first("SELECT count(*) FROM reported")[0])

    def raise_watermark(self, watermark: int) -> None:
        """Raise the watermark, but not past a pending file, and forget reported files up to it.

        Call it only after every file modified up to this time has been observed.
        """
        (oldest,) = self._db.first("SELECT min(modified) FROM pending")
        if oldest is not None:
            # This file is not reported yet, so it must still be after the watermark when a restart lists it.
            watermark = min(watermark, oldest - 1)
        if watermark > self.watermark:
            self.watermark = watermark
            self._db.execute("DELETE FROM reported WHERE modified <= ?", (watermark,))

    # --- listed and pending files ------------------------------------------------------------------------

    def observe(self, files: Iterable[Iterable[File]]) -> None:
        """Process one complete listing, which must cover every folder with pending files.

        If the listing raises an exception, nothing changes.
        """
        self._db.execute("DELETE FROM listed")
        for chunk in files:
            self._db.run_for_each("INSERT INTO listed VALUES (?, ?, ?, ?, ?)", chunk)
        with self._db.transaction():
            if self.reported_count():
                self._db.execute(_DROP_REPORTED.format(table="listed"))
            self._db.execute("DELETE FROM pending WHERE uri NOT IN (SELECT uri FROM listed)")
            self._db.execute(_ADD_PENDING)
            self._db.execute("DELETE FROM listed")
        self._give_back_space()

    def _give_back_space(self) -> None:
        # A watch runs for months, and its first listing may have been much larger than later ones.
        (free,), (pages,) = (self._db.first(f"PRAGMA {name}") for name in ("freelist_count", "page_count"))
        if free > _MOST_FREE_PAGES and free > pages // 2:
            self._db.execute("VACUUM")

    def disk_bytes(self) -> int:
        """Size of the temporary files in bytes."""
        return sum(path.stat().st_size for path in self._db.folder.iterdir())

    def drop_reported(self) -> None:
        """Remove pending files that have been added as reported since they were observed."""
        self._db.execute(_DROP_REPORTED.format(table="pending"))

    def partitions(self) -> list[str]:
        """Canonical partitions of the pending files."""
        return [partition for (partition,) in self._db.execute("SELECT DISTINCT partition FROM pending")]

    def pending(self) -> Iterator[tuple[str, str | None, int, int, str, int]]:
        """Yield the unreported files: the fields of :data:`File`, and how many polls saw it unchanged."""
        yield from self._db.execute("SELECT * FROM pending")

    def add_pending(self, files: Iterable[tuple[str, str | None, int, int, str, int]]) -> None:
        """Restore files that :meth:`pending` returned earlier."""
        self._db.run_for_each("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, ?)", files)

    def count(self) -> int:
        """Number of pending files."""
        return int(self._db.first("SELECT count(*) FROM pending")[0])

    # --- files to report ---------------------------------------------------------------------------------

    def batches(self, now: int, *, at_most: int) -> Iterator[Batch]:
        """Yield the files to report now, oldest first. A batch counts as reported when it is yielded.

        :param now: current time in microseconds, by the same clock as in :data:`File`.
        :param at_most: maximum number of batches; the next call yields the rest.
        """
        count = self._find_ready(now)
        position = 0
        for _ in range(at_most):
            if position >= count or not self._is_due(position, count, now):
                return
            batch = self._batch_at(position)
            position += len(batch.files)
            self.start_generation()
            self._db.run_for_each("DELETE FROM pending WHERE uri = ?", ((f[0],) for f in batch.files))
            self.add_reported((uri, etag, modified) for uri, etag, _, modified, _ in batch.files)
            yield batch

    def ready_partitions(self, now: int) -> list[tuple[str, int, int]]:
        """Return the partitions with files to report now: canonical string, number of files, bytes.

        Unlike :meth:`batches` this returns all ready files, and does not count them as reported.
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
