"""Watch a source: list it again and again, and tell what is new since the last time.

Free of Airflow but for connections, and synchronous: the trigger runs it in a thread, the sensor in its task.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from airflow_whisper.discovery.listing import read_ahead
from airflow_whisper.discovery.locations import check_locations
from airflow_whisper.hooks.object_storage import object_storage, storage_config
from airflow_whisper.watch.assignment import Sorter
from airflow_whisper.watch.cursor import MemoryStore
from airflow_whisper.watch.listing import FolderPath, Folders, plan_poll, time_levels
from airflow_whisper.watch.partition_templates import Partitioning
from airflow_whisper.watch.pending import NEVER, Arrivals, Batch, BatchRules, File
from whisper_spark.contract import parse_partition_path
from whisper_spark.storage.objects import ObjectStorage, join_uri

if TYPE_CHECKING:
    pass

INLINE_URIS = 20
"""A payload names the files when there are at most this many; more are in an object of their own."""

MAX_EVENTS = 10
"""Events of one poll. Airflow gathers events that come in quick succession into one DAG run."""

_LIST_CHUNK = 2000
# Objects in memory at a time: a triggerer has many watches.

_CREDENTIAL_SECONDS = 900
# Roles and profiles in connections give credentials that end, usually after an hour.


class Log(Protocol):
    """What a watch says goes here: the log of a trigger or of a task."""

    def info(self, event: Any, *args: Any) -> Any: ...  # noqa: D102
    def warning(self, event: Any, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102


class Held(Protocol):
    """What need not be reported because somebody has it already: the rows of a table."""

    def files(self, partition: Mapping[str, str]) -> Iterable[tuple[str, str | None]] | None:
        """URI and etag of each file of a partition; ``None`` when they are as at the last call."""


class WatchStopped(Exception):  # noqa: N818 - reads as what happened
    """The watch was stopped in the middle of a poll."""


@dataclass(frozen=True, kw_only=True)
class WatchedSource:
    """What to watch, and how. Parameters as in :class:`airflow_whisper.triggers.audio.NewAudioTrigger`.

    :raises ValueError: when an argument is wrong.
    """

    source: str
    rules: BatchRules = field(default_factory=BatchRules)
    partition_from_modified: Mapping[str, str] | None = None
    partition: Mapping[str, str] | None = None
    pattern: str | None = None
    extensions: tuple[str, ...] | None = None
    since: str | None = None
    lookback: float = 2 * 86400
    overlap: float = 3600
    sweep_interval: float = 3600
    source_conn_id: str | None = None
    staging: str | None = None
    staging_conn_id: str | None = None

    def __post_init__(self) -> None:
        check_locations({"source": self.source})
        partitioning = self.partitioning
        if self.staging is not None:
            check_locations({"staging": self.staging})
            if partitioning.lies_inside(self.staging):
                raise ValueError(
                    f"staging {self.staging!r} must not lie inside source {self.source!r}: "
                    "name a folder beside it"
                )
        for name in ("lookback", "overlap", "sweep_interval"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {value!r}")
        if not all(extension.strip(". ") for extension in self.extensions or ()):
            raise ValueError(f"extensions must be a list such as ['wav', 'mp3'], got {self.extensions!r}")
        self.first_floor()

    @property
    def partitioning(self) -> Partitioning:
        """How the audio is divided into partitions."""
        return Partitioning.of(self.source, self.partition_from_modified, self.partition)

    @property
    def watch_id(self) -> str:
        """Names the memory of this watch: the same for the same files, whatever the timing."""
        extensions = sorted(self.suffixes())
        what = [self.partitioning.template.source, self.pattern, extensions, self.since]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def suffixes(self) -> tuple[str, ...]:
        """What the names of wanted files end in, in lower case; empty: anything."""
        return tuple(f".{extension.strip('. ').lower()}" for extension in self.extensions or ())

    def first_floor(self) -> int:
        """The time, in microseconds, from which on files count when nothing is remembered.

        :raises ValueError: when ``since`` is no time with a time zone.
        """
        if self.since is None:
            return NEVER
        try:
            moment = datetime.fromisoformat(self.since)
        except (TypeError, ValueError):
            moment = datetime.min
        if moment.tzinfo is None:
            raise ValueError(
                f"since must be an ISO time with a time zone, such as '2026-11-01T00:00:00+00:00', got "
                f"{self.since!r}"
            )
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class SourceWatch:
    """One source under watch, with its memory. Belongs to the thread that made it, except :meth:`stop`.

    :param held: files that are not new although they were never reported.
    """

    def __init__(self, watched: WatchedSource, log: Log | None = None, held: Held | None = None) -> None:
        self._watched = watched
        self._log: Log = log or logging.getLogger(__name__)
        self._held = held
        self._partitioning = watched.partitioning
        self._template = self._partitioning.template
        self._depth = time_levels(self._template)
        self._sorter = Sorter(self._partitioning, watched.pattern, watched.suffixes())
        self._stopped = threading.Event()
        self._known: frozenset[FolderPath] = frozenset()
        self._swept: float | None = None
        self._connected: float | None = None
        self._strangers: int | None = None
        self._active: dict[str, int] = {}
        self._more_is_due = False
        self._outbox: list[dict[str, Any]] = []
        self.arrivals = Arrivals(watched.rules)
        self.arrivals.floor = watched.first_floor()
        self.memory = MemoryStore(watched, self.arrivals, self._staging, self._log)

    def close(self) -> None:
        """Removes the temporary files."""
        self.arrivals.close()

    def stop(self) -> None:
        """Ends a poll that is under way; from any thread."""
        self._stopped.set()

    def poll(self, clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
        """Lists what can have changed, and returns the payload of each event that is due.

        :param clock: seconds since 1970.
        :raises StorageError: when the store cannot be listed; nothing is forgotten, so just try again.
        :raises InvalidConnectionError: when a connection cannot be used.
        """
        now = clock()
        if not self._more_is_due:
            self._look(now)
        # Kept until all are made: their files count as reported, so they must not be lost to an exception.
        payloads = self._outbox
        for batch in self.arrivals.batches(int(now * 1e6), at_most=MAX_EVENTS):
            payloads.append(self._payload(batch))
            for *_, modified, partition in batch.files:
                self._active[partition] = max(modified, self._active.get(partition, NEVER))
        self._outbox = []
        # What else is due needs no new listing.
        self._more_is_due = len(payloads) >= MAX_EVENTS
        return payloads

    def find(self, clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
        """Lists as :meth:`poll` does, and returns each partition with audio that is ready and not held.

        :return: ``source``, ``partition``, ``files`` and ``bytes`` of each; nothing while the files are too
            few and have not waited for long.
        :raises StorageError: :raises InvalidConnectionError: as :meth:`poll`.
        """
        now = clock()
        self._look(now)
        found = self.arrivals.ready_partitions(int(now * 1e6))
        return [self._entry(parse_partition_path(path), files, size) for path, files, size in found]

    def _look(self, now: float) -> None:
        try:
            self._connect(now)
            self._observe(now)
        except WatchStopped:
            raise
        except Exception:
            self._connected = None  # the next try asks for the credentials again
            raise
        if self._held is not None:
            self._leave_out_held(self._held)

    # --- listing -----------------------------------------------------------------------------------------

    def _connect(self, now: float) -> None:
        if self._connected is None or now - self._connected > _CREDENTIAL_SECONDS:
            config = storage_config(self._watched.source_conn_id or None, self._template.root)
            self._storage = ObjectStorage(config)
            self._folders = Folders(config)
            self._connected = now

    def _observe(self, now: float) -> None:
        full = self._depth == 0 or self._swept is None or now - self._swept >= self._watched.sweep_interval
        plan = plan_poll(
            self._template,
            self._folders,
            recent=datetime.fromtimestamp(now, UTC) - timedelta(seconds=self._watched.lookback),
            known=None if full else self._known,
            busy=() if full else self._busy_folders(now),
        )
        self.arrivals.observe(self._files(((),) if full else plan.folders, full=full))
        if full:
            self._known, self._swept = plan.met, now
            # What was modified before this sweep began was there to be seen, give or take the overlap: clocks
            # differ, and a long upload carries the time of its beginning.
            if self._held is None:
                self.arrivals.raise_floor(int((now - self._watched.overlap) * 1e6))
        else:
            self._known |= plan.met

    def _busy_folders(self, now: float) -> list[FolderPath]:
        """Where files are waited for, or came since a sweep ago: more are likely to come there."""
        past = int((now - self._watched.sweep_interval) * 1e6)
        self._active = {path: last for path, last in self._active.items() if last > past}
        root = len(self._template.root)
        paths = {*self.arrivals.waiting_partitions(), *self._active}
        partitions = map(parse_partition_path, paths)
        return [tuple(self._template.source_of(p)[root:].rstrip("/").split("/")) for p in partitions]

    def _files(self, folders: Iterable[FolderPath], *, full: bool) -> Iterator[list[File]]:
        strangers = 0
        for folder in folders:
            uri = join_uri(self._template.root, *folder) + "/" if folder else self._template.root
            for batch in read_ahead(self._storage.list(uri, chunk_size=_LIST_CHUNK)):
                if self._stopped.is_set():
                    raise WatchStopped
                files, others = self._sorter.files(batch, self.arrivals.floor)
                strangers += others
                yield files
        if full and strangers != self._strangers:
            self._strangers = strangers
            if strangers:
                self._log.warning(
                    "Left out %s objects under %s that are not in folders as in %s.",
                    f"{strangers:,}",
                    self._template.root,
                    self._template.source,
                )

    def _leave_out_held(self, held: Held) -> None:
        for path in self.arrivals.waiting_partitions():
            files = held.files(parse_partition_path(path))
            if files is not None:
                self.arrivals.add_reported((uri, etag, 0) for uri, etag in files)
        self.arrivals.drop_reported()

    # --- reporting ---------------------------------------------------------------------------------------

    def _payload(self, batch: Batch) -> dict[str, Any]:
        inline = len(batch.files) <= INLINE_URIS
        return {
            "source": self._template.source,
            "files": len(batch.files),
            "bytes": batch.bytes,
            "partitions": [self._entry(*entry) for entry in batch.partitions()],
            "uris": [file[0] for file in batch.files] if inline else None,
            "list_uri": None if inline else self._write_list(batch),
        }

    def _entry(self, partition: dict[str, str], files: int, size: int) -> dict[str, Any]:
        source = self._partitioning.source_of(partition)
        return {"source": source, "partition": partition, "files": files, "bytes": size}

    def _write_list(self, batch: Batch) -> str | None:
        """Writes the files of a batch as Parquet; ``None`` without staging, or when it cannot be reached."""
        if self._watched.staging is None:
            return None
        try:
            data = _list_parquet(batch)
            name = f"{hashlib.sha256(data).hexdigest()[:32]}.parquet"
            uri = join_uri(self._watched.staging, "arrivals", self._watched.watch_id, name)
            self._staging().write_bytes(uri, data)
        except Exception as error:
            # Not worth an event, whose partitions are what work is planned by.
            self._log.warning("The list of %s new files was not written: %s", len(batch.files), error)
            return None
        return uri

    def _staging(self) -> ObjectStorage:
        conn_id = self._watched.staging_conn_id or self._watched.source_conn_id or None
        return object_storage(conn_id, self._watched.staging or "")


def extension_tuple(extensions: Iterable[str] | None) -> tuple[str, ...] | None:
    """:raises ValueError: when it is one string, whose letters would be taken for extensions."""
    if isinstance(extensions, str):
        raise ValueError(f"extensions must be a list such as ['wav', 'mp3'], got {extensions!r}")
    return tuple(extensions) if extensions else None


def _list_parquet(batch: Batch) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    uris, etags, sizes, times, partitions = zip(*batch.files, strict=True)
    table = pa.table(
        {
            "audio_uri": pa.array(uris, pa.string()),
            "audio_etag": pa.array(etags, pa.string()),
            "audio_bytes": pa.array(sizes, pa.int64()),
            "last_modified": pa.array(times, pa.timestamp("us", tz="UTC")),
            "partition": pa.array(partitions, pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data
