"""Determine the partition of an audio file from its path or its modification time.

A template is the URI of a partition's audio with placeholders for the partition's values:
``s3://calls/raw/dt={dt}/hour={hour}/``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from whisper_spark.contract import check_partition
from whisper_spark.storage.objects import folder_uri

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_DAY = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})(?:[T_ -]?(\d{2})(?::?\d{2})*)?")
_MONTH = re.compile(r"(\d{4})-(\d{2})")
# Names of partition keys that hold parts of a date, as in year=2026/month=11/day=01.
_PARTS = {"year": "year", "yyyy": "year", "month": "month", "mm": "month", "day": "day", "dd": "day"}
_HOURS = ("hour", "hh", "hr")


@dataclass(frozen=True)
class Level:
    """One folder level of a template, from the first level with a placeholder on."""

    pattern: re.Pattern[str]
    names: tuple[str, ...]
    """Placeholders whose values are known once this folder and those above it are known."""


@dataclass(frozen=True)
class PartitionTemplate:
    """The URI of a partition's audio, with placeholders for the values.

    .. code-block:: python

        template = PartitionTemplate.parse("s3://calls/raw/dt={dt}/hour={hour}/")
        template.partition_of("s3://calls/raw/dt=2026-11-01/hour=13/a.wav")   # {"dt": ..., "hour": ...}
        template.source_of({"dt": "2026-11-01", "hour": "13"})                # the folder of that file
    """

    source: str
    """The template's URI, normalised, with a trailing slash."""
    root: str
    """The folder above the first placeholder, with a trailing slash. Listings start here."""
    names: tuple[str, ...]
    """The placeholders, which are the partition keys, in path order."""
    levels: tuple[Level, ...] = field(repr=False)
    """The folder levels below the root."""

    @classmethod
    def parse(cls, source: str) -> PartitionTemplate:
        """Parse a URI. A template without placeholders has no names and no levels.

        :raises ValueError: for an unsupported URI, a placeholder in the bucket, a placeholder without a name
            or with a name that cannot be a partition key, or two placeholders with nothing between them.
        """
        if "{" in source.partition("://")[2].partition("/")[0]:
            raise ValueError(
                f"source {source!r}: the bucket cannot be a placeholder; watch each bucket by itself"
            )
        normal = folder_uri(source)
        scheme, _, rest = normal.partition("://")
        bucket, _, path = rest.partition("/")
        folders = path.rstrip("/").split("/") if path.rstrip("/") else []
        first = next((i for i, folder in enumerate(folders) if set(folder) & set("{}")), len(folders))
        names: list[str] = []
        levels = []
        for folder in folders[first:]:
            pattern = _folder_pattern(source, folder, names)
            levels.append(Level(pattern, tuple(names)))
        root = "/".join([f"{scheme}://{bucket}", *folders[:first]]) + "/"
        if names:
            check_partition(dict.fromkeys(names, "value"))
        return cls(normal, root, tuple(names), tuple(levels))

    def partition_of(self, uri: str) -> dict[str, str] | None:
        """Return the partition of a file; ``None`` if its path does not match or is hidden.

        :param uri: URI of a file below :attr:`root`, as in listings.
        """
        return self.partition_of_folders(self.folders_of(uri))

    def folders_of(self, uri: str) -> tuple[str, ...] | None:
        """The folders below the root that name a file's partition; ``None`` if its path is too short."""
        folders = uri[len(self.root) :].split("/", len(self.levels))
        if len(folders) <= len(self.levels) or not uri.startswith(self.root):
            return None
        return tuple(folders[: len(self.levels)])

    def partition_of_folders(self, folders: tuple[str, ...] | None) -> dict[str, str] | None:
        """Return the partition that folders below the root name; ``None`` if they do not match.

        :param folders: names of the folders for all or the first of :attr:`levels`.
        """
        if folders is None:
            return None
        values: dict[str, str] = {}
        for level, folder in zip(self.levels, folders, strict=False):
            match = level.pattern.fullmatch(folder)
            if match is None or folder.startswith((".", "_")):
                return None
            for name, value in match.groupdict().items():
                # A placeholder that occurs twice must have the same value in both places.
                if values.setdefault(name, value) != value:
                    return None
        return values

    def source_of(self, partition: Mapping[str, str]) -> str:
        """The folder of a partition's audio, with a trailing slash."""
        return _PLACEHOLDER.sub(lambda match: partition[match.group(1)], self.source)


def _folder_pattern(source: str, folder: str, names: list[str]) -> re.Pattern[str]:
    """Return the regular expression for one folder, and add its new placeholders to ``names``."""
    if "}{" in folder:
        raise ValueError(
            f"source {source!r}: nothing tells where one placeholder ends and the next begins in {folder!r}"
        )
    pattern, end = "", 0
    here: set[str] = set()
    for match in _PLACEHOLDER.finditer(folder):
        name = match.group(1)
        if not name.isidentifier():
            raise ValueError(
                f"source {source!r}: {match.group()!r} is no placeholder: write {{dt}}, with the name of a "
                "partition key between the braces"
            )
        value = f"(?P={name})" if name in here else f"(?P<{name}>[^/]+?)"
        here.add(name)
        pattern += re.escape(folder[end : match.start()]) + value
        end = match.end()
        if name not in names:
            names.append(name)
    if "{" in folder[end:] or "}" in folder[end:]:
        raise ValueError(f"source {source!r}: a brace in {folder!r} is not closed or not opened")
    return re.compile(pattern + re.escape(folder[end:]))


# --- time --------------------------------------------------------------------------------------------------


