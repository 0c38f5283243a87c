"""Access to objects in S3, Google Cloud Storage and Azure and on local disks with one class.

URIs are not percent-encoded, see :mod:`whisper_spark.storage.uris`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from whisper_spark.storage.backend import Backend, ObjectInfo, Version
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
    "Version",
    "folder_uri",
    "join_uri",
    "normalise_uri",
]

log = logging.getLogger(__name__)

LIST_CHUNK = 10_000
"""Default number of objects in one batch of a listing."""


class ObjectStorage:
    """Access to all objects that one set of credentials permits.

    .. code-block:: python

        storage = ObjectStorage({"aws_endpoint": "http://127.0.0.1:8333", "aws_access_key_id": "...", ...})
        for batch in storage.list("s3://calls/raw/"):
            ...

    Thread-safe. Not picklable: create it from its configuration where it is used. Every method raises
    ``ValueError`` for a URI that is not supported.

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
        """The configuration, which may contain secrets."""
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
        does not exist is empty, as in an object store.

        :param chunk_size: maximum number of rows in a batch.
        :param unreadable: called with the URI of each object that is left out because it cannot be addressed:
            its name is not UTF-8 (local files), has a ``.`` or ``..`` component (object stores), has an empty
            component or a control character (Google Cloud Storage and Azure), or ends with a slash and an
            object of the same name without the slash exists. Such a URI may contain any character, so display
            its ``repr``. ``None``: the number of such objects is logged.
        :raises ObjectNotFound: when the bucket does not exist.
        :raises StorageError: when the store refuses the request or does not answer.
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
        """Whether there is at least one object below a folder. Requests one page of the listing.

        :raises ObjectNotFound: when the bucket does not exist.
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
        """Names of the direct subfolders of a folder; empty when the folder does not exist.

        Sends one request per thousand subfolders.

        :raises ObjectNotFound: when the bucket does not exist.
        :raises ObjectForbidden: when the store refuses access.
        """
        uri = _with_slash(prefix_uri)
        with translated(uri):
            backend, prefix = self._find(uri)
            return backend.folders(prefix)

    def info(self, uri: str) -> ObjectInfo:
        """The metadata of one object.

        :raises ObjectNotFound: when the object does not exist.
        :raises ObjectForbidden: when the store refuses access.
        :raises StorageError: for any other failure.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.info(key)

    def exists(self, uri: str) -> bool:
        """Whether an object exists. Folders are not objects."""
        try:
            self.info(uri)
        except ObjectNotFound:
            return False
        return True

    def read_bytes(self, uri: str) -> bytes:
        """The content of a small object. Use :meth:`open` for audio."""
        with self.open(uri) as file:
            return file.read()

    def open(self, uri: str, *, etag: str | None = None) -> BinaryIO:
        """The object as a seekable file, from one consistent read of one version.

        :param etag: expected etag, from a listing.
        :return: a spooled temporary file at position 0, which is in memory up to 32 MiB and on disk beyond.
            For a local file, the file itself.
        :raises ObjectChanged: when the object has another etag.
        :raises ObjectNotFound: when the object does not exist.
        :raises ObjectForbidden: when the store refuses access.
        :raises StorageError: for any other failure, for example when the transfer ended early.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.open(key, etag)

    def open_ranges(self, uri: str) -> BinaryIO:
        """The object as a seekable file that fetches only the ranges that are read, for Parquet.

        Each read is a separate request, and the object may be replaced between two of them. Use this only for
        objects that are never overwritten, and :meth:`open` for audio.

        :raises ObjectNotFound: when the object does not exist.
        :raises ObjectForbidden: when the store refuses access.
        :raises StorageError: for any other failure; reading from the file raises it as well.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.open_ranges(key)

    def download(self, uri: str, path: Path, *, etag: str | None = None) -> None:
        """Copy an object to a local file, atomically.

        :param etag: expected etag, from a listing.
        :raises ObjectChanged: when the object has another etag.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            backend.download(key, path, etag)

    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Write a small object, atomically.

        :param if_absent: do not replace an existing object. Of several concurrent writers exactly one
            succeeds.
        :return: whether it was written; ``False`` only with ``if_absent``.
        """
        return self._write(uri, data, if_absent)

    def upload(self, path: Path, uri: str, *, if_absent: bool = False) -> bool:
        """Copy a local file to an object, atomically.

        :param if_absent: do not replace an existing object. Of several concurrent writers exactly one
            succeeds for files up to 64 MiB; larger files are uploaded in parts, and the last writer wins.
        :return: whether it was written; ``False`` only with ``if_absent``.
        """
        return self._write(uri, path, if_absent)

    def _write(self, uri: str, data: bytes | Path, if_absent: bool) -> bool:
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.write(key, data, if_absent)

    def open_version(self, uri: str) -> tuple[BinaryIO, Version]:
        """The object as :meth:`open` returns it, and its version for :meth:`replace`.

        :raises ObjectNotFound: when the object does not exist.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.open_version(key)

    def replace(self, path: Path, uri: str, version: Version | None) -> Version | None:
        """Copy a local file to an object, atomically, and only if nobody else has changed the object.

        Of several concurrent writers exactly one succeeds. In stores without conditional writes, and on file
        systems without locks, the version is compared just before the write, and of two writers in the same
        instant the last one wins.

        :param path: a file that fits into memory and differs from all earlier versions of the object.
        :param version: from :meth:`open_version` or an earlier call; ``None``: there is no such object.
        :return: the new version; ``None`` if nothing was written, because the object has another version.
        """
        uri = normalise_uri(uri)
        with translated(uri):
            backend, key = self._find(uri)
            return backend.replace(key, path, version)

    def delete(self, uris: Iterable[str]) -> None:
        """Delete objects. Those that do not exist are ignored."""
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
        # No lock: two threads may create the same backend at once, and one of the two is garbage-collected.
        if (scheme, name) not in self._backends:
            self._backends[scheme, name] = (
                LocalFiles() if scheme == "file" else Bucket(scheme, name, self._config)
            )
        return self._backends[scheme, name], key


def _with_slash(uri: str) -> str:
    # Not folder_uri, which refuses unusual folder names: those that a store lists must be accepted here.
    normal = normalise_uri(uri)
    return normal if normal.endswith("/") else normal + "/"


class UnreadableNames:
    """Counts the objects below a folder whose names cannot be addressed, and keeps one as an example.

    ``str()`` returns a message about them.

    :param where: URI of the folder.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._example = ""
        self.count = 0

    def add(self, uri: str) -> None:
        """Count one object."""
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
