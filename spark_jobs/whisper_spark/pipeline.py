"""Keep the device busy: fetch, decode and cut files ahead in threads, batch windows across files.

Threads, because everything heavy here releases the GIL and because a process forked from a Spark worker may
not touch a loaded model. Memory is bounded in bytes: a file's thread waits when too much is waiting for the
device, so a file of eleven hours needs no more than one of eleven minutes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from whisper_spark.audio import AudioError, DecodedAudio, open_audio
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoder import FULL_FRAMES, WindowDecoder, WindowTask, context_frames
from whisper_spark.gate import WindowText
from whisper_spark.model import UnusableDeviceError
from whisper_spark.objects import ObjectChanged, ObjectForbidden, ObjectNotFound
from whisper_spark.progress import Progress, count, stage, timed
from whisper_spark.quality import MIN_LANGUAGE_PROBABILITY
from whisper_spark.speech import Window, WindowPacker

log = logging.getLogger(__name__)

_HEAD = 2
# Windows that vote on the language of a file: half a minute of speech by default. They travel in one batch,
# so that the encoder runs once; whatever the size of batches, so that it does not decide on the language.


@dataclass(frozen=True, slots=True)
class AudioFile:
    """A file to transcribe.

    :param uri: raw URI, nothing percent-encoded.
    :param etag: when given, other bytes under this URI are an error ``changed_during_read``.
    :param size: bytes, as listed.
    :param attempt: copied to the transcript.
    :param language: Whisper language code that overrides the options' for this file.
    """

    uri: str
    etag: str | None = None
    size: int | None = None
    attempt: int = 1
    language: str | None = None


@dataclass(frozen=True, slots=True)
class FileError:
    """Why there is no transcript. ``code`` is one of :data:`contract.ERROR_CODES`."""

    code: str
    message: str


@dataclass(slots=True, eq=False)
class FileWork:
    """Everything known about a file while it is under way."""

    file: AudioFile
    language: str | None = None
    language_probability: float | None = None
    duration_s: float | None = None
    speech_s: float = 0.0
    channels: int | None = None
    truncated: bool = False
    error: FileError | None = None
    size: int | None = None
    texts: list[tuple[int, int, WindowText]] = field(default_factory=list)  # channel, number in it, text
    issued: int = 0  # windows handed to the device
    returned: int = 0
    read: bool = False  # its thread is through with it
    held: list[_Job] = field(default_factory=list)  # until the head has voted on the language

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""
        return self.read and self.returned == self.issued


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    work: FileWork
    channel: int
    number: int
    task: WindowTask
    suspect: WindowText | None = None  # what the first decoding gave, when that must be done again

    @property
    def size(self) -> int:
        return self.task.features.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Windows that must share a batch, and since when they wait for it."""

    jobs: list[_Job]
    since: float = field(default_factory=time.monotonic)

    @property
    def key(self) -> tuple[bool, int]:
        """Groups share a batch only when this is equal: to be decoded again or not, frames of context."""
        first = self.jobs[0]
        return first.suspect is not None, FULL_FRAMES if first.suspect else first.task.context


