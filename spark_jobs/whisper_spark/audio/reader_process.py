"""A process that reads files for the engine: threads alone cannot keep a GPU busy because of the GIL."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from threadpoolctl import threadpool_limits

from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.reader import FileReader, Part, Reader, opened_from
from whisper_spark.child_process import ChildProcess, describe_end
from whisper_spark.contract import WhisperOptions
from whisper_spark.malloc import keep_freed_memory, own_process
from whisper_spark.progress.counters import Progress, charge
from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

_MOST_TRIES = 2


@dataclass(frozen=True, slots=True)
class _Order:
    """The first message to a new process."""

    options: WhisperOptions
    bands: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds spent on a file, by stage. The last message about a file."""

    seconds: Mapping[str, float]


class ReaderProcess:
    """Reads files in another process, which starts with the first file. For use by one thread.

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
        # One thread may start the process while another one ends it.
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None
        self._useless = False
        self._closed = False

    def read(self, file: AudioFile) -> Iterator[Part]:
        """See :class:`whisper_spark.audio.reader.Reader`."""
        given = 0
        for tries in itertools.count(1):
            process = self._process or self._started()
            if process is None:
                yield from itertools.islice(self._instead.read(file), given, None)
                return
            try:
                # Skip the parts that were yielded before a crash: a new process sends equal ones again.
                for part in itertools.islice(_parts(process.connections[0], file), given, None):
                    given += 1
                    yield part
                return
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

    def close(self) -> None:
        """End the process immediately."""
        with self._lock:
            self._closed = True
            process = self._process
        if process is not None:
            self._end(process)

    def _started(self) -> ChildProcess | None:
        with self._lock:
            if self._useless or self._closed:
                return None
            try:
                process = self._process = ChildProcess(__name__)
            except OSError as error:
                self._give_up(error)
                return None
        try:
            process.connections[0].send(self._order)
            process.connections[0].recv()
        except (EOFError, OSError) as error:
            status = self._end(process)
            if not self._closed:
                self._give_up(f"{error!r}, {describe_end(status)}")
            return None
        return process

    def _give_up(self, reason: object) -> None:
        self._useless = True
        log.warning("a thread reads files, for no process does: %s", reason)

    def _end(self, process: ChildProcess) -> int:
        status = process.end()
        self._process = None
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
    order: _Order = connection.recv()
    storage = ObjectStorage(order.config)
    with threadpool_limits(1, user_api="blas"):
        reader = FileReader(order.options, LogMel(order.bands), opened_from(storage))
        connection.send(None)
        while True:
            _serve_file(connection, reader, connection.recv())


def _serve_file(connection: Connection, reader: FileReader, file: AudioFile) -> None:
    progress = Progress()
    with progress.recording():
        for part in reader.read(file):
            connection.send(part)
    connection.send(_Spent(progress.snapshot().stages))
