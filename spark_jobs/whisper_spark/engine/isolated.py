"""Isolates the engine in its own process, so that a file that crashes it costs only its own row.

When the engine's process ends unexpectedly, one of the files in progress may be the cause. A new process gets
these suspects one at a time, which identifies a file that crashes it again. The remaining files follow after
them. A process in which the user's function does not come to an end is killed, and the file is known.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from os import PathLike, fspath
from typing import Any

from whisper_spark.audio.files import AudioFile
from whisper_spark.child_process import describe_end
from whisper_spark.contract import Transcript, WhisperOptions
from whisper_spark.decoding.device import UnusableDeviceError
from whisper_spark.engine import engine_process
from whisper_spark.engine.engine_process import (
    Done,
    EngineProcess,
    Failed,
    Loaded,
    Message,
    Order,
    Transforming,
    engine_of,
    keep_process,
    take_process,
)
from whisper_spark.engine.file_queue import MOST_TRIES, FileQueue
from whisper_spark.engine.transform import load_transform
from whisper_spark.engine.version import engine_version
from whisper_spark.progress.counters import Activity, Progress
from whisper_spark.storage.objects import ObjectStorage, normalise_uri

log = logging.getLogger(__name__)

_MOST_BLAMELESS_ENDS = 3

# Longest wait for the thread that sends files, in seconds: after the process has ended, while the thread may
# wait for the caller's next file; and after all files are finished.
_ENDED_JOIN_SECONDS = 1.0
_DONE_JOIN_SECONDS = 10.0


class EngineProcessError(RuntimeError):
    """The engine's process ended unexpectedly, and no file is the cause."""


class IsolatedEngine:
    """The engine in its own process, which is restarted when a file crashes it.

    :param model_storage: obstore configuration for a model in an object store.
    :param engine: ``module:function`` with the signature of :func:`transcriber.get_engine`.
    """

    def __init__(
        self,
        options: WhisperOptions,
        model_storage: Mapping[str, str] | None = None,
        engine: str | None = None,
    ) -> None:
        self._options = options
        self._model_storage = dict(model_storage or {})
        self._engine = engine or engine_process.ENGINE

    def transcribe(
        self,
        files: Iterable[AudioFile],
        storage: ObjectStorage,
        progress: Progress | None = None,
        alone: int = 0,
    ) -> Iterator[Transcript]:
        """Transcribe files. Yields one transcript per file as it completes; bad files raise no exception.

        ``files`` is read ahead, by at most ``options.prefetch_files``, from another thread.

        :param alone: number of files at the start that are processed one at a time: the next one is taken
            only when the one before is finished.
        :raises ModelError: when the model cannot be found or loaded.
        :raises TransformError: when the function ``options.transform`` cannot be used.
        :raises UnusableDeviceError: when the device fails permanently.
        :raises EngineProcessError: when the engine's process ends and no file is the cause.
        """
        progress = progress or Progress()
        order = Order(self._engine, self._options, self._model_storage, storage.config, _task_context())
        queue = FileQueue(files, alone)
        blameless = 0
        while True:
            try:
                process = take_process()
            except OSError as error:
                log.warning(
                    "a file that crashes the engine will end this process, and options.transform has no time "
                    "limit: %s",
                    error,
                )
                yield from self._transcribed_here(queue.rest(), storage, progress)
                return
            given = queue.given
            run = _Pass(process, queue, progress, self._options.transform_timeout_s)
            yield from run.transcripts(order)
            if run.end is None:
                return
            culprit = queue.give_up_on_process(run.transforming if run.hangs else None)
            blameless = 0 if queue.given > given else blameless + 1
            if not (run.loaded or run.reused) or blameless > _MOST_BLAMELESS_ENDS:
                raise EngineProcessError(_without_culprit(run.end, run.loaded))
            if culprit is not None:
                yield self._error(culprit, run, progress)
            elif queue.suspects:
                log.warning(
                    "the engine's process ended (%s): %d files that were under way are tried one at a time",
                    run.end,
                    queue.suspects,
                )

    def _transcribed_here(
        self, files: Iterable[AudioFile], storage: ObjectStorage, progress: Progress
    ) -> Iterator[Transcript]:
        """The transcripts of an engine in this process."""
        transform = load_transform(self._options)
        engine = engine_of(self._engine)(self._options, self._model_storage or None)
        for transcript in engine.transcribe(files, storage, progress):
            changed = transform(transcript)
            # The engine has counted what it made.
            progress.changed(transcript, changed)
            yield changed

    def _error(self, file: AudioFile, run: _Pass, progress: Progress) -> Transcript:
        """The error row of a file that has ended a process."""
        if run.hangs:
            code, message = "transform_failed", f"{self._options.transform} {run.end}"
        elif run.transforming == file.uri:
            code = "transform_failed"
            message = f"{self._options.transform} ended its process {MOST_TRIES} times: {run.end}"
        else:
            code = "internal"
            message = f"the process that read and decoded the file ended {MOST_TRIES} times: {run.end}"
        log.warning("%s: %s", file.uri, message)
        transcript = error_row(file, self._options, message, code)
        progress.finished(transcript)
        return transcript


