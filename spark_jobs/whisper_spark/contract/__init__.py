"""What the Airflow side and the Spark side agree on: options, manifest, transcript row, error codes.

Needs only pyarrow, and imports that inside the functions that build schemas, so a DAG file can
import :class:`WhisperOptions` for the price of the standard library.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

from whisper_spark.contract.options import WhisperOptions

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "CHANGES",
    "ERROR_CODES",
    "FINAL_ERRORS",
    "QUALITY_FLAGS",
    "SAMPLE_RATE",
    "TRANSIENT_ERRORS",
    "WINDOW_SECONDS",
    "Run",
    "Segment",
    "Transcript",
    "WhisperOptions",
    "Word",
    "check_partition",
    "manifest_schema",
    "parse_partition_path",
    "partition_path",
    "run_folder",
    "transcript_schema",
]

SAMPLE_RATE = 16_000
"""Hz. The only rate Whisper's feature extractor accepts."""

WINDOW_SECONDS = 30.0
"""Longest stretch of audio that Whisper's encoder sees at once, in seconds."""

ERROR_CODES: dict[str, str] = {
    "not_found": "the object was gone when the job came to read it",
    "forbidden": "the object store refused to let the job read the object",
    "changed_during_read": "the object was replaced between listing and reading",
    "empty": "zero bytes, or a container without a single decodable sample",
    "not_audio": "the bytes are no audio or video container that FFmpeg knows",
    "no_audio_stream": "a valid container, for example a video, that holds no audio",
    "corrupt": "an audio container of which nothing can be decoded",
    "too_long": "longer than WhisperOptions.max_duration_s",
    "out_of_memory": "the device ran out of memory even for a batch of one window",
    "internal": "anything else; error_message says what, and the executor log has the traceback",
}
"""The closed set of error codes and what each one means."""

FINAL_ERRORS: frozenset[str] = frozenset({"empty", "not_audio", "no_audio_stream", "corrupt", "too_long"})
"""Errors that lie in the file: trying the same bytes again cannot help."""

TRANSIENT_ERRORS: frozenset[str] = frozenset(ERROR_CODES) - FINAL_ERRORS
"""Errors that may pass: later runs try again, up to ``max_attempts`` for one etag."""

CHANGES: tuple[str, ...] = ("new", "changed", "stale", "retry")
"""Why a file is in a manifest. new: not in the table; changed: other etag; stale: made with other
options; retry: an error that may pass, with attempts left."""

QUALITY_FLAGS: dict[str, str] = {
    "no_speech": "nothing was said; the text is empty on purpose",
    "truncated": "only the first part of the file could be decoded",
    "empty_text_over_speech": "the voice detector heard speech, yet there is no text",
    "missed_speech": "somebody speaks for more than a second where the text has no word",
    "low_confidence": "average log probability of the text below log_prob_threshold",
    "repetitive": "compression ratio above compression_ratio_threshold, or a repeated phrase",
    "unlikely_speech_rate": "more than 40 characters or fewer than 1 token for a second of speech",
    "uncertain_language": "language probability below 0.5",
    "long_words": "a word too long to be one",
    "token_limit": "a window used up all the tokens it was allowed",
}
"""Warnings about a transcript, row by row, and what each one means."""

