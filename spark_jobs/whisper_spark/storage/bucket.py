"""One bucket of an object store, through obstore."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from whisper_spark.storage import local_files, raw_keys
from whisper_spark.storage.backend import ObjectInfo, Version, plain_etag
from whisper_spark.storage.clients import object_store
from whisper_spark.storage.errors import ObjectForbidden, StorageError, error_of
from whisper_spark.storage.list_relay import relayed_store
from whisper_spark.storage.range_file import RangeFile
from whisper_spark.storage.uris import is_plain

if TYPE_CHECKING:
    from obstore.store import ObjectStore

MEMORY_SPOOL_BYTES = 32 * 1024 * 1024
"""Size in bytes up to which an open object is kept in memory; larger ones are kept on disk."""

_STREAM_CHUNK = 1024 * 1024

# Objects per page of a listing. A page that contains a key which is not plain is discarded as a whole.
_PAGE = 1000

# Maximum number of objects in one delete request of S3.
_DELETE_CHUNK = 1000

# Larger files are uploaded in parts, because a single PUT keeps the whole file in memory.
_SINGLE_PUT_BYTES = 64 * 1024 * 1024

# The replacement character, which servers send for characters that they cannot encode.
_REPLACEMENT = "\ufffd"


class _NotPlain(Exception):  # noqa: N818 - reads as what happened
    """A listing contains keys that obstore refuses or alters."""


class _Twins:
    """Finds keys that a listing contains twice: obstore lists the objects ``x`` and ``x/`` both as ``x``.

    Object stores list keys in their order, so only keys that start with ``x`` lie between the two.
    """

    def __init__(self) -> None:
        # Each of these keys starts with the one before it.
        self._open: list[str] = []

    def is_second(self, key: str) -> bool:
        """Whether the listing has already contained this key."""
        while self._open and not key.startswith(self._open[-1]):
            self._open.pop()
        if self._open and self._open[-1] == key:
            return True
        self._open.append(key)
        return False


class Bucket:
    """A :class:`~whisper_spark.storage.backend.Backend` in S3, Google Cloud Storage or Azure.

    In S3, keys that obstore refuses (see :func:`~whisper_spark.storage.uris.is_plain`) are listed and read
    with :mod:`whisper_spark.storage.raw_keys`. In other stores they cannot be read, and a listing leaves them
    out with :mod:`whisper_spark.storage.list_relay`.
    """

    def __init__(self, scheme: str, name: str, config: Mapping[str, str]) -> None:
        self._scheme, self._name, self._config = scheme, name, config
        self._root = f"{scheme}://{name}/"
        self._store = object_store(scheme, name, config)
        # Whether the store is known to have no conditional writes.
        self._unconditional = False

    # --- listing -----------------------------------------------------------------------------------------

    def objects(
        self, prefix: str, chunk_size: int, unreadable: Callable[[str], None]
    ) -> Iterator[ObjectInfo]:
        """See :class:`Backend`."""
        twins = _Twins()
        for info, key in self._objects(prefix, chunk_size, unreadable):
            if key.endswith("/"):
                continue
            if not twins.is_second(key):
                yield info
            elif info.size:
                unreadable(info.uri + "/")

    def _objects(
        self, prefix: str, chunk_size: int, unreadable: Callable[[str], None]
    ) -> Iterator[tuple[ObjectInfo, str]]:
        """Objects with their keys. The key of a folder marker ends with a slash."""
        last: str | None = None
        while True:
            try:
                for info, key in self._plain_objects(self._store, prefix, chunk_size, last, unreadable):
                    last = key
                    yield info, key
                return
            except _NotPlain:
                pass
            if self._scheme != "s3":
                yield from self._relayed_objects(prefix, chunk_size, last or "", unreadable)
                return
            # List pages with raw_keys until one ends with a key after which obstore can continue.
            while True:
                page = raw_keys.list_page(self._name, self._config, prefix, last)
                yield from self._readable(page.objects, unreadable)
                if not page.more or not page.objects:
                    return
                last = page.objects[-1].key
                if self._is_shown(last):
                    break

    def _relayed_objects(
        self, prefix: str, chunk_size: int, after: str, unreadable: Callable[[str], None]
    ) -> Iterator[tuple[ObjectInfo, str]]:
        # Filled by another thread.
        left_out: deque[str] = deque()

        def report() -> None:
            while left_out:
                key = left_out.popleft()
                if key > after:
                    unreadable(self._root + key)

        with self._relayed(left_out.append) as store:
            for info, key in self._plain_objects(store, prefix, chunk_size, after or None, unreadable):
                report()
                # Some servers for Azure ignore where a listing is to start.
                if key > after:
                    yield info, key
        report()

    def _plain_objects(
        self,
        store: ObjectStore,
        prefix: str,
        chunk_size: int,
        after: str | None,
        unreadable: Callable[[str], None],
    ) -> Iterator[tuple[ObjectInfo, str]]:
        import obstore

        with self._noticing_names(prefix):
            for chunk in obstore.list(
                store, prefix.rstrip("/") or None, offset=after, chunk_size=min(chunk_size, _PAGE)
            ):
                if self._scheme == "s3" and not all(self._is_shown(meta["path"]) for meta in chunk):
                    raise _NotPlain
                for meta in chunk:
                    path = meta["path"]
                    if self._scheme != "s3" and not is_plain(path):
                        unreadable(self._root + path)
                        continue
                    # obstore removes the slash at the end of a key: the folder marker "folder/" is listed as
                    # an empty object "folder", which does not exist.
                    marker = not meta["size"] and not self._exists(path)
                    yield _info(self._root + path, meta), path + ("/" if marker else "")

    def _readable(
        self, objects: Iterable[raw_keys.RawObject], unreadable: Callable[[str], None]
    ) -> Iterator[tuple[ObjectInfo, str]]:
        for entry in objects:
            if raw_keys.can_be_read(entry.key):
                info = ObjectInfo(self._root + entry.key, entry.size, entry.etag, entry.last_modified)
                yield info, entry.key
            elif entry.size or not entry.key.endswith("/"):
                unreadable(self._root + entry.key)

    def folders(self, prefix: str) -> list[str]:
        """See :class:`Backend`. Sends one request per thousand folders."""
        try:
            names = self._plain_folders(self._store, prefix)
            if self._scheme == "s3" and not all(self._is_shown(name) for name in names):
                raise _NotPlain
            return names
        except _NotPlain:
            pass
        if self._scheme == "s3":
            names = raw_keys.list_folders(self._name, self._config, prefix)
            return [name for name in names if name and raw_keys.can_be_read(name)]
        with self._relayed(lambda _: None) as store:
            return self._plain_folders(store, prefix)

    def _plain_folders(self, store: ObjectStore, prefix: str) -> list[str]:
        import obstore

        with self._noticing_names(prefix):
            found = obstore.list_with_delimiter(store, prefix.rstrip("/") or None)
        return [path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]]

    @contextmanager
    def _relayed(self, left_out: Callable[[str], None]) -> Iterator[ObjectStore]:
        with relayed_store(self._scheme, self._name, self._config, left_out) as store:
            try:
                yield store
            except _NotPlain as error:
                raise (error.__cause__ or error) from None

    @contextmanager
    def _noticing_names(self, prefix: str) -> Iterator[None]:
        from obstore.exceptions import BaseError, InvalidPathError

        if not is_plain(prefix.removesuffix("/") or "root"):
            raise _NotPlain if self._scheme == "s3" else self._refusal(prefix)
        try:
            yield
        except BaseError as error:
            # Of names that XML cannot contain, some are refused with the listing and not by themselves.
            if isinstance(error, InvalidPathError) or "invalid list response" in str(error):
                raise _NotPlain from error
            raise

    def _is_shown(self, key: str) -> bool:
        """Whether obstore lists a key in S3 unaltered."""
        return is_plain(key) and _REPLACEMENT not in key

    def _exists(self, path: str) -> bool:
        import obstore

        try:
            obstore.head(self._store, path)
        except FileNotFoundError:
            return False
        except obstore.exceptions.BaseError as error:
            # The user may list objects but not read them. An object that is missing fails when it is read.
            if isinstance(error_of(self._root + path, error), ObjectForbidden):
                return True
            raise
        return True

    # --- reading -----------------------------------------------------------------------------------------

    def info(self, key: str) -> ObjectInfo:
        """See :class:`Backend`."""
        import obstore

        return _info(self._root + key, obstore.head(*self._address(key)))

    def open(self, key: str, etag: str | None) -> BinaryIO:
        """See :class:`Backend`. A spooled file: in memory up to 32 MiB, then on disk."""
        return self._spooled(key, etag)[0]

    def open_version(self, key: str) -> tuple[BinaryIO, Version]:
        """See :class:`Backend`. A spooled file, as :meth:`open` returns it."""
        file, meta = self._spooled(key, None)
        return file, _version(meta)

    def _spooled(self, key: str, etag: str | None) -> tuple[BinaryIO, Any]:
        spool = tempfile.SpooledTemporaryFile(MEMORY_SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
        try:
            meta = self._fetch(key, spool, etag)
        except BaseException:
            spool.close()
            raise
        spool.seek(0)
        return cast("BinaryIO", spool), meta

    def open_ranges(self, key: str) -> BinaryIO:
        """See :class:`Backend`."""
        info = self.info(key)
        return cast("BinaryIO", RangeFile(*self._address(key), info.uri, info.size))

    def download(self, key: str, path: Path, etag: str | None) -> None:
        """See :class:`Backend`."""
        with local_files.replacing(path) as file:
            self._fetch(key, file, etag)

    def _fetch(self, key: str, file: Any, etag: str | None) -> Any:
        """Copy an object to a file, and return its metadata."""
        import obstore

        # No If-Match, because some S3 implementations answer it with 501. Comparing the etag here is
        # equivalent, since it is in the same response as the content.
        result = obstore.get(*self._address(key))
        info = _info(self._root + key, result.meta)
        info.check_etag(etag)
        received = 0
        for chunk in result.stream(_STREAM_CHUNK):
            file.write(chunk)
            received += len(chunk)
        if received != info.size:
            raise StorageError(f"reading {info.uri} ended after {received} of {info.size} bytes; try again")
        return result.meta

    def _address(self, key: str) -> tuple[ObjectStore, str]:
        """A client, and the path with which that client addresses an object."""
        if is_plain(key.removesuffix("/")):
            return self._store, key
        if self._scheme != "s3" or not raw_keys.can_be_read(key):
            raise self._refusal(key)
        return raw_keys.client_of(self._name, self._config, key), raw_keys.ANY_PATH

    # --- writing -----------------------------------------------------------------------------------------

    def write(self, key: str, data: bytes | Path, if_absent: bool) -> bool:
        """See :class:`Backend`.

        Of several concurrent writers with ``if_absent``, exactly one succeeds for files up to 64 MiB. Larger
        files are uploaded in parts, and the last writer wins.
        """
        import obstore

        if not is_plain(key):
            raise self._refusal(key)
        if isinstance(data, Path):
            if data.stat().st_size <= _SINGLE_PUT_BYTES:
                data = data.read_bytes()
            elif if_absent and self._exists(key):
                return False
            else:
                if_absent = False
        try:
            obstore.put(self._store, key, data, mode="create" if if_absent else "overwrite")
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    def replace(self, key: str, path: Path, version: Version | None) -> Version | None:
        """See :class:`Backend`."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        # There are also stores that ignore the conditions of a write.
        if not self._is_current(key, version):
            return None
        data = path.read_bytes()
        if self._unconditional:
            return self._put(key, data, "overwrite")
        try:
            return self._put(key, data, "create" if version is None else dict(version))
        except (AlreadyExistsError, PreconditionError):
            return None
        except (BaseError, NotImplementedError) as error:
            if not _is_unsupported(error):
                raise
        self._unconditional = True
        return self.replace(key, path, version)

    def _put(self, key: str, data: bytes, mode: Any) -> Version:
        import obstore

        if not is_plain(key):
            raise self._refusal(key)
        # In one request, because the parts of an upload in several cannot be conditional.
        return _version(obstore.put(self._store, key, data, mode=mode, use_multipart=False))

    def _is_current(self, key: str, version: Version | None) -> bool:
        import obstore

        try:
            now = _version(obstore.head(self._store, key))
        except FileNotFoundError:
            return version is None
        return version is not None and plain_etag(now.get("e_tag")) == plain_etag(version.get("e_tag"))

    def delete(self, keys: Iterable[str]) -> None:
        """See :class:`Backend`."""
        keys = [*keys]
        for key in keys:
            if not is_plain(key):
                raise self._refusal(key)
        for start in range(0, len(keys), _DELETE_CHUNK):
            self._delete(keys[start : start + _DELETE_CHUNK])

    def _delete(self, keys: Sequence[str]) -> None:
        import obstore

        try:
            obstore.delete(self._store, keys)
        except FileNotFoundError:
            # Some stores stop at the first missing key: delete the others one by one.
            if len(keys) > 1:
                for key in keys:
                    self._delete([key])

    def _refusal(self, key: str) -> StorageError:
        return StorageError(
            f"{self._root + key!r} has an empty, '.' or '..' component or a control character, which cannot "
            "be addressed in this store. Rename the object"
        )


def _info(uri: str, meta: Any) -> ObjectInfo:
    return ObjectInfo(uri, meta["size"], plain_etag(meta["e_tag"]), meta["last_modified"])


def _version(meta: Any) -> dict[str, str]:
    # Google Cloud Storage compares the version, the other stores compare the etag.
    return {name: meta[name] for name in ("e_tag", "version") if meta[name]}


def _is_unsupported(error: Exception) -> bool:
    """Whether a conditional write failed because the store, or its configuration, has none."""
    from obstore.exceptions import NotSupportedError

    return isinstance(error, NotSupportedError | NotImplementedError) or "status code: 501" in str(error)
