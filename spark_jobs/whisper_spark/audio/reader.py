"""One file -> its windows as log-mel features, in order: fetched, decoded, cut where somebody speaks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from whisper_spark.audio.decode import AudioError, Block, DecodedAudio, open_audio
from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.windows import Window, WindowPacker
from whisper_spark.contract import WhisperOptions
from whisper_spark.progress.counters import stage, timed
from whisper_spark.storage.objects import ObjectChanged, ObjectForbidden, ObjectNotFound, ObjectStorage

log = logging.getLogger(__name__)

# Threads that may decode at once. FFmpeg is called for 20 ms of audio at a time; each call gives up Python's
# lock and wants it back, and sixteen threads that do so spend their time handing it to each other: 16 cores
# read calls at 526 times real time all at once, at 980, 1,171 and 568 with one, two and four at a time.
_DECODING = 2


@dataclass(frozen=True, slots=True)
class Opened:
    """The file could be opened.

    :param size: bytes.
    :param channels: channels of audio in it, as far as its header says.
    :param declared_s: length that the container claims, in seconds.
    """

    size: int | None
    channels: int
    declared_s: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole file has been read. Lengths in seconds.

    :param channels: channels of audio in what has been read.
    :param flags: quality flags: what of the file is not in the windows.
    """

    duration_s: float
    speech_s: float
    channels: int
    flags: tuple[str, ...] = ()


Part = Opened | Window | Finished | FileError


class Reader(Protocol):
    """Reads files, one at a time for each thread."""

    def read(self, file: AudioFile) -> Iterator[Part]:
        """The parts of a file. The last one is ``Finished``, or a ``FileError``; nothing is raised."""
        ...

    def close(self) -> None:
        """From any thread: a read under way ends soon, its file unfinished."""
        ...


class FileReader:
    """Reads files in this process. Several threads may share one.

    :param open_file: gives a seekable stream and the size in bytes; raises the errors of ``objects``.
    """

    def __init__(
        self,
        options: WhisperOptions,
        features: LogMel,
        open_file: Callable[[AudioFile], tuple[BinaryIO, int | None]],
    ) -> None:
        self._options = options
        self._features = features
        self._open = open_file
        self._turns = threading.Semaphore(_DECODING)

    def read(self, file: AudioFile) -> Iterator[Part]:
        """See :class:`Reader`."""
        try:
            with stage("fetch"):
                stream, size = self._open(file)
            with stream:
                yield from self._parts(stream, size)
        except AudioError as error:
            yield FileError(error.code, error.message)
        except (ObjectNotFound, FileNotFoundError):
            yield FileError("not_found", "the object is not there")
        except (ObjectForbidden, PermissionError):
            yield FileError("forbidden", "not allowed to read the object")
        except ObjectChanged:
            yield FileError("changed_during_read", "the object is not the one that was listed")
        except MemoryError:
            yield FileError("out_of_memory", "not enough memory to decode the file")
        except Exception as error:  # one bad file harms only its own row
            log.exception("cannot read %s", file.uri)
            yield FileError("internal", f"{type(error).__name__}: {error}"[:500])

    def close(self) -> None:
        """Nothing to do: whoever iterates stops by itself."""

    def _parts(self, stream: BinaryIO, size: int | None) -> Iterator[Part]:
        audio = self._opened(stream, None)
        yield Opened(size, audio.channels, audio.declared_s)
        speech = _Speech(self._options, self._features)
        yield from self._windows(audio, speech)
        others = audio.other_tracks
        for track in others:
            if speech.seconds:
                break
            # Nobody speaks in the track that players play: somebody may in another.
            again = self._opened(stream, track)
            heard = _Speech(self._options, self._features)
            yield from self._windows(again, heard)
            if heard.seconds:
                audio, speech, others = again, heard, [other for other in others if other != track]
        flags = [*(["truncated"] if audio.truncated else []), *(["other_tracks"] if others else [])]
        yield Finished(audio.decoded_s, speech.seconds, audio.channels, tuple(flags))

    def _opened(self, stream: BinaryIO, track: int | None) -> DecodedAudio:
        split = self._options.channels == "split"
        with stage("decode"), self._turns:
            return open_audio(stream, split=split, max_duration_s=self._options.max_duration_s, track=track)

    def _windows(self, audio: DecodedAudio, speech: _Speech) -> Iterator[Window]:
        return speech.windows(timed("decode", self._in_turn(audio.blocks())))

    def _in_turn(self, blocks: Iterator[Block]) -> Iterator[Block]:
        while True:
            with self._turns:
                block = next(blocks, None)
            if block is None:
                return
            yield block


class _Speech:
    """The windows of all channels of a file."""

    def __init__(self, options: WhisperOptions, features: LogMel) -> None:
        self._options = options
        self._features = features
        self._packers: dict[int, WindowPacker] = {}

    @property
    def seconds(self) -> float:
        """Speech found so far, in seconds, without padding."""
        return sum(packer.speech_seconds for packer in self._packers.values())

    def windows(self, blocks: Iterable[Block]) -> Iterator[Window]:
        """Windows as they are complete."""
        for samples, channel in blocks:
            if channel not in self._packers:
                self._packers[channel] = WindowPacker(self._options, self._features, channel)
            yield from timed("vad", self._packers[channel].push(samples))
        for packer in self._packers.values():
            yield from timed("vad", packer.finish())


def opened_from(storage: ObjectStorage) -> Callable[[AudioFile], tuple[BinaryIO, int | None]]:
    """How :class:`FileReader` opens files of a storage."""

    def open_file(file: AudioFile) -> tuple[BinaryIO, int | None]:
        stream = storage.open(file.uri, etag=file.etag)
        size = stream.seek(0, 2)
        stream.seek(0)
        return stream, size

    return open_file
