"""The voices of one file: speaker embeddings while it is read, speakers at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from whisper_spark.audio.windows import Window
from whisper_spark.contract import SAMPLE_RATE, WhisperOptions
from whisper_spark.progress.counters import stage
from whisper_spark.speakers.diarization import ChannelSpeakers, speakers_of
from whisper_spark.speakers.failures import SpeakerFailures
from whisper_spark.speakers.model import SpeakerModel
from whisper_spark.speakers.speech import STRETCH, Speech, joined

Floats = npt.NDArray[np.float32]

STEP = 0.75
"""Largest distance between two stretches of the same region of speech, in seconds."""

_SAMPLES = int(STRETCH * SAMPLE_RATE)

# Most speakers of a channel unless ``max_speakers`` is given, of which this is the largest value. The memory
# to name them grows with their number, and noise for hours may sound like hundreds.
_MOST_SPEAKERS = 100


class Voices:
    """The voices of one file: collects speaker embeddings while it is read, and tells speakers apart at its
    end.

    It takes less than a kilobyte of memory for each second of speech. A failure costs the file its speakers,
    not its transcript.

    :param uri: of the file.
    :param failures: those of the pass that the file belongs to.
    """

    def __init__(
        self,
        model: SpeakerModel,
        options: WhisperOptions,
        uri: str = "",
        failures: SpeakerFailures | None = None,
    ) -> None:
        self._model = model
        self._options = options
        self._uri = uri
        self._failures = failures or SpeakerFailures()
        self._parts: dict[int, list[Speech]] = {}
        self._regions = 0
        self._failed = False

    def heard(self, window: Window) -> Window:
        """Collect the speech of a window, and return the window without its samples.

        The windows of a channel come in order.
        """
        if window.samples is None:
            return window
        with stage("speakers"):
            try:
                if not self._failed:
                    self._add(window, window.samples)
            except Exception as error:
                self._failures.add(self._uri, "computing speaker embeddings", error)
                self._failed = True
        return replace(window, samples=None)

    def told_apart(self) -> dict[int, ChannelSpeakers] | None:
        """The speakers of each channel with speech; ``None`` after a failure."""
        if self._failed:
            return None
        with stage("speakers"):
            try:
                return {channel: self._speakers(channel) for channel in sorted(self._parts)}
            except Exception as error:
                self._failures.add(self._uri, "telling speakers apart", error)
                return None

    def _speakers(self, channel: int) -> ChannelSpeakers:
        least, most = self._options.min_speakers, self._options.max_speakers
        speech = joined(self._parts.pop(channel))
        found = speakers_of(speech, self._model.likeness, least, most or _MOST_SPEAKERS)
        # There may be more of them. Whoever sets max_speakers knows that there are not.
        full = most is None and found.evidence.shape[1] == _MOST_SPEAKERS
        return replace(found, sure=False) if full else found

    def _add(self, window: Window, samples: Floats) -> None:
        starts, ends, regions, audio = [], [], [], []
        for chunk in window.map.chunks:
            first = round((chunk.offset + chunk.lead) * SAMPLE_RATE)
            last = round((chunk.offset + chunk.length - chunk.tail) * SAMPLE_RATE)
            shift = chunk.start - chunk.offset
            for start, end in _stretches(first, last):
                starts.append(start / SAMPLE_RATE + shift)
                ends.append(end / SAMPLE_RATE + shift)
                regions.append(self._regions)
                audio.append(_of_full_length(samples[start:end]))
            self._regions += 1
        if audio:
            embeddings = self._model.embed(np.stack(audio)).astype(np.float16)
            if not np.isfinite(embeddings).all():
                raise ValueError("the speaker model computed a number that is not finite")
            part = Speech(np.array(starts), np.array(ends), np.array(regions), embeddings)
            self._parts.setdefault(window.channel, []).append(part)


def _stretches(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Stretches of equal length that cover a region of speech evenly. All values are in samples."""
    length = last - first
    if length <= _SAMPLES:
        if length > 0:
            yield first, last
        return
    steps = -(-(length - _SAMPLES) // int(STEP * SAMPLE_RATE))
    for step in range(steps + 1):
        start = first + (length - _SAMPLES) * step // steps
        yield start, start + _SAMPLES


def _of_full_length(samples: Floats) -> Floats:
    """Repeat what is shorter, so that all stretches of a window can share a batch."""
    return samples if len(samples) == _SAMPLES else np.resize(samples, _SAMPLES)
