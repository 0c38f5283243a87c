"""Read asset events in the DAG runs that they trigger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def arrived_partitions(
    triggering_asset_events: Mapping[Any, Iterable[Any]], inlet_events: Mapping[Any, Any] | None = None
) -> list[dict[str, Any]]:
    """List the partitions with new audio, once per source, as arguments of a mapped task group.

    .. code-block:: python

        @task(inlets=[audio])
        def partitions(triggering_asset_events=None, inlet_events=None):
            return arrived_partitions(triggering_asset_events, inlet_events)

        @task_group
        def one_partition(source, partition):
            transcribe_partition(source=source, partition=partition, ...)

        one_partition.expand_kwargs(partitions())

    Several events may have triggered one DAG run, and several of them may name the same partition. A
    partition with new audio in several sources is returned once for each source, because each source is
    listed separately.

    :param triggering_asset_events: from the task context. Events that do not come from a
        :class:`NewAudioTrigger` are ignored.
    :param inlet_events: from the context of a task whose ``inlets`` are the watched assets. Without them the
        last files of a burst may have to wait until another file arrives, see :func:`pending_events`.
    :return: ``[{"source": "s3://calls/raw/dt=2026-11-01/", "partition": {"dt": "2026-11-01"}}, ...]``, sorted
        by source and partition.
    :raises ValueError: if there are more partitions than a task can be mapped over.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in _entries(pending_events(triggering_asset_events, inlet_events)):
        # A source may hold several partitions, distinguished by modification time, and a partition may have
        # several sources. Sort the partition keys, because their order has no meaning.
        key = entry["source"], tuple(sorted(entry["partition"].items()))
        found.setdefault(key, {"source": entry["source"], "partition": entry["partition"]})
    partitions = [found[key] for key in sorted(found)]
    check_map_length(partitions)
    return partitions


def pending_events(
    triggering_asset_events: Mapping[Any, Iterable[Any]], inlet_events: Mapping[Any, Any] | None = None
) -> list[Any]:
    """Return the events that triggered a DAG run and those that arrived since.

    Airflow 3.3 dates a run by the first event that requests it. Events that arrive after this event but
    before Airflow creates the run are not assigned to any run until yet another event arrives. This gap is
    usually about a second, but lasts minutes when the DAG has reached its ``max_active_runs``. With the inlet
    events no event is missed, but two runs may see the same event.

    :param triggering_asset_events: from the task context.
    :param inlet_events: from the context of a task whose ``inlets`` are the assets. Omit them in runs with a
        partition key, which get exactly the events with this key.
    :return: the events of each asset, oldest first.
    """
    pending: list[Any] = []
    for asset, triggering in triggering_asset_events.items():
        events = list(triggering)
        if events and inlet_events is not None and asset in inlet_events:
            first = min(event.timestamp for event in events)
            # `after` includes the first event itself.
            events = list(inlet_events[asset].after(first.isoformat()))
        pending += events
    return pending


def _entries(events: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for event in events:
        payload = (event.extra or {}).get("payload")
        entries = payload.get("partitions") if isinstance(payload, Mapping) else None
        for entry in entries if isinstance(entries, list | tuple) else ():
            if _is_entry(entry):
                yield entry


def _is_entry(entry: Any) -> bool:
    """Whether a :class:`NewAudioTrigger` may have written this: anybody can create events of an asset."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("partition"), Mapping):
        return False
    return isinstance(entry.get("source"), str) and bool(entry["partition"])


def check_map_length(partitions: list[dict[str, Any]]) -> None:
    """:raises ValueError: if there are more partitions than a task can be mapped over."""
    from airflow.sdk.configuration import conf

    longest = conf.getint("core", "max_map_length")
    if len(partitions) > longest:
        raise ValueError(
            f"{len(partitions):,} partitions have new audio, but Airflow maps a task over at most "
            f"{longest:,}: "
            "raise [core] max_map_length and clear this task, which has lost nothing"
        )