# --- transcripts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word. ``start`` and ``end`` are seconds from the start of the file."""

    start: float
    end: float
    word: str
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of text. ``start`` and ``end`` are seconds from the start of the file.

    ``channel`` is the channel's index when channels are split, else ``None``. ``words`` is ``None``
    when word timestamps are off.
    """

    id: int
    channel: int | None
    start: float
    end: float
    text: str
    language: str | None
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The outcome for one audio file: a transcript, or an error. One row of the table.

    ``duration_s`` and ``speech_s`` are seconds of audio and of detected speech; ``transcribed_at`` is UTC.
    """

    audio_uri: str
    audio_etag: str | None = None
    audio_bytes: int | None = None
    status: Literal["ok", "error"] = "ok"
    error_code: str | None = None
    error_message: str | None = None
    attempt: int = 1
    language: str | None = None
    language_probability: float | None = None
    duration_s: float | None = None
    speech_s: float | None = None
    channels: int | None = None
    text: str | None = None
    segments: tuple[Segment, ...] = ()
    quality_flags: tuple[str, ...] = ()
    model: str = ""
    fingerprint: str = ""
    engine_version: str = ""
    transcribed_at: datetime | None = None

    def to_row(self) -> dict[str, Any]:
        """This transcript as plain lists and dicts, in the shape of :func:`transcript_schema`."""
        row = {name: getattr(self, name) for name in _TRANSCRIPT_FIELDS}
        row["segments"] = [_segment_row(segment) for segment in self.segments]
        row["quality_flags"] = list(self.quality_flags)
        return row


# Spelled out: dataclasses.asdict copies deeply, which for the words of an hour takes longer than the VAD.
_TRANSCRIPT_FIELDS = tuple(f.name for f in dataclasses.fields(Transcript))
_SEGMENT_FIELDS = tuple(f.name for f in dataclasses.fields(Segment))
_WORD_FIELDS = tuple(f.name for f in dataclasses.fields(Word))


def _segment_row(segment: Segment) -> dict[str, Any]:
    row = {name: getattr(segment, name) for name in _SEGMENT_FIELDS}
    if segment.words is not None:
        row["words"] = [{name: getattr(word, name) for name in _WORD_FIELDS} for word in segment.words]
    return row


# --- partitions --------------------------------------------------------------------------------------


def check_partition(partition: typing.Mapping[str, str]) -> dict[str, str]:
    """The partition as a plain dict, keys in the order given.

    :raises ValueError: without keys, with a key that is no column name or clashes with a transcript
        column, or with an empty or non-string value.
    """
    if not partition:
        raise ValueError("partition needs at least one key, for example {'dt': '{{ ds }}'}")
    for key, value in partition.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"partition key {key!r} is no column name: use letters, digits and underscores")
        if key.lower() in _TRANSCRIPT_COLUMNS | _MANIFEST_COLUMNS:
            raise ValueError(
                f"partition key {key!r} is already a column of the transcripts table; choose another name"
            )
        if not isinstance(value, str) or not value:
            raise ValueError(f"partition value of {key!r} must be a non-empty string, got {value!r}")
    return dict(partition)


def partition_path(partition: typing.Mapping[str, str]) -> str:
    """Canonical Hive form, ``dt=2026-11-01/hour=13``; special characters in values percent-encoded."""
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
    """What every task after discovery needs to know. Lives in the Parquet metadata of the manifest.

    :param table: ``namespace.table``.
    :param partition: the one partition that this run brings up to date.
    :param source: URI prefix that was listed.
    :param options: what the transcripts are made with.
    :param run_uri: folder of this run in staging, without a slash at the end.
    :param manifest_id: 32 hex digits, a hash of everything that this run was asked to do.
    :param base_snapshot_id: snapshot of the table that the source was compared with; ``None``: no table yet.
    :param counts: files per change; ``removed``; ``unchanged``, ``kept_stale`` and ``kept_removed``: rows
        that stay as they are; ``unchanged_errors``: those among them that are errors.
    :param audio_bytes: bytes of audio in the manifest.
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

    @property
    def manifest_uri(self) -> str:
        """The audio to transcribe, :func:`manifest_schema`."""
        return f"{self.run_uri}/manifest.parquet"

    @property
    def removed_uri(self) -> str:
        """Rows to delete, one column ``audio_uri``. Exists when ``counts["removed"]`` is not 0."""
        return f"{self.run_uri}/removed.parquet"

    @property
    def rows_uri(self) -> str:
        """Folder of the staged rows, Parquet files of :func:`transcript_schema`."""
        return f"{self.run_uri}/rows"

    @property
    def result_uri(self) -> str:
        """JSON that the job writes last: the staged files, and counts."""
        return f"{self.run_uri}/result.json"

    @property
    def report_uri(self) -> str:
        """JSON that validation writes."""
        return f"{self.run_uri}/report.json"

    @property
    def report_page_uri(self) -> str:
        """The same for people: one HTML page that needs nothing else."""
        return f"{self.run_uri}/report.html"

    @property
    def siblings_uri(self) -> str:
        """Folder that holds this run and all others of the same partition and fingerprint."""
        return self.run_uri.rsplit("/", 1)[0]

    @property
    def idempotency_key(self) -> str:
        """Stored in the snapshot that registers this run."""
        return f"{partition_path(self.partition)}#{self.manifest_id}"

    def to_metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata for the schema of the manifest."""
        values = dataclasses.asdict(self)
        values["options"] = json.loads(self.options.to_json())
        return {_RUN_METADATA_KEY: json.dumps(values, sort_keys=True).encode()}

    @classmethod
    def from_metadata(cls, metadata: typing.Mapping[bytes, bytes] | None) -> Run:
        """The inverse of :meth:`to_metadata`.

        :raises ValueError: when the metadata is not that of a manifest.
        """
        if not metadata or _RUN_METADATA_KEY not in metadata:
            raise ValueError("this Parquet file is no manifest: DiscoverAudioOperator did not write it")
        values = json.loads(metadata[_RUN_METADATA_KEY])
        values["options"] = WhisperOptions.from_dict(values["options"])
        return cls(**values)


