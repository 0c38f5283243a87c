"""A Python process for work that may crash without affecting the process that started it.

It is a new Python interpreter, not a fork: a loaded model must not be used in a forked process. It gets its
work through sockets, so that no credential appears in its command line or environment, and ends when either
side closes them.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Environment, import path, working folder and log level of a process. They may change."""

    environment: Mapping[str, str]
    path: Sequence[str]
    folder: str
    log_level: int

    @classmethod
    def here(cls) -> Surroundings:
        """The surroundings of this process."""
        level = logging.getLogger("whisper_spark").getEffectiveLevel()
        return cls(dict(os.environ), list(sys.path), str(Path.cwd()), level)

    def take_over(self, before: Surroundings) -> None:
        """Apply them to this process.

        :param before: the ones that were applied before; variables that are no longer set are removed.
        """
        for name in before.environment.keys() - self.environment.keys():
            os.environ.pop(name, None)
        os.environ.update(self.environment)
        sys.path[:] = self.path
        os.chdir(self.folder)
        logging.getLogger("whisper_spark").setLevel(self.log_level)


class ChildProcess:
    """A running child process and its connections. Any thread may end it at any time.

    :param module: module whose ``serve`` function runs in the child. It gets one argument per connection.
    :param connections: number of connections.
    :raises OSError: when no process can be started here.
    """

    def __init__(self, module: str, connections: int = 1) -> None:
        if not sys.executable or os.name != "posix":
            raise OSError("Python cannot start a process with sockets here")
        ours, theirs = zip(*(socket.socketpair() for _ in range(connections)), strict=True)
        self._lock = threading.Lock()
        self._status: int | None = None
        descriptors = [end.fileno() for end in theirs]
        call = f"from whisper_spark.child_process import run; run('{module}', {descriptors})"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", call],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                # Spark uses the standard output of its Python workers.
                stdout=subprocess.DEVNULL,
                # Archives and --py-files may be on sys.path of this process only.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        except OSError:
            for end in ours:
                end.close()
            raise
        finally:
            for end in theirs:
                end.close()
        self.connections = [Connection(end.detach()) for end in ours]

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the process is still running."""
        return self._status is None and self._process.poll() is None

    def end(self) -> int:
        """Kill the process if it still runs, and wait for its end. Returns its exit status.

        Does not close the connections, because other threads may be waiting on them: they get ``EOFError``.
        """
        with self._lock:
            if self._status is None:
                self._process.kill()
                self._status = self._process.wait()
            return self._status


def describe_end(status: int) -> str:
    """Describe how a process ended.

    :param status: the exit status from :meth:`ChildProcess.end`.
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name


def run(module: str, descriptors: Sequence[int]) -> None:
    """The main function of the child process: runs ``serve`` of a module until the connections close."""
    import faulthandler
    import importlib

    # Ctrl-C reaches the parent as well, and this process ends when the parent closes the sockets.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    try:
        importlib.import_module(module).serve(*(Connection(number) for number in descriptors))
    except (EOFError, ConnectionError):
        # The parent has closed the sockets. Any other error ends this process with a traceback.
        return
