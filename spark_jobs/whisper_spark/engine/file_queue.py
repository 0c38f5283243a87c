"""The files of one pass, and which of them may have crashed a process of the engine."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator

from whisper_spark.audio.files import AudioFile

MOST_TRIES = 2
"""How often a process may end with a file before the file is the cause."""


class FileQueue:
    """Hands out files to the engine's process and tracks those that it has not finished. Thread-safe."""

    def __init__(self, files: Iterable[AudioFile], alone: int = 0) -> None:
        self._files = iter(files)
        self._alone = alone
        # Guards the iterator, which may block while it waits for rows from Spark.
        self._taking = threading.Lock()
        self._state = threading.Condition()
        self._process = 0
        self.given = 0
        self._under_way: list[AudioFile] = []
        self._suspects: deque[AudioFile] = deque()
        # Files that were taken from the iterator for a process that had ended meanwhile.
        self._returned: deque[AudioFile] = deque()
        self._tries: Counter[AudioFile] = Counter()
        self._careful = False
        self.failure: BaseException | None = None

    @property
    def process(self) -> int:
        """The number of the current process."""
        return self._process

    @property
    def suspects(self) -> int:
        """Number of files of which one may have crashed an earlier process."""
        return len(self._suspects)

    def next(self, process: int) -> AudioFile | None:
        """The next file for a process; ``None`` when no more are left, or the process is not the current one.

        Suspects are processed alone: the call waits until the file before is finished.
        """
        with self._state:
            while self._process == process and self._careful and self._under_way:
                self._state.wait()
            if self._process != process:
                return None
            self._careful = bool(self._suspects) or self._alone > 0
            if self._suspects:
                return self._given(self._suspects.popleft())
        with self._taking:
            with self._state:
                if self._returned:
                    return self._given(self._returned.popleft())
            file = next(self._files, None)
            with self._state:
                self._alone = max(0, self._alone - 1)
                if file is None or self._process == process:
                    return file and self._given(file)
                self._returned.append(file)
        return None

    def _given(self, file: AudioFile) -> AudioFile:
        self.given += 1
        self._under_way.append(file)
        return file

    def finished(self, uri: str) -> None:
        """Mark a file as finished."""
        with self._state:
            for file in self._under_way:
                if file.uri == uri:
                    self._under_way.remove(file)
                    break
            self._state.notify_all()

    def give_up_on_process(self, culprit: str | None = None) -> AudioFile | None:
        """Handle the end of the process: files in progress become suspects.

        Returns the file that crashed it, if that is certain: the only file in progress, for the second time.

        :param culprit: URI of the file that is known to be the cause: then no other is suspected.
        """
        with self._state:
            self._process += 1
            under_way, self._under_way = self._under_way, []
            self._state.notify_all()
            known = next((file for file in under_way if file.uri == culprit), None)
            if known is not None:
                under_way.remove(known)
                self._returned.extendleft(reversed(under_way))
                return known
            self._tries.update(set(under_way))
            found = None
            if len(under_way) == 1 and self._tries[under_way[0]] >= MOST_TRIES:
                found = under_way.pop()
            self._suspects.extendleft(reversed(under_way))
            return found

    def rest(self) -> Iterator[AudioFile]:
        """All remaining files, for an engine in this process."""
        yield from self._suspects
        yield from self._returned
        yield from self._files
