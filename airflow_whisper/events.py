"""What the asset events of :class:`NewAudioTrigger` say, for the DAG runs that they start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def arrived_partitions(triggering_asset_events: Mapping[Any, Iterable[Any]]) -> list[dict[str, Any]]:
    """The partitions with new audio, each once, as arguments of a mapped task group.

    .. code-block:: python

        @task
        def partitions(triggering_asset_events=None):
            return arrived_partitions(triggering_asset_events)

        @task_group
        def one_partition(source, partition):
            transcribe_partition(source=source, partition=partition, ...)

        one_partition.expand_kwargs(partitions())

    One DAG run may have been started by several events, and several may name one partition.

    :param triggering_asset_events: from the context of a task. Events that are not from a
        :class:`NewAudioTrigger` are left out.
    :return: ``[{"source": "s3://calls/raw/dt=2026-11-01/", "partition": {"dt": "2026-11-01"}}, ...]``.
    :raises ValueError: for more partitions than a task can be mapped over.
    """
    found = {entry["source"]: entry for entry in _entries(triggering_asset_events)}
    partitions = [
        {"source": entry["source"], "partition": entry["partition"]} for _, entry in sorted(found.items())
    ]
    check_map_length(partitions)
    return partitions


def _entries(events: Mapping[Any, Iterable[Any]]) -> Iterator[Mapping[str, Any]]:
    for of_asset in events.values():
        for event in of_asset:
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
