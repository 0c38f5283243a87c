"""List the audio of a source: everything below it that is not hidden and matches the pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from whisper_spark.storage.objects import folder_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from whisper_spark.storage.objects import ObjectStorage


from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order; the next one is fetched in a thread while one is in use."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as thread:
        fetched = thread.submit(next, iterator, end)
        while (item := fetched.result()) is not end:
            fetched = thread.submit(next, iterator, end)
            yield item  # type: ignore[misc]


# --- what counts as audio ------------------------------------------------------------------------------


def audio_files(
    storage: ObjectStorage,
    source: str,
    pattern: str | None = None,
    *,
    belongs: Callable[[datetime], bool] | None = None,
    ignored: Callable[[int], None] | None = None,
    unreadable: Callable[[str], None] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The listing of a source without what is none of ours.

    Left out: keys with a folder or name that starts with ``_`` or ``.`` below the source (``_SUCCESS``,
    ``.part.crc``), folder markers, and what does not match the pattern.

    :param source: URI of a folder.
    :param pattern: glob on the path below the source, in any case; ``*`` also matches slashes.
    :param belongs: whether a file that was modified then belongs to the partition.
    :param ignored: is told how many objects of a batch were left out.
    :param unreadable: gets the URI of each file that would count as audio, if its name could be read: see
        :meth:`whisper_spark.storage.objects.ObjectStorage.list`.
    """
    import pyarrow as pa

    folder = folder_uri(source)
    start = len(folder)

    def unreadable_audio(uri: str) -> None:
        if unreadable and is_audio(uri[start:], pattern):
            unreadable(uri)

    for batch in read_ahead(storage.list(folder, unreadable=unreadable_audio)):
        wanted = [is_audio(uri[start:], pattern) for uri in batch.column("audio_uri").to_pylist()]
        if ignored and not all(wanted):
            ignored(wanted.count(False))
        if belongs:
            times = batch.column("last_modified").to_pylist()
            wanted = [want and belongs(time) for want, time in zip(wanted, times, strict=True)]
        yield batch if all(wanted) else batch.filter(pa.array(wanted))


def is_audio(key: str, pattern: str | None) -> bool:
    """Whether a path below a source counts as audio: not hidden, and matching the pattern."""
    hidden = key.startswith(("_", ".")) or "/_" in key or "/." in key
    if hidden or key.endswith(("/", "_$folder$")):
        return False
    return pattern is None or fnmatch(key.lower(), pattern.lower())