def error_row(file: AudioFile, options: WhisperOptions, message: str, code: str = "internal") -> Transcript:
    """The error row of a file that crashed or stopped the process which worked on it."""
    return Transcript(
        audio_uri=file.uri,
        audio_etag=file.etag,
        audio_bytes=file.size,
        attempt=file.attempt,
        status="error",
        error_code=code,
        error_message=message[:500],
        model=options.model,
        fingerprint=options.fingerprint(),
        engine_version=engine_version(),
        transcribed_at=datetime.now(UTC),
    )


class _Pass:
    """One pass: sends the files of a queue through one process, until all are finished or the process ends.

    :ivar loaded: whether the model was loaded.
    :ivar reused: whether the process was idle before, and so may have ended before this pass began.
    :ivar end: how the process ended unexpectedly; ``None`` if it did not.
    :ivar transforming: URI of the file whose transcript the user's function has; ``None``: it has none.
    :ivar hangs: whether the process was ended because this function did not come to an end.

    :param transform_timeout_s: longest time for one call of this function, in seconds.
    """

    def __init__(
        self, process: EngineProcess, queue: FileQueue, progress: Progress, transform_timeout_s: float
    ) -> None:
        self._process, self._queue, self._progress = process, queue, progress
        self._transform_timeout_s = transform_timeout_s
        self._deadline: float | None = None
        self.transforming: str | None = None
        self.hangs = False
        self._number = queue.process
        self.loaded = False
        self.reused = process.passes > 0
        self.end: str | None = None
        self._done = False

    def transcripts(self, order: Order) -> Iterator[Transcript]:
        """The transcripts of the files that are finished before the process ends.

        :raises BaseException: any exception of the engine or of the iterator of files.
        """
        feeder = threading.Thread(target=self._feed, name="whisper-feed", daemon=True)
        try:
            self._process.start(order)
            feeder.start()
            yield from self._received()
        except (EOFError, OSError):
            self.end = describe_end(self._process.end())
        except BaseException:
            # The process is in the middle of its files, so it cannot be used for another pass. This branch
            # also runs when the caller stops iterating or is interrupted.
            self._process.end()
            raise
        finally:
            self._progress.unfollow()
            if feeder.ident is not None:
                feeder.join(_DONE_JOIN_SECONDS if self._done else _ENDED_JOIN_SECONDS)
        if self._queue.failure is not None:
            raise self._queue.failure
        if feeder.is_alive():
            # It would take the requests of the next pass.
            self._process.end()
        elif self.end is None:
            keep_process(self._process)

    def _next(self) -> Message | None:
        """The next message; ``None`` if the user's function took too long and the process was ended."""
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        message = self._process.message(left)
        if message is None:
            self._process.end()
            self.hangs = True
            limit = f"{self._transform_timeout_s:g} s (transform_timeout_s)"
            self.end = f"did not come to an end within {limit}, and was stopped"
        return message

    def _received(self) -> Iterator[Transcript]:
        while (message := self._next()) is not None:
            match message:
                case Transforming(uri):
                    self.transforming = uri
                    self._deadline = time.monotonic() + self._transform_timeout_s
                case Transcript() as transcript:
                    self.transforming = self._deadline = None
                    self._queue.finished(transcript.audio_uri)
                    self._progress.finished(transcript)
                    yield transcript
                case Activity() as activity:
                    self._progress.follow(activity)
                case logging.LogRecord() as record:
                    _log_here(record)
                case Loaded():
                    self.loaded = True
                    self._progress.start()
                case Failed(error):
                    self._process.end()
                    if self.loaded and isinstance(error, UnusableDeviceError):
                        # After a GPU fault caused by a file, the GPU works in a new process; if it does not,
                        # the self-test there fails.
                        self.end = str(error)
                    else:
                        self._queue.failure = error
                    return
                case Done():
                    self._done = True
                    self._progress.stop()
                    return

    def _feed(self) -> None:
        while self._process.wanted():
            try:
                file = self._queue.next(self._number)
            except BaseException as error:
                # Raised again by transcripts(), in the thread of the caller.
                self._queue.failure = error
                self._process.end()
                return
            self._process.give(file)


def _without_culprit(cause: str, loaded: bool) -> str:
    when = "again and again, without a file under way" if loaded else "while it loaded the model"
    return f"the engine's process ended {when}: {cause}"


def _log_here(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _task_context() -> Any:
    if "pyspark" not in sys.modules:
        return None
    from pyspark import TaskContext

    return TaskContext.get()


def transcribe_files(
    paths: Iterable[str | PathLike[str]],
    options: WhisperOptions | None = None,
    *,
    storage: Mapping[str, str] | None = None,
    model_storage: Mapping[str, str] | None = None,
) -> Iterator[Transcript]:
    """Transcribe files without Spark. Yields each transcript as soon as it is complete.

    .. code-block:: python

        for transcript in transcribe_files(["a.wav", "s3://bucket/b.mp3"], WhisperOptions(model="base")):
            print(transcript.audio_uri, transcript.text)

    The engine runs in its own process, which keeps the model loaded until this process ends or needs another
    model. Where no process can be started, for instance on Windows, it runs in this process.

    :param paths: local paths or URIs, not percent-encoded.
    :param storage: obstore configuration for the URIs; ``None``: ambient credentials.
    :param model_storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model cannot be found or loaded.
    :raises UnusableDeviceError: when the device does not work.
    """
    files = (AudioFile(normalise_uri(fspath(path))) for path in paths)
    engine = IsolatedEngine(options or WhisperOptions(), model_storage)
    yield from engine.transcribe(files, ObjectStorage(storage))
