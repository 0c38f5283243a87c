"""What every place for objects can do: the buckets of object stores, and local disks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from whisper_spark.storage.errors import ObjectChanged


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

    def check_etag(self, etag: str | None) -> None:
        """:raises ObjectChanged: when the object is another one than that with this etag."""
        if etag is not None and self.etag is not None and self.etag != etag:
            raise ObjectChanged(
                f"{self.uri} was replaced after it was listed (etag {etag} then, {self.etag} now)"
            )


def plain_etag(etag: str | None) -> str | None:
    """An etag without its quotes: Azure puts them into headers and not into listings."""
    return None if etag is None else etag.removeprefix("W/").strip('"')


class Backend(Protocol):
    """One bucket, or the local disk.

    A key is what stands behind the bucket in a URI, raw; a prefix is that of a folder, with a slash at the
    end, or empty. Methods raise what the client or the file system raises, which
    :func:`whisper_spark.storage.errors.translated` turns into ours.
    """

    def objects(
        self, prefix: str, chunk_size: int, unreadable: Callable[[str], None]
    ) -> Iterator[ObjectInfo]:
        """All objects below a folder. ``unreadable`` gets the URI of each that cannot be read by its name."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders that lie directly in a folder."""

    def info(self, key: str) -> ObjectInfo:
        """Size, etag and time of one object."""

    def open(self, key: str, etag: str | None) -> BinaryIO:
        """The object as a seekable file, from one consistent read of one version."""

    def open_ranges(self, key: str) -> BinaryIO:
        """The object as a seekable file that fetches only what is read."""

    def download(self, key: str, path: Path, etag: str | None) -> None:
        """Copies the object into a local file, which appears complete or not at all."""

    def write(self, key: str, data: bytes | Path, if_absent: bool) -> bool:
        """Writes bytes, or the content of a local file; returns whether it did."""

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects, of which some may not exist."""
