"""Watch a source: list it repeatedly and report the files that are new since the previous listing.

It is synchronous and uses Airflow only for connections. The trigger runs it in a thread, the sensor in its
task.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from airflow_whisper.watch.cursor import Cursor
from airflow_whisper.watch.listing import FolderPath, SourceLister
from airflow_whisper.watch.payload import event_payload, partition_entry
from airflow_whisper.watch.pending import NEVER, PendingFiles
from airflow_whisper.watch.source import Log, WatchedSource
from whisper_spark.contract import parse_partition_path

# Maximum number of events per poll. Airflow combines events in quick succession into one DAG run.
MAX_EVENTS = 10


class KnownFiles(Protocol):
    """Files that need no report because a table already has rows for them."""

    def files(self, partition: Mapping[str, str]) -> Iterable[tuple[str, str | None]] | None:
        """Yield URI and etag of each file of a partition; ``None`` if unchanged since the last call."""


class SourceWatch:
    """Watches one source. Only the thread that created it may use it, except for :meth:`stop`.

    :param known: files that do not count as new, although they were never reported.
    """

    def __init__(
        self, watched: WatchedSource, log: Log | None = None, known: KnownFiles | None = None
    ) -> None:
        self._watched = watched
        self._log: Log = log or logging.getLogger(__name__)
        self._known = known
        self._stopped = threading.Event()
        self._lister = SourceLister(watched, self._log, self._stopped)
        # Modification time of the newest reported file of each partition.
        self._active: dict[str, int] = {}
        self._more_is_due = False
        self._outbox: list[dict[str, Any]] = []
        self.pending = PendingFiles(watched.rules)
        self.pending.watermark = watched.first_watermark()
        self.cursor = Cursor(watched, self.pending, self._log)

    def close(self) -> None:
        """Delete the temporary files."""
        self.pending.close()

    def stop(self) -> None:
        """End a poll in progress. May be called from any thread."""
        self._stopped.set()

    def poll(self, clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
        """List the folders that can have changed, and return the payload of each event that is due.

        :param clock: returns the current time in seconds since 1970.
        :raises StorageError: if the store cannot be listed. The state is kept, so simply call again.
        :raises InvalidConnectionError: if a connection cannot be used.
        """
        now = clock()
        if not self._more_is_due:
            self._look(now)
        # The attribute keeps the payloads until all are built: their files already count as reported, so an
        # exception must not lose them.
        payloads = self._outbox
        for batch in self.pending.batches(int(now * 1e6), at_most=MAX_EVENTS):
            payloads.append(event_payload(self._watched, batch, self._log))
            for *_, modified, partition in batch.files:
                self._active[partition] = max(modified, self._active.get(partition, NEVER))
        self._outbox = []
        # The next poll reports what is still due, without a new listing.
        self._more_is_due = len(payloads) >= MAX_EVENTS
        return payloads

    def find(self, clock: Callable[[], float] = time.time) -> list[dict[str, Any]]:
        """List as :meth:`poll` does, and return each partition with audio that is ready and not known.

        :return: ``source``, ``partition``, ``files`` and ``bytes`` of each; empty until there are
            ``min_files`` or one of them is older than ``max_wait``.
        :raises StorageError: if the store cannot be listed.
        :raises InvalidConnectionError: if a connection cannot be used.
        """
        now = clock()
        self._look(now)
        found = self.pending.ready_partitions(int(now * 1e6))
        return [
            partition_entry(self._watched, parse_partition_path(path), files, size)
            for path, files, size in found
        ]

    def _look(self, now: float) -> None:
        self._observe(now)
        if self._known is not None:
            self._leave_out(self._known)

    def _observe(self, now: float) -> None:
        sweep = self._lister.sweep_is_due(now)
        busy = () if sweep else self._busy_folders(now)
        listed = self._lister.files(now, sweep=sweep, busy=busy, watermark=self.pending.watermark)
        self.pending.observe(listed)
        # This sweep has seen every file that was modified before it began. The overlap allows for clocks that
        # differ and for long uploads, whose modification time is that of their start.
        if sweep and self._known is None:
            self.pending.raise_watermark(int((now - self._watched.overlap) * 1e6))

    def _busy_folders(self, now: float) -> list[FolderPath]:
        """Folders with pending files or with files that arrived within the last sweep interval.

        More files are likely to arrive in these.
        """
        past = int((now - self._watched.sweep_interval) * 1e6)
        self._active = {path: last for path, last in self._active.items() if last > past}
        template = self._watched.partitioning.template
        partitions = map(parse_partition_path, {*self.pending.partitions(), *self._active})
        start = len(template.root)
        return [tuple(template.source_of(p)[start:].rstrip("/").split("/")) for p in partitions]

    def _leave_out(self, known: KnownFiles) -> None:
        for path in self.pending.partitions():
            files = known.files(parse_partition_path(path))
            if files is not None:
                self.pending.add_reported((uri, etag, 0) for uri, etag in files)
        self.pending.drop_reported()
