"""Compare a partition's audio with its rows in the table, and decide what to do with each file.

The comparison uses a temporary SQLite database, so that ten million files use disk instead of memory.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from airflow_whisper.discovery.estimate import TYPICAL_BYTES_A_SECOND, Work
from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.contract import CHANGES, FINAL_ERRORS, STAYING
from whisper_spark.storage.objects import folder_uri

if TYPE_CHECKING:
    import pyarrow as pa

# Rows in one row group of a manifest, which is also about what a reader holds in memory.
ROW_GROUP = 10_000

_TABLES = """
CREATE TABLE listing (uri TEXT, etag TEXT, bytes INTEGER, modified INTEGER);
CREATE TABLE left_out (uri TEXT, kind TEXT);
CREATE TABLE rows (uri TEXT, etag TEXT, status TEXT, error_code TEXT, attempt INTEGER, fingerprint TEXT,
                   seconds REAL);
CREATE TABLE listed (uri TEXT PRIMARY KEY, etag TEXT, bytes INTEGER, modified INTEGER) WITHOUT ROWID;
CREATE TABLE existing (uri TEXT PRIMARY KEY, etag TEXT, status TEXT, error_code TEXT, attempt INTEGER,
                   fingerprint TEXT, seconds REAL) WITHOUT ROWID;
CREATE TABLE files (uri TEXT, etag TEXT, bytes INTEGER, modified INTEGER, change TEXT, attempt INTEGER);
CREATE TABLE missing (uri TEXT, change TEXT);
"""

# Fill the tables in key order: appending to a B-tree is far faster than random inserts, and a join of two
# tables in the same order reads both sequentially.
_SORT = """
INSERT INTO listed SELECT * FROM listing ORDER BY uri;
INSERT INTO existing SELECT * FROM rows ORDER BY uri;
CREATE INDEX left_out_uri ON left_out (uri);
DROP TABLE listing;
DROP TABLE rows;
"""

# If either side lacks an etag, the etags count as equal.
_COMPARE = """
INSERT INTO files
SELECT uri, etag, bytes, modified, change, iif(change = 'retry', earlier_attempt + 1, 1) FROM (
    SELECT l.uri, l.etag, l.bytes, l.modified, e.attempt AS earlier_attempt, CASE
        WHEN e.uri IS NULL THEN 'new'
        WHEN l.etag <> e.etag THEN 'changed'
        WHEN e.fingerprint IS NOT :fingerprint AND :retranscribe
             AND coalesce(e.fingerprint, '') NOT IN (SELECT value FROM json_each(:accepted)) THEN 'stale'
        WHEN e.status <> 'ok' AND coalesce(e.error_code, '') NOT IN (:final)
             AND e.attempt < :max_attempts THEN 'retry'
        WHEN e.fingerprint IS NOT :fingerprint THEN 'kept_stale'
        ELSE 'unchanged' END AS change
    FROM listed l LEFT JOIN existing e ON e.uri = l.uri
) ORDER BY bytes DESC, uri
""".replace(":final", ", ".join(f"'{code}'" for code in sorted(FINAL_ERRORS)))

# Rows without a file in this run. A row may be removed only if its file no longer exists in the source, but
# not if the file belongs to another source of the partition or the filter excludes it.
_MISSING = """
INSERT INTO missing
SELECT uri, CASE
    WHEN substr(uri, 1, length(:source)) <> :source THEN 'kept_elsewhere'
    WHEN EXISTS (SELECT 1 FROM left_out WHERE left_out.uri = existing.uri) THEN 'kept_left_out'
    ELSE :gone END
FROM existing WHERE uri NOT IN (SELECT uri FROM listed) ORDER BY uri
"""


# The extension of a URI, in lower case; empty if the estimate does not know it. rtrim removes from the end
# all characters that occur in the URI, except dots, so it stops at the last dot.
_EXTENSION = """
    iif(instr({uri}, '.') AND lower(substr({uri}, length(rtrim({uri}, replace({uri}, '.', ''))) + 1))
        IN ({known}), lower(substr({uri}, length(rtrim({uri}, replace({uri}, '.', ''))) + 1)), '')
