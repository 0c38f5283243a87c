"""What a watch remembers beyond its process: small enough for Airflow's database, however many files there
were.

The memory is the time up to which everything has been reported, and, for later files, ``{uri: etag}``. Where
that is long it goes into an object in staging, and the database holds its URI.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_spark.storage.objects import StorageError, join_uri

if TYPE_CHECKING:
    from airflow_whisper.watch.pending import Arrivals
    from airflow_whisper.watch.watcher import Log, WatchedSource
    from whisper_spark.storage.objects import ObjectStorage

INLINE_BYTES = 48 * 1024
"""Longest memory kept in the database: Airflow warns from 64 KiB on (``max_value_storage_bytes``)."""

_LONG_SECONDS = 60
# A long memory is written at most this often. What is not in it is reported again after a restart.
_FLOOR_STEP = 600 * 1_000_000
# The floor alone is worth writing when it rose by ten minutes: an old one only costs comparisons.


class MemoryStore:
    """Turns the state of :class:`Arrivals` into JSON and back.

    :param staging: gives the storage of ``watched.staging``.
    """

    def __init__(
        self, watched: WatchedSource, arrivals: Arrivals, staging: Callable[[], ObjectStorage], log: Log
    ) -> None:
        self._watched = watched
        self._arrivals = arrivals
        self._staging = staging
        self._log = log
        self._root = watched.partitioning.template.root
        self._written: tuple[int, int] | None = None
        self._written_long: float | None = None
        self._object: str | None = None
        self._obsolete: str | None = None
        self._warned = False

    # --- writing -----------------------------------------------------------------------------------------

    def to_write(self) -> dict[str, Any] | None:
        """The memory as JSON, or ``None`` when the one that was written last will do.

        :raises StorageError: when a long memory cannot be written.
        """
        reported, floor = self._arrivals.reports, self._arrivals.floor
        if self._written is not None:
            written_reported, written_floor = self._written
            if reported == written_reported and floor - written_floor < _FLOOR_STEP:
                return None
        state: dict[str, Any] = {"version": 1, "floor": floor, "saved": time.time_ns() // 1000}
        files, complete = self._short()
        if complete or self._watched.staging is None:
            if not complete:
                self._warn_of_forgetting(len(files))
            self._replace_object(None)
            state["files"] = files
        else:
            now = time.monotonic()
            if self._written_long is not None and now - self._written_long < _LONG_SECONDS:
                return None
            self._replace_object(self._write_object())
            self._written_long = now
            state["files_uri"] = self._object
        self._written = (reported, floor)
        return state

    def was_stored(self) -> None:
        """Call it when what :meth:`to_write` gave is stored: what that replaced is removed."""
        obsolete, self._obsolete = self._obsolete, None
        if obsolete is not None:
            try:
                self._staging().delete([obsolete])
            except StorageError as error:
                self._log.info("%s is no longer needed, but could not be deleted: %s", obsolete, error)

    def was_not_stored(self) -> None:
        """Call it when storing failed, so that the next :meth:`to_write` gives it again."""
        self._written = None

    def _replace_object(self, uri: str | None) -> None:
        if self._object is not None:
            self._obsolete = self._object
        self._object = uri

    def _short(self) -> tuple[dict[str, str | None], bool]:
        """The newest files that fit into the database, and whether these are all."""
        files: dict[str, str | None] = {}
        room = INLINE_BYTES
        for uri, etag, _ in self._arrivals.reported():
            key = uri.removeprefix(self._root)
            room -= len(json.dumps(key)) + len(etag or "null") + 6
            if room < 0:
                return files, False
            files[key] = etag
        return files, True

    def _warn_of_forgetting(self, kept: int) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning(
                "Too many files came lately to remember them all in Airflow's database. The newest %s are; "
                "the "
                "others would be reported once more after a restart of the triggerer. To remember all of "
                "them "
                "give the trigger a `staging` folder, or a shorter `overlap` and `sweep_interval`.",
                kept,
            )

    def _write_object(self) -> str:
        name = f"memory-{uuid.uuid4().hex}.json.gz"
        uri = join_uri(self._watched.staging or "", "arrivals", self._watched.watch_id, name)
        with tempfile.TemporaryDirectory(prefix="whisper-memory-") as folder:
            path = Path(folder, name)
            with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
                for reported_uri, etag, _ in self._arrivals.reported():
                    file.write(json.dumps([reported_uri.removeprefix(self._root), etag]) + "\n")
            self._staging().upload(path, uri)
        return uri

    # --- reading -----------------------------------------------------------------------------------------

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`to_write` gave.

        :raises StorageError: when a long memory cannot be reached; one that is gone counts as empty.
        """
        if state.get("version") != 1:
            self._log.warning("The memory of this watch has an unknown format: everything counts as new.")
            return
        self._arrivals.floor = max(self._arrivals.floor, int(state["floor"]))
        self._object = state.get("files_uri")
        files = self._long(self._object) if self._object else state.get("files", {}).items()
        # When each was modified is not in the memory; not after it was written, at any rate.
        self._arrivals.add_reported((self._root + key, etag, int(state["saved"])) for key, etag in files)

    def _long(self, uri: str) -> Iterator[tuple[str, str | None]]:
        from whisper_spark.storage.objects import ObjectNotFound

        try:
            file = self._staging().open(uri)
        except ObjectNotFound:
            self._log.warning(
                "%s is gone: files of the last hours are reported again. Keep objects in staging for some "
                "days.",
                uri,
            )
            return
        with file, gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                key, etag = json.loads(line)
                yield key, etag
