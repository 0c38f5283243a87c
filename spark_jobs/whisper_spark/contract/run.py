"""The description of one run, the URIs of its files in staging, and the schema of its manifest."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from whisper_spark.contract.options import WhisperOptions
from whisper_spark.contract.transcript import TRANSCRIPT_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa


# --- partitions --------------------------------------------------------------------------------------


def check_partition(partition: typing.Mapping[str, str]) -> dict[str, str]:
    """The partition as a plain dict, with its keys in the order given.

    :raises ValueError: for a partition without keys, a key that is not a column name or clashes with a
        transcript column, and an empty or non-string value.
    """
    if not partition:
        raise ValueError("partition needs at least one key, for example {'dt': '{{ ds }}'}")
    for key, value in partition.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"partition key {key!r} is no column name: use letters, digits and underscores")
        if key.lower() in TRANSCRIPT_COLUMNS | _MANIFEST_COLUMNS:
            raise ValueError(
                f"partition key {key!r} is already a column of the transcripts table; choose another name"
            )
        if not isinstance(value, str) or not value:
            raise ValueError(f"partition value of {key!r} must be a non-empty string, got {value!r}")
    return dict(partition)


def partition_path(partition: typing.Mapping[str, str]) -> str:
    """The Hive form of a partition, ``dt=2026-11-01/hour=13``, with percent-encoded values."""
    return "/".join(f"{key}={quote(value, safe=' :,@+')}" for key, value in partition.items())


def parse_partition_path(path: str) -> dict[str, str]:
    """The inverse of :func:`partition_path`.

    :raises ValueError: when a component is not ``key=value``.
    """
    partition = {}
    for component in path.strip("/").split("/"):
        key, separator, value = component.partition("=")
        if not separator:
            raise ValueError(f"{path!r} is no partition path: {component!r} is not of the form key=value")
        partition[key] = unquote(value)
    return check_partition(partition)


# --- a run and its folder in staging --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every task after discovery needs to know. It is stored in the Parquet metadata of the manifest.

    :param table: ``namespace.table``.
    :param partition: the one partition that this run brings up to date.
    :param source: URI prefix that was listed.
    :param options: what the transcripts are made with.
    :param run_uri: folder of this run in staging, without a slash at the end.
    :param manifest_id: 32 hex digits, a hash of everything that this run was asked to do.
    :param base_snapshot_id: snapshot of the table that the source was compared with; ``None``: no table yet.
    :param counts: number of files for each change and for ``removed``; number of rows that are kept as they
        are for ``unchanged``, ``kept_stale`` and ``kept_removed``; ``unchanged_errors``: error rows among
        these.
    :param audio_bytes: total size of the audio in the manifest, in bytes.
    :param max_attempts: how often a file with a transient error is tried, for one etag.
    """

    table: str
    partition: dict[str, str]
    source: str
    options: WhisperOptions
    run_uri: str
    manifest_id: str
    base_snapshot_id: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    audio_bytes: int = 0
    max_attempts: int = 3

    @property
    def manifest_uri(self) -> str:
        """Parquet file that lists the audio to transcribe, see :func:`manifest_schema`."""
        return f"{self.run_uri}/manifest.parquet"

    @property
    def removed_uri(self) -> str:
        """Parquet file that lists the rows to delete, in one column ``audio_uri``.

        It exists when ``counts["removed"]`` is not 0.
        """
        return f"{self.run_uri}/removed.parquet"

    @property
    def rows_uri(self) -> str:
        """Folder of the staged rows: Parquet files with the schema :func:`transcript_schema`."""
        return f"{self.run_uri}/rows"

    @property
    def result_uri(self) -> str:
        """JSON file that the job writes last: it names the staged files and holds counts."""
        return f"{self.run_uri}/result.json"

    @property
    def report_uri(self) -> str:
        """JSON file with the validation report."""
        return f"{self.run_uri}/report.json"

    @property
    def report_page_uri(self) -> str:
        """The validation report as one self-contained HTML page."""
        return f"{self.run_uri}/report.html"

    @property
    def siblings_uri(self) -> str:
        """Folder of all runs with the same partition and fingerprint, this one included."""
        return self.run_uri.rsplit("/", 1)[0]

    @property
    def idempotency_key(self) -> str:
        """Stored in the snapshot that registers this run."""
        return f"{partition_path(self.partition)}#{self.manifest_id}"

    def to_metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata for the schema of the manifest."""
        values = dataclasses.asdict(self)
        values["options"] = json.loads(self.options.to_json())
        # Not sorted: the order of the partition's keys is part of the names of folders.
        return {_RUN_METADATA_KEY: json.dumps(values).encode()}

    @classmethod
    def from_metadata(cls, metadata: typing.Mapping[bytes, bytes] | None) -> Run:
        """The inverse of :meth:`to_metadata`.

        :raises ValueError: when the metadata does not belong to a manifest, or is damaged.
        """
        if not metadata or _RUN_METADATA_KEY not in metadata:
            raise ValueError("this Parquet file is no manifest: DiscoverAudioOperator did not write it")
        try:
            values = json.loads(metadata[_RUN_METADATA_KEY])
            values["options"] = WhisperOptions.from_dict(values["options"])
            run = cls(**values)
            _check_kinds(run)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"this manifest describes no run: {type(error).__name__}: {error}") from None
        return run


_RUN_METADATA_KEY = b"whisper_spark.run"


def _check_kinds(run: Run) -> None:
    for name in ("table", "source", "run_uri", "manifest_id"):
        if not isinstance(getattr(run, name), str):
            raise ValueError(f"{name} is {getattr(run, name)!r}")
    if not isinstance(run.partition, dict) or not all(isinstance(v, str) for v in run.partition.values()):
        raise ValueError(f"partition is {run.partition!r}")
    check_partition(run.partition)
    if not isinstance(run.counts, dict) or not all(type(count) is int for count in run.counts.values()):
        raise ValueError(f"counts are {run.counts!r}")


def run_folder(
    staging: str, table: str, partition: typing.Mapping[str, str], fingerprint: str, manifest_id: str
) -> str:
    """URI of a run's folder: ``STAGING/TABLE/PARTITION/FINGERPRINT/MANIFEST_ID``."""
    return "/".join([staging.rstrip("/"), table, partition_path(partition), fingerprint, manifest_id])


# --- Arrow schemas -----------------------------------------------------------------------------------

_MANIFEST_COLUMNS = frozenset("audio_uri audio_etag audio_bytes last_modified change attempt".split())


def manifest_schema(partition_keys: typing.Iterable[str] = ()) -> pa.Schema:
    """Schema of a manifest: the audio that one run has to bring into one partition, largest file first."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("audio_uri", pa.string(), nullable=False),
            pa.field("audio_etag", pa.string()),
            pa.field("audio_bytes", pa.int64()),
            pa.field("last_modified", pa.timestamp("us", tz="UTC")),
            pa.field("change", pa.string(), nullable=False),
            pa.field("attempt", pa.int32(), nullable=False),
            *(pa.field(key, pa.string(), nullable=False) for key in partition_keys),
        ]
    )