"""


def _extension(uri: str) -> str:
    known = ", ".join(f"'{extension}'" for extension in sorted(TYPICAL_BYTES_A_SECOND))
    return _EXTENSION.format(uri=uri, known=known)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The user's choices for files that already have a row in the table.

    :param on_removed: whether to ``"keep"`` or ``"delete"`` rows whose audio has been removed.
    :param on_stale: whether to ``"retranscribe"`` or ``"keep"`` rows made with other options.
    :param accepted_fingerprints: fingerprints of other options whose rows are kept in either case.
    :param max_attempts: how often to try a file, per etag, that fails with a transient error.
    :param max_removed_rate: largest fraction of a partition's rows that one run may remove, 0 to 1.
    """

    on_removed: Literal["keep", "delete"] = "keep"
    on_stale: Literal["retranscribe", "keep"] = "retranscribe"
    max_attempts: int = 3
    max_removed_rate: float = 0.5
    accepted_fingerprints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("on_removed", ("keep", "delete")), ("on_stale", ("retranscribe", "keep"))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, allowed))}, got {getattr(self, name)!r}"
                )
        if (
            not isinstance(self.max_attempts, int)
            or isinstance(self.max_attempts, bool)
            or not 1 <= self.max_attempts < 2**31
        ):
            raise ValueError(f"max_attempts must be a whole number of at least 1, got {self.max_attempts!r}")
        rate = self.max_removed_rate
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
            raise ValueError(f"max_removed_rate must be a number from 0 to 1 (0.5 is 50 %), got {rate!r}")
        for fingerprint in self.accepted_fingerprints:
            if not re.fullmatch("[0-9a-f]{16}", fingerprint):
                raise ValueError(
                    "accepted_fingerprints must hold values of the column fingerprint, 16 hex digits each, "
                    f"got {fingerprint!r}"
                )


@dataclass(frozen=True)
class Counts:
    """Counts of a partition's files by what is to be done with them."""

    files: dict[str, int] = field(default_factory=dict)
    """Number of files per change (``new``, ``changed``, ``stale``, ``retry``), and: ``unchanged``;
    ``kept_stale``, made with other options and kept; ``removed``, audio removed and row to be deleted;
    ``kept_removed``, audio removed and row kept; ``kept_left_out``, excluded by this run's filter;
    ``kept_elsewhere``, of another source."""
    audio_bytes: int = 0
    """Bytes of audio to transcribe."""
    unchanged_errors: int = 0
    """Number of error rows that do not change."""

    @property
    def to_transcribe(self) -> int:
        """Number of files in the manifest."""
        return sum(self.files[change] for change in CHANGES)

    @property
    def audio(self) -> int:
        """Number of files of the source that belong to the partition."""
        return self.to_transcribe + self.files["unchanged"] + self.files["kept_stale"]

    @property
    def nothing_to_do(self) -> bool:
        """Whether the partition is up to date."""
        return self.to_transcribe == 0 and self.files["removed"] == 0

    def __str__(self) -> str:
        """Describe the counts that are not zero for the log, for example ``3 new, 22 unchanged``."""
        words = {
            "kept_stale": "kept as made with other options",
            "kept_removed": "kept though the audio is gone",
            "kept_left_out": "kept though this run leaves their audio out",
            "kept_elsewhere": "kept from other sources",
        }
        parts = [f"{n:,} {words.get(name, name)}" for name, n in self.files.items() if n]
        return ", ".join(parts) or "no files"


