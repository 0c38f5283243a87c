"""Fire when audio is new or changed."""

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

# Raised by AssetStateStoreAccessors when the trigger is watched by more than one asset.
_MULTI_ASSET_ERROR = "concrete inlets and outlets"

# An event counts as delivered this many seconds after it was handed over. The triggerer keeps an event in
# memory until its next round, about a second later, and tells nobody when it is in the database. Storing
# files as reported before that would lose them if the triggerer was killed in between.
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
      ``{"dt": "2026-11-01", "hour": "13"}``; ``files`` and ``bytes``, of this event;
    - ``uris``: the files, when there are at most 20, else ``None``;
    - ``list_uri``: otherwise, and with ``staging``, a Parquet file with ``audio_uri``, ``audio_etag``,
      ``audio_bytes``, ``last_modified`` and ``partition``.

    A file is reported again when its etag changes. A cursor is stored with the asset: a watermark, up to
    which everything has been reported, and ``{uri: etag}`` of the later files that were reported. A restarted
    triggerer goes on from there. One that was killed repeats the events of its last 15 seconds, or of its
    last poll where that took longer; whoever receives them should do nothing twice, as
    :class:`DiscoverAudioOperator` does not. Where Airflow has no state for the trigger, which is logged,
    everything is reported once more after a restart.

    A store that cannot be reached is tried again, less and less often, up to every five minutes.

    :param source: folder to watch, recursively: ``s3://``, ``gs://``, ``az://``, ``abfss://``, ``file://`` or
        a path. Placeholders name the partition: ``s3://calls/raw/dt={dt}/hour={hour}/``. Objects in other
        folders are not reported.
    :param partition_from_modified: partition keys that come from the time of modification, in UTC, as
        ``strftime`` formats: ``{"dt": "%Y-%m-%d"}``. Give the same to :class:`DiscoverAudioOperator`.
    :param source_conn_id: Airflow connection for the source; ``None``: ambient credentials.
    :param staging: folder for what is too long for an event or for Airflow's database; not inside ``source``.
    :param staging_conn_id: Airflow connection for staging; ``None``: the same as for the source.
    :param pattern: glob on the path below the partition's folder, in any case: ``"*.wav"``.
    :param extensions: endings of file names, in any case: ``["wav", "mp3"]``; ``None``: any but those of
        sidecar files, such as ``.json``.
    :param poll_interval: seconds between two polls.
    :param stable_polls: a file counts when this many polls in a row saw it with the same size and etag ...
    :param min_age: ... or when it was modified this many seconds ago, by the clock of the store.
    :param min_files: fire when this many files are ready ...
    :param max_wait: ... or when one of them was modified this many seconds ago.
    :param max_files: files in one event at most.
    :param since: ISO time with time zone: what was modified earlier does not count. ``None``: what is there
        when the trigger first runs is new. Without effect once there is a cursor.
    :param lookback: seconds for which a dated partition is looked into on every poll after its time is over.
    :param sweep_interval: seconds between polls that look into every partition, for what comes after that.
    :param overlap: seconds by which clocks may differ, or an upload may take from its time of modification
        until it shows up in a listing. The cursor names the files of the last ``sweep_interval + overlap``.
    :raises ValueError: when an argument is wrong.
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
        """Class path and arguments. They hold names of connections, not what is in them."""
        arguments = self.watched.to_dict()
        # What the sensor has and the trigger has not.
        del arguments["partition"]
        arguments.update(arguments.pop("rules"), poll_interval=self.poll_interval)
        return "airflow_whisper.triggers.audio.NewAudioTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Polls for ever; yields an event for each batch of new audio."""
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
    """For people: what an event reports."""
    partitions = payload["partitions"]
    return (
        f"{payload['files']:,} files, {payload['bytes'] / 1e6:,.1f} MB, in {len(partitions)} partitions from "
        f"{partitions[0]['source']} to {partitions[-1]['source']}"
    )


class StoredCursor:
    """The cursor in the state that Airflow keeps for an asset; or nothing, where there is no such state."""

    def __init__(self, accessors: Any, key: str, log: Log) -> None:
        self._accessors = accessors
        self._key = key
        self._log = log

    @property
    def available(self) -> bool:
        """Whether anything can be stored."""
        return self._accessors is not None

    async def load(self) -> dict[str, Any] | None:
        """What was stored last; ``None`` the first time, and where nothing can be stored."""
        if self._accessors is None:
            self._warn("Airflow gave the trigger no asset state")
            return None
        try:
            state: dict[str, Any] | None = await self._accessors.aget(self._key)
        except ValueError as error:
            # Triggers with equal arguments are one trigger, which has a state for each asset: none of its
            # own. A state backend may raise ValueError too, and that must not cost the cursor.
            if _MULTI_ASSET_ERROR not in str(error):
                raise
            self._warn("more than one asset is watched with the same arguments")
            self._accessors = None
            return None
        return state

    async def store(self, state: Mapping[str, Any]) -> None:
        """Replaces what was stored."""
        await self._accessors.aset(self._key, state)

    def _warn(self, reason: str) -> None:
        self._log.warning(
            "What was reported is not stored, because %s: after a restart of the triggerer everything since "
            "the argument `since` is reported once more.",
            reason,
        )
