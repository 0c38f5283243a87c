"""Polling that does not block the triggerer and survives a store that does not respond."""

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

# Errors with self-explanatory messages. All others are logged with a traceback.
EXPECTED_ERRORS = (StorageError, InvalidConnectionError, CatalogError)

_NOT_STORED = "What was reported could not be stored, next try after the next poll: %s"

# Longest pause between two tries to reach a store that does not respond, unless `poll_interval` is longer.
MAX_BACKOFF_SECONDS = 300


def check_poll_interval(seconds: float) -> None:
    """:raises ValueError: unless it is a positive number."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or seconds <= 0:
        raise ValueError(f"poll_interval must be a number of seconds greater than 0, got {seconds!r}")


def backoff_seconds(failures: int, poll_interval: float) -> float:
    """Return the seconds to wait after this many consecutive failures."""
    longest = max(MAX_BACKOFF_SECONDS, poll_interval)
    doubled: float = max(poll_interval, 1) * 2 ** min(failures - 1, 20)
    return min(longest, doubled)


async def trying(
    function: Callable[[], Any], poll_interval: float, log: Log, *, give_up: tuple[type[Exception], ...] = ()
) -> Any:
    """Await a coroutine function, retrying with exponential backoff until it succeeds.

    Not even a missing connection or a rejected password ends the polling, because users correct these while
    it runs, and Airflow restarts a trigger that ends every second.

    :param give_up: exceptions that are raised without a retry.
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
    """A :class:`SourceWatch` in its own thread, because its listings and its database block.

    An async context manager. It does not use the thread pool that all triggers share, because a first listing
    can take minutes.
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
        # Copy the context variables, so that log lines reach the log of this trigger.
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, context.run, function, *arguments)

    async def poll(self) -> list[dict[str, Any]]:
        """Run :meth:`SourceWatch.poll` in the thread."""
        return await self._run(self._watch.poll)

    async def find(self) -> list[dict[str, Any]]:
        """Run :meth:`SourceWatch.find` in the thread."""
        return await self._run(self._watch.find)

    async def restore(self, values: Mapping[str, Any]) -> None:
        """Run :meth:`Cursor.restore` in the thread."""
        await self._run(self._watch.cursor.restore, values)

    async def cursor_to_write(self) -> CursorState | None:
        """Run :meth:`Cursor.to_write` in the thread; return ``None`` also if staging cannot be reached."""
        try:
            return await self._run(self._watch.cursor.to_write)
        except Exception as error:
            self._log.warning(_NOT_STORED, error)
            return None

    async def store_cursor(
        self, state: CursorState, store: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        """Store the result of :meth:`cursor_to_write`. A failure is logged, and the next poll tries again."""
        try:
            await store(state.values)
        except Exception as error:
            await self._run(self._watch.cursor.was_not_stored, state)
            self._log.warning(_NOT_STORED, error)
        else:
            await self._run(self._watch.cursor.was_stored, state)
