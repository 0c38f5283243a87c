"""The row of one audio file in the table: a transcript, or an error."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

TIME_TOLERANCE_S = 0.05
"""Seconds by which a time may exceed the duration of its file. Whisper's alignment has steps of 20 ms and
times are rounded, so the last word may end just after the last sample."""


# --- transcripts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One word. ``start`` and ``end`` are seconds from the start of the file.

    ``speaker`` is set by ``diarize``, see :class:`Segment`.
    """

    start: float
    end: float
    word: str
    probability: float
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a transcript. ``start`` and ``end`` are seconds from the start of the file.

    ``channel`` is the index of the channel when channels are split, else ``None``. ``words`` is ``None``
    when word timestamps are off. With ``diarize``, ``speaker`` is ``"SPEAKER_00"``, ``"SPEAKER_01"``, ... in
    order of appearance in the file, or ``None`` when the speaker is unknown.
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
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Transcript:
    """The outcome for one audio file: a transcript, or an error. One row of the table.

    ``duration_s`` and ``speech_s`` are seconds of audio and of detected speech; ``transcribed_at`` is UTC.
    ``speakers`` is the number of speakers; ``None`` without ``diarize``, and when they cannot be told apart.
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
    speakers: int | None = None

    def to_row(self) -> dict[str, Any]:
        """This transcript as plain lists and dicts that match :func:`transcript_schema`."""
        row = {name: getattr(self, name) for name in _TRANSCRIPT_FIELDS}
        row["segments"] = [_segment_row(segment) for segment in self.segments]
        row["quality_flags"] = list(self.quality_flags)
        return row


# Used instead of dataclasses.asdict, which makes deep copies: for the words of one hour of audio it takes
# longer than the voice detection.
_TRANSCRIPT_FIELDS = tuple(f.name for f in dataclasses.fields(Transcript))
_SEGMENT_FIELDS = tuple(f.name for f in dataclasses.fields(Segment))
_WORD_FIELDS = tuple(f.name for f in dataclasses.fields(Word))


def _segment_row(segment: Segment) -> dict[str, Any]:
    row = {name: getattr(segment, name) for name in _SEGMENT_FIELDS}
    if segment.words is not None:
        row["words"] = [{name: getattr(word, name) for name in _WORD_FIELDS} for word in segment.words]
    return row


TRANSCRIPT_COLUMNS = frozenset(_TRANSCRIPT_FIELDS)


def transcript_schema(partition_keys: typing.Iterable[str] = ()) -> pa.Schema:
    """Schema of a transcript row, in staging and in the table. Times are seconds (float64)."""
    import pyarrow as pa

    word = pa.struct(
        [
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("word", pa.string()),
            pa.field("probability", pa.float64()),
            pa.field("speaker", pa.string()),
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
            pa.field("speaker", pa.string()),
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
            pa.field("speakers", pa.int32()),
            *(pa.field(key, pa.string(), nullable=False) for key in partition_keys),
        ]
    )


# Fields that releases added after the first, at every level of the row.
_ADDED_FIELDS = frozenset({"speaker", "speakers"})


def earlier_transcript_schema(partition_keys: typing.Iterable[str] = ()) -> pa.Schema:
    """Schema of the rows that earlier releases staged: without the columns and nested fields added since."""
    import pyarrow as pa

    fields = transcript_schema(partition_keys)
    return pa.schema(
        [field.with_type(_earlier_type(field.type)) for field in fields if field.name not in _ADDED_FIELDS]
    )


def _earlier_type(type_: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_earlier_type(type_.value_type)))
    if pa.types.is_struct(type_):
        kept = (field for field in type_ if field.name not in _ADDED_FIELDS)
        return pa.struct([field.with_type(_earlier_type(field.type)) for field in kept])
    return type_


def in_current_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows in the current schema: what an earlier release did not write is null.

    :param schema: see :func:`transcript_schema`.
    """
    import pyarrow as pa

    if batch.schema.equals(schema):
        return batch
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
