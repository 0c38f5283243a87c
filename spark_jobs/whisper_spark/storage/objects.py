"""Objects in S3, Google Cloud Storage, Azure and on local disks, read and written the same way.

URIs are raw: ``s3://bucket/`` plus the key exactly as the store has it, ``file://`` plus the absolute
path. Nothing in them is percent-encoded, so ``a%20b.wav`` and ``a b.wav`` are two different files.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from whisper_spark.storage import local_files
from whisper_spark.storage.clients import object_store
from whisper_spark.storage.errors import (
    ObjectChanged,
    ObjectForbidden,
    ObjectNotFound,
    StorageError,
    translated,
)
from whisper_spark.storage.range_file import RangeFile

if TYPE_CHECKING:
    import pyarrow as pa
    from obstore.store import ObjectStore

__all__ = [
    "ObjectChanged",
    "ObjectForbidden",
    "ObjectInfo",
    "ObjectNotFound",
    "ObjectStorage",
    "StorageError",
    "join_uri",
    "normalise_uri",
]

MEMORY_SPOOL_BYTES = 32 * 1024 * 1024
"""An open object is kept in memory up to this many bytes, and on disk beyond."""

LIST_CHUNK = 10_000
"""Objects in one listing batch."""

_STREAM_CHUNK = 1024 * 1024
_DELETE_CHUNK = 1000
# More than this is uploaded in parts, because a single PUT holds the whole file in memory.
_SINGLE_PUT_BYTES = 64 * 1024 * 1024

_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfss", "abfss": "abfss"}
_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/?(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says about an object.

    ``size`` is in bytes and ``last_modified`` in UTC. ``etag`` is without the quotes that some stores
    put around it and others do not; ``None`` where the store has none.
    """

    uri: str
    size: int
    etag: str | None
    last_modified: datetime


