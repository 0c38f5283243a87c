"""Polling that neither blocks the triggerer nor ends when a store does not answer."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.table.errors import CatalogError
from airflow_whisper.watch.watcher import SourceWatch, WatchedSource
from whisper_spark.storage.objects import StorageError

if TYPE_CHECKING:
    from airflow_whisper.watch.watcher import Held, Log

T = TypeVar("T")

_EXPECTED = (StorageError, InvalidConnectionError, CatalogError)
# Their messages say it all; anything else comes with a traceback.

_NOT_STORED = "What was reported could not be stored, next try after the next poll: %s"

MAX_BACKOFF_SECONDS = 300
"""Longest pause between two attempts to reach a store that does not answer, unless polls are rarer anyway."""


def check_poll_interval(seconds: float) -> None:
    """:raises ValueError: unless it is a positive number."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
        raise ValueError(f"poll_interval must be a number of seconds greater than 0, got {seconds!r}")


def backoff_seconds(failures: int, poll_interval: float) -> float:
    """How long to wait after so many failures in a row."""
    longest = max(MAX_BACKOFF_SECONDS, poll_interval)
    doubled: float = max(poll_interval, 1) * 2 ** min(failures - 1, 20)
    return min(longest, doubled)


async def trying(
    attempt: Callable[[], Any], poll_interval: float, log: Log, *, give_up: tuple[type[Exception], ...] = ()
) -> Any:
    """The result of a coroutine function, tried again with growing pauses until it succeeds.

    Not even a missing connection or a refused password ends a watch: they are mended while it runs, and a
    trigger that ends is started again by Airflow every second.

    :param give_up: exceptions that no waiting can mend.
    """
    failures = 0
    while True:
        try:
            result = await attempt()
        except give_up:
            raise
        except Exception as error:
            failures += 1
            pause = backoff_seconds(failures, poll_interval)
            log.warning(
                "%s (attempt %s; the next in %.0f s)",
                str(error) or type(error).__name__,
                failures,
                pause,
                exc_info=not isinstance(error, _EXPECTED),
            )
            await asyncio.sleep(pause)
        else:
            if failures:
                log.info("Going on after %s failed attempts.", failures)
            return result


class WatchThread:
    """A :class:`SourceWatch` in a thread of its own, because listings and its database block.

    An async context manager. Not the threads that all triggers share: a first listing can take minutes.
    """

    def __init__(self, watched: WatchedSource, log: Log, held: Callable[[], Held] | None = None) -> None:
        self._watched = watched
        self._log = log
        self._held = held
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="new-audio")

    async def __aenter__(self) -> WatchThread:
        self._watch = await self._run(self._open)
        return self

    def _open(self) -> SourceWatch:
        return SourceWatch(self._watched, self._log, self._held() if self._held else None)

    async def __aexit__(self, *_: object) -> None:
        self._watch.stop()
        self._executor.submit(self._watch.close)
        self._executor.shutdown(wait=False)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        # With the context, so that log lines find their way to the log of this trigger.
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, context.run, function, *arguments)

    async def poll(self) -> list[dict[str, Any]]:
        """:meth:`SourceWatch.poll`."""
        return await self._run(self._watch.poll)

    async def find(self) -> list[dict[str, Any]]:
        """:meth:`SourceWatch.find`."""
        return await self._run(self._watch.find)

    async def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from an earlier memory."""
        await self._run(self._watch.memory.restore, state)

    async def to_remember(self) -> dict[str, Any] | None:
        """The memory as it is now; ``None`` when the last one will do, or staging cannot be reached."""
        try:
            return await self._run(self._watch.memory.to_write)
        except Exception as error:
            self._log.warning(_NOT_STORED, error)
            return None

    async def remember(
        self, state: dict[str, Any], store: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """Stores what :meth:`to_remember` gave. A failure is logged, and mended after the next poll."""
        try:
            await store(state)
            await self._run(self._watch.memory.was_stored)
        except Exception as error:
            await self._run(self._watch.memory.was_not_stored)
            self._log.warning(_NOT_STORED, error)
