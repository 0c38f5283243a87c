"""What each column and nested field of the table means: the comments in its Iceberg schema."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN_DOCS: dict[str, str] = {
    "audio_uri": "URI of the audio; with the partition it identifies the row",
    "audio_etag": "Version of the object that was transcribed, as its store names it",
    "audio_bytes": "Size of the object in bytes",
    "status": "ok: the row holds a transcript; error: it says why there is none",
    "error_code": "Why there is no transcript, one of the documented codes; null where status is ok",
    "error_message": "What happened, for people; null where status is ok",
    "attempt": "How often this version of the object has been tried",
    "language": "Whisper's code of the language, given in the options or detected",
    "language_probability": "Probability of the detected language, 0 to 1",
    "duration_s": "Length of the audio in seconds",
    "speech_s": "Seconds of speech in it, by the voice detector",
    "channels": "Number of audio channels",
    "text": "The whole transcript; empty for audio without speech, null for errors",
    "segments": "The transcript in segments, in the order in which they were spoken",
    "segments.element.id": "Number of the segment in the file",
    "segments.element.channel": "Index of the channel where channels are transcribed apart, else null",
    "segments.element.start": "Start in seconds from the start of the file",
    "segments.element.end": "End in seconds from the start of the file",
    "segments.element.text": "What was said",
    "segments.element.language": "Whisper's code of the segment's language",
    "segments.element.avg_logprob": "Average log probability of a token; below -1 the text is suspect",
    "segments.element.compression_ratio": "How well the text compresses; above 2.4 it may be a loop",
    "segments.element.no_speech_prob": "Whisper's probability that there is no speech, 0 to 1",
    "segments.element.words": "Words with their times; null where word timestamps are off",
    "segments.element.words.element.start": "Start in seconds from the start of the file",
    "segments.element.words.element.end": "End in seconds from the start of the file",
    "segments.element.words.element.word": "The word, with the space before it where the language has one",
    "segments.element.words.element.probability": "Probability of the word, 0 to 1",
    "segments.element.words.element.speaker": "Who spoke it, such as SPEAKER_00; null where unknown",
    "segments.element.speaker": "Who spoke most of it, such as SPEAKER_00; null where unknown",
    "quality_flags": "Warnings about the transcript, from the documented list",
    "model": "The model, as the options name it",
    "fingerprint": "Of the options that decide the text: rows with equal ones were made in the same way",
    "engine_version": "Versions of whisper_spark, faster-whisper and CTranslate2",
    "transcribed_at": "When the row was made, in UTC",
    "speakers": "Number of speakers; null where they were not told apart",
}
"""By path, in the form that Iceberg uses."""

_PARTITION_KEY = "Key of the partition"


def documented(schema: pa.Schema, *, known: Collection[str] = ()) -> pa.Schema:
    """Return the schema with these comments on its columns and nested fields.

    :param known: paths of fields that get no comment, because a table has them already: a comment there is
        its owner's.
    """
    import pyarrow as pa

    return pa.schema([_documented(field, field.name, known) for field in schema])


def _documented(field: pa.Field, path: str, known: Collection[str]) -> pa.Field:
    import pyarrow as pa

    type_ = field.type
    if pa.types.is_list(type_):
        element = _documented(type_.value_field, f"{path}.element", known)
        type_ = pa.list_(element)
    elif pa.types.is_struct(type_):
        type_ = pa.struct([_documented(inner, f"{path}.{inner.name}", known) for inner in type_])
    field = field.with_type(type_)
    doc = COLUMN_DOCS.get(path) or (None if "." in path else _PARTITION_KEY)
    return field if doc is None or path in known else field.with_metadata({"doc": doc})
