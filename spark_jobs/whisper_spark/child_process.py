"""A Python process for work that may crash: when it does, the process that started it lives on.

It is no fork, which may not touch a loaded model, but a Python of its own. It is told through sockets what to
do, so that no credential shows in its command line or environment. When the sockets close, whoever closed
them, it ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection


class ChildProcess:
    """A running child process and its connections. Threads may end it at any time.

    :param module: its ``serve`` function runs in the child, with a connection for each of ``connections``.
    :param connections: how many there are.
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
                # In Spark's workers standard output belongs to Spark.
                stdout=subprocess.DEVNULL,
                # Archives and --py-files may be on this process's path only.
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
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._status is None and self._process.poll() is None

    def end(self) -> int:
        """Kill it, if it still runs, and wait for its end. Returns its exit status.

        Does not close the connections, on which other threads may be waiting: they see the end of them.
        """
        with self._lock:
            if self._status is None:
                self._process.kill()
                self._status = self._process.wait()
            return self._status


def describe_end(status: int) -> str:
    """What ended a process, in words.

    :param status: as :meth:`ChildProcess.end` returns it.
    """
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name


def run(module: str, descriptors: Sequence[int]) -> None:
    """What the child process does: ``serve`` of a module, until nobody listens any more."""
    import faulthandler
    import importlib

    # Whoever interrupts the parent ends this process, too: its sockets close.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    try:
        importlib.import_module(module).serve(*(Connection(number) for number in descriptors))
    except (EOFError, OSError):
        return
