"""Dataclasses for a file to transcribe, and for the reason why it cannot be transcribed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A file to transcribe.

    :param uri: raw URI, not percent-encoded.
    :param etag: expected etag; an object with another one gives the error ``changed_during_read``.
    :param size: size in the listing, in bytes.
    :param attempt: copied to the transcript.
    :param language: Whisper language code that overrides the options' for this file.
    """

    uri: str
    etag: str | None = None
    size: int | None = None
    attempt: int = 1
    language: str | None = None


@dataclass(frozen=True, slots=True)
class FileError:
    """The reason why a file has no transcript. ``code`` is one of :data:`contract.ERROR_CODES`."""

    code: str
    message: str
