"""The engine: transcribes many audio files, and returns a transcript or an error for each as it completes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from threadpoolctl import threadpool_limits

from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader import FileReader, Reader, opened_from
from whisper_spark.audio.reader_process import ReaderProcess, start_ahead
from whisper_spark.contract import Segment, Transcript, WhisperOptions, Word
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import UnusableDeviceError, choose_device
from whisper_spark.decoding.model import ModelError, find_model
from whisper_spark.decoding.quality import quality_flags
from whisper_spark.decoding.quality_gate import is_silence
from whisper_spark.decoding.segments import join_texts, numbered, split_into_segments
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine.pipeline import Pipeline
from whisper_spark.engine.readers import MOST_READERS, reader_processes
from whisper_spark.engine.self_test import self_test
from whisper_spark.engine.version import engine_version
from whisper_spark.engine.work import FileWork
from whisper_spark.malloc import keep_freed_memory, release_freed_memory
from whisper_spark.progress.counters import Progress, stage
from whisper_spark.speakers.assignment import Spoken, with_speakers
from whisper_spark.speakers.failures import SpeakerFailures
from whisper_spark.speakers.model import load_speaker_model
from whisper_spark.speakers.voices import Voices
from whisper_spark.storage.objects import ObjectStorage

__all__ = ["AudioFile", "Engine", "ModelError", "UnusableDeviceError", "get_engine"]

log = logging.getLogger(__name__)

# Languages written without spaces between words.
_SPACELESS = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km", "bo"})

# Maximum length of an error message: enough for the cause, and short enough for every row.
_MESSAGE_CHARS = 500


class Engine:
    """A loaded model that has passed its self-test. Create one per process, with :func:`get_engine`.

    :param storage: obstore configuration for a model in an object store.
    :raises ModelError: when the model cannot be found or loaded.
    :raises UnusableDeviceError: when the device does not transcribe a known clip.
    """

    def __init__(self, options: WhisperOptions, storage: Mapping[str, str] | None = None) -> None:
        self.options = options
        self.version = engine_version()
        device = choose_device(options)
        # They start while the model is loaded.
        start_ahead(reader_processes(options, device))
        folder = find_model(options, storage)
        # Before the Whisper model, which takes longer to load.
        self._speaker_model = load_speaker_model(options, device, storage) if options.diarize else None
        if device.kind == "cpu":
            keep_freed_memory()
        self._decoder = WindowDecoder(options, folder, device)
        self_test(self._decoder, options)
        log.info("%s loaded on %s", options.model, device.name)

    def transcribe(
        self,
        files: Iterable[AudioFile],
        storage: ObjectStorage | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Transcript]:
        """Transcribe files. Yields one transcript per file as it completes; bad files raise no exception.

        ``files`` is read ahead, by at most ``options.prefetch_files``, from another thread.

        :param storage: storage that holds the files; ``None``: ambient credentials.
        :param progress: counters to update.
        :raises UnusableDeviceError: when the device fails permanently.
        """
        store = storage or ObjectStorage()
        progress = progress or Progress()
        failures = SpeakerFailures()
        try:
            # The features of a window are too little work for several BLAS threads, which would mostly wait.
            with threadpool_limits(1, user_api="blas"):
                pipeline = Pipeline(
                    files, self._decoder, self.options, self._readers(store), progress, self._voices(failures)
                )
                for work in pipeline:
                    with progress.recording(), stage("assemble"):
                        transcript = self._transcript(work, failures)
                    progress.finished(transcript)
                    yield transcript
            progress.stop()
        finally:
            release_freed_memory()

    def _readers(self, storage: ObjectStorage) -> list[Reader]:
        options, features = self.options, self._decoder.features
        thread = FileReader(options, features, opened_from(storage))
        processes = reader_processes(options, self._decoder.device)
        if not processes:
            return [thread] * max(2, min(options.prefetch_files, MOST_READERS))
        return [ReaderProcess(options, features.bands, storage.config, thread) for _ in range(processes)]

    def _voices(self, failures: SpeakerFailures) -> Callable[[str], Voices] | None:
        model = self._speaker_model
        return (lambda uri: Voices(model, self.options, uri, failures)) if model else None

    def _transcript(self, work: FileWork, failures: SpeakerFailures | None = None) -> Transcript:
        base = Transcript(
            audio_uri=work.file.uri,
            audio_etag=work.file.etag,
            audio_bytes=work.size if work.file.size is None else work.file.size,
            attempt=work.file.attempt,
            channels=work.channels,
            duration_s=None if work.duration_s is None else round(work.duration_s, 3),
            model=self.options.model,
            fingerprint=self.options.fingerprint(),
            engine_version=self.version,
            transcribed_at=datetime.now(UTC),
        )
        if work.error is not None:
            return replace(
                base,
                status="error",
                error_code=work.error.code,
                error_message=work.error.message[:_MESSAGE_CHARS],
            )
        texts = sorted(work.texts, key=lambda text: (text.channel, text.number))
        spoken = [text for text in texts if not is_silence(text, self.options)]
        split = self.options.channels == "split"
        segments = numbered(
            segment for text in spoken for segment in _segments(text, text.channel if split else None)
        )
        spoken_by = self._spoken_by(segments, work, failures or SpeakerFailures())
        language = (self.options.multilingual and _main_language(segments)) or work.language
        transcript = replace(
            base,
            language=language,
            language_probability=_rounded(work.language_probability),
            speech_s=round(work.speech_s, 3),
            text=join_texts((s.text for s in spoken_by.segments), spaced=language not in _SPACELESS),
            segments=spoken_by.segments,
            quality_flags=(*_engine_flags(work, spoken), *(["uncertain_speakers"] * spoken_by.uncertain)),
            speakers=spoken_by.speakers,
        )
        return replace(transcript, quality_flags=quality_flags(transcript, self.options))

    def _spoken_by(self, segments: tuple[Segment, ...], work: FileWork, failures: SpeakerFailures) -> Spoken:
        """The segments with their speakers, or as they are if speakers are not or could not be told apart."""
        if not self.options.diarize:
            return Spoken(segments, speakers=None, uncertain=False)
        if work.speakers is None:
            return Spoken(segments, speakers=None, uncertain=True)
        try:
            return with_speakers(segments, work.speakers)
        except Exception as error:
            # A failure must not cost the transcript, nor the files after it.
            failures.add(work.file.uri, "assigning words to speakers", error)
            return Spoken(segments, speakers=None, uncertain=True)


def _segments(text: WindowText, channel: int | None) -> Iterator[Segment]:
    for words in split_into_segments(text.words or ()):
        said = "".join(word.word for word in words).strip()
        yield _segment(text, channel, words[0].start, words[-1].end, said, tuple(words))
    if text.words is None and text.text:
        yield _segment(text, channel, text.start, text.end, text.text, None)


def _segment(
    text: WindowText, channel: int | None, start: float, end: float, said: str, words: tuple[Word, ...] | None
) -> Segment:
    return Segment(
        id=0,
        channel=channel,
        start=start,
        end=end,
        text=said,
        language=text.language,
        avg_logprob=round(text.avg_logprob, 4),
        compression_ratio=round(text.compression_ratio, 4),
        no_speech_prob=round(text.no_speech_prob, 4),
        words=words,
    )


def _engine_flags(work: FileWork, spoken: list[WindowText]) -> tuple[str, ...]:
    flags = []
    said = any(text.text for text in spoken)
    if not said and not any(_empty_by_mistake(text) for text in work.texts):
        flags.append("no_speech")
    flags += work.flags
    if any(text.capped for text in spoken):
        flags.append("token_limit")
    if "missed_speech" not in flags and said and any(_misses_speech(text) for text in spoken):
        flags.append("missed_speech")
    return tuple(flags)


def _empty_by_mistake(text: WindowText) -> bool:
    """Whether a window has no text although Whisper itself classified it as speech."""
    return not text.text and text.no_speech_prob < 0.5


def _misses_speech(text: WindowText) -> bool:
    """Whether words are missing from a text. None are missing if Whisper itself detected no speech."""
    return text.incomplete and (bool(text.text) or _empty_by_mistake(text))


def _main_language(segments: tuple[Segment, ...]) -> str | None:
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment.language:
            seconds[segment.language] = seconds.get(segment.language, 0.0) + segment.end - segment.start
    return max(seconds, key=seconds.__getitem__) if seconds else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


_engines: dict[tuple[str, str], Engine] = {}
_engines_lock = threading.Lock()


def get_engine(options: WhisperOptions, storage: Mapping[str, str] | None = None) -> Engine:
    """The engine of this process for these options. The model is loaded and tested only once."""
    key = (options.to_json(), repr(sorted((storage or {}).items())))
    with _engines_lock:
        if key not in _engines:
            # Only one model at a time, because two would not fit into the memory of most GPUs.
            _engines.clear()
            _engines[key] = Engine(options, storage)
        return _engines[key]
