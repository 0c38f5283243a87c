"""Processes with everything that they have started, and their end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

GRACE_SECONDS = 2.5
"""How long processes may take over a polite end. Airflow kills a task 5 s after it has told it to stop
(``escalation_delay`` of its supervisor), so what is left after this must be killed well before."""

_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.05


class ProcessTree:
    """A process, all that it has started, and who else is in the process groups that these lead.

    Spark's Python workers are out of reach of a signal to spark-submit and of one to its process group:
    their daemon leads a group of its own (``pyspark/daemon.py``), and a spark-submit that is wrapped in a
    script is only a child of what was started. So members are found by descent and by group, and remembered:
    once a parent has died, nothing tells whose children the others were.

    :param pid: process to start from, which need not exist any more.
    """

    def __init__(self, pid: int) -> None:
        import psutil

        try:
            self._members = {psutil.Process(pid)}
        except psutil.NoSuchProcess:
            self._members = set()
        self._groups: set[int | None] = set()

    def living(self) -> set[psutil.Process]:
        """Members that still run, with those that were born since the last call.

        Changes nothing in place: a signal handler may come in between and do the same.
        """
        members, groups = set(self._members), set(self._groups)
        for member in self._members:
            members.update(_children(member))
        groups.update(member.pid for member in members if _group(member.pid) == member.pid)
        members.update(_in_groups(groups))
        self._members = {member for member in members if _runs(member)}
        # A group whose last member is gone is forgotten, because its number may be given to other processes.
        self._groups = groups & {_group(member.pid) for member in self._members}
        return set(self._members)

    def end(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """End all members: SIGTERM first, SIGKILL for what is left after the grace.

        :return: how many had to be killed.
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
    except OSError:  # it has ended, or is not ours to know
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
        except psutil.Error:  # it has ended, or belongs to another user
            continue
