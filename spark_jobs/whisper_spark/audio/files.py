"""A file to read, and why it could not be read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A file to transcribe.

    :param uri: raw URI, nothing percent-encoded.
    :param etag: when given, other bytes under this URI are an error ``changed_during_read``.
    :param size: bytes, as listed.
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
    """Why there is no transcript. ``code`` is one of :data:`contract.ERROR_CODES`."""

    code: str
    message: str
