"""Runs work in threads one storage operation at a time, in an order that a test chooses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from whisper_spark.storage.objects import ObjectStorage, Version


class KilledError(BaseException):
    """The process has been killed: no operation of it succeeds any more."""


class SteppedWork:
    """Work in a thread that waits before each storage operation until :meth:`step` is called.

    :param work: gets a storage, all of whose operations wait.
    """

    def __init__(self, work: Callable[[ObjectStorage], Any], config: Mapping[str, str] | None = None) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.killed = False
        self._begun = self._ended = False
        self._go, self._waiting = threading.Semaphore(0), threading.Semaphore(0)

        def run() -> None:
            try:
                self.result = work(SteppedStorage(self._wait, config))
            except BaseException as error:
                self.error = error
            finally:
                self._ended = True
                self._waiting.release()

        self._thread = threading.Thread(target=run, daemon=True)

    @property
    def has_ended(self) -> bool:
        return self._ended

    def step(self) -> None:
        """Let it do one operation, and what follows until the next one. The first step only starts it."""
        if self._ended:
            return
        if self._begun:
            self._go.release()
        else:
            self._begun = True
            self._thread.start()
        assert self._waiting.acquire(timeout=60)

    def finish(self) -> None:
        """Let it do everything that is left."""
        while not self._ended:
            self.step()
        if self._begun:
            self._thread.join(60)
        if self.error is not None and not isinstance(self.error, KilledError):
            raise self.error

    def kill(self) -> None:
        """Let all further operations fail."""
        self.killed = True
        if self._begun:
            self.finish()
        self._ended = True

    def _wait(self) -> None:
        self._waiting.release()
        self._go.acquire()
        if self.killed:
            raise KilledError


class SteppedStorage(ObjectStorage):
    """A storage all of whose operations wait before they begin."""

    def __init__(self, wait: Callable[[], None], config: Mapping[str, str] | None = None) -> None:
        super().__init__(config)
        self._wait = wait

    def open_version(self, uri: str) -> tuple[BinaryIO, Version]:
        self._wait()
        return super().open_version(uri)

    def replace(self, path: Path, uri: str, version: Version | None) -> Version | None:
        self._wait()
        return super().replace(path, uri, version)

    def read_bytes(self, uri: str) -> bytes:
        self._wait()
        return super().read_bytes(uri)

    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool = False) -> bool:
        self._wait()
        return super().write_bytes(uri, data, if_absent=if_absent)

    def delete(self, uris: Iterable[str]) -> None:
        uris = list(uris)
        if uris:
            self._wait()
        super().delete(uris)
