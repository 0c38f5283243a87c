"""Check source and staging URIs, and distinguish a missing source from an empty one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_whisper.errors import ConfigurationError
from whisper_spark.contract import partition_path
from whisper_spark.storage.objects import ObjectForbidden, ObjectNotFound, folder_uri

if TYPE_CHECKING:
    from airflow_whisper.discovery.audio_filter import AudioFilter
    from whisper_spark.storage.objects import ObjectStorage


# Longest name of a file or folder on common file systems, longest key of an object in S3, Google Cloud
# Storage and Azure, and what staging and the table append to the name of a folder.
_NAME_BYTES, _KEY_BYTES, _FILE_NAME_BYTES = 255, 1024, 80


def check_locations(locations: Mapping[str, str]) -> None:
    """Check what can be checked without accessing a store.

    :param locations: URIs of ``source`` and ``staging``, or of the one that is already known.
    :raises ValueError: for an unsupported URI, or for staging inside the source, where its files would count
        as audio.
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
    if ":" not in uri and not uri.startswith(("/", "~")):
        raise ValueError(
            f"{argument}: {uri!r} is a relative path, which means another folder in each process: write an "
            f"absolute path or a URI such as 's3://bucket/{argument}/'"
        )
    try:
        return folder_uri(uri)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def check_table_outside(source: str, table_location: str, audio_filter: AudioFilter) -> None:
    """Check that the table's own files do not count as audio, which every commit would add to.

    :param source: URI of the source.
    :param table_location: URI of the table's folder.
    :raises ConfigurationError: if the folder lies inside the source, and the filter selects its files.
    """
    try:
        root, folder = folder_uri(source), folder_uri(table_location)
    # Not a store that sources can be in.
    except ValueError:
        return
    if folder.startswith(root) and audio_filter.kind(f"{folder[len(root) :]}data/file.parquet") == "audio":
        raise ConfigurationError(
            f"the table's files in {table_location} lie inside the source {source}, so each commit would add "
            "files to transcribe. Keep the warehouse outside of the source, or select the audio with "
            "`extensions` or `pattern`"
        )


def check_lengths(staging_folder: str, table_location: str, partition: Mapping[str, str]) -> None:
    """Check that the files of a run fit into the names of their stores: better now than after the job.

    :param staging_folder: URI of a run's folder in staging.
    :param table_location: URI of the table's folder.
    :raises ConfigurationError: if a name would be too long.
    """
    for folder in (staging_folder, f"{table_location}/data/{partition_path(partition)}"):
        parts = folder.split("/")
        longest = max(len(part.encode()) for part in parts)
        key = len("/".join(parts[3:]).encode()) + _FILE_NAME_BYTES
        if longest > _NAME_BYTES if folder.startswith("file://") else key > _KEY_BYTES:
            raise ConfigurationError(
                f"the names of files in {folder} would be longer than their store allows: choose shorter "
                "values for the partition, or a shorter folder"
            )


def check_source_exists(storage: ObjectStorage, source: str, root: str) -> None:
    """Check that an empty source exists, to distinguish an empty partition from a wrong URI.

    It looks above the part of the source that depends on the partition: for ``s3://calls/raw/dt=2026-11-01/``
    at ``s3://calls/raw/``. If listing this folder is forbidden, the source counts as existing: the source
    itself could be listed, so its bucket and the permission for this prefix exist.

    :param root: result of :func:`source_root`.
    :raises ObjectNotFound: if there is no object there either.
    """
    try:
        if root.startswith("file://"):
            exists = Path(root.removeprefix("file://")).is_dir()
        else:
            # For the root of a bucket, a successful listing proves that the bucket exists; that is enough.
            exists = storage.any_under(root) or root.count("/") == 3
    except (ObjectForbidden, PermissionError):
        exists = True
    if not exists:
        raise ObjectNotFound(
            f"source {source} does not exist: there is nothing under {root}. Check the argument `source`; "
            'if audio may still come, set on_missing_source="skip"'
        )


def anything_under(storage: ObjectStorage, root: str) -> bool:
    """Whether a folder contains anything. A folder that may not be listed counts as not empty.

    Stricter than :func:`check_source_exists`: an empty folder may be the mount point of an unmounted disk.

    :param root: result of :func:`source_root`.
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
    """The part of a source that all partitions share, with a trailing slash."""
    source = folder_uri(source).removesuffix("/")
    # Number of leading parts that are fixed: scheme, empty, bucket (empty for a local path).
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
        # A column of numbers spells the folder 07 as 7.
        number = value.lstrip("0") or "0"
        spelled = f"0*{number}" if re.fullmatch(r"[0-9]+", value) else re.escape(value)
        if re.search(rf"(?<![0-9A-Za-z]){spelled}(?![0-9A-Za-z])", part):
            return True
        # The value 2026-11-01 may appear as one folder 20261101 or as three folders 2026/11/01.
        digits = re.sub(r"\D", "", value)
        if re.fullmatch(r"[\d_-]*\d[\d_-]*", part) and re.sub(r"\D", "", part) in digits:
            return True
    return False
