"""The watched source: the arguments that the trigger and the sensor share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, Self

from airflow_whisper.discovery.audio_filter import AudioFilter, extension_tuple
from airflow_whisper.discovery.locations import check_locations
from airflow_whisper.watch.partition_templates import Partitioning
from airflow_whisper.watch.pending import NEVER, BatchRules

if TYPE_CHECKING:
    from whisper_spark.storage.objects import ObjectStorage


class Log(Protocol):
    """The logger of a trigger or of a task."""

    def info(self, event: Any, *args: Any) -> Any: ...  # noqa: D102
    def warning(self, event: Any, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class WatchedSource:
    """A source and how to watch it. Parameters as in :class:`airflow_whisper.triggers.audio.NewAudioTrigger`.

    :raises ValueError: if an argument is wrong.
    """

    source: str
    rules: BatchRules = field(default_factory=BatchRules)
    partition_from_modified: Mapping[str, str] | None = None
    partition: Mapping[str, str] | None = None
    pattern: str | None = None
    extensions: tuple[str, ...] | None = None
    since: str | None = None
    lookback: float = 2 * 86400
    overlap: float = 3600
    sweep_interval: float = 3600
    source_conn_id: str | None = None
    staging: str | None = None
    staging_conn_id: str | None = None

    def __post_init__(self) -> None:
        check_locations({"source": self.source})
        partitioning = self.partitioning
        if self.staging is not None:
            check_locations({"staging": self.staging})
            if partitioning.lies_inside(self.staging):
                raise ValueError(
                    f"staging {self.staging!r} must not lie inside source {self.source!r}: "
                    "name a folder beside it"
                )
        for name in ("lookback", "overlap", "sweep_interval"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a number of seconds, 0 or more, got {value!r}")
        self.first_watermark()
        _ = self.audio_filter

    # --- as JSON -----------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments as JSON-serialisable values, for Airflow's database."""
        values = asdict(self)
        for name in ("partition", "partition_from_modified"):
            values[name] = dict(values[name]) if values[name] else None
        values["extensions"] = list(self.extensions) if self.extensions else None
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        rules = BatchRules(**values["rules"])
        return cls(**{**values, "rules": rules, "extensions": extension_tuple(values["extensions"])})

    # --- derived from the arguments ----------------------------------------------------------------------

    @cached_property
    def partitioning(self) -> Partitioning:
        """How the audio is divided into partitions."""
        return Partitioning.of(self.source, self.partition_from_modified, self.partition)

    @cached_property
    def audio_filter(self) -> AudioFilter:
        """Which objects are audio."""
        return AudioFilter(self.pattern, self.extensions)

    @property
    def watch_id(self) -> str:
        """Id of this watch's cursor. It depends on the arguments that select files, not on the timing."""
        extensions = sorted(self.audio_filter.suffixes)
        what = [self.partitioning.template.source, self.pattern, extensions, self.since]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def first_watermark(self) -> int:
        """Return the time, in microseconds, after which files count if there is no cursor yet.

        :raises ValueError: if ``since`` is not an ISO time with a time zone.
        """
        if self.since is None:
            return NEVER
        try:
            moment = datetime.fromisoformat(self.since)
        except (TypeError, ValueError):
            moment = datetime.min
        if moment.tzinfo is None:
            raise ValueError(
                f"since must be an ISO time with a time zone, such as '2026-11-01T00:00:00+00:00', got "
                f"{self.since!r}"
            )
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

    def staging_storage(self) -> ObjectStorage:
        """Return the storage of :attr:`staging`, with the current credentials of its connection."""
        from airflow_whisper.hooks.object_storage import object_storage

        return object_storage(self.staging_conn_id or self.source_conn_id or None, self.staging or "")
