"""Runs the engine in its own process, and defines the messages between this process and its parent.

Native code reads and decodes untrusted files. When it crashes, or the kernel kills it for lack of memory,
only this process ends.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import platform
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from whisper_spark.audio.files import AudioFile
from whisper_spark.child_process import ChildProcess, Surroundings
from whisper_spark.contract import Transcript, WhisperOptions
from whisper_spark.engine.transform import load_transform
from whisper_spark.progress.counters import Activity, Progress
from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)

ENGINE = "whisper_spark.engine.transcriber:get_engine"
"""The default engine; tests pass another one."""

_ACTIVITY_SECONDS = 1.0
_LONG_FILE_SECONDS = 10.0
_OOM_SCORE = 500


@dataclass(frozen=True, slots=True)
class Order:
    """One pass over files.

    :param engine: ``module:function`` with the signature of :func:`transcriber.get_engine`.
    :param model_storage: obstore configuration for a model in an object store.
    :param storage: obstore configuration for the files.
    :param task: the ``TaskContext`` of the Spark task, which holds the cores and GPUs assigned to it.
    :param surroundings: those of the parent process.
    """

    engine: str
    options: WhisperOptions
    model_storage: Mapping[str, str]
    storage: Mapping[str, str]
    task: Any = None
    surroundings: Surroundings = field(default_factory=lambda: Surroundings.here())


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model has been loaded and has passed its self-test."""


@dataclass(frozen=True, slots=True)
class Transforming:
    """The function in ``options.transform`` begins with the transcript of a file, which follows."""

    uri: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The pass ended with an exception."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Done:
    """All files are finished."""


Message = Loaded | Transforming | Transcript | Activity | logging.LogRecord | Failed | Done


class EngineProcess:
    """A process with an engine. It runs one pass at a time, and keeps its model for the next one.

    :ivar passes: number of passes started so far.
    :raises OSError: when no process can be started here.
    """

    def __init__(self) -> None:
        self._process = ChildProcess(__name__, connections=2)
        self._files, self._messages = self._process.connections
        self._owner = os.getpid()
        self.passes = 0

    def start(self, order: Order) -> None:
        """Start a pass.

        :raises OSError: when the process has ended.
        """
        self.passes += 1
        self._files.send(order)

    def wanted(self) -> bool:
        """Wait until the process requests a file. Returns ``False`` when the pass is over."""
        try:
            return bool(self._files.recv())
        except (EOFError, OSError):
            return False

    def give(self, file: AudioFile | None) -> None:
        """Send the file that the process requested, or ``None`` when there are no more."""
        with contextlib.suppress(OSError):
            self._files.send(file)

    def message(self, within: float | None = None) -> Message | None:
        """Wait for the next message of the process.

        :param within: seconds to wait; ``None``: for ever.
        :return: ``None`` if there was none in this time.
        :raises EOFError: when the process has ended.
        """
        try:
            if within is not None and not self._messages.poll(within):
                return None
            message: Message = self._messages.recv()
        except OSError as error:
            raise EOFError from error
        return message

    def end(self) -> int:
        """Kill the process and wait for its end. Returns its exit status."""
        return self._process.end()

    def is_usable(self) -> bool:
        """Whether it is running, and was started by this process and not by one that was forked."""
        return self._owner == os.getpid() and self._process.is_running


_idle: EngineProcess | None = None
_idle_lock = threading.Lock()


def take_process() -> EngineProcess:
    """The idle process, if there is one, else a new one.

    :raises OSError: when no process can be started here.
    """
    global _idle
    with _idle_lock:
        process, _idle = _idle, None
    return process if process is not None and process.is_usable() else EngineProcess()


def keep_process(process: EngineProcess) -> None:
    """Keep a process idle, with its model loaded, for the next pass.

    Ends the one kept before: two models would not fit into the memory of most GPUs.
    """
    global _idle
    with _idle_lock:
        before, _idle = _idle, process
    if before is not None:
        before.end()


# --- in the process ----------------------------------------------------------------------------------


def serve(files: Connection, messages: Connection) -> None:
    """The main loop of the process: run one pass after the other until the connections close."""
    from whisper_spark.malloc import own_process

    _end_first_when_memory_runs_out()
    own_process()
    speaker = _Speaker(messages)
    logging.getLogger("whisper_spark").addHandler(speaker)
    before = Surroundings.here()
    while True:
        order: Order = files.recv()
        order.surroundings.take_over(before)
        before = order.surroundings
        _run(order, files, speaker)


def _run(order: Order, files: Connection, speaker: _Speaker) -> None:
    _set_task_context(order.task)
    progress = Progress()
    over = threading.Event()
    reports = threading.Thread(target=_report, args=(progress, speaker, over), daemon=True)
    reports.start()
    last: Message = Done()
    try:
        transform = load_transform(order.options)
        engine = engine_of(order.engine)(order.options, order.model_storage or None)
        speaker.say(Loaded())
        storage = ObjectStorage(order.storage)
        for transcript in engine.transcribe(_wanted_files(files), storage, progress):
            # Report that the file is no longer in progress: otherwise the parent counts it twice for a
            # moment.
            if (transcript.duration_s or 0.0) > _LONG_FILE_SECONDS:
                speaker.say(progress.activity())
            if order.options.transform and transcript.status == "ok":
                speaker.say(Transforming(transcript.audio_uri))
            speaker.say(transform(transcript))
    except ImportError as error:
        place = f"{error} on host {platform.node()} with {sys.executable}"
        last = Failed(_portable(type(error)(place, name=error.name)))
    except Exception as error:
        last = Failed(_portable(error))
    finally:
        over.set()
        reports.join()
    files.send(False)
    speaker.say(progress.activity())
    speaker.say(last)


def engine_of(path: str) -> Any:
    """The function that ``module:function`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _wanted_files(files: Connection) -> Iterator[AudioFile]:
    """Requests files from the parent. Runs in a thread of the engine."""
    while True:
        try:
            files.send(True)
            file = files.recv()
        except (EOFError, OSError):
            os._exit(0)
        if file is None:
            return
        yield file


def _report(progress: Progress, speaker: _Speaker, over: threading.Event) -> None:
    while not over.wait(_ACTIVITY_SECONDS):
        speaker.say(progress.activity())


class _Speaker(logging.Handler):
    """Sends messages and log records to the parent. Thread-safe. Exits when the parent has ended."""

    def __init__(self, messages: Connection) -> None:
        super().__init__()
        self._messages = messages
        self._turn = threading.Lock()

    def say(self, message: Message) -> None:
        data = pickle.dumps(message)
        with self._turn:
            try:
                self._messages.send_bytes(data)
            except OSError:
                os._exit(0)

    def emit(self, record: logging.LogRecord) -> None:
        """Format and send a record, because its arguments may not be picklable.

        This is what :class:`logging.handlers.QueueHandler` does.
        """
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.msg += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
            record.exc_info = record.exc_text = None
        self.say(record)


def _portable(error: Exception) -> Exception:
    """A picklable copy of an exception, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        copy.add_note(f"In the engine's process:\n{text}")
        pickle.dumps(copy)
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy


def _set_task_context(task: Any) -> None:
    if task is not None or "pyspark" in sys.modules:
        from pyspark import TaskContext

        TaskContext._setTaskContext(task)


def _end_first_when_memory_runs_out() -> None:
    """Make the kernel kill this process, which can be restarted, before Spark's executor or a notebook."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
