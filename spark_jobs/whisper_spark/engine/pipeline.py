"""Keeps the device busy: reads files ahead, and batches windows across files.

It uses threads, because all expensive calls release the GIL, and because a process forked from a Spark worker
must not use a loaded model. Where threads cannot keep a GPU busy, each of them delegates reading to a process
(``reader_process``). Memory is limited in bytes: a reading thread waits while too many windows wait for the
device, so a file of eleven hours needs no more memory than one of eleven minutes.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.reader import Finished, Opened, Reader
from whisper_spark.audio.windows import Window
from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding import cuda
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import UnusableDeviceError
from whisper_spark.decoding.encoder_output import Encoded, EncodedRow
from whisper_spark.decoding.previous_text import PreviousText
from whisper_spark.decoding.quality import MIN_LANGUAGE_PROBABILITY
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine.batching import Batches
from whisper_spark.engine.work import FileWork, QueuedWindow, Step
from whisper_spark.progress.counters import Progress, count, stage
from whisper_spark.speakers.voices import Voices

log = logging.getLogger(__name__)

# Number of windows that determine the language of a file: 40 seconds of speech by default. They are always in
# the same batch, so that the encoder runs once, and so that the batch size does not affect the language.
_VOTERS = 2

# Batches that wait for each decoder: the next one, and others of different lengths to choose from. The more
# windows wait, the more of them have equal length. 32 MiB of features are about two minutes of work for a
# CPU.
_BATCHES_AHEAD = 4
_LEAST_AHEAD_BYTES = 32 * 1024 * 1024

# Number of finished files that may wait for the caller. While more of them wait, no further files are
# started.
_MOST_DONE = 256

# All readers together get so many seconds to end.
_READERS_END_SECONDS = 60.0

# Seconds that the device waits for a batch to fill up. A longer wait leaves it idle when the store is slow.
_PATIENCE_SECONDS = 0.2


class Pipeline:
    """One pass over many files. Iterate over it to get each :class:`FileWork` as it completes.

    :param files: taken one by one, at most ``options.prefetch_files`` ahead.
    :param readers: each is used by one thread, which reads one file after the other; closed at the end.
    :param progress: counters to update; finished files are counted by the caller.
    :param voices: creates what tells the speakers of a file apart, from its URI; ``None``: nothing does.
    """

    def __init__(
        self,
        files: Iterable[AudioFile],
        decoder: WindowDecoder,
        options: WhisperOptions,
        readers: Sequence[Reader],
        progress: Progress | None = None,
        voices: Callable[[str], Voices] | None = None,
    ) -> None:
        self._files = iter(files)
        self._voices = voices
        self._decoder = decoder
        self._options = options
        self._readers = readers
        self._progress = progress or Progress()
        batch = decoder.batch_size
        self._ready = Batches(batch * FULL_FRAMES)
        self._decoders = max(1, decoder.device.workers)
        self._limit = options.prefetch_bytes or max(
            _BATCHES_AHEAD * batch * self._decoders * decoder.window_bytes, _LEAST_AHEAD_BYTES
        )
        self._state = threading.Condition()
        # Guards the iterator, which may block while it waits for rows from Spark.
        self._take = threading.Lock()
        # Bytes of the windows that are queued or being decoded.
        self._bytes = 0
        # Number of reading threads that may still add windows, and how many of these wait for memory.
        self._reading = 0
        self._blocked = 0
        self._stopped = False
        self._done: queue.Queue[FileWork | BaseException | None] = queue.Queue()

    def __iter__(self) -> Iterator[FileWork]:
        self._progress.start(lambda: (self._bytes, self._limit))
        readers = [
            self._thread(partial(self._read_files, r), f"read-{n}") for n, r in enumerate(self._readers)
        ]
        self._reading = len(readers)
        decoders = [self._thread(self._decode, f"decode-{n}") for n in range(self._decoders)]
        waiting = len(decoders)
        for thread in [*readers, *decoders]:
            thread.start()
        try:
            while waiting:
                item = self._done.get()
                if self._done.qsize() == _MOST_DONE // 2:
                    with self._state:
                        self._state.notify_all()
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
            for reader in self._readers:
                reader.close()
            for thread in decoders:
                thread.join()
            # A read from a store that does not answer takes until its timeout.
            deadline = time.monotonic() + _READERS_END_SECONDS
            for thread in readers:
                thread.join(max(deadline - time.monotonic(), 0))

    def _thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                with self._progress.recording():
                    target()
            except BaseException as error:
                # Raised again in the thread of the caller, which would otherwise wait forever.
                self._done.put(error)

        return threading.Thread(target=guarded, name=f"whisper-{name}", daemon=True)

    # --- reading

    def _read_files(self, reader: Reader) -> None:
        try:
            while not self._stopped:
                self._wait_while_results_pile_up()
                with self._take:
                    file = next(self._files, None)
                if file is None:
                    return
                self._read(reader, FileWork(file, language=file.language or self._options.language))
        finally:
            reader.close()
            with self._state:
                self._reading -= 1
                self._state.notify_all()

    def _wait_while_results_pile_up(self) -> None:
        """Wait while too many finished files wait for the caller, which limits the memory that they take."""
        with self._state:
            self._blocked += 1
            while self._done.qsize() > _MOST_DONE and not self._stopped:
                self._state.wait(_PATIENCE_SECONDS)
            self._blocked -= 1

    def _read(self, reader: Reader, work: FileWork) -> None:
        """Read a file and queue its windows as they are complete."""
        if not self._decoder.multilingual:
            work.language = "en"
        head: list[Window] = []
        voices = self._voices(work.file.uri) if self._voices else None
        for part in reader.read(work.file):
            if self._stopped:
                return
            match part:
                case Window():
                    head.append(voices.heard(part) if voices else part)
                    if work.issued or work.language or len(head) == _VOTERS:
                        self._put(work, head)
                        head = []
                case Opened():
                    work.size, work.channels = part.size, part.channels
                    self._progress.opened(work.file.uri, work.file.size or part.size, part.declared_s)
                case Finished():
                    work.duration_s, work.speech_s = part.duration_s, part.speech_s
                    work.channels, work.flags = part.channels, part.flags
                    work.speakers = voices.told_apart() if voices else None
                    if head:
                        self._put(work, head)
                case FileError():
                    work.error = part
        with self._state:
            work.read = True
            self._finish_if_complete(work)

    def _put(self, work: FileWork, windows: list[Window]) -> None:
        """Queue windows for the device, then wait while too many bytes are queued.

        The thread waits only after it has queued its windows, so the device always has work while it waits.
        """
        # The largest context of all, because the first windows of a file must be in the same batch.
        context = self._decoder.context(max(window.frames for window in windows))
        queued = [QueuedWindow(work, window, context) for window in windows]
        with self._state:
            first = work.issued == 0
            work.issued += len(queued)
            self._bytes += sum(item.size for item in queued)
            if first or work.language:
                self._ready.add(queued)
            else:
                work.waiting_for_language.extend(queued)
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

    def _next_batch(self) -> list[QueuedWindow]:
        """The next batch: windows of equal context from any files. Empty at the end of the pass."""
        with self._state, stage("idle"):
            patient = True
            while not self._stopped:
                # Again after each wait, because another thread may have taken the windows.
                key, full = self._ready.best()
                if key and (full or not patient or self._reading == self._blocked):
                    # Divide the last windows among all decoders, so that they finish at the same time.
                    return self._ready.take(key, 1 if self._reading else self._decoders)
                if not self._ready and self._finished():
                    return []
                patient = self._state.wait(timeout=_PATIENCE_SECONDS)
            return []

    def _finished(self) -> bool:
        return self._reading == 0 and self._bytes == 0

    def _decode_batch(self, batch: list[QueuedWindow]) -> None:
        try:
            results: list[WindowText | FileError | QueuedWindow] = list(self._decoded(batch))
        except Exception as error:
            # An error of one window must not affect the windows of other files.
            if _device_is_lost(error):
                device = self._decoder.device.name
                raise UnusableDeviceError(f"{device} failed: {cuda.explained(error)}") from error
            if len(batch) > 1:
                log.warning("a batch of %d windows failed (%s): decoding it in halves", len(batch), error)
                if is_out_of_memory(error):
                    # Otherwise every further full batch would fail first.
                    with self._state:
                        self._ready.shrink(len(batch) * batch[0].key[1] // 2)
                for half in _halves(batch):
                    self._decode_batch(half)
                return
            log.exception("cannot decode a window of %s", batch[0].work.file.uri)
            results = [_decoding_error(error)]
        again = [result for result in results if isinstance(result, QueuedWindow)]
        count("windows", sum(item.step is Step.FIRST for item in batch))
        count("retried_windows", sum(item.step is Step.RETRY for item in again))
        pairs = list(zip(batch, results, strict=True))
        done = [item for item, result in pairs if not isinstance(result, QueuedWindow)]
        self._progress.heard({item.work.file.uri: item.window.end for item in done})
        with self._state:
            for item, result in pairs:
                self._settle(item, result)
            for work in {id(item.work): item.work for item in batch}.values():
                self._release(work)
            self._state.notify_all()

    def _settle(self, item: QueuedWindow, result: WindowText | FileError | QueuedWindow) -> None:
        """Store the result of a window, or queue the window for its next step."""
        work, window = item.work, item.window
        self._bytes -= item.size
        if item.step is Step.FIRST:
            text = result.text if isinstance(result, QueuedWindow) else result
            previous = work.previous.setdefault(window.channel, PreviousText())
            previous.add(window.number, text if isinstance(text, WindowText) else None)
        if isinstance(result, QueuedWindow):
            self._bytes += result.size
            if result.step is Step.REFINE:
                work.waiting_for_text.append(result)
            else:
                self._ready.add([result])
            return
        work.returned += 1
        if isinstance(result, FileError):
            work.error = work.error or result
        else:
            work.texts.append(result)
        self._finish_if_complete(work)

    def _release(self, work: FileWork) -> None:
        """Queue the windows of a file that waited for its language, or for the text before them."""
        if work.waiting_for_language and (work.language or work.error):
            # Without a language the file has failed, and "en" is not reported.
            work.language = work.language or "en"
            for item in work.waiting_for_language:
                self._ready.add([item])
            work.waiting_for_language = []
        waiting, work.waiting_for_text = work.waiting_for_text, []
        for item in waiting:
            previous, number = work.previous[item.window.channel], item.window.number
            if not self._options.condition_on_previous_text:
                self._ready.add([item])
            elif previous.is_known(number):
                language = item.text.language if item.text else ""
                self._ready.add([replace(item, before=previous.tokens(number, language))])
            else:
                work.waiting_for_text.append(item)

    def _decoded(self, batch: list[QueuedWindow]) -> Iterator[WindowText | QueuedWindow]:
        """The text of each window, or the window with its next step if it has to be decoded again."""
        windows = [item.window for item in batch]
        texts = [item.text for item in batch if item.text]
        unsure: dict[int, EncodedRow] = {}
        match batch[0].step:
            case Step.FIRST:
                texts, unsure = self._first_texts(batch, windows)
            case Step.REFINE:
                encoded = [item.encoded for item in batch if item.encoded]
                texts = self._decoder.refine(encoded, windows, texts, [item.before for item in batch])
            case Step.RETRY:
                with stage("retry", whole=True):
                    texts = self._decoder.retry(windows, texts, [item.context for item in batch])
        for i, (item, text) in enumerate(zip(batch, texts, strict=True)):
            if i in unsure:
                yield replace(item, step=Step.REFINE, text=text, encoded=unsure[i])
            elif text.reliable or item.step is Step.RETRY:
                yield text
            else:
                yield replace(item, step=Step.RETRY, text=text, encoded=None, before=())

    def _first_texts(
        self, batch: list[QueuedWindow], windows: list[Window]
    ) -> tuple[list[WindowText], dict[int, EncodedRow]]:
        """The texts of the first step, and the encoder's output for windows to refine, by position."""
        with stage("encode"):
            encoded = self._decoder.encode(windows, batch[0].context)
        with stage("language"):
            languages, known = self._languages(encoded, batch)
        texts = self._decoder.transcribe(encoded, windows, languages, known)
        unsure = [i for i, text in enumerate(texts) if self._decoder.is_unsure(text)]
        if not unsure:
            return texts, {}
        # A copy, because these rows would keep all others in memory.
        rows = encoded.rows(unsure)
        return texts, {i: EncodedRow(rows, place) for place, i in enumerate(unsure)}

    def _languages(
        self, encoded: Encoded, batch: list[QueuedWindow]
    ) -> tuple[list[str], dict[int, WindowText]]:
        """The language of each window, and the texts that were decoded to determine it.

        It is the language of the file, determined from its first windows if it is not known yet. With
        ``multilingual`` each window has its own language, unless that is uncertain.
        """
        windows = [item.window for item in batch]
        open_ = {id(item.work): item.work for item in batch if not item.work.language}
        members = [[i for i, item in enumerate(batch) if id(item.work) == key] for key in open_]
        known: dict[int, WindowText] = {}
        if open_:
            decisions = self._decoder.languages_of_files(encoded, windows, members)
            with self._state:
                for work, decision in zip(open_.values(), decisions, strict=True):
                    work.language, work.language_probability = decision.language, decision.probability
                    known.update(decision.texts)
        languages = [item.work.language or "" for item in batch]
        if self._options.multilingual:
            for i, row in enumerate(self._decoder.language_probabilities(encoded)):
                language, probability = max(row.items(), key=lambda item: item[1])
                if probability >= MIN_LANGUAGE_PROBABILITY:
                    languages[i] = language
        return languages, known


def _halves(batch: list[QueuedWindow]) -> Iterator[list[QueuedWindow]]:
    middle = len(batch) // 2
    yield batch[:middle]
    yield batch[middle:]


def _device_is_lost(error: Exception) -> bool:
    """Whether the GPU is unusable: CUDA errors other than lack of memory persist until the process ends."""
    message = str(error).lower()
    return ("cuda" in message or "cublas" in message) and "out of memory" not in message


def is_out_of_memory(error: Exception) -> bool:
    """Whether a batch failed for lack of memory, so that a smaller one may do."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _decoding_error(error: Exception) -> FileError:
    if is_out_of_memory(error):
        return FileError("out_of_memory", "the device ran out of memory for a single window")
    return FileError("internal", f"{type(error).__name__}: {error}"[:500])
