"""Counters of one pass of the engine: its progress, and the time that it spends in each stage.

Counting must be cheap, so each thread of the engine adds up its own seconds without a lock. The sum over all
threads is computed when a :class:`Snapshot` is taken.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    import types

    from whisper_spark.contract import Transcript

STAGES: dict[str, str] = {
    "fetch": "bytes from the object store; a local file is read while it is decoded",
    "decode": "containers and codecs to samples, waiting for a turn included",
    "vad": "voice detection, and packing speech into windows",
    "features": "samples to log-mel features",
    "speakers": "speaker embeddings, and telling speakers apart",
    "blocked": "files ahead that wait because enough is ready for the device",
    "idle": "the device waits for windows",
    "encode": "the encoder",
    "language": "language detection",
    "generate": "the first decoding of each window",
    "retry": "suspects decoded again, their encoding included",
    "align": "word times",
    "assemble": "segments, scores and flags of finished files",
}
"""Stages of the work, with descriptions. Their times are sums over threads and may exceed the wall time."""

DEVICE_STAGES = ("encode", "language", "generate", "retry", "align")
"""Stages in which a decoding thread keeps the device busy. Otherwise it is in ``idle``."""

_Item = TypeVar("_Item")


# --- stages ------------------------------------------------------------------------------------------


class _Record:
    """Seconds and counts of one thread, which only this thread changes."""

    __slots__ = ("counts", "seconds", "since", "stage", "whole")

    def __init__(self) -> None:
        # All keys exist from the start, so that other threads can copy the dict at any time.
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.counts: dict[str, int] = {"windows": 0, "retried_windows": 0}
        self.stage: str | None = None
        self.since = 0.0
        self.whole = False

    def switch(self, name: str | None) -> None:
        now = time.perf_counter()
        if self.stage is not None:
            self.seconds[self.stage] += now - self.since
        self.stage, self.since = name, now

    def running(self) -> dict[str, float]:
        """The seconds so far, including those of the current stage."""
        seconds, stage, since = dict(self.seconds), self.stage, self.since
        if stage is not None:
            seconds[stage] += max(time.perf_counter() - since, 0.0)
        return seconds


_thread = threading.local()


def _record() -> _Record | None:
    return getattr(_thread, "record", None)


class stage:  # noqa: N801 - reads as a statement: with stage("encode")
    """Adds the time of a block to a stage of the pass that this thread works for, if any.

    .. code-block:: python

        with stage("encode"):
            encoded = model.encode(features)

    A nested stage interrupts the outer one.

    :param name: one of :data:`STAGES`.
    :param whole: count nested stages as part of this one.
    """

    __slots__ = ("_name", "_outer", "_record", "_whole")

    def __init__(self, name: str, *, whole: bool = False) -> None:
        self._name, self._whole = name, whole

    def __enter__(self) -> Self:
        record = _record()
        self._record = None if record is None or record.whole else record
        if self._record is not None:
            self._outer = self._record.stage
            self._record.switch(self._name)
            self._record.whole = self._whole
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if self._record is not None:
            self._record.switch(self._outer)
            self._record.whole = False


def timed(name: str, items: Iterator[_Item]) -> Iterator[_Item]:
    """Iterate over items, and add the time to produce each of them to a stage."""
    while True:
        with stage(name):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def count(name: str, number: int = 1) -> None:
    """Add to ``windows`` or ``retried_windows`` of the pass that this thread works for, if any."""
    record = _record()
    if record is not None:
        record.counts[name] += number


def charge(seconds: Mapping[str, float]) -> None:
    """Add the seconds that another process spent in stages to the pass that this thread works for, if any."""
    record = _record()
    if record is not None:
        for name, spent in seconds.items():
            record.seconds[name] += spent


# --- a pass ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The counters of a pass at one moment.

    :param state: ``"loading"`` (the model), ``"running"``, ``"done"`` or ``"failed"``.
    :param files: finished files, with or without an error.
    :param total_files: files of the whole pass, without those left out; ``None`` when unknown.
    :param audio_bytes: bytes of finished files, and of the finished part of files in progress.
    :param total_bytes: bytes of the files in ``total_files``; ``None`` when unknown.
    :param left_out: files that an earlier attempt of the Spark task had finished; not included in ``files``.
    :param left_out_bytes: bytes of the files left out.
    :param audio_seconds: seconds of audio transcribed so far, including the finished part of files in
        progress.
    :param speech_seconds: seconds of speech in finished files.
    :param seconds: seconds since the model was loaded.
    :param errors: number of files by error code.
    :param flags: number of files by quality flag.
    :param windows: windows decoded.
    :param retried_windows: of these, how many were decoded more than once.
    :param queue_bytes: bytes of features that wait for the device.
    :param queue_limit: maximum bytes of features that may wait.
    :param stages: seconds of all threads together in each of :data:`STAGES`.
    """

    state: str = "loading"
    files: int = 0
    total_files: int | None = None
    audio_bytes: float = 0.0
    total_bytes: int | None = None
    left_out: int = 0
    left_out_bytes: int = 0
    audio_seconds: float = 0.0
    speech_seconds: float = 0.0
    seconds: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    windows: int = 0
    retried_windows: int = 0
    queue_bytes: int = 0
    queue_limit: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio transcribed per second."""
        return self.audio_seconds / self.seconds if self.seconds else 0.0

    @property
    def queue_fill(self) -> float:
        """Fill level of the queue of the device, 0 to 1. With an empty queue the device waits for work."""
        return min(self.queue_bytes / self.queue_limit, 1.0) if self.queue_limit else 0.0

    @property
    def device_busy(self) -> float | None:
        """Share of their time, 0 to 1, in which the threads of the device had work; ``None`` if unknown."""
        return device_busy(self.stages)

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the end, by bytes or else by files; ``None`` when unknown."""
        return seconds_left(self.seconds, self.audio_bytes, self.total_bytes) or seconds_left(
            self.seconds, self.files, self.total_files
        )

    def sums(self) -> dict[str, float]:
        """The counters that can be summed over passes, by name."""
        return {
            "windows": self.windows,
            "retried_windows": self.retried_windows,
            **{f"error {name}": number for name, number in self.errors.items()},
            **{f"flag {name}": number for name, number in self.flags.items()},
            **{f"stage {name}": seconds for name, seconds in self.stages.items()},
        }

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """The inverse of :meth:`to_json`. Fields of later releases are ignored.

        :raises ValueError: when the text is not a JSON object.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a snapshot is a JSON object")
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})


def device_busy(stages: Mapping[str, float]) -> float | None:
    """Share of their time, 0 to 1, in which the threads of the device had work; ``None`` without any time.

    :param stages: seconds in each of :data:`STAGES`.
    """
    busy = sum(stages.get(name, 0.0) for name in DEVICE_STAGES)
    total = busy + stages.get("idle", 0.0)
    return busy / total if total else None


def seconds_left(seconds: float, done: float, total: float | None) -> float | None:
    """Seconds that the rest takes at the speed so far; ``None`` when it cannot be estimated."""
    if not done or total is None or done > total:
        return None
    return seconds * (total - done) / done


@dataclass(frozen=True, kw_only=True)
class Activity:
    """The counters of an engine, except for finished files.

    :param windows: windows decoded.
    :param retried_windows: of these, how many were decoded more than once.
    :param stages: seconds of all threads together in each of :data:`STAGES`.
    :param underway_bytes: bytes of the finished part of files in progress.
    :param underway_seconds: seconds of audio of the finished part of files in progress.
    :param queue_bytes: bytes of features that wait for the device.
    :param queue_limit: maximum bytes of features that may wait.
    """

    windows: int = 0
    retried_windows: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    underway_bytes: float = 0.0
    underway_seconds: float = 0.0
    queue_bytes: int = 0
    queue_limit: int = 0

    def __add__(self, other: Activity) -> Activity:
        stages = {name: self.stages.get(name, 0.0) + other.stages.get(name, 0.0) for name in STAGES}
        numbers = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in dataclasses.fields(self)
            if f.name != "stages"
        }
        return Activity(stages=stages, **numbers)

    def past(self) -> Activity:
        """The part that still counts after the engine has ended."""
        return Activity(windows=self.windows, retried_windows=self.retried_windows, stages=self.stages)


@dataclass(slots=True)
class _Underway:
    bytes: float
    declared_s: float | None
    heard_s: float = 0.0

    @property
    def bytes_done(self) -> float:
        return self.bytes * min(self.heard_s / self.declared_s, 1.0) if self.declared_s else 0.0


class Progress:
    """The counters of one pass over files. Any thread may take a :meth:`snapshot` at any time.

    :param files: number of files in the pass, if known.
    :param audio_bytes: total size of the files in bytes, if known; without it the remaining time is estimated
        only when files are finished.
    """

    def __init__(self, files: int | None = None, audio_bytes: int | None = None) -> None:
        self._total_files, self._total_bytes = files, audio_bytes
        # Taken once per batch or file.
        self._lock = threading.Lock()
        self._records: dict[int, _Record] = {}
        self._underway: dict[str, _Underway] = {}
        self._queue: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._started: float | None = None
        self._stopped: float | None = None
        self._files = self._left_out = self._left_out_bytes = 0
        self._bytes = self._audio_s = self._speech_s = 0.0
        self._errors: Counter[str] = Counter()
        self._flags: Counter[str] = Counter()
        # Counters of engines in other processes: those that have ended, and the current one.
        self._past = self._elsewhere = Activity()

    def start(self, queue: Callable[[], tuple[int, int]] | None = None) -> None:
        """Start the clock: the model is loaded and the first file is being read.

        :param queue: returns the bytes that wait for the device, and their maximum.
        """
        self._queue = queue or self._queue
        self._started = self._started or time.monotonic()

    def stop(self) -> None:
        """Stop the clock: all files are finished."""
        self._stopped = time.monotonic()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Counts the stages of this thread in the block for this pass, see :class:`stage`."""
        with self._lock:
            record = self._records.setdefault(threading.get_ident(), _Record())
        outer, _thread.record = _record(), record
        try:
            yield
        finally:
            _thread.record = outer

    def leave_out(self, audio_bytes: int | None) -> None:
        """Leave out a file that an earlier attempt of the Spark task has finished."""
        with self._lock:
            self._left_out += 1
            self._left_out_bytes += audio_bytes or 0
            if self._total_files is not None:
                self._total_files = max(self._total_files - 1, 0)
            if self._total_bytes is not None:
                self._total_bytes = max(self._total_bytes - (audio_bytes or 0), 0)

    def opened(self, uri: str, audio_bytes: int | None, declared_s: float | None) -> None:
        """Add a file that is being read.

        :param declared_s: length that its container declares, in seconds.
        """
        with self._lock:
            self._underway[uri] = _Underway(audio_bytes or 0, declared_s)

    def heard(self, positions: Mapping[str, float]) -> None:
        """Record the positions up to which files are transcribed, in seconds, after a batch."""
        with self._lock:
            for uri, position in positions.items():
                if uri in self._underway:
                    file = self._underway[uri]
                    file.heard_s = max(file.heard_s, position)

    def finished(self, file: Transcript) -> None:
        """Count a finished file, with or without an error."""
        with self._lock:
            self._underway.pop(file.audio_uri, None)
            self._count(file, 1)

    def changed(self, before: Transcript, after: Transcript) -> None:
        """Count a finished file as what it has become since."""
        with self._lock:
            self._count(before, -1)
            self._count(after, 1)

    def _count(self, file: Transcript, number: int) -> None:
        self._files += number
        self._bytes += number * (file.audio_bytes or 0)
        self._audio_s += number * (file.duration_s or 0.0)
        self._speech_s += number * (file.speech_s or 0.0)
        self._flags.update(dict.fromkeys(file.quality_flags, number))
        if file.error_code:
            self._errors[file.error_code] += number

    def follow(self, activity: Activity) -> None:
        """Set the counters of the engine in another process, whose finished files are counted here."""
        with self._lock:
            self._elsewhere = activity

    def unfollow(self) -> None:
        """Keep the counters of the engine in another process, which has ended; the next one starts at 0."""
        with self._lock:
            self._past, self._elsewhere = self._past + self._elsewhere.past(), Activity()

    def activity(self) -> Activity:
        """The current counters of this process and of the engines in other processes."""
        queue_bytes, queue_limit = self._queue()
        with self._lock:
            records = list(self._records.values())
            underway = list(self._underway.values())
            elsewhere = self._past + self._elsewhere
        running = [record.running() for record in records]
        here = Activity(
            windows=sum(record.counts["windows"] for record in records),
            retried_windows=sum(record.counts["retried_windows"] for record in records),
            stages={name: sum(seconds[name] for seconds in running) for name in STAGES},
            underway_bytes=sum(file.bytes_done for file in underway),
            underway_seconds=sum(file.heard_s for file in underway),
            queue_bytes=queue_bytes,
            queue_limit=queue_limit,
        )
        return here + elsewhere

    def snapshot(self) -> Snapshot:
        """The current value of all counters."""
        now = self._stopped or time.monotonic()
        activity = self.activity()
        with self._lock:
            values: dict[str, Any] = {
                "files": self._files,
                "total_files": self._total_files,
                "audio_bytes": self._bytes + activity.underway_bytes,
                "total_bytes": self._total_bytes,
                "left_out": self._left_out,
                "left_out_bytes": self._left_out_bytes,
                "audio_seconds": round(self._audio_s + activity.underway_seconds, 3),
                "speech_seconds": round(self._speech_s, 3),
                # Without zeros, which changed files leave.
                "errors": dict(+self._errors),
                "flags": dict(+self._flags),
            }
        return Snapshot(
            state="loading" if self._started is None else "done" if self._stopped else "running",
            seconds=round(now - self._started, 3) if self._started else 0.0,
            windows=activity.windows,
            retried_windows=activity.retried_windows,
            queue_bytes=activity.queue_bytes,
            queue_limit=activity.queue_limit,
            stages={name: round(seconds, 3) for name, seconds in activity.stages.items()},
            **values,
        )
