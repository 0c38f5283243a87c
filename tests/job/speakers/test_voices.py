"""Embeddings of detected speech: where stretches lie, and that nothing of the audio is kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from whisper_spark import WhisperOptions
from whisper_spark.audio.windows import Chunk, ChunkMap, Window
from whisper_spark.contract import SAMPLE_RATE
from whisper_spark.speakers import voices
from whisper_spark.speakers.failures import SpeakerFailures
from whisper_spark.speakers.speech import STRETCH, Speech, joined
from whisper_spark.speakers.voices import STEP, Voices

OPTIONS = WhisperOptions(model="base", diarize=True, speaker_model="/m")


def window(*chunks: Chunk, channel: int = 0) -> Window:
    found = ChunkMap(chunks)
    samples = np.arange(round(found.seconds * SAMPLE_RATE), dtype=np.float32)
    return Window(channel, 0, found, np.zeros((80, 1), np.float32), samples)


class Model:
    """Each embedding holds the first and the last sample of its stretch."""

    likeness = 0.8

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def embed(self, waveforms: np.ndarray) -> np.ndarray:
        self.batches.append(waveforms)
        return np.ones((len(waveforms), 4), np.float32) / 2


def heard(monkeypatch: pytest.MonkeyPatch, model: Any, *windows: Window) -> dict[int, Speech]:
    """The speech of each channel."""
    kept: list[Speech] = []
    alone = SimpleNamespace(evidence=np.ones((1, 1), np.float32))
    monkeypatch.setattr(voices, "speakers_of", lambda speech, *_: kept.append(speech) or alone)
    file = Voices(model, OPTIONS)
    for one in windows:
        assert file.heard(one).samples is None
    found = file.told_apart()
    assert found is not None
    return dict(zip(found, kept, strict=True))


def test_stretches_cover_speech_without_its_padding_at_times_of_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model()
    # Two regions: five seconds of speech from 101 s, and one second from 200.5 s.
    chunks = Chunk(0.0, 100.0, 7.0, 1.0, 1.0), Chunk(7.0, 200.0, 2.0, 0.5, 0.5)
    speech = heard(monkeypatch, model, window(*chunks))[0]
    first = speech.regions == 0
    assert (speech.starts[first][0], speech.ends[first][-1]) == (101.0, 106.0)
    assert np.diff(speech.starts[first]).max() <= STEP + 1e-3
    np.testing.assert_allclose(speech.ends[first] - speech.starts[first], STRETCH)
    assert (speech.starts[~first].tolist(), speech.ends[~first].tolist()) == ([200.5], [201.5])
    [batch] = model.batches
    assert batch.shape == (int(first.sum()) + 1, int(STRETCH * SAMPLE_RATE))
    assert batch[0, 0] == 1.0 * SAMPLE_RATE
    # What is shorter is repeated.
    assert batch[-1, 0] == batch[-1, SAMPLE_RATE] == 7.5 * SAMPLE_RATE


def test_channels_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [window(Chunk(0.0, float(n), 2.0), channel=n % 2) for n in range(4)]
    found = heard(monkeypatch, Model(), *windows)
    assert {channel: sorted(set(speech.starts.astype(int))) for channel, speech in found.items()} == {
        0: [0, 2],
        1: [1, 3],
    }
    assert len(joined(list(found.values())).starts) == sum(len(speech.starts) for speech in found.values())


@pytest.mark.parametrize(("max_speakers", "most"), [(None, 100), (2, 2)])
def test_the_number_of_speakers_is_limited(
    monkeypatch: pytest.MonkeyPatch, max_speakers: int | None, most: int
) -> None:
    limits: list[Any] = []
    monkeypatch.setattr(voices, "speakers_of", lambda *arguments: limits.append(arguments[-1]))
    file = Voices(Model(), replace(OPTIONS, max_speakers=max_speakers))  # type: ignore[arg-type]
    file.heard(window(Chunk(0.0, 0.0, 3.0)))
    file.told_apart()
    assert limits == [most]


@pytest.mark.parametrize(
    ("count", "max_speakers", "speakers", "sure"),
    [(30, None, 30, True), (130, None, 100, False), (130, 100, 100, True)],
)
def test_more_voices_than_a_file_may_have_are_uncertain_unless_their_number_is_known(
    count: int, max_speakers: int | None, speakers: int, sure: bool
) -> None:
    model = Model()
    random = np.random.default_rng(0)
    # Voices that have nothing in common, each of which speaks in two windows.
    sounds = np.linalg.qr(random.standard_normal((2 * count, 2 * count)))[0].astype(np.float32)
    file = Voices(model, replace(OPTIONS, max_speakers=max_speakers))  # type: ignore[arg-type]
    for number in range(2 * count):
        voice = sounds[number % count]
        model.embed = lambda waveforms, voice=voice: np.stack([voice] * len(waveforms))  # type: ignore[method-assign]
        file.heard(window(Chunk(0.0, 10.0 * number, 8.0)))
    found = file.told_apart()
    assert found is not None
    assert (found[0].evidence.shape[1], found[0].sure) == (speakers, sure)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_no_numbers_cost_the_speakers(value: float) -> None:
    model = Model()
    model.embed = lambda waveforms: np.full((len(waveforms), 4), value, np.float32)  # type: ignore[method-assign]
    file = Voices(model, OPTIONS)  # type: ignore[arg-type]
    for _ in range(2):
        assert file.heard(window(Chunk(0.0, 0.0, 3.0))).samples is None
    assert file.told_apart() is None


def test_a_failing_model_logs_one_traceback_and_the_name_of_each_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("no kernel for this GPU")

    model, failures = Model(), SpeakerFailures()
    model.embed = fail  # type: ignore[method-assign]
    for number in range(3):
        file = Voices(model, OPTIONS, f"s3://calls/{number}.wav", failures)  # type: ignore[arg-type]
        for _ in range(2):
            file.heard(window(Chunk(0.0, 0.0, 3.0)))
        assert file.told_apart() is None
    assert [record.exc_info is not None for record in caplog.records] == [True, False, False]
    for number, record in enumerate(caplog.records):
        assert f"s3://calls/{number}.wav gets no speakers" in record.getMessage()
        assert "no kernel for this GPU" in record.getMessage()
