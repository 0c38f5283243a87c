"""List a source, and distinguish the audio of a partition from other objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from airflow_whisper.discovery.audio_filter import AudioFilter
from whisper_spark.storage.objects import folder_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage

T = TypeVar("T")


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items in the same order, and fetch the next one in a thread while one is in use."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        fetched = thread.submit(next, iterator, end)
        while (item := fetched.result()) is not end:
            fetched = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def list_by_kind(
    storage: ObjectStorage,
    source: str,
    audio_filter: AudioFilter,
    *,
    belongs: Callable[[datetime], bool] | None = None,
    unreadable: Callable[[str], None] | None = None,
) -> Iterator[tuple[pa.RecordBatch, list[str]]]:
    """List all objects below a source in batches, with the kind of each object.

    A kind is one of :meth:`AudioFilter.kind`, or ``other_time``: audio that belongs to another partition.

    :param source: URI of a folder.
    :param belongs: whether a file with this modification time belongs to the partition; ``None``: all do.
    :param unreadable: called with the URI of each file that would count as audio if its name were readable:
        see :meth:`whisper_spark.storage.objects.ObjectStorage.list`.
    """
    folder = folder_uri(source)
    start = len(folder)

    def unreadable_audio(uri: str) -> None:
        # Components such as ".." are why the name cannot be read, and do not mark a hidden folder.
        name = "/".join(part for part in uri[start:].split("/") if part.strip("."))
        if unreadable and audio_filter.kind(name) == "audio":
            unreadable(uri)

    for batch in read_ahead(storage.list(folder, unreadable=unreadable_audio)):
        kinds: list[str] = [audio_filter.kind(uri[start:]) for uri in batch.column("audio_uri").to_pylist()]
        if belongs:
            times = batch.column("last_modified").to_pylist()
            kinds = [
                "other_time" if kind == "audio" and not belongs(time) else kind
                for kind, time in zip(kinds, times, strict=True)
            ]
        yield batch, kinds
