"""Run a program and measure it from outside: time, processor time and memory of all its processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LOOK_EVERY_S = 0.1
_PROCESSES_EVERY_S = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run cost.

    :param wall_s: from the start of its first process to the end of it, in seconds.
    :param cpu_s: user and system time of all its processes, in seconds. Spark's daemon forgets the time of
        workers that it lets die, so what was last seen of each process is summed, ten times a second.
    :param peak_mib: the most that its processes had in memory together: the sum of their resident sets,
        looked at ten times a second. Pages that they share count for each of them.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float


class RunError(Exception):
    """The program failed. The message holds the end of its output."""


def measure(command: Sequence[str], env: Mapping[str, str], log: Path, timeout_s: float) -> Measured:
    """Run a command to its end.

    :param log: gets its output.
    :raises RunError: when it fails, or takes longer than ``timeout_s``.
    """
    others = {child.pid for child in psutil.Process().children(recursive=True)}  # no business of ours
    # Workers that outlive their parent become our children: their time is counted, and they can be ended.
    _adopt_orphans(True)
    before = _cpu_of_children()
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
        seen: dict[int, float] = {}
        try:
            peak = _watch(process, started + timeout_s, seen, others)
        finally:
            wall = time.monotonic() - started
            _end(_descendants(others))
            _adopt_orphans(False)
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RunError(f"{' '.join(command)} ended with status {process.returncode}:\n{tail}")
    cpu = max(sum(seen.values()), _cpu_of_children() - before)
    return Measured(wall, cpu, peak / 2**20)


def _adopt_orphans(adopt: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _descendants(others: set[int]) -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.pid not in others]


def _watch(
    process: subprocess.Popen[bytes], deadline: float, seen: dict[int, float], others: set[int]
) -> int:
    """Wait for the end: the peak of the memory, in bytes. ``seen`` gets the time of each process."""
    peak, pids, looked = 0, [process.pid], 0.0
    while True:
        now = time.monotonic()
        if now - looked > _PROCESSES_EVERY_S:
            pids, looked = [child.pid for child in _descendants(others)], now
        resident = 0
        for pid in pids:
            # It may have ended since.
            with contextlib.suppress(OSError, IndexError, ValueError):
                resident += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seen[pid] = (int(fields[11]) + int(fields[12])) / _TICKS
        peak = max(peak, resident)
        try:
            process.wait(_LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            if now > deadline:
                process.send_signal(signal.SIGTERM)
                raise RunError(f"process {process.pid} took too long") from None
        else:
            return peak


def _end(left: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(left, timeout=5)
    for child in alive:
        child.kill()
    psutil.wait_procs(alive, timeout=5)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
