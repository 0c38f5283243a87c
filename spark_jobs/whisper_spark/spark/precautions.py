"""What a Spark task does when it is tried again: perhaps one of its files ended the worker before.

Most crashes end only the engine's process. But memory may run out for a whole container, and then worker and
executor are gone, too, each time.
"""

from __future__ import annotations

from whisper_spark.storage.objects import ObjectNotFound, ObjectStorage

ALONE_FILES = 200
"""So many files go one at a time in a task that is tried again: those that may have been under way."""

FLUSH_SECONDS = 5.0
"""How often such a task stages finished rows, so that what comes before a deadly file is done with."""


class Precautions:
    """Notes in staging which file is under way, one at a time, where the next attempt of the task finds it.

    :param uri: of the note; no other task has the same.
    :param attempt: of the Spark task, from 0.
    """

    def __init__(self, storage: ObjectStorage, uri: str, attempt: int) -> None:
        self._storage, self._uri = storage, uri
        self.alone = ALONE_FILES if attempt else 0
        self._left = self.alone

    def flush_seconds(self, seconds: float) -> float:
        """How long finished rows may wait, in seconds."""
        return min(seconds, FLUSH_SECONDS) if self.alone else seconds

    def culprit(self) -> str | None:
        """The URI of the file that was under way, alone, when the attempt before this one ended."""
        if not self.alone:
            return None
        try:
            return self._storage.read_bytes(self._uri).decode()
        except ObjectNotFound:
            return None

    def starting(self, uri: str) -> None:
        """A file is about to be given to the engine."""
        if self._left:
            self._left -= 1
            self._storage.write_bytes(self._uri, uri.encode())
        elif self.alone:
            self.alone = 0
            self._storage.delete([self._uri])
