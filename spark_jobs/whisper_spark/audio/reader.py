"""Reads one file to windows of log-mel features, in order: fetch, decode, detect speech, pack."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from whisper_spark.audio.decode import AudioError, Block, DecodedAudio, open_audio
from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile, FileError
from whisper_spark.audio.vad import Region, SpeechSegmenter
from whisper_spark.audio.windows import Window, WindowPacker
from whisper_spark.contract import SAMPLE_RATE, WhisperOptions
from whisper_spark.progress.counters import stage, timed
from whisper_spark.storage.objects import ObjectChanged, ObjectForbidden, ObjectNotFound, ObjectStorage

log = logging.getLogger(__name__)

# Number of threads that may decode at the same time. Each call to FFmpeg decodes 20 ms of audio and releases
# and reacquires the GIL, so many threads mostly wait for it. On 16 cores, phone calls were read at 526 times
# real time without a limit, and at 980, 1,171 and 568 with a limit of one, two and four.
_DECODING = 2


# Seconds of speech in quiet channels that may be missing in the mix without a flag.
_MISSED = 1.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The file has been opened.

    :param size: in bytes.
    :param channels: number of audio channels, as far as the header tells.
    :param declared_s: length that the container declares, in seconds.
    """

    size: int | None
    channels: int
    declared_s: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole file has been read. Lengths are in seconds.

    :param channels: number of audio channels in the windows.
    :param flags: quality flags for audio that is not in the windows.
    """

    duration_s: float
    speech_s: float
    channels: int
    flags: tuple[str, ...] = ()


Part = Opened | Window | Finished | FileError


class Reader(Protocol):
    """Reads files: each thread reads one file at a time."""

    def read(self, file: AudioFile) -> Iterator[Part]:
        """The parts of a file. The last one is ``Finished`` or a ``FileError``; no exception is raised."""
        ...

    def close(self) -> None:
        """Stop reading; may be called from any thread. A read in progress ends soon, without ``Finished``."""
        ...


class FileReader:
    """Reads files in this process. Thread-safe.

    :param open_file: returns a seekable stream and its size in bytes; raises the errors of
        :mod:`whisper_spark.storage.objects`.
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
        # Any other error, because a bad file must affect only its own row.
        except Exception as error:
            log.exception("cannot read %s", file.uri)
            yield FileError("internal", f"{type(error).__name__}: {error}"[:500])

    def close(self) -> None:
        """Does nothing: reading stops when the caller stops iterating."""

    def _parts(self, stream: BinaryIO, size: int | None) -> Iterator[Part]:
        audio = self._opened(stream, None)
        yield Opened(size, audio.channels, audio.declared_s)
        speech = _Speech(self._options, self._features)
        yield from self._windows(audio, speech)
        others = audio.other_tracks
        for track in others:
            if speech.seconds:
                break
            # No speech in the default track: look for it in the other tracks.
            again = self._opened(stream, track)
            heard = _Speech(self._options, self._features)
            yield from self._windows(again, heard)
            if heard.seconds:
                audio, speech, others = again, heard, [other for other in others if other != track]
        flags = [*(["truncated"] if audio.truncated else []), *(["other_tracks"] if others else [])]
        if self._options.vad and self._misses_channel(stream, audio.quiet_channels, speech):
            flags.append("missed_speech")
        yield Finished(audio.decoded_s, speech.seconds, audio.channels, tuple(flags))

    def _misses_channel(self, stream: BinaryIO, channels: list[int], speech: _Speech) -> bool:
        """Whether somebody speaks in channels that are too quiet to be heard in the mix."""
        if not channels:
            return False
        detectors = {channel: SpeechSegmenter(self._options) for channel in channels}
        blocks = self._in_turn(self._opened(stream, None, split=True).blocks())
        regions = [
            region
            for block in timed("decode", blocks)
            if block.channel in detectors
            for region in timed("vad", detectors[block.channel].push(block.samples))
        ]
        regions += [region for detector in detectors.values() for region in detector.finish()]
        return sum(map(speech.seconds_outside, regions)) > _MISSED

    def _opened(self, stream: BinaryIO, track: int | None, split: bool | None = None) -> DecodedAudio:
        if split is None:
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
        # Start and end of each part that is in the windows, in seconds.
        self._heard: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """Speech found so far, in seconds, without padding."""
        return sum(packer.speech_seconds for packer in self._packers.values())

    def windows(self, blocks: Iterable[Block]) -> Iterator[Window]:
        """Yields each window when it is complete."""
        for samples, channel in blocks:
            if channel not in self._packers:
                self._packers[channel] = WindowPacker(self._options, self._features, channel)
            yield from self._noted(timed("vad", self._packers[channel].push(samples)))
        for packer in self._packers.values():
            yield from self._noted(timed("vad", packer.finish()))

    def seconds_outside(self, region: Region) -> float:
        """Seconds of the speech in a region that are in no window."""
        start = (region.start + region.lead) / SAMPLE_RATE
        end = (region.start + len(region.samples) - region.tail) / SAMPLE_RATE
        inside = sum(max(min(end, last) - max(start, first), 0.0) for first, last in self._heard)
        return max(end - start - inside, 0.0)

    def _noted(self, windows: Iterable[Window]) -> Iterator[Window]:
        for window in windows:
            self._heard += [(chunk.start, chunk.start + chunk.length) for chunk in window.map.chunks]
            yield window


def opened_from(storage: ObjectStorage) -> Callable[[AudioFile], tuple[BinaryIO, int | None]]:
    """The function with which a :class:`FileReader` opens files of a storage."""

    def open_file(file: AudioFile) -> tuple[BinaryIO, int | None]:
        stream = storage.open(file.uri, etag=file.etag)
        size = stream.seek(0, 2)
        stream.seek(0)
        return stream, size

    return open_file
