"""Progress reports: each task of a job keeps a small object in staging up to date, and the driver logs them.

The output of a Spark task stays on its executor, and accumulators reach the driver only when a task ends.
Staging is the only place that tasks, driver and Airflow share on every kind of cluster. Reports may be lost
without harm: errors in this module never reach a task or the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, Self

from whisper_spark.progress.counters import Progress, Snapshot, seconds_left
from whisper_spark.storage.objects import ObjectStorage, StorageError

if TYPE_CHECKING:
    import types

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""How often each task reports, and how often the reports are printed, in seconds."""

MOST_LINES = 20
"""Maximum number of tasks with a line of their own in each round: those with the most time left."""

# Maximum time in seconds that a task waits for its last report, because the store may not answer.
_LAST_WORD_SECONDS = 2.0

# A running job rewrites its reports all the time. Those that no job has written for so long are left over.
_LEFT_OVER_AFTER = timedelta(days=1)

_READERS = 8
_SILENT_ROUNDS = 4
_TASK = re.compile(r"/task-(\d+)\.json$")
_JOB = "job.json"


def reports_folder(run_uri: str) -> str:
    """Folder of the reports of all job runs on a run."""
    return f"{run_uri}/progress"


def report_folder(run_uri: str, attempt_id: str) -> str:
    """Folder of the reports of one job run."""
    return f"{reports_folder(run_uri)}/{re.sub(r'[^0-9A-Za-z_-]', '_', attempt_id)}"


# --- the side of a task ------------------------------------------------------------------------------


def task_report_uri(folder_uri: str, task: int) -> str:
    """URI of the report of a task."""
    return f"{folder_uri}/task-{task:05d}.json"


class TaskReport:
    """Writes the state of a :class:`Progress` to staging regularly while the block runs.

    :param uri: URI of the report, see :func:`task_report_uri`.
    :param every: seconds between two reports.
    """

    def __init__(self, storage: ObjectStorage, uri: str, progress: Progress, every: float) -> None:
        self._storage, self._uri, self._progress, self._every = storage, uri, progress, every
        self._over = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._report_regularly, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._failed = error is not None
        self._over.set()
        self._thread.join(_LAST_WORD_SECONDS)

    def _report_regularly(self) -> None:
        while True:
            over = self._over.is_set()
            snapshot = self._progress.snapshot()
            if over:
                snapshot = dataclasses.replace(snapshot, state="failed" if self._failed else "done")
            try:
                self._storage.write_bytes(self._uri, snapshot.to_json().encode())
            except Exception as error:
                # No error of a report may affect the task.
                log.warning("progress could not be reported: %s", error)
            if over:
                return
            self._over.wait(self._every)


