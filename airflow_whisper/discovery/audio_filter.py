"""Determine by name which objects below a source are audio."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import Literal

# Extensions of files that accompany recordings: metadata, transcripts, subtitles, annotations, checksums,
# playlists, logs, pictures, and uploads that are not complete. Compressed ones (`.json.gz`) count as well.
SIDECAR_EXTENSIONS = frozenset(
    "json jsonl ndjson xml yaml yml toml ini properties csv tsv txt text md rtf html htm pdf doc docx "
    "xls xlsx srt vtt ass ssa sub sbv ttml dfxp lrc textgrid eaf rttm ctm stm trs cha lab "
    "md5 sha sha1 sha256 sha512 crc crc32 sfv asc sig "
    "cue m3u m3u8 pls xspf nfo log bak db jpg jpeg png gif webp bmp svg "
    "tmp temp part partial filepart crdownload download".split()
)

# A character class of a glob, as in `fnmatch`: a `]` at its beginning does not close it.
_CLASS = re.compile(r"\[!?\]?[^\]]*\]")
_BRACKET = re.compile(r"\[")

_COMPRESSED = (".gz", ".bz2", ".zst")

Kind = Literal["audio", "hidden", "sidecar", "unmatched"]


@dataclass(frozen=True)
class AudioFilter:
    """Distinguishes audio from other objects below a source.

    :param pattern: case-insensitive glob on the path below the source; ``*`` also matches slashes. ``None``:
        any path.
    :param extensions: file name extensions, case-insensitive, with or without a dot. ``None``: any except
        those of sidecar files.
    :raises ValueError: for an empty extension, and for a pattern with a ``[`` that nothing closes.
    """

    pattern: str | None = None
    extensions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None and _BRACKET.search(re.sub(_CLASS, "", self.pattern)):
            raise ValueError(
                f"pattern {self.pattern!r} has a '[' without a ']'. Where file names contain a '[', "
                "write '[[]'"
            )
        if not all(isinstance(e, str) and e.strip(". ") for e in self.extensions or ()):
            raise ValueError(f"extensions must be a list such as ['wav', 'mp3'], got {self.extensions!r}")

    @cached_property
    def suffixes(self) -> tuple[str, ...]:
        """The selected extensions, with a dot and in lower case; empty if any extension is selected."""
        return tuple(f".{extension.strip('. ').lower()}" for extension in self.extensions or ())

    def kind(self, key: str) -> Kind:
        """Classify an object.

        ``hidden``: its name or that of a folder starts with ``_`` or ``.`` (``_SUCCESS``, ``.part.crc``), or
        it is a folder marker; ``sidecar``: its extension is in :data:`SIDECAR_EXTENSIONS`, and the filter
        does not select this extension; ``unmatched``: the pattern or the extensions exclude it.

        :param key: path below the source.
        """
        if key.startswith(("_", ".")) or "/_" in key or "/." in key or key.endswith(("/", "_$folder$")):
            return "hidden"
        name = key.lower()
        wanted = bool(self.suffixes) and name.endswith(self.suffixes)
        if not wanted and _is_sidecar(name):
            return "sidecar"
        if self.suffixes and not wanted:
            return "unmatched"
        if self.pattern is not None and not fnmatch(name, self.pattern.lower()):
            return "unmatched"
        return "audio"

    def __str__(self) -> str:
        """Describe the filter for messages, such as ``pattern '*.wav'``."""
        parts = [f"pattern {self.pattern!r}"] if self.pattern is not None else []
        if self.extensions:
            parts.append(f"extensions {list(self.extensions)}")
        return " and ".join(parts) or "no pattern and no extensions"


def _is_sidecar(name: str) -> bool:
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    _, dot, extension = name.rpartition(".")
    return bool(dot) and extension in SIDECAR_EXTENSIONS


def extension_tuple(extensions: Iterable[str] | None) -> tuple[str, ...] | None:
    """:raises ValueError: for a single string, because its letters would be taken as extensions."""
    if isinstance(extensions, str):
        raise ValueError(f"extensions must be a list such as ['wav', 'mp3'], got {extensions!r}")
    return tuple(extensions) if extensions else None
