"""A process that reads files for the engine: threads alone cannot keep a GPU busy because of the GIL."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from threadpoolctl import threadpool_limits

from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.reader import FileReader, Part, Reader, opened_from
from whisper_spark.child_process import ChildProcess, Surroundings, describe_end
from whisper_spark.contract import WhisperOptions
from whisper_spark.malloc import keep_freed_memory, own_process
from whisper_spark.progress.counters import Progress, charge
from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

_MOST_TRIES = 2


@dataclass(frozen=True, slots=True)
class _Order:
    """What to read files with: the first message to a process, and to one that is used again."""

    options: WhisperOptions
    bands: int
    config: Mapping[str, str]
    surroundings: Surroundings = field(default_factory=lambda: Surroundings.here())


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds spent on a file, by stage. The last message about a file."""

    seconds: Mapping[str, float]


class _Pool:
    """Idle processes. Starting one takes a second or two, in which a GPU would have nothing to do."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._idle: list[ChildProcess] = []

    def take(self) -> ChildProcess:
        """An idle process, or a new one.

        :raises OSError: when no process can be started here.
        """
        with self._lock:
            self._forget_those_of_a_parent()
            while self._idle:
                process = self._idle.pop()
                if process.is_running:
                    return process
        return ChildProcess(__name__)

    def keep(self, process: ChildProcess) -> None:
        """Keep a process for the next one who needs it."""
        with self._lock:
            self._forget_those_of_a_parent()
            self._idle.append(process)

    def fill(self, number: int) -> None:
        """Start processes until so many are idle."""
        with self._lock, contextlib.suppress(OSError):
            self._forget_those_of_a_parent()
            while len(self._idle) < number:
                self._idle.append(ChildProcess(__name__))

    def _forget_those_of_a_parent(self) -> None:
        # In a forked process.
        if self._owner != os.getpid():
            self._owner, self._idle = os.getpid(), []


_pool = _Pool()


def start_ahead(number: int) -> None:
    """Start processes that will read files soon, so that they are ready when the first files come."""
    _pool.fill(number)


class ReaderProcess:
    """Reads files in another process, from the first file on. For use by one thread.

    A file that crashes the process is read once more, in a new process.

    :param bands: number of mel bands of the features.
    :param config: obstore configuration of the storage that holds the files.
    :param instead: reader to use when no process can be started.
    """

    def __init__(
        self, options: WhisperOptions, bands: int, config: Mapping[str, str], instead: Reader
    ) -> None:
        self._order = _Order(options, bands, config)
        self._instead = instead
        # One thread may start the process while another one closes it.
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None
        self._reading = False
        self._useless = False
        self._closed = False

    def read(self, file: AudioFile) -> Iterator[Part]:
        """See :class:`whisper_spark.audio.reader.Reader`."""
        given = 0
        for tries in itertools.count(1):
            process = self._begin()
            if process is None:
                yield from itertools.islice(self._instead.read(file), given, None)
                return
            try:
                # Skip the parts that were yielded before a crash: a new process sends equal ones again.
                for part in itertools.islice(_parts(process.connections[0], file), given, None):
                    given += 1
                    yield part
            except (EOFError, OSError):
                cause = describe_end(self._end(process))
                if not self._closed:
                    log.warning("the process that read %s ended: %s", file.uri, cause)
                if self._closed or tries == _MOST_TRIES:
                    yield FileError(
                        "internal", f"the process that read the file ended {tries} times: {cause}"
                    )
                    return
            except BaseException:
                # End the process: it would send the remaining parts of this file in answer to the next one.
                self._end(process)
                raise
            else:
                self._finish()
                return

    def close(self) -> None:
        """End the process immediately if it is reading a file; otherwise keep it for another pass."""
        with self._lock:
            self._closed = True
            if self._reading and self._process is not None:
                self._process.end()
            elif not self._reading:
                self._give_back()

    def _begin(self) -> ChildProcess | None:
        """The process for the next file; ``None`` if there is none."""
        with self._lock:
            if self._process is not None:
                self._reading = True
                return self._process
        failure: object = None
        for _ in range(_MOST_TRIES):
            try:
                process = self._taken()
            except OSError as error:
                failure = error
                break
            if process is None:
                return None
            try:
                process.connections[0].send(self._order)
                process.connections[0].recv()
                return process
            except (EOFError, OSError) as error:
                failure = f"{error!r}, {describe_end(self._end(process))}"
        self._useless = True
        log.warning("a thread reads files, for no process does: %s", failure)
        return None

    def _taken(self) -> ChildProcess | None:
        if self._useless or self._closed:
            return None
        process = _pool.take()
        with self._lock:
            if self._closed:
                _pool.keep(process)
                return None
            self._process, self._reading = process, True
        return process

    def _finish(self) -> None:
        with self._lock:
            self._reading = False
            if self._closed:
                self._give_back()

    def _give_back(self) -> None:
        process, self._process = self._process, None
        # It has ended if it was closed just as it finished a file.
        if process is not None and process.is_running:
            _pool.keep(process)

    def _end(self, process: ChildProcess) -> int:
        status = process.end()
        with self._lock:
            self._process, self._reading = None, False
        return status


def _parts(connection: Connection, file: AudioFile) -> Iterator[Part]:
    """The parts of a file that the process at the other end reads."""
    connection.send(file)
    while not isinstance(part := connection.recv(), _Spent):
        yield part
    charge(part.seconds)


def serve(connection: Connection) -> None:
    """The main loop of the process: read one file after the other until the connection closes."""
    own_process()
    keep_freed_memory()
    surroundings = Surroundings.here()
    with threadpool_limits(1, user_api="blas"):
        while True:
            match connection.recv():
                case _Order() as order:
                    order.surroundings.take_over(surroundings)
                    surroundings = order.surroundings
                    storage = ObjectStorage(order.config)
                    reader = FileReader(order.options, LogMel(order.bands), opened_from(storage))
                    connection.send(None)
                case file:
                    _serve_file(connection, reader, file)


def _serve_file(connection: Connection, reader: FileReader, file: AudioFile) -> None:
    progress = Progress()
    with progress.recording():
        for part in reader.read(file):
            connection.send(part)
    connection.send(_Spent(progress.snapshot().stages))
