"""What asset events say, for the DAG runs that they start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def arrived_partitions(
    triggering_asset_events: Mapping[Any, Iterable[Any]], inlet_events: Mapping[Any, Any] | None = None
) -> list[dict[str, Any]]:
    """The partitions with new audio, each once per source, as arguments of a mapped task group.

    .. code-block:: python

        @task(inlets=[audio])
        def partitions(triggering_asset_events=None, inlet_events=None):
            return arrived_partitions(triggering_asset_events, inlet_events)

        @task_group
        def one_partition(source, partition):
            transcribe_partition(source=source, partition=partition, ...)

        one_partition.expand_kwargs(partitions())

    One DAG run may have been started by several events, and several may name one partition. A partition with
    new audio in several sources is there once for each: every source is listed by itself.

    :param triggering_asset_events: from the context of a task. Events that are not from a
        :class:`NewAudioTrigger` are left out.
    :param inlet_events: from the context of a task whose ``inlets`` are the watched assets. Without them the
        last files of a burst may wait for the next file, see :func:`pending_events`.
    :return: ``[{"source": "s3://calls/raw/dt=2026-11-01/", "partition": {"dt": "2026-11-01"}}, ...]``, in the
        order of sources and partitions.
    :raises ValueError: for more partitions than a task can be mapped over.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in _entries(pending_events(triggering_asset_events, inlet_events)):
        # A source may hold several partitions, told by the time of modification, and a partition may have
        # several sources. The order of the keys says nothing.
        key = entry["source"], tuple(sorted(entry["partition"].items()))
        found.setdefault(key, {"source": entry["source"], "partition": entry["partition"]})
    partitions = [found[key] for key in sorted(found)]
    check_map_length(partitions)
    return partitions


def pending_events(
    triggering_asset_events: Mapping[Any, Iterable[Any]], inlet_events: Mapping[Any, Any] | None = None
) -> list[Any]:
    """The events that started a DAG run, and those that came since.

    Airflow 3.3 dates a run by the first event that asked for it, and connects the events that come until the
    run is made with no run until there is yet another event. That is a second as a rule, and minutes when the
    DAG is at its ``max_active_runs``. Nothing is lost with the inlet events, but an event may be seen by two
    runs.

    :param triggering_asset_events: from the context of a task.
    :param inlet_events: from the context of a task whose ``inlets`` are the assets. Not for runs with a
        partition key, which get exactly the events with this key.
    :return: oldest first, for each asset.
    """
    pending: list[Any] = []
    for asset, triggering in triggering_asset_events.items():
        events = list(triggering)
        if events and inlet_events is not None and asset in inlet_events:
            first = min(event.timestamp for event in events)
            events = list(inlet_events[asset].after(first.isoformat()))  # with the first
        pending += events
    return pending


def _entries(events: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for event in events:
        payload = (event.extra or {}).get("payload")
        if isinstance(payload, Mapping):
            yield from payload.get("partitions", ())


def check_map_length(partitions: list[dict[str, Any]]) -> None:
    """:raises ValueError: for more partitions than a task can be mapped over."""
    from airflow.sdk.configuration import conf

    longest = conf.getint("core", "max_map_length")
    if len(partitions) > longest:
        raise ValueError(
            f"{len(partitions):,} partitions have new audio, but Airflow maps a task over at most "
            f"{longest:,}: "
            "raise [core] max_map_length and clear this task, which has lost nothing"
        )
