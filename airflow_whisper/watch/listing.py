"""List a source without listing folders that cannot have changed.

A source that holds two years of daily folders has 730 of them, and new audio arrives in one or two. One
request returns the names of a thousand folders. A poll therefore requests the names, and then lists only
folders that are recent, unseen, or in which files arrived lately. A less frequent full sweep finds files that
arrive late in old folders.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from airflow_whisper.discovery.listing import read_ahead
from airflow_whisper.hooks.object_storage import storage_config
from airflow_whisper.watch.assignment import PartitionAssignment
from airflow_whisper.watch.partition_templates import PartitionTemplate, period_end
from airflow_whisper.watch.pending import File
from airflow_whisper.watch.source import Log, WatchedSource
from whisper_spark.storage.objects import ObjectStorage, UnreadableNames, join_uri

if TYPE_CHECKING:
    import pyarrow as pa

FolderPath = tuple[str, ...]
"""Names of folders below the root of a source, outermost first."""

# Names of placeholders (case-insensitive) that give the time of a folder, so that old folders can be skipped.
TIME_NAMES = frozenset("dt date ds day dd month mm year yyyy hour hh hr time ts".split())

# Objects in memory at a time. Small, because one triggerer runs many watches.
_LIST_CHUNK = 2000

# Seconds after which the connection is read again. Roles and profiles in connections give credentials that
# expire, usually after an hour.
_CREDENTIAL_SECONDS = 900


class WatchStopped(Exception):  # noqa: N818 - reads as what happened
    """The watch was stopped during a poll."""


@dataclass(frozen=True)
class _Connection:
    storage: ObjectStorage
    since: float


class SourceLister:
    """Lists the parts of a source that can have changed since the previous listing.

    The caller has it list everything every ``sweep_interval`` seconds; in between it lists the recent and the
    busy folders.

    :param stopped: setting this event ends a listing in progress.
    """

    def __init__(self, watched: WatchedSource, log: Log, stopped: threading.Event) -> None:
        self._watched = watched
        self._log = log
        self._stopped = stopped
        self._template = watched.partitioning.template
        self._assignment = PartitionAssignment(watched.partitioning, watched.audio_filter)
        self._connection: _Connection | None = None
        self._met: frozenset[FolderPath] = frozenset()
        self._swept: float | None = None
        self._left_out: Counter[str] = Counter()
        self._unreadable = 0

    def sweep_is_due(self, now: float) -> bool:
        """Whether it is time to list everything."""
        if time_levels(self._template) == 0 or self._swept is None:
            return True
        return now - self._swept >= self._watched.sweep_interval

    def files(
        self, now: float, *, sweep: bool, busy: Iterable[FolderPath], watermark: int
    ) -> Iterator[list[File]]:
        """Yield the audio that was modified after the watermark.

        The source counts as listed only after the iterator is exhausted.

        :param now: current time in seconds since 1970.
        :param sweep: whether to list everything.
        :param busy: folders to list in any case.
        :param watermark: time in microseconds since 1970.
        :raises StorageError: if the store cannot be listed.
        :raises InvalidConnectionError: if the connection cannot be used.
        :raises WatchStopped: if the watch is stopped.
        """
        try:
            connection = self._connect(now)
            plan = plan_poll(
                self._template,
                connection.storage.folders,
                recent=datetime.fromtimestamp(now, UTC) - timedelta(seconds=self._watched.lookback),
                known=None if sweep else self._met,
                busy=busy,
            )
            left_out: Counter[str] = Counter()
            names = UnreadableNames(self._template.root)
            for batch in self._batches(connection.storage, ((),) if sweep else plan.folders, names):
                files, others = self._assignment.files(batch, watermark)
                left_out += others
                yield files
        except Exception:
            # Make the next try read the credentials again.
            self._connection = None
            raise
        if sweep:
            self._met, self._swept = plan.met, now
            self._tell_of_left_out(left_out)
            self._tell_of_unreadable(names)
        else:
            self._met |= plan.met

    def _connect(self, now: float) -> _Connection:
        if self._connection is None or now - self._connection.since > _CREDENTIAL_SECONDS:
            config = storage_config(self._watched.source_conn_id or None, self._template.root)
            self._connection = _Connection(ObjectStorage(config), now)
        return self._connection

    def _batches(
        self, storage: ObjectStorage, folders: Iterable[FolderPath], names: UnreadableNames
    ) -> Iterator[pa.RecordBatch]:
        for folder in folders:
            uri = join_uri(self._template.root, *folder) + "/" if folder else self._template.root
            for batch in read_ahead(storage.list(uri, chunk_size=_LIST_CHUNK, unreadable=names.add)):
                if self._stopped.is_set():
                    raise WatchStopped
                yield batch

    def _tell_of_left_out(self, left_out: Counter[str]) -> None:
        root, before = self._template.root, self._left_out
        self._left_out = left_out
        elsewhere, sidecars, unmatched = (left_out[kind] for kind in ("elsewhere", "sidecar", "unmatched"))
        if elsewhere and elsewhere != before["elsewhere"]:
            self._log.warning(
                "Left out %s objects under %s that are not in folders as in %s.",
                f"{elsewhere:,}",
                root,
                self._template.source,
            )
        if sidecars + unmatched and (sidecars, unmatched) != (before["sidecar"], before["unmatched"]):
            self._log.info(
                "Left out %s sidecar files under %s, and %s objects not matching %s.",
                f"{sidecars:,}",
                root,
                f"{unmatched:,}",
                self._watched.audio_filter,
            )

    def _tell_of_unreadable(self, names: UnreadableNames) -> None:
        if names.count and names.count != self._unreadable:
            self._log.warning("%s.", names)
        self._unreadable = names.count


@dataclass(frozen=True)
class Plan:
    """The folders that a poll must list."""

    folders: tuple[FolderPath, ...]
    """Folders below the root, to be listed recursively. The root itself is the empty path."""
    met: frozenset[FolderPath] = field(repr=False)
    """All folders whose names were seen while planning."""


def time_levels(template: PartitionTemplate) -> int:
    """Number of folder levels below the root that determine a partition's time; 0 if none does."""
    names_before: set[str] = set()
    depth = 0
    for i, level in enumerate(template.levels):
        new = {name.lower() for name in level.names} - names_before
        names_before |= new
        if new & TIME_NAMES:
            depth = i + 1
    return depth


