"""Delete the folders of old runs from staging."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from whisper_spark.contract import partition_path
from whisper_spark.storage.objects import normalise_uri

if TYPE_CHECKING:
    from whisper_spark.storage.objects import ObjectStorage

# FINGERPRINT/MANIFEST_ID: see whisper_spark.contract.run_folder.
_RUN = re.compile(r"(?:[^/]+/)+?[0-9a-f]{32}(?=/)")


def purge_staging(
    storage: ObjectStorage,
    staging: str,
    table: str,
    partition: Mapping[str, str] | None = None,
    *,
    older_than: timedelta,
) -> tuple[int, int]:
    """Delete old runs of a table: their manifests, rows and reports.

    A registered run no longer needs these files. They only allow a task that is cleared later to reuse its
    rows instead of transcribing again.

    :param partition: delete only the runs of this partition; ``None``: of all partitions.
    :param older_than: minimum age of a run's newest file. A running job writes at least once a minute.
    :return: number of deleted runs and of deleted files.
    """
    root = f"{normalise_uri(staging).rstrip('/')}/{table}/"
    if partition:
        root += f"{partition_path(partition)}/"
    newest: dict[str, datetime] = {}
    files: dict[str, list[str]] = {}
    for batch in storage.list(root):
        uris, times = batch.column("audio_uri").to_pylist(), batch.column("last_modified").to_pylist()
        for uri, time in zip(uris, times, strict=True):
            if match := _RUN.match(uri, len(root)):
                run = match.group()
                files.setdefault(run, []).append(uri)
                newest[run] = max(time, newest.get(run, time))
    old = [run for run, time in newest.items() if time < datetime.now(UTC) - older_than]
    for run in old:
        storage.delete(files[run])
    return len(old), sum(len(files[run]) for run in old)
