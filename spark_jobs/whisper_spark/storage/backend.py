"""The interface that buckets of object stores and local disks implement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from whisper_spark.storage.errors import ObjectChanged


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The metadata of an object.

    ``size`` is in bytes and ``last_modified`` in UTC. ``etag`` has no quotes, which only some stores put
    around it; it is ``None`` when the store has none.
    """

    uri: str
    size: int
    etag: str | None
    last_modified: datetime

    def check_etag(self, etag: str | None) -> None:
        """Check the etag of the object; ``None`` matches every object.

        :raises ObjectChanged: when the object has another etag.
        """
        if etag is not None and self.etag is not None and self.etag != etag:
            raise ObjectChanged(
                f"{self.uri} was replaced after it was listed (etag {etag} then, {self.etag} now)"
            )


def plain_etag(etag: str | None) -> str | None:
    """An etag without quotes, which Azure adds in headers but not in listings."""
    return None if etag is None else etag.removeprefix("W/").strip('"')


Version = Mapping[str, str]
"""Identifies one version of an object. Only for :meth:`Backend.replace` of the same store."""


class Backend(Protocol):
    """One bucket, or the local disk.

    A key is the part of a URI behind the bucket, not percent-encoded. A prefix is the key of a folder with a
    slash at the end, or empty. Methods raise the exceptions of the client or the file system, which
    :func:`whisper_spark.storage.errors.translated` converts.
    """

    def objects(
        self, prefix: str, chunk_size: int, unreadable: Callable[[str], None]
    ) -> Iterator[ObjectInfo]:
        """All objects below a folder. ``unreadable`` gets the URI of each one that cannot be addressed."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the direct subfolders of a folder."""

    def info(self, key: str) -> ObjectInfo:
        """The metadata of one object."""

    def open(self, key: str, etag: str | None) -> BinaryIO:
        """The object as a seekable file, from one consistent read of one version."""

    def open_ranges(self, key: str) -> BinaryIO:
        """The object as a seekable file that fetches only the ranges that are read."""

    def download(self, key: str, path: Path, etag: str | None) -> None:
        """Copy the object to a local file, atomically."""

    def write(self, key: str, data: bytes | Path, if_absent: bool) -> bool:
        """Write bytes, or the content of a local file. Returns whether it was written."""

    def open_version(self, key: str) -> tuple[BinaryIO, Version]:
        """The object as a seekable file, and its version."""

    def replace(self, key: str, path: Path, version: Version | None) -> Version | None:
        """Write a local file over one version of an object; ``None``: only if there is no object.

        Returns the new version; ``None``: not written, because the object has another version.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. Those that do not exist are ignored."""
