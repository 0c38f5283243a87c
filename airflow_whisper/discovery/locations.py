"""Sources and staging: refuse what cannot work, and tell a missing source from an empty one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_spark.storage.objects import ObjectForbidden, ObjectNotFound, folder_uri

if TYPE_CHECKING:
    from whisper_spark.storage.objects import ObjectStorage


def check_locations(locations: Mapping[str, str]) -> None:
    """Checks what can be told without asking any store.

    :param locations: ``source``, ``staging``, or whichever of them is known already.
    :raises ValueError: for a URI that is not supported, or staging inside the source, where its files would
        be taken for audio.
    """
    folders = {argument: _folder(argument, uri) for argument, uri in locations.items()}
    if len(folders) == 2 and folders["staging"].startswith(folders["source"]):
        raise ValueError(
            f"staging {locations['staging']!r} must not lie inside source {locations['source']!r}: "
            "name a folder beside it"
        )


def _folder(argument: str, uri: str) -> str:
    if not isinstance(uri, str) or not uri.strip():
        raise ValueError(f"{argument} must be a URI such as 's3://bucket/{argument}/', got {uri!r}")
    try:
        return folder_uri(uri)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def check_source_exists(storage: ObjectStorage, source: str, partition: Mapping[str, str]) -> None:
    """Tells a partition without audio from a source that was never there. Call it when the source is empty.

    Looks above the part of the source that depends on the partition: of ``s3://calls/raw/dt=2026-11-01/`` at
    ``s3://calls/raw/``. Where that may not be listed, the source counts as existing: it could itself be
    listed, so the bucket and the permission for this prefix are there.

    :raises ObjectNotFound: when nothing is there either.
    """
    root = source_root(source, partition)
    try:
        if root.startswith("file://"):
            exists = Path(root.removeprefix("file://")).is_dir()
        else:
            # A listing that succeeds proves that there is a bucket, which is all that its root can prove.
            exists = storage.any_under(root) or root.count("/") == 3
    except (ObjectForbidden, PermissionError):
        exists = True
    if not exists:
        raise ObjectNotFound(
            f"source {source} does not exist: there is nothing under {root}. Check the argument `source`; "
            'if audio may still come, set on_missing_source="skip"'
        )


def anything_under(storage: ObjectStorage, root: str) -> bool:
    """Whether anything lies in a folder, or must be assumed to, because it may not be listed.

    Stricter than :func:`check_source_exists`: a disk that is not mounted leaves an empty folder behind.

    :param root: of :func:`source_root`.
    """
    try:
        if root.startswith("file://"):
            return any(Path(root.removeprefix("file://")).iterdir())
        return storage.any_under(root)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (ObjectForbidden, PermissionError):
        return True


def source_root(source: str, partition: Mapping[str, str]) -> str:
    """The part of a source that all partitions share, with a slash at the end."""
    source = folder_uri(source).removesuffix("/")
    # Scheme, empty, bucket; a path of this machine has an empty bucket.
    fixed = 3
    parts = source.split("/")
    for i, part in enumerate(parts[fixed:], fixed):
        if _names_partition(part, partition):
            return "/".join(parts[:i]) + "/"
    return source + "/"


def _names_partition(part: str, partition: Mapping[str, str]) -> bool:
    if "=" in part:
        return True
    for value in partition.values():
        if re.search(rf"(?<![0-9A-Za-z]){re.escape(value)}(?![0-9A-Za-z])", part):
            return True
        # 2026-11-01 may be a folder 20261101, or three folders 2026/11/01
        digits = re.sub(r"\D", "", value)
        if re.fullmatch(r"[\d_-]*\d[\d_-]*", part) and re.sub(r"\D", "", part) in digits:
            return True
    return False
