"""Trigger that fires when audio is new or changed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_whisper.discovery.audio_filter import extension_tuple
from airflow_whisper.triggers.polling import WatchThread, check_poll_interval, trying
from airflow_whisper.watch.pending import BatchRules
from airflow_whisper.watch.source import WatchedSource

if TYPE_CHECKING:
    from airflow_whisper.watch.cursor import CursorState
    from airflow_whisper.watch.source import Log

# Part of the message of the error that AssetStateStoreAccessors raises if several assets share a trigger.
_MULTI_ASSET_ERROR = "concrete inlets and outlets"

# An event counts as delivered this many seconds after it was yielded. The triggerer keeps an event in memory
# until its next loop, about a second later, and does not signal when it has written it to the database. A
# cursor that was stored earlier would lose the event's files if the triggerer was killed in between.
DELIVERY_SECONDS = 15


class NewAudioTrigger(BaseEventTrigger):
    """Fire an event whenever audio in object storage is new or changed.

    .. code-block:: python

        from airflow.sdk import DAG, Asset, AssetWatcher

        calls = Asset(
            "calls",
            watchers=[
                AssetWatcher(
                    name="new_calls",
                    trigger=NewAudioTrigger(
                        source="s3://calls/raw/dt={dt}/hour={hour}/",
                        source_conn_id="calls_s3",
                        staging="s3://calls/staging/",
                    ),
                )
            ],
        )

        with DAG("on_arrival", schedule=[calls]):
            ...

    The payload of an event, in ``triggering_asset_events[...][i].extra["payload"]``:

    - ``source``: as given;
    - ``files`` and ``bytes``: totals;
    - ``partitions``: at most 100, each with ``source``, the folder of its audio; ``partition``, for example
      ``{"dt": "2026-11-01", "hour": "13"}``; and ``files`` and ``bytes`` of this event;
    - ``uris``: the files, if there are at most 20, otherwise ``None``;
    - ``list_uri``: with more files and if ``staging`` is given, a Parquet file with ``audio_uri``,
      ``audio_etag``, ``audio_bytes``, ``last_modified`` and ``partition``.

    A file is reported again if its etag changes. Airflow stores a cursor with the asset: a watermark, up to
    which everything has been reported, and ``{uri: etag}`` of the later files that were reported. A restarted
    triggerer continues from the cursor. A triggerer that was killed repeats the events of its last 15
    seconds, or of its last poll if that took longer. Consumers must therefore be idempotent, as
    :class:`DiscoverAudioOperator` is. If Airflow provides no state for the trigger, a warning is logged, and
    everything is reported once more after a restart.

    If the store cannot be reached, the trigger retries with exponential backoff, at most five minutes apart.

    :param source: folder to watch, recursively: ``s3://``, ``gs://``, ``az://``, ``abfss://``, ``file://`` or
        a path. Placeholders name the partition: ``s3://calls/raw/dt={dt}/hour={hour}/``. Objects in other
        folders are not reported.
    :param partition_from_modified: ``strftime`` formats of partition keys that are derived from the
        modification time, in UTC: ``{"dt": "%Y-%m-%d"}``. Pass the same to :class:`DiscoverAudioOperator`.
    :param source_conn_id: Airflow connection for the source; ``None``: ambient credentials.
    :param staging: folder for data too long for an event or for Airflow's database; outside ``source``.
    :param staging_conn_id: Airflow connection for staging; ``None``: the same as for the source.
    :param pattern: case-insensitive glob on the path below the partition's folder: ``"*.wav"``.
    :param extensions: file name extensions, case-insensitive: ``["wav", "mp3"]``; ``None``: any except those
        of sidecar files, such as ``.json``.
    :param poll_interval: seconds between two polls.
    :param stable_polls: a file is ready if this many consecutive polls saw it with the same size and etag, or
        by ``min_age``.
    :param min_age: a file is also ready if it was modified this many seconds ago, by the store's clock.
    :param min_files: fire if this many files are ready, or by ``max_wait``.
    :param max_wait: also fire if one of the ready files was modified this many seconds ago.
    :param max_files: maximum number of files in one event.
    :param since: ISO time with time zone: files that were modified earlier are ignored. ``None``: all files
        that exist when the trigger first runs count as new. Has no effect once a cursor is stored.
    :param lookback: seconds after the end of a dated partition during which every poll lists it.
    :param sweep_interval: seconds between polls that list every partition, to find files that arrive later.
    :param overlap: seconds by which clocks may differ, or that may pass between an upload's modification time
        and its appearance in a listing. The cursor names the files of the last ``sweep_interval + overlap``.
    :raises ValueError: if an argument is wrong.
    """

    def __init__(
        self,
        *,
        source: str,
        partition_from_modified: Mapping[str, str] | None = None,
        source_conn_id: str | None = None,
        staging: str | None = None,
        staging_conn_id: str | None = None,
        pattern: str | None = None,
        extensions: Sequence[str] | None = None,
        poll_interval: float = 60,
        stable_polls: int = 2,
        min_age: float = 60,
        min_files: int = 1,
        max_wait: float = 300,
        max_files: int = 10_000,
        since: str | None = None,
        lookback: float = 2 * 86400,
        sweep_interval: float = 3600,
        overlap: float = 3600,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        check_poll_interval(poll_interval)
        self.poll_interval = poll_interval
        self.watched = WatchedSource(
            source=source,
            rules=BatchRules(
                stable_polls=stable_polls,
                min_age=min_age,
                min_files=min_files,
                max_wait=max_wait,
                max_files=max_files,
            ),
            partition_from_modified=partition_from_modified,
            pattern=pattern,
            extensions=extension_tuple(extensions),
            since=since,
            lookback=lookback,
            overlap=overlap,
            sweep_interval=sweep_interval,
            source_conn_id=source_conn_id,
            staging=staging,
            staging_conn_id=staging_conn_id,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments. They contain connection ids, but no credentials."""
        arguments = self.watched.to_dict()
        # Only the sensor has this argument.
        del arguments["partition"]
        arguments.update(arguments.pop("rules"), poll_interval=self.poll_interval)
        return "airflow_whisper.triggers.audio.NewAudioTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until cancelled, and yield an event for each batch of new audio."""
        key = f"new_audio_{self.watched.watch_id}"
        stored = StoredCursor(getattr(self, "asset_state_store", None), key, self.log)
        async with WatchThread(self.watched, self.log) as watch:
            values = await trying(stored.load, self.poll_interval, self.log)
            if values is not None:
                await trying(lambda: watch.restore(values), self.poll_interval, self.log)
            how = "from the beginning" if values is None else "going on from the last event"
            self.log.info("Watching %s, %s.", self.watched.source, how)
            undelivered: deque[tuple[float, CursorState]] = deque()
            while True:
                for payload in await trying(watch.poll, self.poll_interval, self.log):
                    self.log.info("New audio: %s", summary(payload))
                    yield TriggerEvent(payload)  # type: ignore[no-untyped-call]
                now = time.monotonic()
                if stored.available and (state := await watch.cursor_to_write()):
                    undelivered.append((now + DELIVERY_SECONDS, state))
                while undelivered and undelivered[0][0] < now + self.poll_interval:
                    due, state = undelivered.popleft()
                    await asyncio.sleep(due - time.monotonic())
                    await watch.store_cursor(state, stored.store)
                await asyncio.sleep(now + self.poll_interval - time.monotonic())


