"""A process that reads files for the engine, where Python's lock would keep threads from feeding a GPU.

It is no fork of the engine's process, which may hold a GPU, but a Python of its own. What it is to do, and
with which credentials, it is told through a socket; when that closes, whoever closed it, the process ends.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection

from threadpoolctl import threadpool_limits

from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.reader import FileReader, Part, Reader, opened_from
from whisper_spark.contract import WhisperOptions
from whisper_spark.progress.counters import Progress, charge
from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

_COMMAND = "from whisper_spark.audio.reader_process import serve; serve()"


@dataclass(frozen=True, slots=True)
class _Order:
    """What a new process is told first."""

    options: WhisperOptions
    bands: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Spent:
    """Seconds that a file took, by stage."""

    seconds: Mapping[str, float]


class ReaderProcess:
    """Reads files in another process, which is started with the first one. For one thread.

    :param bands: mel bands of the features.
    :param config: obstore configuration of the storage that the files are in.
    :param instead: reads where no process can be started.
    """

    def __init__(
        self, options: WhisperOptions, bands: int, config: Mapping[str, str], instead: Reader
    ) -> None:
        self._order = _Order(options, bands, config)
        self._instead = instead
        self._lock = threading.Lock()  # a process may be started and ended at the same moment
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._useless = False
        self._closed = False

    def read(self, file: AudioFile) -> Iterator[Part]:
        """See :class:`whisper_spark.audio.reader.Reader`."""
        connection = self._connection or self._started()
        if connection is None:
            yield from self._instead.read(file)
            return
        try:
            connection.send(file)
            while not isinstance(part := connection.recv(), _Spent):
                yield part
            charge(part.seconds)
        except (EOFError, OSError):
            status = self._end()
            if not self._closed:
                log.warning("the process that read %s died with status %s", file.uri, status)
            yield FileError("internal", f"the process that read the file died with status {status}")
        except BaseException:  # the rest of this file would be taken for the next one
            self._end()
            raise

    def close(self) -> None:
        """End the process, whatever it does."""
        self._closed = True
        self._end()

    def _started(self) -> Connection | None:
        if self._useless or self._closed or not sys.executable:
            return None
        try:
            connection = self._start()
            connection.send(self._order)
            connection.recv()
        except (EOFError, OSError) as error:
            self._useless = True
            status = self._end()
            if not self._closed:
                log.warning("a thread reads files, for no process does: %r, status %s", error, status)
            return None
        self._connection = connection
        return connection

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            # Archives and --py-files may be on this process's path only.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # in Spark's workers it belongs to Spark
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        return Connection(ours.detach())

    def _end(self) -> int | None:
        """Its exit status. Does not touch the connection, on which another thread may be waiting."""
        self._connection = None
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        return process.wait()


def serve() -> None:
    """What the process does: read one file after the other, until nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever interrupts the engine's process ends this one, too
    connection = Connection(int(sys.argv[-1]))
    try:
        order: _Order = connection.recv()
        storage = ObjectStorage(order.config)
        with threadpool_limits(1, user_api="blas"):
            reader = FileReader(order.options, LogMel(order.bands), opened_from(storage))
            connection.send(None)
            while True:
                _serve_file(connection, reader, connection.recv())
    except (EOFError, OSError):
        return


def _serve_file(connection: Connection, reader: FileReader, file: AudioFile) -> None:
    progress = Progress()
    with progress.recording():
        for part in reader.read(file):
            connection.send(part)
    connection.send(_Spent(progress.snapshot().stages))
