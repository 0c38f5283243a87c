"""Voice detection and packing: nothing said is lost, nothing is heard twice, whatever the length."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from faster_whisper.vad import get_vad_model
from recordings import RATE, Samples, call, samples_of, silence
from speech import Clip

from whisper_spark import WhisperOptions
from whisper_spark.audio.silero import VoiceDetector
from whisper_spark.audio.vad import FixedSegmenter, SpeechSegmenter, _Level
from whisper_spark.audio.windows import Window, WindowPacker


def windows(samples: Samples, options: WhisperOptions | None = None, block: int = 10 * RATE) -> list[Window]:
    packer = WindowPacker(options or WhisperOptions(), lambda samples: samples)  # a window of plain samples
    blocks = [samples[i : i + block] for i in range(0, len(samples), block)]
    return [*itertools.chain.from_iterable(packer.push(b) for b in blocks), *packer.finish()]


@pytest.fixture(scope="module")
def sentences(librivox: list[Clip]) -> Samples:
    """Two minutes of one reader, with pauses of every length from none to a minute."""
    spoken = [samples_of(clip.path) for clip in librivox]
    pauses = [silence(s) for s in (0.0, 0.2, 0.5, 1.0, 60.0)]
    return np.concatenate([piece for pair in zip(spoken, pauses, strict=True) for piece in pair] + spoken)


@pytest.fixture(scope="module")
def at_once(sentences: Samples) -> Samples:
    """The probabilities of the whole recording, given in one block."""
    return probabilities(sentences, len(sentences))


@pytest.mark.parametrize("block", [RATE // 10, 10 * RATE])
def test_streaming_gives_the_probabilities_of_the_whole_file(
    sentences: Samples, at_once: Samples, block: int
) -> None:
    assert np.abs(probabilities(sentences, block) - at_once).max() < 1e-6


def test_probabilities_are_those_of_the_silero_in_faster_whisper(
    sentences: Samples, at_once: Samples
) -> None:
    expected = get_vad_model()(np.pad(sentences, (0, 512 - len(sentences) % 512))).reshape(-1)
    # Sums in another order: each of both differs as much from a computation in float64.
    assert np.abs(at_once - expected[: len(at_once)]).max() < 1e-5


def probabilities(samples: Samples, block: int) -> Samples:
    detector = VoiceDetector()
    parts = [detector.push(samples[i : i + block]) for i in range(0, len(samples), block)]
    return np.concatenate([*parts, detector.finish()])


def test_windows_do_not_depend_on_how_the_file_arrives(sentences: Samples) -> None:
    one, other = windows(sentences, block=RATE // 3), windows(sentences, block=10**9)
    assert [w.map for w in one] == [w.map for w in other]


@pytest.mark.parametrize("longest", [5.0, 15.0, 30.0])
def test_every_window_fits_and_its_map_leads_back_to_the_file(sentences: Samples, longest: float) -> None:
    for window in windows(sentences, WhisperOptions(chunk_length=longest)):
        assert 0 < window.map.seconds <= longest
        for chunk in window.map.chunks:
            offset, start, length = (round(x * RATE) for x in (chunk.offset, chunk.start, chunk.length))
            np.testing.assert_array_equal(
                window.features[offset : offset + length], sentences[start : start + length]
            )


def test_no_sample_is_heard_twice(sentences: Samples) -> None:
    chunks = [chunk for window in windows(sentences) for chunk in window.map.chunks]
    for before, after in itertools.pairwise(chunks):
        assert before.start + before.length <= after.start + 1e-9


def test_a_long_pause_is_left_out(sentences: Samples) -> None:
    kept = sum(window.map.seconds for window in windows(sentences))
    assert kept < len(sentences) / RATE - 55


def test_speech_without_any_pause_is_cut_but_not_lost(librivox: list[Clip]) -> None:
    words = samples_of(librivox[0].path)
    loud = words[np.abs(words) > 0]
    endless = np.tile(loud, 1 + 100 * RATE // len(loud))
    cut = windows(endless, WhisperOptions(vad_min_silence_ms=5000))
    assert len(cut) >= 4
    assert sum(w.map.seconds for w in cut) > 0.98 * len(endless) / RATE


def test_without_voice_detection_everything_audible_is_transcribed(sentences: Samples) -> None:
    audible = sentences + np.float32(0.001)
    cut = windows(audible, WhisperOptions(vad=False, chunk_length=15.0))
    np.testing.assert_array_equal(np.concatenate([w.features for w in cut]), audible)
    assert all(w.map.seconds <= 15 for w in cut)


@pytest.mark.parametrize("kind", [SpeechSegmenter, FixedSegmenter])
def test_memory_does_not_grow_with_the_length_of_a_silence(kind) -> None:
    segment = kind(WhisperOptions())
    for _ in range(60):
        list(segment.push(silence(10)))
    assert segment._tape.end - segment._tape.start <= 30 * RATE


def test_digital_silence_is_never_given_to_whisper() -> None:
    assert windows(silence(100), WhisperOptions(vad=False)) == []


def test_words_never_reach_into_the_silence_between_chunks(speech: list[Clip]) -> None:
    english = [(c.path, c.text) for c in speech if c.language == "en"][:3]
    samples, _ = call(english, pause=3.0)
    for window in windows(samples):
        for a, b in itertools.pairwise(np.linspace(0, window.map.seconds, 200)):
            start, end = window.map.span_in_file(a, b)
            assert any(
                c.start <= start <= end <= c.start + c.length + 1e-9 and end - start <= b - a + 1e-9
                for c in window.map.chunks
            )


def spoken_seconds(samples: Samples) -> float:
    packer = WindowPacker(WhisperOptions(), lambda samples: samples)
    for start in range(0, len(samples), 10 * RATE):
        list(packer.push(samples[start : start + 10 * RATE]))
    list(packer.finish())
    return packer.speech_seconds


@pytest.mark.parametrize("peak_db", [-40, -50, -60])
def test_quiet_speech_is_found(sentences: Samples, peak_db: int) -> None:
    spoken = sentences[: 30 * RATE]
    quiet = spoken * np.float32(10 ** (peak_db / 20) / np.abs(spoken).max())
    as_16_bit = np.round(quiet * 2**15).astype(np.float32) / 2**15
    assert spoken_seconds(as_16_bit) == pytest.approx(spoken_seconds(spoken), rel=0.1)


def test_quiet_speaker_a_while_after_a_loud_one_is_found(sentences: Samples) -> None:
    spoken = sentences[: 25 * RATE]
    later = np.concatenate([spoken, silence(60), spoken * np.float32(0.002)])
    assert spoken_seconds(later) == pytest.approx(2 * spoken_seconds(spoken), rel=0.15)


@pytest.mark.parametrize("level", [1e-5, 1e-4, 1e-3, 1e-2])
def test_quiet_noise_is_no_speech(level: float) -> None:
    noise = np.random.default_rng(3).normal(0, level, 60 * RATE).astype(np.float32)
    assert spoken_seconds(noise) == 0


def test_speech_of_ordinary_loudness_reaches_the_voice_detector_as_it_is(sentences: Samples) -> None:
    level = _Level()
    spoken = sentences[: 20 * RATE]
    np.testing.assert_array_equal(level.push(spoken)[RATE:], spoken[RATE:])


def test_hours_of_digital_silence_cost_almost_nothing(sentences: Samples) -> None:
    packer = WindowPacker(WhisperOptions(), lambda samples: samples)
    began = time.process_time()
    for _ in range(2 * 360):
        list(packer.push(silence(10)))
    assert time.process_time() - began < 3
    found = [*packer.push(sentences[: 10 * RATE]), *packer.finish()]
    assert found[0].map.chunks[0].start >= 7200 - 0.5
    assert packer.speech_seconds > 5