def summary(payload: Mapping[str, Any]) -> str:
    """Summarise an event's payload for the log."""
    partitions = payload["partitions"]
    return (
        f"{payload['files']:,} files, {payload['bytes'] / 1e6:,.1f} MB, in {len(partitions)} partitions from "
        f"{partitions[0]['source']} to {partitions[-1]['source']}"
    )


class StoredCursor:
    """The cursor in Airflow's asset state store. Without such a store nothing is kept."""

    def __init__(self, accessors: Any, key: str, log: Log) -> None:
        self._accessors = accessors
        self._key = key
        self._log = log

    @property
    def available(self) -> bool:
        """Whether the cursor can be stored."""
        return self._accessors is not None

    async def load(self) -> dict[str, Any] | None:
        """Return the stored cursor; ``None`` if there is none yet or nothing can be stored."""
        if self._accessors is None:
            self._warn("Airflow gave the trigger no asset state")
            return None
        try:
            state: dict[str, Any] | None = await self._accessors.aget(self._key)
        except ValueError as error:
            # Airflow runs triggers with equal arguments as one trigger, which has a state for each asset but
            # none of its own. A state backend may also raise ValueError; this must not discard the cursor.
            if _MULTI_ASSET_ERROR not in str(error):
                raise
            self._warn("more than one asset is watched with the same arguments")
            self._accessors = None
            return None
        return state

    async def store(self, state: Mapping[str, Any]) -> None:
        """Replace the stored cursor."""
        await self._accessors.aset(self._key, state)

    def _warn(self, reason: str) -> None:
        self._log.warning(
            "What was reported is not stored, because %s: after a restart of the triggerer everything since "
            "the argument `since` is reported once more.",
            reason,
        )
