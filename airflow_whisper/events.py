"""What the asset events of :class:`NewAudioTrigger` say, for the DAG runs that they start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def arrived_partitions(
    triggering_asset_events: Mapping[Any, Iterable[Any]], inlet_events: Mapping[Any, Any] | None = None
) -> list[dict[str, Any]]:
    """The partitions with new audio, each once, as arguments of a mapped task group.

    .. code-block:: python

        @task(inlets=[audio])
        def partitions(triggering_asset_events=None, inlet_events=None):
            return arrived_partitions(triggering_asset_events, inlet_events)

        @task_group
        def one_partition(source, partition):
            transcribe_partition(source=source, partition=partition, ...)

        one_partition.expand_kwargs(partitions())

    One DAG run may have been started by several events, and several may name one partition.

    Give it the inlet events too, or the last files of a burst wait for the next one: Airflow 3.3 dates a run
    by the first event that asked for it, and connects later ones with no run until another event comes. A DAG
    at its ``max_active_runs`` is such a case, and so are two events within a second.

    :param triggering_asset_events: from the context of a task. Events that are not from a
        :class:`NewAudioTrigger` are left out.
    :param inlet_events: from the context of a task whose ``inlets`` are the watched assets.
    :return: ``[{"source": "s3://calls/raw/dt=2026-11-01/", "partition": {"dt": "2026-11-01"}}, ...]``.
    :raises ValueError: for more partitions than a task can be mapped over.
    """
    events = [event for of_asset in triggering_asset_events.values() for event in of_asset]
    if inlet_events is not None:
        events += _later_events(triggering_asset_events, inlet_events)
    found = {entry["source"]: entry for entry in _entries(events)}
    partitions = [
        {"source": entry["source"], "partition": entry["partition"]} for _, entry in sorted(found.items())
    ]
    check_map_length(partitions)
    return partitions


def _later_events(triggering: Mapping[Any, Iterable[Any]], inlet_events: Mapping[Any, Any]) -> Iterator[Any]:
    for asset, events in triggering.items():
        first = min((event.timestamp for event in events), default=None)
        if first is not None and asset in inlet_events:
            yield from inlet_events[asset].after(first.isoformat())


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