class Pipeline:
    """One pass over many files. Iterate it to get each :class:`FileWork` as it completes.

    :param files: taken one by one, never more than ``options.prefetch_files`` ahead.
    :param open_file: gives a seekable stream and the size in bytes; raises the errors of ``objects``.
    :param progress: counts what is done, except for finished files.
    """

    def __init__(
        self,
        files: Iterable[AudioFile],
        decoder: WindowDecoder,
        options: WhisperOptions,
        open_file: Callable[[AudioFile], tuple[BinaryIO, int | None]],
        progress: Progress | None = None,
    ) -> None:
        self._files = iter(files)
        self._decoder = decoder
        self._options = options
        self._open = open_file
        self._progress = progress or Progress()
        batch = options.batch_size or (64 if decoder.device.kind == "cuda" else 2)
        self._room = batch * FULL_FRAMES  # frames that a batch may hold
        workers = max(1, decoder.device.workers)
        self._limit = options.prefetch_bytes or max(
            _BATCHES_AHEAD * batch * workers * decoder.window_bytes, _LEAST_AHEAD_BYTES
        )
        self._state = threading.Condition()
        self._take = threading.Lock()  # guards the iterator, which may block while Spark sends more
        self._ready: list[_Group] = []  # oldest first
        self._bytes = 0
        self._reading = 0  # threads that may still bring windows
        self._blocked = 0  # of these, how many wait for memory
        self._stopped = False
        self._done: queue.Queue[FileWork | BaseException | None] = queue.Queue()

    def __iter__(self) -> Iterator[FileWork]:
        self._progress.start(lambda: (self._bytes, self._limit))
        readers = [self._thread(self._read_files, f"read-{n}") for n in range(self._readers())]
        self._reading = len(readers)
        decoders = [
            self._thread(self._decode, f"decode-{n}") for n in range(max(1, self._decoder.device.workers))
        ]
        waiting = len(decoders)
        for thread in [*readers, *decoders]:
            thread.start()
        try:
            while waiting:
                item = self._done.get()
                if item is None:
                    waiting -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            with self._state:
                self._stopped = True
                self._state.notify_all()
            for thread in decoders:
                thread.join()
            for thread in readers:
                thread.join(timeout=60)  # a read from a dead store may take as long as its time-out

    def _readers(self) -> int:
        return max(2, min(self._options.prefetch_files, 16))

    def _thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                with self._progress.recording():
                    target()
            except BaseException as error:  # a thread that dies in silence would leave the others waiting
                self._done.put(error)

        return threading.Thread(target=guarded, name=f"whisper-{name}", daemon=True)

    # --- reading

    def _read_files(self) -> None:
        try:
            while not self._stopped:
                with self._take:
                    file = next(self._files, None)
                if file is None:
                    return
                self._read(FileWork(file, language=file.language or self._options.language))
        finally:
            with self._state:
                self._reading -= 1
                self._state.notify_all()

    def _read(self, work: FileWork) -> None:
        try:
            with stage("fetch"):
                stream, work.size = self._open(work.file)
            with stream:
                self._cut(work, stream)
        except AudioError as error:
            work.error = FileError(error.code, error.message)
        except (ObjectNotFound, FileNotFoundError):
            work.error = FileError("not_found", "the object is not there")
        except (ObjectForbidden, PermissionError):
            work.error = FileError("forbidden", "not allowed to read the object")
        except ObjectChanged:
            work.error = FileError("changed_during_read", "the object is not the one that was listed")
        except MemoryError:
            work.error = FileError("out_of_memory", "not enough memory to decode the file")
        except Exception as error:  # one bad file harms only its own row
            log.exception("cannot read %s", work.file.uri)
            work.error = FileError("internal", f"{type(error).__name__}: {error}"[:500])
        with self._state:
            work.read = True
            self._finish_if_complete(work)

    def _cut(self, work: FileWork, stream: BinaryIO) -> None:
        """Decode a file and hand over its windows as they come."""
        options = self._options
        audio = open_audio(stream, split=options.channels == "split", max_duration_s=options.max_duration_s)
        work.channels = audio.channels
        self._progress.opened(work.file.uri, work.file.size or work.size, audio.declared_s)
        if not self._decoder.multilingual:
            work.language = "en"
        voting = work.language is None
        packers = [WindowPacker(options) for _ in range(audio.channels if options.channels == "split" else 1)]
        head: list[_Job] = []
        for job in self._jobs(work, audio, packers):
            head.append(job)
            if not voting or len(head) == _HEAD:
                self._put(work, head)
                head, voting = [], False
            if self._stopped:
                return
        if head:
            self._put(work, head)
        work.duration_s = audio.decoded_s
        work.truncated = audio.truncated
        work.speech_s = sum(packer.speech_seconds for packer in packers)

    def _jobs(self, work: FileWork, audio: DecodedAudio, packers: list[WindowPacker]) -> Iterator[_Job]:
        numbers = [0] * len(packers)
        for channel, window in _windows(audio, packers):
            with stage("features"):
                features = self._decoder.features(window.samples)
            task = WindowTask(features, window.map, context_frames(features.shape[1]))
            yield _Job(work, channel, numbers[channel], task)
            numbers[channel] += 1

    def _put(self, work: FileWork, jobs: list[_Job]) -> None:
        """Make windows ready for the device, then wait while too much is.

        Waiting comes after: a thread that waits never holds back work, so the device can always go on.
        """
        context = max(job.task.context for job in jobs)  # those that vote travel together
        jobs = [replace(job, task=replace(job.task, context=context)) for job in jobs]
        with self._state:
            first = work.issued == 0
            work.issued += len(jobs)
            self._bytes += sum(job.size for job in jobs)
            if first or work.language:
                self._ready.append(_Group(jobs))
            else:
                work.held.extend(jobs)
            self._state.notify_all()
            self._blocked += 1
            with stage("blocked"):
                while self._bytes > self._limit and not self._stopped:
                    self._state.wait()
            self._blocked -= 1

    def _finish_if_complete(self, work: FileWork) -> None:
        if work.complete:
            self._done.put(work)

    # --- the device

    def _decode(self) -> None:
        while batch := self._next_batch():
            self._decode_batch(batch)
        self._done.put(None)

    def _next_batch(self) -> list[_Job]:
        """Windows of equal context from any files; empty when there will be no more."""
        with self._state, stage("idle"):
            while not self._stopped:
                key, full = self._fullest()
                if key and (full or self._reading == self._blocked):
                    return self._fill_batch(key)
                if not self._ready and self._finished():
                    return []
                if not self._state.wait(timeout=_PATIENCE_SECONDS) and key:
                    return self._fill_batch(key)
            return []

    def _fullest(self) -> tuple[tuple[bool, int] | None, bool]:
        """What most windows wait for, and whether they fill a batch; or what has waited too long."""
        if self._ready and time.monotonic() - self._ready[0].since > _LONGEST_WAIT_SECONDS:
            return self._ready[0].key, True
        frames: dict[tuple[bool, int], int] = {}
        for group in self._ready:
            frames[group.key] = frames.get(group.key, 0) + len(group.jobs) * group.key[1]
        if not frames:
            return None, False
        key = max(frames, key=frames.__getitem__)
        return key, frames[key] + key[1] > self._room

    def _finished(self) -> bool:
        return self._reading == 0 and self._bytes == 0

    def _fill_batch(self, key: tuple[bool, int]) -> list[_Job]:
        batch: list[_Job] = []
        left: list[_Group] = []
        for group in self._ready:
            fits = not batch or (len(batch) + len(group.jobs)) * key[1] <= self._room
            if fits and group.key == key:
                batch.extend(group.jobs)
            else:
                left.append(group)
        self._ready = left
        return batch

    def _decode_batch(self, batch: list[_Job]) -> None:
        try:
            texts: list[WindowText | FileError] = list(self._texts(batch))
        except Exception as error:  # whatever it is, it must not take other files' windows with it
            if _device_is_lost(error):
                raise UnusableDeviceError(f"{self._decoder.device.name} failed: {error}") from error
            if len(batch) > 1:
                log.warning("a batch of %d windows failed (%s): decoding it in halves", len(batch), error)
                for half in _halves(batch):
                    self._decode_batch(half)
                return
            log.exception("cannot decode a window of %s", batch[0].work.file.uri)
            texts = [_decoding_error(error)]
        done = [
            isinstance(text, FileError) or text.reliable or bool(job.suspect)
            for job, text in zip(batch, texts, strict=True)
        ]
        count("windows", sum(not job.suspect for job in batch))
        count("retried_windows", done.count(False))
        self._progress.heard(
            {job.work.file.uri: _end(job) for job, is_done in zip(batch, done, strict=True) if is_done}
        )
        with self._state:
            for job, text, is_done in zip(batch, texts, done, strict=True):
                if is_done:
                    self._return(job, text)
                elif isinstance(text, WindowText):
                    self._ready.append(_Group([replace(job, suspect=text)]))
                self._release_held(job.work)
            self._state.notify_all()

    def _return(self, job: _Job, text: WindowText | FileError) -> None:
        work = job.work
        work.returned += 1
        self._bytes -= job.size
        if isinstance(text, FileError):
            work.error = work.error or text
        else:
            work.texts.append((job.channel, job.number, text))
        self._finish_if_complete(work)

    def _release_held(self, work: FileWork) -> None:
        """The windows that waited for the vote on the language of their file."""
        if work.held and (work.language or work.error):
            work.language = work.language or "en"  # never used: the file has failed
            self._ready.extend(_Group([held]) for held in work.held)
            work.held = []

    def _texts(self, batch: list[_Job]) -> list[WindowText]:
        tasks = [job.task for job in batch]
        suspects = [job.suspect for job in batch if job.suspect]
        if suspects:
            with stage("retry", whole=True):
                return self._decoder.retry(tasks, suspects)
        with stage("encode"):
            encoded = self._decoder.encode(tasks)
        with stage("language"):
            languages = self._languages(encoded, batch)
        return self._decoder.transcribe(encoded, tasks, languages)

    def _languages(self, encoded: Any, batch: list[_Job]) -> list[str]:
        """A language for each window: its file's, decided by vote where it is not known yet.

        With ``multilingual`` a window has its own, unless that is uncertain.
        """
        tasks = [job.task for job in batch]
        for work in {id(job.work): job.work for job in batch if not job.work.language}.values():
            members = [i for i, job in enumerate(batch) if job.work is work]
            decision = self._decoder.language_of_file(encoded, tasks, members)
            with self._state:
                work.language, work.language_probability = decision
        languages = [job.work.language or "" for job in batch]
        if self._options.multilingual:
            for i, row in enumerate(self._decoder.language_probabilities(encoded)):
                language, probability = max(row.items(), key=lambda item: item[1])
                if probability >= MIN_LANGUAGE_PROBABILITY:
                    languages[i] = language
        return languages


