"""Which audio is new: what was reported, what is pending, and what is reported together.

The state is in a temporary SQLite database, so that ten million files need disk space instead of memory.
What has to survive the process is small: :attr:`PendingFiles.watermark` and :meth:`PendingFiles.reported`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.contract import parse_partition_path

# Partitions in one batch. Airflow maps a task over at most 1,024 (`[core] max_map_length`).
MAX_PARTITIONS = 100

# A time before all others, in microseconds.
NEVER = -(2**62)

# Of 4 KiB, SQLite's default: 64 MiB.
_MOST_FREE_PAGES = 16_384

File = tuple[str, str | None, int, int, str]
"""URI, etag, bytes, time of modification in microseconds, canonical partition."""

_TABLES = """
CREATE TABLE reported (uri TEXT PRIMARY KEY, etag TEXT, modified INTEGER, generation INTEGER) WITHOUT ROWID;
CREATE TABLE pending (uri TEXT PRIMARY KEY, etag TEXT, bytes INTEGER, modified INTEGER, partition TEXT,
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


class PendingFiles:
    """Tells new and changed files from those that were reported. Close it: it owns temporary files.

    A file modified at or before :attr:`watermark` has been reported, or was there before anything was to be;
    later ones are compared with what was reported. Belongs to the thread that made it.
    """

    def __init__(self, rules: BatchRules) -> None:
        self.rules = rules
        self.watermark = NEVER
        self.generation = 0
        """Grows whenever files are reported."""
        # A triggerer has many watches, so each gets little memory.
        self._db = ScratchDatabase("whisper-arrivals-", _TABLES, cache_mib=16)

    def close(self) -> None:
        """Removes the temporary files."""
        self._db.close()

    # --- what was reported -------------------------------------------------------------------------------

    def start_generation(self) -> None:
        """What is added from now on counts as later than what was added before."""
        self.generation += 1

    def add_reported(self, files: Iterable[tuple[str, str | None, int]]) -> None:
        """Takes in what needs no report: URI, etag, and time of modification in microseconds."""
        rows = ((uri, etag, modified, self.generation) for uri, etag, modified in files)
        self._db.run_for_each("INSERT OR REPLACE INTO reported VALUES (?, ?, ?, ?)", rows)

    def reported(self, *, since: int | None = None) -> Iterator[tuple[str, str | None, int]]:
        """What was reported and modified after :attr:`watermark`, newest first.

        :param since: only what was added in later generations.
        """
        query = "SELECT uri, etag, modified FROM reported WHERE generation > ? ORDER BY modified DESC, uri"
        yield from self._db.execute(query, (-1 if since is None else since,))

    def reported_count(self) -> int:
        """How many files :meth:`reported` gives."""
        return int(self._db.first("SELECT count(*) FROM reported")[0])

    def raise_watermark(self, watermark: int) -> None:
        """Forgets what was reported and modified by then, but never passes a pending file.

        Call it when everything modified by then has been observed.
        """
        (oldest,) = self._db.first("SELECT min(modified) FROM pending")
        if oldest is not None:
            # Not reported yet: after a restart it has to be found after the watermark again.
            watermark = min(watermark, oldest - 1)
        if watermark > self.watermark:
            self.watermark = watermark
            self._db.execute("DELETE FROM reported WHERE modified <= ?", (watermark,))

    # --- what is there -----------------------------------------------------------------------------------

    def observe(self, files: Iterable[Iterable[File]]) -> None:
        """Takes in one complete listing of every place where files are pending.

        Nothing changes when the listing breaks off with an exception.
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
        # A watch runs for months, and its first listing may have been a large one.
        (free,), (pages,) = (self._db.first(f"PRAGMA {name}") for name in ("freelist_count", "page_count"))
        if free > _MOST_FREE_PAGES and free > pages // 2:
            self._db.execute("VACUUM")

    def disk_bytes(self) -> int:
        """Size of the temporary files."""
        return sum(path.stat().st_size for path in self._db.folder.iterdir())

    def drop_reported(self) -> None:
        """Removes files that meanwhile were added as reported from the pending ones."""
        self._db.execute(_DROP_REPORTED.format(table="pending"))

    def partitions(self) -> list[str]:
        """Canonical partitions of the pending files."""
        return [partition for (partition,) in self._db.execute("SELECT DISTINCT partition FROM pending")]

    def pending(self) -> Iterator[tuple[str, str | None, int, int, str, int]]:
        """Files that are not reported yet: a :data:`File` each, and how many polls saw it unchanged."""
        yield from self._db.execute("SELECT * FROM pending")

    def add_pending(self, files: Iterable[tuple[str, str | None, int, int, str, int]]) -> None:
        """Goes on with what :meth:`pending` gave earlier."""
        self._db.run_for_each("INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?, ?, ?)", files)

    def count(self) -> int:
        """How many files are pending."""
        return int(self._db.first("SELECT count(*) FROM pending")[0])

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
            self.start_generation()
            self._db.run_for_each("DELETE FROM pending WHERE uri = ?", ((f[0],) for f in batch.files))
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