def join_uri(base: str, *parts: str) -> str:
    """``base`` and ``parts`` joined by exactly one slash each."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def normalise_uri(uri: str) -> str:
    """One spelling for each place: paths become ``file://``, ``s3a://`` becomes ``s3://``, ``gcs://`` ``gs://``.

    ``abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY`` becomes ``abfss://`` and keeps its account;
    ``abfs://CONTAINER/KEY`` becomes ``az://CONTAINER/KEY``, whose account comes from the configuration.
    A slash at the end is kept.

    :raises ValueError: for a scheme that is not supported, or a URI without a bucket.
    """
    if "://" not in uri or uri.startswith(("/", "./", "../", "~")):
        scheme, colon, path = uri.partition(":/")
        if not colon or "/" in scheme:
            return _local_uri(uri)
        if scheme == "file":
            return _local_uri("/" + path)
        raise ValueError(f"{uri!r} lacks a slash: write {scheme}://{path}")
    scheme, bucket, key = _split(uri)
    if scheme == "file":
        if bucket not in ("", "localhost"):
            raise ValueError(
                f"{uri!r} names the host {bucket!r}: a local path is written file:///{bucket}/{key}"
            )
        return _local_uri(f"/{key}")
    if scheme == "abfss" and "@" not in bucket:
        scheme = "az"
    return f"{scheme}://{bucket}/{key}"


def _local_uri(path: str) -> str:
    absolute = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - Path has no abspath
    return "file://" + absolute + ("/" if path.endswith("/") and absolute != "/" else "")


def _split(uri: str) -> tuple[str, str, str]:
    """Scheme, bucket and key."""
    match = _URI.match(uri)
    scheme = match.group(1).lower() if match else ""
    if match is None or (scheme != "file" and scheme not in _SCHEMES):
        known = "s3://, gs://, az://, abfss:// or file://"
        raise ValueError(f"{uri!r} is not supported: write a local path, or a URI that starts with {known}")
    if scheme == "file":
        return "file", match.group(2), match.group(3)
    if not match.group(2):
        raise ValueError(f"{uri!r} names no bucket: write {scheme}://BUCKET/PATH")
    return _SCHEMES[scheme], match.group(2), match.group(3)


class ObjectStorage:
    """All objects that one set of credentials can reach.

    .. code-block:: python

        storage = ObjectStorage({"aws_endpoint": "http://127.0.0.1:8333", "aws_access_key_id": "...", ...})
        for batch in storage.list("s3://calls/raw/"):
            ...

    Safe to use from several threads. Not picklable: build it from its configuration where it is used.

    :param config: configuration keys of ``obstore`` with their prefix (``aws_access_key_id``,
        ``aws_endpoint``, ``google_service_account_key``, ``azure_storage_account_name``, ...), and HTTP
        client options without one (``allow_http``, ``proxy_url``, ``root_certificate``, ...). Keys of
        other stores are ignored, so one mapping can serve several. ``None`` or empty: ambient
        credentials (environment, AWS profile if boto3 is installed, instance role, workload identity).
    """

    def __init__(self, config: Mapping[str, str] | None = None) -> None:
        self._config = dict(config or {})
        self._stores: dict[tuple[str, str], ObjectStore] = {}

    @property
    def config(self) -> dict[str, str]:
        """What it was built from. Holds secrets."""
        return dict(self._config)

    def list(self, prefix_uri: str, *, chunk_size: int = LIST_CHUNK) -> Iterator[pa.RecordBatch]:
        """All objects below a folder, recursively, in no particular order.

        Columns: ``audio_uri`` string, ``audio_etag`` string, ``audio_bytes`` int64, ``last_modified``
        timestamp[us, UTC]. Folder markers (keys that end in a slash) are left out. A local folder that
        does not exist is empty, as it is in an object store.

        :raises ObjectNotFound: when there is no such bucket.
        :raises StorageError: also when a key cannot be addressed: it has an empty, ``.`` or ``..``
            component or a control character (object stores), or is not UTF-8 (local files).
        """
        schema = _listing_schema()
        rows: list[ObjectInfo] = []
        for info in self._infos(prefix_uri, chunk_size):
            rows.append(info)
            if len(rows) >= chunk_size:
                yield _listing_batch(rows, schema)
                rows = []
        if rows:
            yield _listing_batch(rows, schema)

    def any_under(self, prefix_uri: str) -> bool:
        """Whether there is at least one object below a folder. Asks for one page of the listing.

        :raises ObjectNotFound: when there is no such bucket.
        """
        return next(self._infos(prefix_uri, 1), None) is not None

    def _infos(self, prefix_uri: str, chunk_size: int) -> Iterator[ObjectInfo]:
        uri = normalise_uri(prefix_uri)
        scheme, bucket, prefix = _split(uri)
        if scheme == "file":
            with translated(uri):
                for path, stat in local_files.walk("/" + prefix):
                    yield _local_info(path, stat)
            return
        import obstore

        root = f"{scheme}://{bucket}/"
        with translated(uri):
            for chunk in obstore.list(
                self._store(scheme, bucket), prefix.rstrip("/") or None, chunk_size=chunk_size
            ):
                for meta in chunk:
                    if meta["size"] or not self._is_folder_marker(root + meta["path"]):
                        yield _info(root + meta["path"], meta)

    def _is_folder_marker(self, uri: str) -> bool:
        # The client drops the slash at the end of a key: "folder/" arrives as an empty "folder", which
        # is not there when asked for.
        try:
            return not self.exists(uri)
        except ObjectForbidden:
            return False

    def info(self, uri: str) -> ObjectInfo:
        """Size, etag and time of one object.

        :raises ObjectNotFound: :raises ObjectForbidden: :raises StorageError:
        """
        uri = normalise_uri(uri)
        scheme, bucket, key = _split(uri)
        with translated(uri):
            if scheme == "file":
                return _local_info("/" + key, local_files.stat_file("/" + key))
            import obstore

            return _info(uri, obstore.head(self._store(scheme, bucket), key))

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
        scheme, _, key = _split(uri)
        with translated(uri):
            if scheme == "file":
                file = local_files.open_file("/" + key)
                try:
                    _check_etag(_local_info("/" + key, os.fstat(file.fileno())), etag)
                except BaseException:
                    file.close()
                    raise
                return file
            spool = tempfile.SpooledTemporaryFile(MEMORY_SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
            try:
                self._fetch(uri, spool, etag)
            except BaseException:
                spool.close()
                raise
            spool.seek(0)
            return cast("BinaryIO", spool)

    def open_ranges(self, uri: str) -> BinaryIO:
        """The object as a seekable file that fetches only what is read: for Parquet.

        Each read is a request of its own, and the object may be replaced between two of them: only for
        objects that are never overwritten. :meth:`open` is for audio.

        :raises ObjectNotFound: :raises ObjectForbidden:
        :raises StorageError: also from reading.
        """
        uri = normalise_uri(uri)
        if uri.startswith("file://"):
            return self.open(uri)
        scheme, bucket, key = _split(uri)
        return cast("BinaryIO", RangeFile(self._store(scheme, bucket), key, self.info(uri)))

    def _fetch(self, uri: str, file: Any, etag: str | None = None) -> None:
        import obstore

        scheme, bucket, key = _split(uri)
        # No If-Match: some S3 implementations answer it with 501. The etag comes with the same response
        # as the bytes, so comparing it here is as good.
        result = obstore.get(self._store(scheme, bucket), key)
        info = _info(uri, result.meta)
        _check_etag(info, etag)
        received = 0
        for chunk in result.stream(_STREAM_CHUNK):
            file.write(chunk)
            received += len(chunk)
        if received != info.size:
            raise StorageError(f"reading {uri} ended after {received} of {info.size} bytes; try again")

    def download(self, uri: str, path: Path) -> None:
        """Copies an object into a local file, which appears complete or not at all."""
        uri = normalise_uri(uri)
        with translated(uri), local_files.replacing(path) as file:
            if uri.startswith("file://"):
                with self.open(uri) as source:
                    shutil.copyfileobj(source, file, _STREAM_CHUNK)
            else:
                self._fetch(uri, file)

    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool = False) -> bool:
        """Writes a small object, which appears complete or not at all.

        :param if_absent: leave an object that is there already alone. Of several writers one wins.
        :return: whether it was written; ``False`` only with ``if_absent``.
        """
        uri = normalise_uri(uri)
        scheme, bucket, key = _split(uri)
        with translated(uri):
            if scheme == "file":
                with local_files.publishing(Path("/" + key), if_absent) as (file, outcome):
                    file.write(data)
                return outcome.written
            return self._put(scheme, bucket, key, data, if_absent)

    def upload(self, path: Path, uri: str, *, if_absent: bool = False) -> bool:
        """Copies a local file into an object, which appears complete or not at all.

        :param if_absent: leave an object that is there already alone. Of several writers one wins, up to
            64 MiB; larger files go in parts, where the last one to finish wins.
        :return: whether it was written; ``False`` only with ``if_absent``.
        """
        uri = normalise_uri(uri)
        scheme, bucket, key = _split(uri)
        with translated(uri):
            if scheme == "file":
                with (
                    local_files.publishing(Path("/" + key), if_absent) as (file, outcome),
                    path.open("rb") as source,
                ):
                    shutil.copyfileobj(source, file, _STREAM_CHUNK)
                return outcome.written
            if path.stat().st_size <= _SINGLE_PUT_BYTES:
                return self._put(scheme, bucket, key, path.read_bytes(), if_absent)
            if if_absent and self.exists(uri):
                return False
            return self._put(scheme, bucket, key, path, if_absent=False)

    def _put(self, scheme: str, bucket: str, key: str, data: bytes | Path, if_absent: bool) -> bool:
        import obstore

        try:
            obstore.put(self._store(scheme, bucket), key, data, mode="create" if if_absent else "overwrite")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    def delete(self, uris: Iterable[str]) -> None:
        """Deletes objects; those that are not there are none of its business."""
        groups: dict[tuple[str, str], list[str]] = {}
        for uri in uris:
            scheme, bucket, key = _split(normalise_uri(uri))
            keys = groups.setdefault((scheme, bucket), [])
            keys.append(key)
            if len(keys) >= _DELETE_CHUNK:
                self._delete(scheme, bucket, keys)
                keys.clear()
        for (scheme, bucket), keys in groups.items():
            self._delete(scheme, bucket, keys)

    def _delete(self, scheme: str, bucket: str, keys: Iterable[str]) -> None:
        keys = [*keys]
        with translated(f"{scheme}://{bucket}/{keys[0] if keys else ''}"):
            if scheme == "file":
                for key in keys:
                    Path("/" + key).unlink(missing_ok=True)
            elif keys:
                import obstore

                try:
                    obstore.delete(self._store(scheme, bucket), keys)
                except FileNotFoundError:
                    # Some stores stop at the first missing key: go on with the others one by one.
                    if len(keys) > 1:
                        for key in keys:
                            self._delete(scheme, bucket, [key])

    def _store(self, scheme: str, bucket: str) -> ObjectStore:
        # Two threads may build the same store at once; the loser is garbage, which costs nothing.
        if (scheme, bucket) not in self._stores:
            self._stores[scheme, bucket] = object_store(scheme, bucket, self._config)
        return self._stores[scheme, bucket]


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


def _info(uri: str, meta: Any) -> ObjectInfo:
    etag = meta["e_tag"]
    if etag is not None:
        # Azure quotes etags in headers and not in listings.
        etag = etag.removeprefix("W/").strip('"')
    return ObjectInfo(uri, meta["size"], etag, meta["last_modified"])


def _local_info(path: str, stat: os.stat_result) -> ObjectInfo:
    # Time and size, but not the inode: a network mount may number it differently on each host.
    etag = f"{stat.st_mtime_ns // 1000:x}-{stat.st_size:x}"
    return ObjectInfo("file://" + path, stat.st_size, etag, datetime.fromtimestamp(stat.st_mtime, UTC))


def _check_etag(info: ObjectInfo, etag: str | None) -> None:
    if etag is not None and info.etag is not None and info.etag != etag:
        raise ObjectChanged(
            f"{info.uri} was replaced after it was listed (etag {etag} then, {info.etag} now)"
        )
