"""A file object that fetches ranges of an object on demand."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from whisper_spark.storage.errors import translated

if TYPE_CHECKING:
    from obstore.store import ObjectStore


class RangeFile(io.RawIOBase):
    """A read-only seekable file over one object. Each read is one range request.

    :param uri: URI of the object, for messages.
    :param size: size of the object, in bytes.
    """

    def __init__(self, store: ObjectStore, path: str, uri: str, size: int) -> None:
        self._store, self._path, self._uri, self._size = store, path, uri, size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in bytes, without a request."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with one request.

        :raises whisper_spark.storage.objects.StorageError: when the request fails.
        """
        import obstore

        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        with translated(self._uri):
            data = obstore.get_range(self._store, self._path, start=self._position, length=length)
        buffer[:length] = memoryview(data)
        self._position += length
        return length
