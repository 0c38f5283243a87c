"""Precautions of a Spark task that is retried, because one of its files may have crashed the worker before.

Most crashes end only the engine's process. But if the memory of a container runs out, the worker and the
executor are killed too, on every try.
"""

from __future__ import annotations

from whisper_spark.storage.objects import ObjectNotFound, ObjectStorage

ALONE_FILES = 200
"""Number of files that a retried task processes one at a time: any of them may have been in progress
before."""

FLUSH_SECONDS = 5.0
"""Seconds between two flushes of a retried task, so that the rows before a file that crashes it are
staged."""


class Precautions:
    """Records in staging which file a retried task is processing, for the next attempt of the task.

    :param uri: URI of this record, unique to the task and the job run. Other jobs on the same run must not
        delete it.
    :param attempt: attempt number of the Spark task, from 0.
    """

    def __init__(self, storage: ObjectStorage, uri: str, attempt: int) -> None:
        self._storage, self._uri = storage, uri
        self.alone = ALONE_FILES if attempt else 0
        self._left = self.alone

    def flush_seconds(self, seconds: float) -> float:
        """Seconds between two flushes, given those of a task that is not retried."""
        return min(seconds, FLUSH_SECONDS) if self.alone else seconds

    def culprit(self) -> str | None:
        """The URI of the file that was in progress alone when the attempt before this one ended, if any."""
        if not self.alone:
            return None
        try:
            return self._storage.read_bytes(self._uri).decode()
        except ObjectNotFound:
            return None

    def starting(self, uri: str) -> None:
        """Record a file that is about to be given to the engine, or delete the record if it is not alone."""
        if self._left:
            self._left -= 1
            self._storage.write_bytes(self._uri, uri.encode())
        elif self.alone:
            self.alone = 0
            self._storage.delete([self._uri])
