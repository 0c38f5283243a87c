"""From a source to a manifest: list the audio, tell a missing source from an empty one, write the run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_whisper.discovery.comparison import ROW_GROUP, Comparison, Counts
from airflow_whisper.discovery.listing import read_ahead
from whisper_spark.contract import Run, WhisperOptions, manifest_schema, partition_path, run_folder
from whisper_spark.storage.objects import ObjectNotFound, normalise_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage

# --- what counts as audio ------------------------------------------------------------------------------


def audio_files(
    storage: ObjectStorage,
    source: str,
    pattern: str | None = None,
    *,
    belongs: Callable[[datetime], bool] | None = None,
    ignored: Callable[[int], None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The listing of a source without what is none of ours.

    Left out: keys with a folder or name that starts with ``_`` or ``.`` below the source (``_SUCCESS``,
    ``.part.crc``), folder markers, and what does not match the pattern.

    :param source: URI of a folder.
    :param pattern: glob on the path below the source, in any case; ``*`` also matches slashes.
    :param belongs: whether a file that was modified then belongs to the partition.
    :param ignored: is told how many objects of a batch were left out.
    """
    import pyarrow as pa

    start = len(normalise_uri(source).rstrip("/")) + 1
    for batch in read_ahead(storage.list(source)):
        wanted = [is_audio(uri[start:], pattern) for uri in batch.column("audio_uri").to_pylist()]
        if ignored and not all(wanted):
            ignored(wanted.count(False))
        if belongs:
            times = batch.column("last_modified").to_pylist()
            wanted = [want and belongs(time) for want, time in zip(wanted, times, strict=True)]
        yield batch if all(wanted) else batch.filter(pa.array(wanted))


def is_audio(key: str, pattern: str | None) -> bool:
    """Whether a path below a source counts as audio: not hidden, and matching the pattern."""
    hidden = key.startswith(("_", ".")) or "/_" in key or "/." in key
    if hidden or key.endswith(("/", "_$folder$")):
        return False
    return pattern is None or fnmatch(key.lower(), pattern.lower())


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
        return normalise_uri(uri).rstrip("/") + "/"
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def check_source_exists(storage: ObjectStorage, source: str, partition: Mapping[str, str]) -> None:
    """Tells a partition without audio from a source that was never there.

    Looks above the part of the source that depends on the partition: of ``s3://calls/raw/dt=2026-11-01/`` at
    ``s3://calls/raw/``.

    :raises ObjectNotFound: when nothing is there either.
    """
    root = source_root(source, partition)
    if root.startswith("file://"):
        exists = Path(root.removeprefix("file://")).is_dir()
    else:
        # A listing that succeeds proves that there is a bucket, which is all that its root can prove.
        exists = storage.any_under(root) or root.count("/") == 3
    if not exists:
        raise ObjectNotFound(
            f"source {source} does not exist: there is nothing under {root}. Check the argument `source`; "
            'if audio may still come, set on_missing_source="skip"'
        )


def source_root(source: str, partition: Mapping[str, str]) -> str:
    """The part of a source that all partitions share, with a slash at the end."""
    source = normalise_uri(source).rstrip("/")
    fixed = 3  # scheme, empty, bucket; a path of this machine has an empty bucket
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


# --- the run -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the transcripts of a source are to go. See :class:`whisper_spark.contract.Run`."""

    table: str
    partition: dict[str, str]
    source: str
    staging: str
    options: WhisperOptions
    base_snapshot_id: int | None


def write_run(comparison: Comparison, counts: Counts, target: Target, storage: ObjectStorage) -> Run:
    """Writes the manifest, and the rows to delete if there are any, into staging.

    The folder is named after the content, so doing it twice writes the same files once.

    :param storage: of the staging URI.
    """
    manifest_id = _manifest_id(comparison, counts, target)
    fingerprint = target.options.fingerprint()
    run = Run(
        table=target.table,
        partition=target.partition,
        source=target.source,
        options=target.options,
        run_uri=run_folder(target.staging, target.table, target.partition, fingerprint, manifest_id),
        manifest_id=manifest_id,
        base_snapshot_id=target.base_snapshot_id,
        counts={**counts.files, "unchanged_errors": counts.unchanged_errors},
        audio_bytes=counts.audio_bytes,
    )
    if counts.files["removed"]:
        _write_removed(comparison, run, storage)
    # Last, because whoever finds a manifest may rely on the rest.
    _write_manifest(comparison, run, storage)
    return run


def _manifest_id(comparison: Comparison, counts: Counts, target: Target) -> str:
    head = [
        target.table,
        partition_path(target.partition),
        target.source,
        target.options.fingerprint(),
        target.base_snapshot_id,
    ]
    digest = hashlib.sha256(json.dumps(head).encode())
    for chunk in comparison.files():
        for uri, etag, size, _, change, attempt in chunk:
            digest.update(f"\n{uri}\0{etag}\0{size}\0{change}\0{attempt}".encode())
    if counts.files["removed"]:
        for chunk in comparison.gone():
            for (uri,) in chunk:
                digest.update(f"\nremoved\0{uri}".encode())
    return digest.hexdigest()[:32]


def _write_manifest(comparison: Comparison, run: Run, storage: ObjectStorage) -> None:
    import pyarrow as pa

    schema = manifest_schema(run.partition).with_metadata(run.to_metadata())

    def batches() -> Iterator[pa.RecordBatch]:
        for chunk in comparison.files():
            values = [*zip(*chunk, strict=True)]
            values.append((None,) * len(chunk))  # language: not known before the audio is heard
            values += [(value,) * len(chunk) for value in run.partition.values()]
            arrays = [pa.array(v, f.type) for v, f in zip(values, schema, strict=True)]
            yield pa.record_batch(arrays, schema=schema)

    _upload(comparison.folder / "manifest.parquet", run.manifest_uri, schema, batches(), storage)


def _write_removed(comparison: Comparison, run: Run, storage: ObjectStorage) -> None:
    import pyarrow as pa

    schema = pa.schema([pa.field("audio_uri", pa.string(), nullable=False)])
    batches = (
        pa.record_batch([pa.array([uri for (uri,) in chunk], pa.string())], schema=schema)
        for chunk in comparison.gone()
    )
    _upload(comparison.folder / "removed.parquet", run.removed_uri, schema, batches, storage)


def _upload(
    path: Path, uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch], storage: ObjectStorage
) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=ROW_GROUP)
    storage.upload(path, uri, if_absent=True)
