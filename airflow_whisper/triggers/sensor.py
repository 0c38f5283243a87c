"""The trigger to which :class:`NewAudioSensor` defers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.table.errors import CatalogConnectionError, TableMismatchError
from airflow_whisper.triggers.polling import WatchThread, trying
from airflow_whisper.watch.source import WatchedSource
from whisper_spark.contract import partition_path

# Errors that a user has to correct. All others, such as a catalog that does not respond, may be transient.
FINAL_ERRORS = (InvalidConnectionError, CatalogConnectionError, TableMismatchError)


class TableFiles:
    """The files that a table has rows for. Implements :class:`airflow_whisper.watch.watcher.KnownFiles`."""

    def __init__(self, catalog_conn_id: str | None, table: str) -> None:
        self._catalog_conn_id = catalog_conn_id
        self._table = table
        self._read: dict[str, int | None] = {}

    def files(self, partition: Mapping[str, str]) -> Iterator[tuple[str, str | None]] | None:
        """Yield URI and etag of each row of a partition; ``None`` if unchanged since the last call."""
        from airflow_whisper.hooks.catalog import open_catalog
        from airflow_whisper.table.read import current_snapshot_id

        catalog = open_catalog(self._catalog_conn_id)
        snapshot_id = current_snapshot_id(catalog, self._table)
        path = partition_path(partition)
        if path in self._read and self._read[path] == snapshot_id:
            return None
        return self._rows(catalog, partition, path, snapshot_id)

    def _rows(
        self, catalog: Any, partition: Mapping[str, str], path: str, snapshot_id: int | None
    ) -> Iterator[tuple[str, str | None]]:
        from airflow_whisper.table.read import partition_rows

        names = ("audio_uri", "audio_etag")
        for batch in partition_rows(catalog, self._table, partition, columns=names, snapshot_id=snapshot_id):
            yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        self._read[path] = snapshot_id


class AudioToTranscribeTrigger(BaseTrigger):
    """Fire once, when a source holds audio that a table does not contain.

    :class:`NewAudioSensor` uses it; for event-driven scheduling use :class:`NewAudioTrigger`. The payload is
    ``{"partitions": [{"source", "partition", "files", "bytes"}, ...]}``, or ``{"error": ...}`` for an error
    that waiting cannot resolve.

    :param watched: the source to watch, as an object or as a dict.
    :param table: ``namespace.table``.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded catalog.
    :param poll_interval: seconds between two polls.
    """

    def __init__(
        self,
        *,
        watched: WatchedSource | Mapping[str, Any],
        table: str,
        catalog_conn_id: str | None,
        poll_interval: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watched = watched if isinstance(watched, WatchedSource) else WatchedSource.from_dict(watched)
        self.table = table
        self.catalog_conn_id = catalog_conn_id
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments. They contain connection ids, but no credentials."""
        return (
            "airflow_whisper.triggers.sensor.AudioToTranscribeTrigger",
            {
                "watched": self.watched.to_dict(),
                "table": self.table,
                "catalog_conn_id": self.catalog_conn_id,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there is audio, and yield one event."""
        async with WatchThread(
            self.watched, self.log, lambda: TableFiles(self.catalog_conn_id, self.table)
        ) as watch:
            try:
                found = await trying(watch.find, self.poll_interval, self.log, give_up=FINAL_ERRORS)
                while not found:
                    await asyncio.sleep(self.poll_interval)
                    found = await trying(watch.find, self.poll_interval, self.log, give_up=FINAL_ERRORS)
            except FINAL_ERRORS as error:
                yield TriggerEvent({"error": str(error)})  # type: ignore[no-untyped-call]
                return
        yield TriggerEvent({"partitions": found})  # type: ignore[no-untyped-call]
