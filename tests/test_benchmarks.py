"""The benchmarks' metrics: word errors, timestamps, invented words, processor time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conversations import Turn
from corpus import FRAME, Reference, trimmed
from faster_whisper import WhisperModel
from gpu_process import memory_mib, processor_seconds
from grow import SHAPES, Shape, grow
from measure import RunError, measure
from recordings import RATE, Span, samples_of
from scoring import (
    Errors,
    Heard,
    difference,
    errors_by_prompt,
    invented_words,
    normalised,
    times,
    word_errors,
)
from speakers import Call, k_means, right_words, runs_of
from speech import Clip

from whisper_spark import Transcript, Word
from whisper_spark.speakers.speech import Speech

CALL = Reference(
    "call.wav",
    "en",
    9.0,
    "please leave a message after the tone",
    (Span(1.0, 2.0, "please leave a message"), Span(3.0, 4.0, "after the tone")),
)


def heard(text: str, *words: tuple[float, float, str]) -> dict[str, Heard]:
    return {"call.wav": Heard("call.wav", text, "en", words)}


def test_each_kind_of_error_is_counted_by_language() -> None:
    french = Reference("b.wav", "fr", 1.0, "appuyez sur la touche")
    found = heard("Please leave a massage after tone!") | {"b.wav": Heard("b.wav", "Appuyez sur", "fr", None)}
    errors = word_errors([CALL, french], found)
    assert errors == {"en": Errors(7, 1, 1, 0), "fr": Errors(4, 0, 2, 0)}
    assert errors["en"].rate == pytest.approx(2 / 7)


def test_a_file_without_output_was_not_heard() -> None:
    assert word_errors([CALL], {}) == {"en": Errors(7, 0, 7, 0)}


def test_errors_are_counted_for_the_prompt_they_are_in() -> None:
    errors = errors_by_prompt(CALL, heard("Please leave the message and after tone"))
    assert errors == {"please leave a message": 1, "after the tone": 2}
    assert errors_by_prompt(CALL, {}) == {"please leave a message": 4, "after the tone": 3}
    whole = Reference("call.wav", "en", 1.0, "after the tone")
    assert errors_by_prompt(whole, heard("after a tone please")) == {"after the tone": 2}


def test_a_prompt_that_is_played_again_is_the_same_prompt() -> None:
    spans = (Span(1.0, 2.0, "after the tone"), Span(3.0, 4.0, "after the tone"))
    twice = Reference("call.wav", "en", 5.0, "after the tone after the tone", spans)
    assert errors_by_prompt(twice, heard("after a tone after a stone")) == {"after the tone": 3}


def test_a_difference_comes_with_what_chance_does_to_it() -> None:
    assert difference([3, 3, 3], [1, 1, 1]) == (6, 6.0, 6.0)
    more, low, high = difference([0, 2] * 20, [2, 0] * 20)
    assert (more, low < -10, high > 10) == (0, True, True)


def test_word_times_are_held_against_the_prompts() -> None:
    words = [(1.1, 1.2, " Please"), (1.3, 1.4, " leave"), (1.4, 1.5, " a"), (1.5, 2.4, " message.")]
    words += [(2.8, 3.2, " After"), (3.2, 3.5, " the"), (3.5, 4.0, " tone")]
    found = times([CALL], heard("", *words))
    assert found.starts == pytest.approx((0.1, -0.2))
    assert found.ends == pytest.approx((0.4, 0.0))
    assert found.within == 0.75


def test_prompts_with_other_words_at_their_ends_do_not_count() -> None:
    words = [(1.1, 1.2, "Pleas"), (1.3, 1.4, "leave"), (1.4, 1.5, "a"), (1.5, 2.4, "message")]
    found = times([CALL], heard("", *words))
    assert (found.prompts, found.starts, found.ends) == (2, (), ())


def test_words_in_silence_are_invented() -> None:
    silent = [Reference("noise.wav", None, 5.0, ""), Reference("hum.wav", None, 5.0, "")]
    found = {
        "noise.wav": Heard("noise.wav", "Thank you.", "en", None),
        "hum.wav": Heard("hum.wav", "...", None, None),
    }
    assert invented_words(silent, found) == {"noise.wav": "Thank you."}


def test_silence_around_a_recording_is_cut_off() -> None:
    sound = np.sin(np.arange(10 * FRAME, dtype=np.float32))
    hiss = np.full(RATE, 0.001, np.float32)
    assert len(trimmed(np.concatenate([hiss, sound, hiss]))) == 10 * FRAME


@pytest.mark.slow
def test_processes_of_processes_are_measured(tmp_path: Path) -> None:
    burn = "import time, os\nb = bytearray(os.urandom(1 << 20)) * 100\nwhile time.process_time() < 0.7: pass"
    command = [
        sys.executable,
        "-c",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])",
    ]
    measured = measure(command, dict(os.environ), tmp_path / "log", timeout_s=60)
    assert measured.cpu_s > 0.6
    assert measured.peak_mib > 100


@pytest.mark.slow
def test_processes_of_processes_count_while_they_run_and_after_that() -> None:
    burn = (
        "import time, os\nb = bytearray(os.urandom(1 << 20)) * 100\nwhile time.process_time() < 0.5: pass\n"
        "print('burnt', flush=True)\ninput()"
    )
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    seconds, mib = processor_seconds(), memory_mib()
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"burnt\n"
        assert processor_seconds() - seconds > 0.45
        assert memory_mib() - mib > 100
        process.communicate(b"\n")
    assert processor_seconds() - seconds > 0.45
    assert memory_mib() - mib < 100


def test_measuring_leaves_other_processes_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        measure([sys.executable, "-c", "pass"], os.environ, tmp_path / "log", 60)
        assert bystander.poll() is None
        bystander.kill()


def test_a_failing_program_shows_the_end_of_its_output(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(RunError, match="no such model"):
        measure(command, dict(os.environ), tmp_path / "log", timeout_s=60)


@pytest.mark.parametrize(
    ("language", "said", "written"),
    [
        ("es", "Marque uno para el contestador automático.", "marque 1 para el contestador automatico"),
        ("fr", "Appuyez sur zéro", "appuyez sur 0"),
        ("ru", "нажмите четыре", "нажмите 4"),
        ("en", "Press nine.", "press 9"),
    ],
)
def test_digits_and_accents_are_no_errors(language: str, said: str, written: str) -> None:
    assert normalised(said, language) == normalised(written, language)


# --- speakers ------------------------------------------------------------------------------------------


def spoken(*names: str) -> tuple[Call, list[tuple[Word, str]]]:
    """A call in which b answers a after two seconds, and words of half a second with these speakers."""
    call = Call(
        [Turn(0.0, 2.0, "a"), Turn(2.0, 4.0, "b")], Transcript("call.wav"), Speech(*[np.zeros(0)] * 4)
    )
    words = [Word(0.5 * number, 0.5 * number + 0.5, " w", 1.0) for number in range(len(names))]
    return call, list(zip(words, names, strict=True))


def test_words_have_the_right_speaker_whatever_the_names_are() -> None:
    assert right_words(*spoken(*"xxxxyyyy")) == (8, 8)
    assert right_words(*spoken(*"yyyyxxxx")) == (8, 8)
    assert right_words(*spoken(*"xxxyyyyy")) == (7, 8)
    # A third speaker is nobody, and one speaker cannot be two.
    assert right_words(*spoken(*"xxzzyyyy")) == (6, 8)
    assert right_words(*spoken(*"xxxxxxxx")) == (4, 8)


def test_words_of_one_speaker_make_one_turn() -> None:
    _, named = spoken(*"xxxy")
    assert runs_of(named) == [(0.0, 1.5, "x"), (1.5, 2.0, "y")]


def test_k_means_finds_groups_that_are_apart() -> None:
    labels = np.repeat(np.arange(3), 20)
    points = np.eye(3, 8)[labels] + 0.05 * np.random.default_rng(0).standard_normal((60, 8))
    assert len({(a, b) for a, b in zip(labels, k_means(points.astype(np.float32), 3), strict=True)}) == 3


def test_a_grown_model_speaks_like_its_origin(model_dir: Path, tmp_path: Path, librivox: list[Clip]) -> None:
    # Wider and deeper in both halves, as the shapes for GPUs are, but small enough for a processor.
    grow(model_dir, tmp_path / "grown", Shape(width=640, encoder_layers=7, decoder_layers=8))
    spoken = []
    for folder in (model_dir, tmp_path / "grown"):
        model = WhisperModel(str(folder), device="cpu", compute_type="float32")
        segments, _ = model.transcribe(samples_of(librivox[0].path), language="en", beam_size=1)
        spoken.append([(segment.text, segment.avg_logprob) for segment in segments])
    (texts, own), (grown_texts, grown) = (zip(*one, strict=True) for one in spoken)
    assert texts == grown_texts
    # Half of the last digit of float16 weights in each of the layers.
    assert grown == pytest.approx(own, abs=0.005)


def test_a_shape_smaller_than_the_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 6 layers"):
        grow(model_dir, tmp_path / "grown", Shape(width=512, encoder_layers=6, decoder_layers=4))
    assert all(shape.encoder_layers >= 6 and shape.decoder_layers >= 6 for shape in SHAPES.values())