# --- the side that prints ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobSize:
    """The amount of work of a job.

    :param files: number of files to transcribe.
    :param audio_bytes: total size of the files in bytes; 0 when unknown.
    :param tasks: number of Spark tasks among which they are divided.
    """

    files: int
    audio_bytes: int
    tasks: int

    def of_task(self, task: int) -> JobSize:
        """The work that ``dataframes.partitioned_by_size`` assigns to a task; its bytes are an estimate."""
        rounds, rest = divmod(self.files, self.tasks)
        # The last round, which is incomplete, goes from the last task to the first after an odd number of
        # rounds.
        back = rounds % 2 == 1
        extra = task >= self.tasks - rest if back else task < rest
        return JobSize(rounds + extra, self.audio_bytes // self.tasks, 1)

    def write(self, storage: ObjectStorage, folder_uri: str) -> None:
        """Write it to the folder of the reports, for a :class:`ProgressLog` in another process."""
        storage.write_bytes(f"{folder_uri}/{_JOB}", json.dumps(dataclasses.asdict(self)).encode())


def read_reports(storage: ObjectStorage, folder_uri: str) -> list[Snapshot]:
    """The latest reports of all tasks. Empty when they cannot be read."""
    with contextlib.suppress(StorageError, ValueError):
        uris = [report.uri for report in _reports(storage, folder_uri) if _TASK.search(report.uri)]
        return [Snapshot.from_json(storage.read_bytes(uri)) for uri in uris]
    return []


def clear_reports(storage: ObjectStorage, folder_uri: str) -> None:
    """Delete all reports of one job run. Errors of the store are ignored."""
    with contextlib.suppress(StorageError):
        storage.delete([report.uri for report in _reports(storage, folder_uri)])


def clear_left_over_reports(storage: ObjectStorage, run_uri: str) -> None:
    """Delete the reports of job runs that were killed, but not those of a job that may still be running.

    Errors of the store are ignored.
    """
    with contextlib.suppress(StorageError):
        now = datetime.now(UTC)
        for reports in _by_job(_reports(storage, reports_folder(run_uri))):
            if now - reports[-1].modified > _LEFT_OVER_AFTER:
                storage.delete([report.uri for report in reports])


class _Report(NamedTuple):
    uri: str
    etag: str | None
    modified: datetime


def _reports(storage: ObjectStorage, folder_uri: str) -> list[_Report]:
    return [
        _Report(row["audio_uri"], row["audio_etag"], row["last_modified"])
        for batch in storage.list(folder_uri + "/")
        for row in batch.to_pylist()
    ]


def _by_job(reports: Iterable[_Report]) -> list[list[_Report]]:
    """The reports of each job run, oldest first; the job run with the newest report comes last."""
    jobs: dict[str, list[_Report]] = {}
    for report in sorted(reports, key=lambda report: report.modified):
        jobs.setdefault(report.uri.rpartition("/")[0], []).append(report)
    return sorted(jobs.values(), key=lambda job: job[-1].modified)


@dataclass(slots=True)
class _Heard:
    etag: str | None
    snapshot: Snapshot
    at: float


class ProgressLog:
    """Logs the reports of the tasks of a job while the block runs: a line for each task, and a total.

    :param folder_uri: folder of the reports. If it holds those of several job runs, the one that wrote last
        counts.
    :param tell: called with each line.
    :param size: amount of work of the job; ``None``: it is read from the folder when it has been written.
    :param every: seconds between two rounds.
    :param watch: called with the latest reports of all tasks in each round.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        folder_uri: str,
        tell: Callable[[str], None],
        size: JobSize | None = None,
        every: float = PROGRESS_SECONDS,
        watch: Callable[[Collection[Snapshot]], None] = lambda tasks: None,
    ) -> None:
        self._storage, self._folder_uri, self._tell = storage, folder_uri, tell
        self._size, self._every, self._watch = size, every, watch
        self._tasks: dict[int, _Heard] = {}
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print_regularly, name="progress-log", daemon=True)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(_LAST_WORD_SECONDS)

    def _print_regularly(self) -> None:
        silent = False
        while not self._over.wait(self._every):
            try:
                self._round()
                silent = False
            except Exception as error:
                # The job does not depend on progress reports. Only the first of consecutive errors is logged.
                if not silent:
                    log.warning("progress is unknown: %s", error)
                silent = True

    def _round(self) -> None:
        self._read()
        if self._size is None or self._over.is_set():
            return
        now = time.monotonic()
        patience = _SILENT_ROUNDS * self._every
        snapshots = {number: heard.snapshot for number, heard in self._tasks.items()}
        self._watch(snapshots.values())
        silent = {
            number: now - heard.at for number, heard in self._tasks.items() if now - heard.at > patience
        }
        for line in progress_lines(snapshots, self._size, now - self._started, silent):
            self._tell(line)

    def _read(self) -> None:
        changed = []
        jobs = _by_job(_reports(self._storage, self._folder_uri))
        for uri, etag, _ in jobs[-1] if jobs else ():
            task = _TASK.search(uri)
            if task and (etag is None or _etag(self._tasks.get(int(task[1]))) != etag):
                changed.append((int(task[1]), uri, etag))
            elif self._size is None and uri.endswith("/" + _JOB):
                self._size = JobSize(**json.loads(self._storage.read_bytes(uri)))
        with ThreadPoolExecutor(_READERS) as readers:
            data = list(readers.map(self._storage.read_bytes, [uri for _, uri, _ in changed]))
        now = time.monotonic()
        for (number, _, etag), text in zip(changed, data, strict=True):
            self._tasks[number] = _Heard(etag, Snapshot.from_json(text), now)


def _etag(heard: _Heard | None) -> str | None:
    return heard.etag if heard else None


# --- lines -------------------------------------------------------------------------------------------


def progress_lines(
    tasks: Mapping[int, Snapshot], size: JobSize, seconds: float, silent: Mapping[int, float] | None = None
) -> list[str]:
    """The lines of one round: one for each running task, at most :data:`MOST_LINES`, and one for all tasks.

    :param tasks: latest report of each task.
    :param seconds: seconds since the tasks were started.
    :param silent: seconds since the last report, for tasks that have not reported for too long.
    """
    silent = silent or {}
    running = sorted(number for number, task in tasks.items() if task.state in ("loading", "running"))
    shown = running
    if len(running) > MOST_LINES:
        longest = sorted(running, key=lambda number: -(tasks[number].seconds_left or float("inf")))
        shown = sorted(longest[:MOST_LINES])
    lines = [_task_line(number, tasks[number], silent.get(number)) for number in shown]
    if size.tasks > 1 or not shown:
        lines.append(_job_line(tasks, running, size, seconds))
    return lines


def _task_line(number: int, task: Snapshot, silent: float | None) -> str:
    parts = ["loading the model"]
    if task.state != "loading":
        parts = [
            *_done(task.files, task.total_files, task.audio_seconds, task.real_time_factor),
            f"queue {task.queue_fill:.0%}".replace("%", " %"),
            *_left(task.seconds_left),
        ]
    if silent is not None:
        parts.append(f"no news for {duration(silent)}")
    return f"task {number}: {', '.join(parts)}"


def _job_line(tasks: Mapping[int, Snapshot], running: Sequence[int], size: JobSize, seconds: float) -> str:
    audio = sum(task.audio_seconds for task in tasks.values())
    done = sum(task.state == "done" for task in tasks.values())
    parts = [
        *_done(
            sum(task.files + task.left_out for task in tasks.values()),
            size.files,
            audio,
            audio / seconds if seconds else 0.0,
        ),
        f"{len(running):,} of {size.tasks:,} tasks running, {done:,} done",
        *_left(_job_seconds_left(tasks.values(), size)),
    ]
    return f"all tasks: {', '.join(parts)}"


def _job_seconds_left(tasks: Iterable[Snapshot], size: JobSize) -> float | None:
    """Estimated seconds until the end: by the total speed of the tasks, but at least those of the slowest."""
    tasks = list(tasks)
    running = [task for task in tasks if task.state == "running" and task.seconds]
    rate = sum(task.audio_bytes / task.seconds for task in running)
    done = sum(task.audio_bytes + task.left_out_bytes for task in tasks)
    together = seconds_left(done / rate, done, size.audio_bytes) if rate else None
    longest = [task.seconds_left for task in running if task.seconds_left is not None]
    return max([*longest, *([together] if together is not None else [])], default=None)


def _done(files: int, total: int | None, audio_seconds: float, factor: float) -> list[str]:
    of = f" of {total:,}" if total is not None else ""
    speed = f"{factor:,.0f}" if factor >= 10 else f"{factor:.1f}"
    return [f"{files:,}{of} files", f"{duration(audio_seconds)} of audio", f"{speed}x real time"]


def _left(seconds: float | None) -> list[str]:
    return [] if seconds is None else [f"{duration(seconds)} left"]


def duration(seconds: float) -> str:
    """A readable form of a duration: ``45 s``, ``12 min``, ``2.3 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:,.1f} h"
