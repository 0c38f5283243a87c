"""Objects in S3, Google Cloud Storage, Azure and on local disks, read and written the same way.

URIs are raw, see :mod:`whisper_spark.storage.uris`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from whisper_spark.storage.backend import Backend, ObjectInfo
from whisper_spark.storage.bucket import MEMORY_SPOOL_BYTES, Bucket
from whisper_spark.storage.errors import (
    ObjectChanged,
    ObjectForbidden,
    ObjectNotFound,
    StorageError,
    translated,
)
from whisper_spark.storage.local_files import LocalFiles
from whisper_spark.storage.uris import folder_uri, join_uri, normalise_uri, split_uri

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "MEMORY_SPOOL_BYTES",
    "ObjectChanged",
    "ObjectForbidden",
    "ObjectInfo",
    "ObjectNotFound",
    "ObjectStorage",
    "StorageError",
    "folder_uri",
    "join_uri",
    "normalise_uri",
]

log = logging.getLogger(__name__)

LIST_CHUNK = 10_000
"""Objects in one listing batch."""


class ObjectStorage:
    """All objects that one set of credentials can reach.

    .. code-block:: python

        storage = ObjectStorage({"aws_endpoint": "http://127.0.0.1:8333", "aws_access_key_id": "...", ...})
        for batch in storage.list("s3://calls/raw/"):
            ...

    Safe to use from several threads. Not picklable: build it from its configuration where it is used. Every
    method raises ``ValueError`` for a URI that is not supported.

    :param config: configuration keys of ``obstore`` with their prefix (``aws_access_key_id``,
        ``aws_endpoint``, ``google_service_account_key``, ``azure_storage_account_name``, ...), and HTTP
        client options without one (``allow_http``, ``proxy_url``, ``root_certificate``, ...). Keys of
        other stores are ignored, so one mapping can serve several. ``None`` or empty: ambient
        credentials (environment, AWS profile if boto3 is installed, instance role, workload identity).
    """

    def __init__(self, config: Mapping[str, str] | None = None) -> None:
        self._config = dict(config or {})
        self._backends: dict[tuple[str, str], Backend] = {}

    @property
    def config(self) -> dict[str, str]:
        """What it was built from. Holds secrets."""
        return dict(self._config)

    def list(
        self,
        prefix_uri: str,
        *,
        chunk_size: int = LIST_CHUNK,
        unreadable: Callable[[str], None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """All objects below a folder, recursively, in no particular order.

        Columns: ``audio_uri`` string, ``audio_etag`` string, ``audio_bytes`` int64, ``last_modified``
        timestamp[us, UTC]. Folder markers (keys that end in a slash) are left out. A local folder that
        does not exist is empty, as it is in an object store.

        :param chunk_size: rows in a batch at most.
        :param unreadable: gets the URI of each object that is left out because its name cannot be addressed:
            it is not UTF-8 (local files), or has a ``.`` or ``..`` component (S3). The URI may hold anything,
            so show it with ``repr``. ``None``: the log says how many there were.
        :raises ObjectNotFound: when there is no such bucket.
        :raises StorageError: also, in Google Cloud Storage and Azure, when a name has an empty, ``.`` or
            ``..`` component or a control character.
        """
        names = UnreadableNames(prefix_uri)
        schema = _listing_schema()
        rows: list[ObjectInfo] = []
        for info in self._infos(prefix_uri, chunk_size, unreadable or names.add):
            rows.append(info)
            if len(rows) >= chunk_size:
                yield _listing_batch(rows, schema)
                rows = []
        if rows:
            yield _listing_batch(rows, schema)
        if names.count:
            log.warning("%s", names)

    def any_under(self, prefix_uri: str) -> bool:
        """Whether there is at least one object below a folder. Asks for one page of the listing.

        :raises ObjectNotFound: when there is no such bucket.
        """
        return next(self._infos(prefix_uri, 1, lambda _: None), None) is not None

    def _infos(
        self, prefix_uri: str, chunk_size: int, unreadable: Callable[[str], None]
    ) -> Iterator[ObjectInfo]:
        uri = _with_slash(prefix_uri)
        with translated(uri):
            backend, prefix = self._find(uri)
            yield from backend.objects(prefix, chunk_size, unreadable)

    def folders(self, prefix_uri: str) -> Sequence[str]:
        """Names of the folders that lie directly in a folder; none in one that does not exist.

        One request for each thousand of them.

        :raises ObjectNotFound: when there is no such bucket. :raises ObjectForbidden:
        """
        uri = _with_slash(prefix_uri)
        with translated(uri):
            backend, prefix = self._find(uri)
            return backend.folders(prefix)

    def info(self, uri: str) -> ObjectInfo:
        """Size, etag and time of one object.

        :raises ObjectNotFound: :raises ObjectForbidden: :raises StorageError:
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.info(key)

    def exists(self, uri: str) -> bool:
        """Whether there is such an object (a folder is none)."""
        try:
            self.info(uri)
        except ObjectNotFound:
            return False
        return True

    def read_bytes(self, uri: str) -> bytes:
        """The whole object. For small ones; :meth:`open` is for audio."""
        with self.open(uri) as file:
            return file.read()

    def open(self, uri: str, *, etag: str | None = None) -> BinaryIO:
        """The object as a seekable file, from one consistent read of one version.

        :param etag: as listed; another one raises :class:`ObjectChanged`.
        :return: a spooled temporary file at position 0: in memory up to 32 MiB, then on disk. For local
            files the file itself.
        :raises ObjectChanged: :raises ObjectNotFound: :raises ObjectForbidden:
        :raises StorageError: also when the transfer ended early.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.open(key, etag)

    def open_ranges(self, uri: str) -> BinaryIO:
        """The object as a seekable file that fetches only what is read: for Parquet.

        Each read is a request of its own, and the object may be replaced between two of them: only for
        objects that are never overwritten. :meth:`open` is for audio.

        :raises ObjectNotFound: :raises ObjectForbidden:
        :raises StorageError: also from reading.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.open_ranges(key)

    def download(self, uri: str, path: Path, *, etag: str | None = None) -> None:
        """Copies an object into a local file, which appears complete or not at all.

        :param etag: as listed; another one raises :class:`ObjectChanged`.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            backend.download(key, path, etag)

    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Writes a small object, which appears complete or not at all.

        :param if_absent: leave an object that is there already alone. Of several writers one wins.
        :return: whether it was written; ``False`` only with ``if_absent``.
        """
        return self._write(uri, data, if_absent)

    def upload(self, path: Path, uri: str, *, if_absent: bool = False) -> bool:
        """Copies a local file into an object, which appears complete or not at all.

        :param if_absent: leave an object that is there already alone. Of several writers one wins, up to
            64 MiB; larger files go in parts, where the last one to finish wins.
        :return: whether it was written; ``False`` only with ``if_absent``.
        """
        return self._write(uri, path, if_absent)

    def _write(self, uri: str, data: bytes | Path, if_absent: bool) -> bool:
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.write(key, data, if_absent)

    def delete(self, uris: Iterable[str]) -> None:
        """Deletes objects; those that are not there are none of its business."""
        keys: dict[str, Any] = {}
        for uri in map(normalise_uri, uris):
            keys.setdefault("/".join(uri.split("/", 3)[:3]) + "/", []).append(uri)
        for root, group in keys.items():
            with translated(group[0]):
                backend, _ = self._find(root)
                backend.delete(uri[len(root) :] for uri in group)

    def _find(self, uri: str) -> tuple[Backend, str]:
        """The backend of a normalised URI, and the key in it."""
        scheme, name, key = split_uri(uri)
        # Two threads may build the same backend at once; the loser is garbage, which costs nothing.
        if (scheme, name) not in self._backends:
            self._backends[scheme, name] = (
                LocalFiles() if scheme == "file" else Bucket(scheme, name, self._config)
            )
        return self._backends[scheme, name], key


def _with_slash(uri: str) -> str:
    # Not folder_uri: names that a store listed are listed again as they are.
    normal = normalise_uri(uri)
    return normal if normal.endswith("/") else normal + "/"


class UnreadableNames:
    """How many objects below a folder have names that cannot be addressed, with one of them as an example.

    Its string form is a sentence for people.

    :param where: URI of the folder.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._example = ""
        self.count = 0

    def add(self, uri: str) -> None:
        """Counts one object."""
        self.count += 1
        self._example = self._example or uri

    def __str__(self) -> str:
        return (
            f"{self.count:,} objects under {self._where} have names that cannot be read, for example "
            f"{self._example!r}: they are left out. Rename them"
        )


def _listing_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("audio_uri", pa.string()),
            ("audio_etag", pa.string()),
            ("audio_bytes", pa.int64()),
            ("last_modified", pa.timestamp("us", tz="UTC")),
        ]
    )


def _listing_batch(rows: Iterable[ObjectInfo], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns = zip(*((r.uri, r.etag, r.size, r.last_modified) for r in rows), strict=True)
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
