"""Names of exported files: from a template, and different for every row of every table."""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Collection, Mapping
from urllib.parse import quote

from whisper_spark.contract import partition_path
from whisper_spark.storage.uris import folder_uri, is_plain, join_uri

# Fields of a template besides the partition's keys. Each of the second set is different for every row.
FIELDS = ("table", "partition", "stem", "name", "id", "format")
_UNIQUE = ("name", "id")

# File names on local disks have at most 255 bytes, and the template may add to the stem.
_STEM_BYTES = 120
_ID_DIGITS = 16
_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f\\/]|^\.+")

# Hidden, so that discovery ignores it where files are exported to the folder of a source.
_INDEX_FOLDER = "_exports"

EXAMPLE = "s3://bucket/subtitles/{partition}/{name}.{format}"


class ExportNames:
    """The URIs of exported files and of the index.

    :param template: URI with the fields ``{partition}`` (``dt=2026-11-01``), ``{name}``, ``{format}`` and
        others, see :class:`~airflow_whisper.operators.export.ExportTranscriptsOperator`.
    :param keys: the partition's keys, which are fields, too.
    :raises ValueError: if two rows, or two formats, could get the same URI, or a field is unknown.
    """

    def __init__(self, template: str, keys: Collection[str]) -> None:
        parts = _parts(template)
        fields = [field for _, field in parts if field is not None]
        known = [*FIELDS, *(key for key in keys if key not in FIELDS)]
        for field in fields:
            if field not in known:
                raise ValueError(
                    f"uri_template {template!r} has the unknown field {{{field}}}: it may have "
                    + ", ".join(f"{{{name}}}" for name in known)
                )
        if not set(_UNIQUE) & set(fields):
            raise ValueError(
                f"uri_template {template!r} gives two recordings the same file: add {{name}}, which differs "
                f"for every row, as in {EXAMPLE!r}"
            )
        if "format" not in fields:
            raise ValueError(f"uri_template {template!r} needs {{format}}, as in {EXAMPLE!r}")
        # The folder that every file is in, with a slash at the end.
        self.root = _root(template, parts)
        literal, first = parts[0]
        within = [(literal.rpartition("/")[2], first), *parts[1:]]
        if not is_plain("".join(text + ("" if field is None else "x") for text, field in within)):
            raise ValueError(
                f"uri_template {template!r} has an empty, '.' or '..' folder, a control character or a slash "
                f"at its end: write it as in {EXAMPLE!r}"
            )
        self._parts = [(self.root, None), *within]

    def index_uri(self, table: str, partition: Mapping[str, str]) -> str:
        """URI of the index of a partition: a Parquet file."""
        return join_uri(
            self.root, _INDEX_FOLDER, quote(table, safe="."), f"{partition_path(partition)}.parquet"
        )

    def uri(self, table: str, partition: Mapping[str, str], audio_uri: str, format_: str) -> str:
        """URI of one file of a row."""
        key = "\0".join([table, partition_path(partition), audio_uri])
        id_ = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:_ID_DIGITS]
        stem = _stem(audio_uri)
        values = {
            **{name: partition_path({name: value}).partition("=")[2] for name, value in partition.items()},
            "table": quote(table, safe="."),
            "partition": partition_path(partition),
            "stem": stem,
            "name": f"{stem}-{id_}",
            "id": id_,
            "format": format_,
        }
        return "".join(text + ("" if field is None else values[field]) for text, field in self._parts)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Pairs of literal text and the field after it; the last field may be ``None``."""
    parts: list[tuple[str, str | None]] = []
    try:
        for text, field, spec, conversion in string.Formatter().parse(template):
            if spec or conversion:
                raise ValueError(f"{{{field}}} takes no format")
            parts.append((text, field))
    except ValueError as error:
        raise ValueError(f"uri_template {template!r}: {error}") from None
    return parts


def _root(template: str, parts: list[tuple[str, str | None]]) -> str:
    folder, slash, _ = parts[0][0].rpartition("/")
    try:
        if not slash:
            raise ValueError(template)
        return folder_uri(folder + slash)
    except ValueError:
        raise ValueError(
            f"uri_template {template!r} must begin with a folder in a bucket, or on a disk that all workers "
            f"share, before its first field, as in {EXAMPLE!r}"
        ) from None


def _stem(audio_uri: str) -> str:
    """The file name of the audio without its extension, fit to be part of a file name."""
    name = audio_uri.rstrip("/").rpartition("/")[2]
    stem = name.rpartition(".")[0] or name
    short = _NOT_IN_NAMES.sub("_", stem).encode(errors="replace")[:_STEM_BYTES]
    return short.decode(errors="ignore") or "audio"
