"""Track a process with all its descendants, and end them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 2.5
"""Seconds between SIGTERM and SIGKILL. Airflow kills a task 5 s after it has told it to stop
(``escalation_delay`` of its supervisor), so remaining processes must be killed well before."""

_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05


class ProcessTree:
    """A process, its descendants, and the members of the process groups that these lead.

    A signal to spark-submit or to its process group does not reach Spark's Python workers, because their
    daemon leads its own group (``pyspark/daemon.py``). A spark-submit that is wrapped in a script is itself
    only a child of the started process. Members are therefore found by descent and by group. They are
    remembered, because the children of a dead parent can no longer be found by descent.

    :param pid: id of the root process, which may already have ended.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        try:
            self._members = {psutil.Process(pid)}
        except psutil.NoSuchProcess:
            self._members = set()
        self._groups: set[int | None] = set()

    def living(self) -> set[psutil.Process]:
        """Return the running members, including those started since the last call.

        Does not modify sets in place, because a signal handler may interrupt the call and call it again.
        """
        members, groups = set(self._members), set(self._groups)
        for member in self._members:
            members.update(_children(member))
        groups.update(member.pid for member in members if _group(member.pid) == member.pid)
        members.update(_in_groups(groups))
        self._members = {member for member in members if _runs(member)}
        # Forget groups without members, because the kernel may reuse their ids for other processes.
        self._groups = groups & {_group(member.pid) for member in self._members}
        return set(self._members)

    def end(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """End all members with SIGTERM, and the rest with SIGKILL after the grace period.

        :return: number of processes that had to be killed.
        """
        _send(signal.SIGTERM, self.living())
        self._wait(grace_seconds)
        killed: set[psutil.Process] = set()
        deadline = time.monotonic() + _KILL_SECONDS
        while (rest := self.living()) and time.monotonic() < deadline:
            _send(signal.SIGKILL, rest)
            killed |= rest
            self._wait(_POLL_SECONDS)
        return len(killed)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.living() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)


def _children(process: psutil.Process) -> list[psutil.Process]:
    import psutil

    try:
        children: list[psutil.Process] = process.children(recursive=True)
        return children
    except psutil.Error:
        return []


def _in_groups(groups: set[int | None]) -> list[psutil.Process]:
    import psutil

    found = []
    for pid in psutil.pids() if groups else []:
        if _group(pid) in groups:
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    return found


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    # The process has ended, or belongs to another user.
    except OSError:
        return None


def _runs(process: psutil.Process) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    import psutil

    for process in processes:
        try:
            process.send_signal(number)
        # The process has ended, or belongs to another user.
        except psutil.Error:
            continue
