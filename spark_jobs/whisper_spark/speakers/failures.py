"""Logs failures that cost files their speakers."""

from __future__ import annotations

import logging
import threading

log = logging.getLogger(__name__)


class SpeakerFailures:
    """Logs the failures of one pass with the file's name, and the first of each kind with its traceback.

    A model that fails does so for every file, and thousands of tracebacks hide everything else. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[tuple[str, type]] = set()

    def add(self, uri: str, what: str, error: Exception) -> None:
        """Log a failure.

        :param what: what failed, for example ``"computing speaker embeddings"``.
        """
        kind = what, type(error)
        with self._lock:
            is_first = kind not in self._known
            self._known.add(kind)
        message = "%s gets no speakers, because %s failed with %s: %s"
        arguments = uri, what, type(error).__name__, error
        if is_first:
            log.error(message, *arguments, exc_info=error)
        else:
            log.warning(message, *arguments)
