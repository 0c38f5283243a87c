"""Speech that is quiet, beside louder speech, or on a constant offset: it is found, or flagged."""

from __future__ import annotations

import io

import numpy as np
import pytest
from audio_matrix import FORMATS, RATE, Samples, encode
from recordings import samples_of
from speech import Clip

from whisper_spark import WhisperOptions
from whisper_spark.audio.channels import Mixer
from whisper_spark.audio.features import LogMel
from whisper_spark.audio.files import AudioFile
from whisper_spark.audio.reader import FileReader, Finished
from whisper_spark.audio.windows import Window

WAV = next(form for form in FORMATS if form.name == "wav-float")


def read(rows: Samples, **options: str) -> tuple[list[tuple[float, float]], Finished]:
    """Start and end of each stretch of speech, and the end of the reading."""
    data = encode(WAV, rows)
    reader = FileReader(WhisperOptions(**options), LogMel(80), lambda _: (io.BytesIO(data), len(data)))
    *parts, finished = reader.read(AudioFile("a"))
    assert isinstance(finished, Finished)
    chunks = [chunk for part in parts if isinstance(part, Window) for chunk in part.map.chunks]
    return [(chunk.start + chunk.lead, chunk.start + chunk.length - chunk.tail) for chunk in chunks], finished


@pytest.fixture(scope="module")
def sentence(librivox: list[Clip]) -> Samples:
    """Seven seconds of speech, with a pause before and after it."""
    pause = np.zeros(RATE, np.float32)
    samples = samples_of(librivox[0].path)
    return np.concatenate([pause, samples / np.abs(samples).max() * 0.3, pause])


@pytest.mark.parametrize(("level", "offset"), [(1.0, 0.5), (0.01, 0.5), (0.003, 0.05), (0.003, -0.02)])
def test_speech_on_a_constant_offset_is_found(level: float, offset: float, sentence: Samples) -> None:
    expected, _ = read(sentence[None])
    found, finished = read((level * sentence + offset)[None].astype(np.float32))
    assert found[0][0] == pytest.approx(expected[0][0], abs=0.3)
    assert found[-1][1] == pytest.approx(expected[-1][1], abs=0.3)
    assert finished.flags == ()


def call(sentence: Samples, level: float) -> Samples:
    """Two people on two channels, one after the other, the second one quieter."""
    silence = np.zeros_like(sentence)
    return np.stack([np.concatenate([sentence, silence]), np.concatenate([silence, level * sentence])])


@pytest.mark.parametrize("level", [0.01, 0.003])
def test_channel_that_is_too_quiet_for_the_mix_is_flagged(level: float, sentence: Samples) -> None:
    rows = call(sentence, level)
    assert read(rows)[1].flags == ("missed_speech",)
    assert read(rows, channels="split")[1].flags == ()


def test_quiet_channels_that_add_nothing_are_not_flagged(sentence: Samples) -> None:
    noise = np.random.default_rng(1).normal(0, 0.0005, len(sentence)).astype(np.float32)
    # Noise, silence, and the other speaker's voice through the air.
    for other in (noise, np.zeros_like(sentence), 0.01 * sentence + noise):
        assert read(np.stack([sentence, other]))[1].flags == ()


def test_channel_of_steady_noise_is_not_read_again(sentence: Samples) -> None:
    noise = np.random.default_rng(1).normal(0, 0.0005, len(sentence)).astype(np.float32)
    mixer = Mixer()
    mixer.mix(np.stack([sentence, noise, 0.01 * sentence], axis=1), RATE)
    assert mixer.quiet_channels == [2]


def test_channel_of_usual_level_is_heard_in_the_mix(sentence: Samples) -> None:
    found, finished = read(call(sentence, 0.5))
    assert found[-1][0] > len(sentence) / RATE
    assert finished.flags == ()