_RUN_METADATA_KEY = b"whisper_spark.run"


def run_folder(
    staging: str, table: str, partition: typing.Mapping[str, str], fingerprint: str, manifest_id: str
) -> str:
    """URI of a run's folder: ``STAGING/TABLE/PARTITION/FINGERPRINT/MANIFEST_ID``."""
    return "/".join([staging.rstrip("/"), table, partition_path(partition), fingerprint, manifest_id])


# --- Arrow schemas -----------------------------------------------------------------------------------

_MANIFEST_COLUMNS = frozenset(
    "audio_uri audio_etag audio_bytes last_modified change attempt language".split()
)
_TRANSCRIPT_COLUMNS = frozenset(_TRANSCRIPT_FIELDS)


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
            pa.field("language", pa.string()),
            *(pa.field(key, pa.string(), nullable=False) for key in partition_keys),
        ]
    )


def transcript_schema(partition_keys: typing.Iterable[str] = ()) -> pa.Schema:
    """Schema of a transcript row, in staging and in the table. Times are seconds (float64)."""
    import pyarrow as pa

    word = pa.struct(
        [
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("word", pa.string()),
            pa.field("probability", pa.float64()),
        ]
    )
    segment = pa.struct(
        [
            pa.field("id", pa.int32()),
            pa.field("channel", pa.int32()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("text", pa.string()),
            pa.field("language", pa.string()),
            pa.field("avg_logprob", pa.float64()),
            pa.field("compression_ratio", pa.float64()),
            pa.field("no_speech_prob", pa.float64()),
            pa.field("words", pa.list_(pa.field("element", word))),
        ]
    )
    return pa.schema(
        [
            pa.field("audio_uri", pa.string(), nullable=False),
            pa.field("audio_etag", pa.string()),
            pa.field("audio_bytes", pa.int64()),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("language", pa.string()),
            pa.field("language_probability", pa.float64()),
            pa.field("duration_s", pa.float64()),
            pa.field("speech_s", pa.float64()),
            pa.field("channels", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("segments", pa.list_(pa.field("element", segment))),
            pa.field("quality_flags", pa.list_(pa.field("element", pa.string()))),
            pa.field("model", pa.string()),
            pa.field("fingerprint", pa.string()),
            pa.field("engine_version", pa.string()),
            pa.field("transcribed_at", pa.timestamp("us", tz="UTC")),
            *(pa.field(key, pa.string(), nullable=False) for key in partition_keys),
        ]
    )