_BATCHES_AHEAD = 4
_LEAST_AHEAD_BYTES = 32 * 1024 * 1024
# For each decoder: one that it takes next, and others of different length to choose from. The more windows
# wait, the more of them are of equal length; 32 MiB are about two minutes of work for a CPU.

_LONGEST_WAIT_SECONDS = 10.0
# Then a window goes even if its batch is not full: its file cannot be saved before.

_PATIENCE_SECONDS = 0.2
# How long the device waits for a batch to fill up. Longer leaves it idle when the store is slow.


def _windows(audio: DecodedAudio, packers: list[WindowPacker]) -> Iterator[tuple[int, Window]]:
    for block in timed("decode", audio.blocks()):
        for channel, packer in enumerate(packers):
            for window in timed("vad", packer.push(block[channel])):
                yield channel, window
    for channel, packer in enumerate(packers):
        for window in timed("vad", packer.finish()):
            yield channel, window


def _end(job: _Job) -> float:
    """How far its file is transcribed once this window is, in seconds."""
    last = job.task.map.chunks[-1]
    return last.start + last.length


def _halves(batch: list[_Job]) -> Iterator[list[_Job]]:
    middle = len(batch) // 2
    yield batch[:middle]
    yield batch[middle:]


def _device_is_lost(error: Exception) -> bool:
    """A CUDA error other than lack of memory stays for the life of the process: every window would fail."""
    message = str(error).lower()
    return ("cuda" in message or "cublas" in message) and "out of memory" not in message


def _decoding_error(error: Exception) -> FileError:
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return FileError("out_of_memory", "the device ran out of memory for a single window")
    return FileError("internal", f"{type(error).__name__}: {error}"[:500])
