"""Let a store answer the next request while the last answer is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