def period_end(values: Mapping[str, str]) -> datetime | None:
    """Return the end, in UTC, of the period that a partition covers; ``None`` if its values name no date.

    Recognised are ``2026-11-01``, ``20261101`` and ``2026-11`` under any key, with the hour appended to a day
    or under its own key (``hour``), and a date in parts: ``year``, ``month``, ``day``.

    :param values: values of all or the first placeholders of a template.
    """
    found = _day_of(values)
    if found is None:
        return None
    start, length = found
    if length == timedelta(days=1):
        hour = next((values[name] for name in values if name.lower() in _HOURS), None)
        if hour is not None and hour.isdecimal() and int(hour) < 24:
            start, length = start + timedelta(hours=int(hour)), timedelta(hours=1)
    return start + length


def _day_of(values: Mapping[str, str]) -> tuple[datetime, timedelta] | None:
    for value in values.values():
        if match := _DAY.fullmatch(value):
            year, month, day, hour = match.groups()
            return _period(int(year), int(month), int(day), None if hour is None else int(hour))
        if match := _MONTH.fullmatch(value):
            return _period(int(match.group(1)), int(match.group(2)))
    parts = {
        _PARTS[name.lower()]: int(value)
        for name, value in values.items()
        if name.lower() in _PARTS and value.isdecimal()
    }
    return _period(parts["year"], parts.get("month"), parts.get("day")) if "year" in parts else None


def _period(
    year: int, month: int | None = None, day: int | None = None, hour: int | None = None
) -> tuple[datetime, timedelta] | None:
    # Use the longest month and year: a period that is too long costs a request, one that is too short could
    # miss a file.
    length = timedelta(days=366 if month is None else 31 if day is None else 1)
    if hour is not None:
        length = timedelta(hours=1)
    try:
        return datetime(year, month or 1, day or 1, hour or 0, tzinfo=UTC), length
    # The numbers do not form a date.
    except ValueError:
        return None


def modified_partition(formats: Mapping[str, str], modified: datetime) -> dict[str, str]:
    """Return the partition values that a file's modification time determines.

    :param formats: ``strftime`` formats, UTC: ``{"dt": "%Y-%m-%d", "hour": "%H"}``.
    """
    moment = modified.astimezone(UTC)
    return {key: moment.strftime(form) for key, form in formats.items()}


def modified_in(
    formats: Mapping[str, str], partition: Mapping[str, str]
) -> Callable[[datetime], bool] | None:
    """Return a function that tells whether a file with this modification time belongs to a partition.

    :param formats: as for :func:`modified_partition`; its keys are keys of the partition.
    :return: ``None`` without formats: then the modification time does not matter.
    """
    wanted = {key: _number_or_text(partition[key]) for key in formats}

    def belongs(modified: datetime) -> bool:
        found = modified_partition(formats, modified)
        return {key: _number_or_text(value) for key, value in found.items()} == wanted

    return belongs if formats else None


def _number_or_text(value: str) -> int | str:
    # A column of numbers spells the hour 07 as 7.
    return int(value) if value.isascii() and value.isdecimal() else value


def check_formats(formats: Mapping[str, str]) -> dict[str, str]:
    """:raises ValueError: if a format is not a ``strftime`` format or a key cannot be a partition key."""
    for key, form in formats.items():
        if not isinstance(form, str) or "%" not in form:
            raise ValueError(
                f"partition_from_modified must map keys to strftime formats such as '%Y-%m-%d', got "
                f"{key!r}: {form!r}"
            )
    return check_partition(dict(formats))


def check_values(values: Mapping[str, str], formats: Mapping[str, str]) -> None:
    """Check that partition values are what the formats of their keys write.

    With a value such as ``2026/11/01`` for ``%Y-%m-%d``, no file would ever belong to the partition.

    :raises ValueError: if a value is written otherwise.
    """
    for key, value in values.items():
        try:
            with warnings.catch_warnings(action="ignore"):
                datetime.strptime(value, formats[key])
        except ValueError as error:
            # Other messages tell what `strptime` cannot parse although `strftime` writes it.
            if "does not match format" in str(error) or "unconverted data" in str(error):
                example = datetime(2026, 11, 1, tzinfo=UTC).strftime(formats[key])
                raise ValueError(
                    f"the partition value {key}={value!r} is not written as partition_from_modified says, "
                    f"{formats[key]!r}, such as {example!r}: no file would belong to it"
                ) from None


@dataclass(frozen=True)
class Partitioning:
    """How the audio below a source is divided into partitions: by path, by time, and by fixed values.

    :param template: template of the source.
    :param formats: ``strftime`` formats of keys that the modification time determines; see
        :func:`modified_partition`.
    :param fixed: keys with the same value for all files.
    """

    template: PartitionTemplate
    formats: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: str,
        partition_from_modified: Mapping[str, str] | None = None,
        partition: Mapping[str, str] | None = None,
    ) -> Partitioning:
        """:raises ValueError: if an argument is wrong, or a partition key is given twice or not at all."""
        template = PartitionTemplate.parse(source)
        formats = check_formats(partition_from_modified) if partition_from_modified else {}
        fixed = check_partition(partition) if partition else {}
        keys = [*fixed, *template.names, *formats]
        if not keys:
            raise ValueError(
                f"source {source!r} does not say which partition a file belongs to: put placeholders into "
                f"it, "
                "for example 's3://calls/raw/dt={dt}/', or set partition_from_modified={'dt': '%Y-%m-%d'}"
            )
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"partition key {twice[0]!r} is given more than once for source {source!r}")
        return cls(template, formats, fixed)

    def source_of(self, partition: Mapping[str, str]) -> str:
        """The folder to list for a partition, with a trailing slash."""
        return self.template.source_of(partition)

    def lies_inside(self, folder: str) -> bool:
        """Whether files in a folder would count as audio of the source."""
        return self.template.partition_of(folder_uri(folder) + "file") is not None
