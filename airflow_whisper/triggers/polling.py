"""Polling that neither blocks the triggerer nor ends when a store does not answer."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.table.errors import CatalogError
from airflow_whisper.watch.watcher import SourceWatch
from whisper_spark.storage.objects import StorageError

if TYPE_CHECKING:
    from airflow_whisper.watch.cursor import CursorState
    from airflow_whisper.watch.source import Log, WatchedSource
    from airflow_whisper.watch.watcher import KnownFiles

T = TypeVar("T")

# Their messages say it all; anything else comes with a traceback.
EXPECTED_ERRORS = (StorageError, InvalidConnectionError, CatalogError)

_NOT_STORED = "What was reported could not be stored, next try after the next poll: %s"

# Longest pause between two tries to reach a store that does not answer, unless polls are rarer anyway.
MAX_BACKOFF_SECONDS = 300


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
    function: Callable[[], Any], poll_interval: float, log: Log, *, give_up: tuple[type[Exception], ...] = ()
) -> Any:
    """The result of a coroutine function, tried again with growing pauses until it succeeds.

    Not even a missing connection or a refused password ends a watch: people correct these while it runs, and
    a trigger that ends is started again by Airflow every second.

    :param give_up: exceptions that waiting cannot help.
    """
    failures = 0
    while True:
        try:
            result = await function()
        except give_up:
            raise
        except Exception as error:
            failures += 1
            pause = backoff_seconds(failures, poll_interval)
            log.warning(
                "%s (try %s; the next in %.0f s)",
                str(error) or type(error).__name__,
                failures,
                pause,
                exc_info=not isinstance(error, EXPECTED_ERRORS),
            )
            await asyncio.sleep(pause)
        else:
            if failures:
                log.info("Going on after %s failed tries.", failures)
            return result


class WatchThread:
    """A :class:`SourceWatch` in a thread of its own, because listings and its database block.

    An async context manager. Not the threads that all triggers share: a first listing can take minutes.
    """

    def __init__(
        self, watched: WatchedSource, log: Log, known: Callable[[], KnownFiles] | None = None
    ) -> None:
        self._watched = watched
        self._log = log
        self._known = known
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="new-audio")

    async def __aenter__(self) -> WatchThread:
        self._watch = await self._run(self._open)
        return self

    def _open(self) -> SourceWatch:
        return SourceWatch(self._watched, self._log, self._known() if self._known else None)

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

    async def restore(self, values: Mapping[str, Any]) -> None:
        """:meth:`Cursor.restore`."""
        await self._run(self._watch.cursor.restore, values)

    async def cursor_to_write(self) -> CursorState | None:
        """:meth:`Cursor.to_write`; also ``None`` when staging cannot be reached."""
        try:
            return await self._run(self._watch.cursor.to_write)
        except Exception as error:
            self._log.warning(_NOT_STORED, error)
            return None

    async def store_cursor(
        self, state: CursorState, store: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """Stores what :meth:`cursor_to_write` gave. A failure is logged; the next poll tries again."""
        try:
            await store(state.values)
        except Exception as error:
            await self._run(self._watch.cursor.was_not_stored, state)
            self._log.warning(_NOT_STORED, error)
        else:
            await self._run(self._watch.cursor.was_stored, state)
