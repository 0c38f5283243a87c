"""Recognises files that are no audio although they should be, and says what to do about them."""

from __future__ import annotations

import re

# A beginning, what such a file is, and what to do.
_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"\x1f\x8b", "a gzip archive: unpack it"),
    (rb"PK\x03\x04", "a zip archive: unpack it"),
    (rb"7z\xbc\xaf|Rar!|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "an archive: unpack it"),
    (rb"-----BEGIN PGP|age-encryption|Salted__", "an encrypted file: decrypt it"),
    (rb"%PDF", "a PDF document"),
    (rb"version https://git-lfs", "a Git LFS pointer instead of the file: pull it with Git LFS"),
    (rb"#EXTM3U|\[playlist\]|<asx|<smil|<\?wpl", "a playlist: upload the files that it names"),
    (rb"(?:<\?xml[^>]*>\s*)?<Error>", "an error message of an object store: the download failed, repeat it"),
    (rb"<!doctype html|<html|<head", "a web page: the download failed, repeat it"),
    (rb"<\?xml", "an XML document"),
    (rb"[\[{]\s*[\"{\[]", "a JSON document: the download may have failed"),
    (rb"MThd", "a MIDI file, which holds notes and no sound"),
)
_BEGINNINGS = tuple(
    (re.compile(rb"\s*(?:" + pattern + rb")", re.IGNORECASE), kind) for pattern, kind in _KINDS
)

# So many line feeds, each behind a carriage return, are no coincidence.
_LINE_FEEDS = 64

# The character that replaces bytes which are no text, in UTF-8, and how many of them are no coincidence.
_REPLACEMENT = b"\xef\xbf\xbd"
_REPLACEMENTS = 64


def look_alike(head: bytes) -> str | None:
    """What a file is that is no audio; ``None`` when it is not known.

    :param head: the first bytes, at least some dozens.
    """
    if not head.strip(b"\x00"):
        return "zeros where a header should be: the upload did not finish, repeat it"
    return next((kind for pattern, kind in _BEGINNINGS if pattern.match(head)), None)


def changed_as_text(head: bytes) -> str | None:
    """How a transfer changed a file as if it were text; ``None`` when it did not.

    :param head: the first bytes, at least some thousands.
    """
    feeds = head.count(b"\n")
    if feeds >= _LINE_FEEDS and feeds - head.startswith(b"\n") == head.count(b"\r\n"):
        return "transferred in text mode, which changes line feeds: upload it again in binary mode"
    if head.count(_REPLACEMENT) >= _REPLACEMENTS and _is_utf8(head):
        return "read and written as text, which replaces bytes: upload it again in binary mode"
    return None


def _is_utf8(head: bytes) -> bool:
    try:
        # The end may cut a character.
        head[:-4].decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 9
    return True
