"""Calls the user's function that changes transcripts before anything of them is written anywhere.

It runs where the transcript was made, in the engine's process. What the function removes therefore reaches
neither Spark nor staging, and no message of its errors is repeated, because it may quote the text.
"""

from __future__ import annotations

import importlib
import logging
import math
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from whisper_spark.contract import (
    TIME_TOLERANCE_S,
    Segment,
    Transcript,
    WhisperOptions,
    Word,
    transcript_schema,
)
from whisper_spark.redaction import is_in_step

log = logging.getLogger(__name__)


class TransformError(RuntimeError):
    """The function that ``WhisperOptions.transform`` names cannot be used."""


def load_transform(options: WhisperOptions) -> Callable[[Transcript], Transcript]:
    """A function that applies ``options.transform`` to a transcript, and raises nothing of its own.

    Error rows, and without ``transform`` all transcripts, are returned as they are. If the user's function
    fails, the transcript becomes an error row ``transform_failed``, which holds no text.

    :raises TransformError: when the function cannot be imported, or has another version.
    """
    if options.transform is None:
        return lambda transcript: transcript
    name, function = options.transform, _function(options.transform)
    # The first array imports pandas, which is not to count as time of the function.
    pa.array([None])

    def apply(transcript: Transcript) -> Transcript:
        if transcript.status != "ok":
            return transcript
        try:
            return _result(transcript, function(transcript))
        except KeyboardInterrupt:
            # Ctrl-C, where the engine runs in the process of the caller.
            raise
        except BaseException as error:
            # Also SystemExit, which would end the process and with it the work on other files.
            log.warning("%s failed for %s: %s", name, transcript.audio_uri, _where(error))
            return _failed(transcript, f"{name} failed: {_where(error)}")

    return apply


def _function(name: str) -> Callable[[Transcript], Any]:
    path, _, version = name.rpartition("@")
    module_name, _, attribute = path.partition(":")
    here = f"on host {platform.node()} with {sys.executable}"
    try:
        module = importlib.import_module(module_name)
        found = _attribute(module, attribute)
        if str(getattr(found, "version", None)) != version:
            # This process outlives a pass and may have imported the module before it was edited.
            found = _attribute(importlib.reload(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TransformError(
            f"transform={name!r} cannot be imported {here}: {error}. Send its module to the executors with "
            "py_files, or install it there"
        ) from error
    if not callable(found) or str(getattr(found, "version", None)) != version:
        raise TransformError(
            f"transform={name!r} names version {version!r}, but {path} has the version "
            f"{getattr(found, 'version', None)!r} {here}: name that one, or send the module again"
        )
    return found  # type: ignore[no-any-return]


def _attribute(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


class _ResultError(Exception):
    """The function returned something else than a transcript. Its message is ours and quotes no text."""


def _result(transcript: Transcript, result: Any) -> Transcript:
    """The transcript with the text and segments of the result, in plain types.

    Subclasses and numbers of other libraries may not be known to the process that gets the transcript, or may
    not be fit to be sent there.

    :raises _ResultError: if they cannot be written, or are not in step.
    """
    if not isinstance(result, Transcript):
        raise _ResultError(f"it returned {type(result).__name__} instead of a Transcript")
    if not isinstance(result.text, str):
        raise _ResultError(f"it returned a transcript whose text is {type(result.text).__name__}")
    try:
        changed = replace(transcript, text=result.text, segments=tuple(result.segments))
        (row,) = pa.RecordBatch.from_pylist([changed.to_row()], schema=transcript_schema()).to_pylist()
    except (AttributeError, TypeError, ValueError, pa.ArrowException):
        raise _ResultError("it returned segments or words that are no rows of the table") from None
    changed = replace(transcript, text=row["text"], segments=tuple(map(_segment, row["segments"])))
    if not all(isinstance(text, str) for text in _texts(changed)):
        raise _ResultError("it returned a segment or word without text")
    # One such row would fail the checks of all others.
    if not _times_are_valid(changed):
        raise _ResultError(
            "its segments or words have times outside the file, out of order or missing: keep those of the "
            "transcript that the function gets"
        )
    # What was removed from the text only would still be in the table.
    if is_in_step(transcript) and not is_in_step(changed):
        raise _ResultError(
            "its text is no longer that of its segments and words: change all three, for example with "
            "whisper_spark.redaction.redact"
        )
    return changed


def _texts(transcript: Transcript) -> Iterator[str | None]:
    for segment in transcript.segments:
        yield segment.text
        for word in segment.words or ():
            yield word.word


def _times_are_valid(transcript: Transcript) -> bool:
    """Whether all times are in the file, and in order within a channel and a segment, as in every row."""
    length = math.inf if transcript.duration_s is None else transcript.duration_s + TIME_TOLERANCE_S
    segments: dict[int | None, list[Segment | Word]] = {}
    for segment in transcript.segments:
        segments.setdefault(segment.channel, []).append(segment)
    words = (segment.words or () for segment in transcript.segments)
    return all(_in_order(group, length) for group in [*segments.values(), *words])


def _in_order(parts: Iterable[Segment | Word], length: float) -> bool:
    before = 0.0
    for part in parts:
        times = (part.start, part.end)
        # NaN fails each comparison.
        if None in times or not before <= part.start <= part.end <= length:
            return False
        before = part.start
    return True


def _segment(row: Mapping[str, Any]) -> Segment:
    words = row["words"]
    return Segment(**{**row, "words": None if words is None else tuple(Word(**word) for word in words)})


def _where(error: BaseException) -> str:
    """What failed and where, without the message of the error, which may quote the text."""
    if isinstance(error, _ResultError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)[1:]
    place = " in ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames[-3:]))
    return f"{type(error).__name__} in {place}" if place else type(error).__name__


def _failed(transcript: Transcript, message: str) -> Transcript:
    """The error row of a file whose transcript could not be transformed, without anything that was said."""
    return replace(
        transcript,
        status="error",
        error_code="transform_failed",
        error_message=message[:500],
        language=None,
        language_probability=None,
        speech_s=None,
        text=None,
        segments=(),
        quality_flags=(),
        speakers=None,
    )