def plan_poll(
    template: PartitionTemplate,
    folders: Callable[[str], Iterable[str]],
    *,
    recent: datetime,
    known: frozenset[FolderPath] | None,
    busy: Iterable[FolderPath] = (),
) -> Plan:
    """Return the folders in which something can have changed since the last full sweep.

    :param folders: function that returns the names of subfolders: :meth:`ObjectStorage.folders`.
    :param recent: partitions whose period ended before this time are skipped.
    :param known: folders seen before; others are listed regardless of their age. ``None``: all were seen.
    :param busy: folders that are listed in any case.
    """
    depth = time_levels(template)
    if depth == 0:
        return Plan(((),), frozenset())
    needed = {path[: i + 1] for path in busy for i in range(depth)}
    level: list[FolderPath] = [()]
    met: set[FolderPath] = set()
    for _ in range(depth):
        level = [
            path
            for above in level
            for path in _below(template, folders, above, met)
            if path in needed
            or (known is not None and path not in known)
            or _may_grow(template, path, recent)
        ]
    return Plan(tuple(level), frozenset(met))


def _below(
    template: PartitionTemplate,
    folders: Callable[[str], Iterable[str]],
    above: FolderPath,
    met: set[FolderPath],
) -> Iterator[FolderPath]:
    for name in folders(template.root + "".join(f"{folder}/" for folder in above)):
        path = (*above, name)
        if template.partition_of_folders(path) is not None:
            met.add(path)
            yield path


def _may_grow(template: PartitionTemplate, path: FolderPath, recent: datetime) -> bool:
    end = period_end(template.partition_of_folders(path) or {})
    return end is None or end > recent