class Comparison:
    """Compares the listed audio with the table's rows. A context manager, because it owns temporary files.

    .. code-block:: python

        with Comparison() as comparison:
            comparison.add_rows(current_rows(catalog, table, partition))
            for batch, kinds in list_by_kind(storage, source, AudioFilter()):
                comparison.add_listing(batch, kinds)
            counts = comparison.compare(options.fingerprint(), Rules(), source)
    """

    def __init__(self) -> None:
        self._db = ScratchDatabase("whisper-discover-", _TABLES)
        self.folder = self._db.folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add_listing(self, batch: pa.RecordBatch, kinds: Sequence[str]) -> None:
        """Add a batch of the listing with the kind of each object, as returned by :func:`list_by_kind`."""
        import pyarrow as pa

        audio = [kind == "audio" for kind in kinds]
        columns = ("audio_uri", "audio_etag", "audio_bytes", "last_modified")
        self._db.insert("listing", [batch if all(audio) else batch.filter(pa.array(audio))], columns)
        uris = batch.column("audio_uri").to_pylist() if not all(audio) else ()
        others = ((uri, kind) for uri, kind in zip(uris, kinds, strict=False) if kind != "audio")
        self._db.run_for_each("INSERT INTO left_out VALUES (?, ?)", others)

    def add_rows(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Add rows of the table, as returned by :func:`catalog.current_rows`, and return their number.

        The column ``duration_s``, which only the estimate needs, may be missing.
        """
        columns = ("audio_uri", "audio_etag", "status", "error_code", "attempt", "fingerprint", "duration_s")
        return self._db.insert("rows", map(_with_seconds, batches), columns)

    def compare(self, fingerprint: str, rules: Rules, source: str) -> Counts:
        """Decide what to do with every file. Call it once, after everything has been added.

        :param fingerprint: fingerprint of this run's options.
        :param source: URI of the listed folder.
        :raises ValueError: if the table holds two rows for one file.
        """
        try:
            self._db.script(_SORT)
        except sqlite3.IntegrityError:
            uri = self._db.first("SELECT uri FROM rows GROUP BY uri HAVING count(*) > 1 LIMIT 1")
            raise ValueError(
                f"the table holds more than one row for {uri[0] if uri else 'a file'}, which no run of this "
                "operator writes: delete the surplus rows of this partition"
            ) from None
        values = {
            "fingerprint": fingerprint,
            "retranscribe": rules.on_stale == "retranscribe",
            "accepted": json.dumps(rules.accepted_fingerprints),
            "max_attempts": rules.max_attempts,
        }
        with self._db.transaction():
            self._db.execute(_COMPARE, values)
            gone = "removed" if rules.on_removed == "delete" else "kept_removed"
            self._db.execute(_MISSING, {"source": folder_uri(source), "gone": gone})
        return self._counts()

    def _counts(self) -> Counts:
        counts = dict.fromkeys([*CHANGES, *STAYING, "removed"], 0)
        audio_bytes = 0
        for change, files, total in self._db.execute(
            "SELECT change, count(*), sum(bytes) FROM files GROUP BY 1"
        ):
            counts[change] = files
            audio_bytes += (total or 0) if change in CHANGES else 0
        counts |= dict(self._db.execute("SELECT change, count(*) FROM missing GROUP BY 1").fetchall())
        replaced = ", ".join(f"'{change}'" for change in CHANGES)
        (errors,) = self._db.first(
            "SELECT count(*) FROM existing WHERE status <> 'ok' AND uri NOT IN "  # noqa: S608
            "(SELECT uri FROM missing WHERE change = 'removed' "
            f"UNION ALL SELECT uri FROM files WHERE change IN ({replaced}))"
        )
        return Counts(counts, audio_bytes, errors)

    def files(self) -> Iterator[list[tuple[Any, ...]]]:
        """Yield files to transcribe, largest first, in lists of (uri, etag, bytes, µs, change, attempt)."""
        changes = ", ".join(f"'{change}'" for change in CHANGES)
        query = f"SELECT * FROM files WHERE change IN ({changes}) ORDER BY rowid"  # noqa: S608
        return self._db.chunks(query, size=ROW_GROUP)

    def removed(self) -> Iterator[list[tuple[Any, ...]]]:
        """Yield the rows to delete, in lists of (uri,)."""
        query = "SELECT uri FROM missing WHERE change = 'removed' ORDER BY rowid"
        return self._db.chunks(query, size=ROW_GROUP)

    def work(self) -> list[Work]:
        """Return the files to transcribe by extension, with the seconds that rows of the table tell."""
        changes = ", ".join(f"'{change}'" for change in CHANGES)
        query = f"""
            SELECT {_extension("f.uri")}, count(*), sum(f.bytes), coalesce(sum(e.seconds), 0),
                   sum(iif(e.seconds IS NULL, f.bytes, 0))
            FROM files f
            LEFT JOIN existing e ON e.uri = f.uri AND e.status = 'ok' AND e.seconds > 0
                AND e.etag = f.etag
            WHERE f.change IN ({changes}) GROUP BY 1 ORDER BY 1
        """  # noqa: S608
        return [Work(*row) for row in self._db.execute(query)]

    def byte_rates(self) -> dict[str, float]:
        """Return bytes per second of audio by extension, from the rows of files that have not changed."""
        query = f"""
            SELECT {_extension("l.uri")}, sum(l.bytes) / sum(e.seconds)
            FROM listed l JOIN existing e ON e.uri = l.uri AND e.etag = l.etag
            WHERE e.status = 'ok' AND e.seconds > 0 AND l.bytes > 0 GROUP BY 1
        """  # noqa: S608
        return dict(self._db.execute(query).fetchall())

    def sample(self, extension: str, count: int) -> list[tuple[str, int]]:
        """Return URI and size of a few files to transcribe, spread over all sizes."""
        changes = ", ".join(f"'{change}'" for change in CHANGES)
        # A multiplicative hash: the same files each time, but neither all large nor all small.
        query = f"""
            SELECT uri, bytes FROM files WHERE change IN ({changes}) AND {_extension("uri")} = ? AND bytes > 0
            ORDER BY rowid * 2654435761 % 4294967296 LIMIT ?
        """  # noqa: S608
        return self._db.execute(query, (extension, count)).fetchall()

    def left_out(self) -> dict[str, int]:
        """Return the number of objects below the source that are not audio of this partition, by kind."""
        found = self._db.execute("SELECT kind, count(*) FROM left_out GROUP BY 1 ORDER BY 1")
        return dict(found.fetchall())

    def example_left_out(self, *kinds: str) -> str | None:
        """Return the URI of one object of these kinds; ``None`` if there is none."""
        found = self._db.first(
            f"SELECT min(uri) FROM left_out WHERE kind IN ({', '.join('?' * len(kinds))})",  # noqa: S608
            kinds,
        )
        return str(found[0]) if found[0] else None


def _with_seconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    import pyarrow as pa

    if "duration_s" in batch.schema.names:
        return batch
    return batch.append_column("duration_s", pa.nulls(batch.num_rows, pa.float64()))
