"""The cursor of a watch: the state from which a restarted trigger continues.

It fits into Airflow's database, however many files there are. It holds the watermark, up to which everything
has been reported, and ``{uri: etag}`` of the later files that were reported. If these are too many, most of
them are in an object in staging, and the database holds this object's URI and the files reported since.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_spark.storage.objects import ObjectNotFound, StorageError, join_uri

if TYPE_CHECKING:
    from airflow_whisper.watch.pending import PendingFiles
    from airflow_whisper.watch.source import Log, WatchedSource

# Largest size of the files in the database: Airflow warns above 64 KiB (`max_value_storage_bytes`).
INLINE_BYTES = 48 * 1024

# Microseconds by which the watermark must rise before it is written without new files: ten minutes. An older
# watermark only costs additional comparisons.
_WATERMARK_STEP = 600 * 1_000_000

_VERSION = 2


@dataclass(frozen=True)
class CursorState:
    """A snapshot of a cursor.

    :param values: the cursor as a JSON object, to be stored.
    :param obsolete: objects in staging that are no longer needed once ``values`` is stored.
    """

    values: dict[str, Any]
    obsolete: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Object:
    """An object in staging with all reported files up to one generation of :class:`PendingFiles`."""

    uri: str
    generation: int


class Cursor:
    """Converts the reported files of a :class:`PendingFiles` to JSON and back."""

    def __init__(self, watched: WatchedSource, pending: PendingFiles, log: Log) -> None:
        self._watched = watched
        self._pending = pending
        self._log = log
        self._root = watched.partitioning.template.root
        self._written: tuple[int, int] | None = None
        self._object: _Object | None = None
        self._obsolete: list[str] = []
        self._warned = False

    # --- writing -----------------------------------------------------------------------------------------

    def to_write(self) -> CursorState | None:
        """Return the current cursor; ``None`` if the one returned last is still good enough.

        :raises StorageError: if an object must be written to staging and this fails.
        """
        generation, watermark = self._pending.generation, self._pending.watermark
        if self._written is not None:
            written_generation, written_watermark = self._written
            if generation == written_generation and watermark - written_watermark < _WATERMARK_STEP:
                return None
        saved = time.time_ns() // 1000
        files = self._files()
        values = {"version": _VERSION, "watermark": watermark, "saved": saved, "files": files}
        if self._object is not None:
            values["files_uri"] = self._object.uri
        self._written = (generation, watermark)
        obsolete, self._obsolete = tuple(self._obsolete), []
        return CursorState(values, obsolete)

    def was_stored(self, state: CursorState) -> None:
        """Delete the objects that a state has made obsolete. Call it after the state is stored."""
        if state.obsolete:
            try:
                self._watched.staging_storage().delete(state.obsolete)
            except StorageError as error:
                uris = ", ".join(state.obsolete)
                self._log.info("%s: no longer needed, but could not be deleted: %s", uris, error)

    def was_not_stored(self, state: CursorState) -> None:
        """Make the next :meth:`to_write` return a state again. Call it after storing a state failed."""
        self._written = None
        self._obsolete += state.obsolete

    def _files(self) -> dict[str, str | None]:
        """The files for the database. Writes :attr:`_object` for the others, or drops it if not needed."""
        files, complete = self._newest(since=None)
        if complete or self._watched.staging is None:
            if not complete:
                self._warn_of_forgetting(len(files))
            self._replace_object(None)
            return files
        if self._object is not None:
            files, complete = self._newest(since=self._object.generation)
            if complete:
                return files
        self._replace_object(_Object(self._write_object(), self._pending.generation))
        return {}

    def _newest(self, *, since: int | None) -> tuple[dict[str, str | None], bool]:
        """The newest files of later generations that fit into the database, and whether all of them fit."""
        files: dict[str, str | None] = {}
        room = INLINE_BYTES
        for uri, etag, _ in self._pending.reported(since=since):
            key = uri.removeprefix(self._root)
            room -= len(json.dumps(key)) + len(etag or "null") + 6
            if room < 0:
                return files, False
            files[key] = etag
        return files, True

    def _replace_object(self, new: _Object | None) -> None:
        if self._object is not None:
            self._obsolete.append(self._object.uri)
        self._object = new

    def _warn_of_forgetting(self, kept: int) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning(
                "Too many files came lately to keep them all in Airflow's database. It has the newest %s; "
                "the others would be reported once more after a restart of the triggerer. To keep all of "
                "them, give the trigger a `staging` folder, or a shorter `overlap` and `sweep_interval`.",
                kept,
            )

    def _write_object(self) -> str:
        name = f"cursor-{uuid.uuid4().hex}.json.gz"
        uri = join_uri(self._watched.staging or "", "arrivals", self._watched.watch_id, name)
        with tempfile.TemporaryDirectory(prefix="whisper-cursor-") as folder:
            path = Path(folder, name)
            with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
                for reported_uri, etag, _ in self._pending.reported():
                    file.write(json.dumps([reported_uri.removeprefix(self._root), etag]) + "\n")
            self._watched.staging_storage().upload(path, uri)
        return uri

    # --- reading -----------------------------------------------------------------------------------------

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continue from :attr:`CursorState.values`.

        :raises StorageError: if staging cannot be reached. An object that no longer exists counts as empty.
        """
        try:
            watermark, saved, uri, files = _parsed(values)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            self._log.warning("The cursor of this watch has an unknown format: everything counts as new.")
            return
        self._pending.watermark = max(self._pending.watermark, watermark)
        # The cursor does not contain modification times. The time at which it was saved is an upper bound.
        if uri:
            self._pending.add_reported((self._root + key, etag, saved) for key, etag in self._read(uri))
            self._object = _Object(uri, self._pending.generation)
        self._pending.start_generation()
        self._pending.add_reported((self._root + key, etag, saved) for key, etag in files.items())

    def _read(self, uri: str) -> Iterator[tuple[str, str | None]]:
        again = "files of the last hours are reported again"
        try:
            file = self._watched.staging_storage().open(uri)
        except ObjectNotFound:
            self._log.warning("%s is gone: %s. Keep objects in staging for some days.", uri, again)
            return
        try:
            with file, gzip.open(file, "rt", encoding="utf-8") as lines:
                for line in lines:
                    key, etag = json.loads(line)
                    yield key, etag
        except (EOFError, OSError, TypeError, ValueError, zlib.error) as error:
            self._log.warning("%s is damaged: %s (%s).", uri, again, error)


def _parsed(values: Mapping[str, Any]) -> tuple[int, int, str, dict[str, str | None]]:
    """Watermark, time of saving, URI of the object in staging if there is one, and files.

    :raises Exception: several kinds, if the values are no cursor.
    """
    # Version 1 called the watermark "floor", and had either `files` or `files_uri`.
    if values.get("version") not in (1, _VERSION):
        raise ValueError("unknown version")
    watermark = values["watermark"] if "watermark" in values else values["floor"]
    files = dict(values.get("files") or {})
    return int(watermark), int(values["saved"]), str(values.get("files_uri") or ""), files
