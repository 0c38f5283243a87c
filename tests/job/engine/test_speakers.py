"""Who says what in recorded conversations; what goes wrong costs the speakers and never the transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import RATE, Samples, samples_of, silence, write
from speaker_models import write_model
from speech import Clip

from whisper_spark import Transcript, WhisperOptions, transcribe_files
from whisper_spark.contract import Word
from whisper_spark.decoding.model import ModelError
from whisper_spark.decoding.window_text import WindowText
from whisper_spark.engine import transcriber
from whisper_spark.engine.transcriber import AudioFile, Engine, get_engine
from whisper_spark.engine.work import FileWork
from whisper_spark.redaction import is_in_step
from whisper_spark.speakers import voices
from whisper_spark.speakers.diarization import ChannelSpeakers
from whisper_spark.speakers.model import SpeakerModel

Turn = tuple[float, float, int]


@pytest.fixture(scope="module")
def options(model_dir: Path, speaker_model: Path) -> WhisperOptions:
    return WhisperOptions(model=str(model_dir), language="en", diarize=True, speaker_model=str(speaker_model))


@pytest.fixture(scope="module")
def dialogue(speech: list[Clip], librivox: list[Clip]) -> tuple[list[Samples], list[Turn]]:
    """The samples of both sides of a dialogue, a prompt and a sentence in turn, and who speaks when."""
    prompts = [c for c in speech if c.language == "en" and 3 < c.seconds < 6][: len(librivox)]
    sides: list[list[Samples]] = [[silence(0.5)], [silence(0.5)]]
    turns, position = [], 0.5
    for clips in zip(prompts, librivox, strict=True):
        for speaker, clip in enumerate(clips):
            samples = samples_of(clip.path)
            samples = samples * np.float32(0.05 / np.sqrt(np.mean(samples**2)))
            turns.append((position, position + len(samples) / RATE, speaker))
            sides[speaker] += [samples, silence(0.3)]
            sides[1 - speaker] += [np.zeros_like(samples), silence(0.3)]
            position += len(samples) / RATE + 0.3
    return [np.concatenate(side) for side in sides], turns


@pytest.fixture(scope="module")
def mixed(dialogue: tuple[list[Samples], list[Turn]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    (one, other), _ = dialogue
    return write(tmp_path_factory.mktemp("dialogue") / "mixed.wav", one + other)


@pytest.fixture(scope="module")
def transcript(mixed: Path, options: WhisperOptions) -> Transcript:
    return one_of(mixed, options)


def one_of(path: Path, options: WhisperOptions) -> Transcript:
    [found] = transcribe_files([path], options)
    assert (found.status, found.error_message) == ("ok", None)
    return found


def right_words(transcript: Transcript, turns: Sequence[Turn]) -> float:
    """Share of words that have the name of whoever speaks in their middle; the first turn is SPEAKER_00."""
    right = total = 0
    for word in [word for segment in transcript.segments for word in segment.words or ()]:
        middle = (word.start + word.end) / 2
        nearest = min(turns, key=lambda turn: max(turn[0] - middle, middle - turn[1]))
        total += 1
        right += word.speaker == f"SPEAKER_{nearest[2]:02}"
    return right / total


def test_words_have_the_right_speakers(
    transcript: Transcript, dialogue: tuple[list[Samples], list[Turn]]
) -> None:
    assert transcript.speakers == 2
    assert "uncertain_speakers" not in transcript.quality_flags
    assert right_words(transcript, dialogue[1]) >= 0.95


def test_somebody_who_only_gives_short_answers_is_a_speaker(
    speech: list[Clip], librivox: list[Clip], tmp_path: Path, options: WhisperOptions
) -> None:
    answers = [c for c in speech if c.language == "en" and 1.0 < c.seconds < 1.4][: 2 * len(librivox)]
    order = [c for n, c in enumerate(librivox) for c in (c, *answers[2 * n : 2 * n + 2])]
    pieces, turns, position = [silence(0.5)], [], 0.5
    for clip in order:
        samples = samples_of(clip.path)
        pieces += [samples * np.float32(0.05 / np.sqrt(np.mean(samples**2))), silence(0.7)]
        turns.append((position, position + len(samples) / RATE, int(clip in answers)))
        position += len(samples) / RATE + 0.7
    found = one_of(write(tmp_path / "answers.wav", np.concatenate(pieces)), options)
    assert found.speakers == 2
    assert right_words(found, turns) >= 0.95


def test_each_segment_has_one_speaker_and_the_text_is_that_without_speakers(
    transcript: Transcript, mixed: Path, options: WhisperOptions
) -> None:
    for segment in transcript.segments:
        assert {word.speaker for word in segment.words or ()} == {segment.speaker}
        assert segment.text == "".join(word.word for word in segment.words or ()).strip()
    assert [segment.id for segment in transcript.segments] == list(range(len(transcript.segments)))
    plain = one_of(mixed, dataclasses.replace(options, diarize=False))
    assert plain.text == transcript.text
    assert plain.speakers is None
    assert {segment.speaker for segment in plain.segments} == {None}
    words = [word for segment in transcript.segments for word in segment.words or ()]
    before = [word for segment in plain.segments for word in segment.words or ()]
    assert [dataclasses.replace(word, speaker=None) for word in words] == before


def test_processes_that_read_give_the_same_speakers(
    transcript: Transcript, mixed: Path, options: WhisperOptions
) -> None:
    found = one_of(mixed, dataclasses.replace(options, prefetch_processes=1))
    assert found.segments == transcript.segments


def test_speakers_of_channels_are_told_apart_within_each(
    dialogue: tuple[list[Samples], list[Turn]], tmp_path: Path, options: WhisperOptions
) -> None:
    (one, other), turns = dialogue
    # The left channel has both of them, the right one only the second.
    path = write(tmp_path / "call.wav", [one + other, np.concatenate([silence(1.0), other])[: len(other)]])
    found = one_of(path, dataclasses.replace(options, channels="split"))
    speakers = {(segment.channel, segment.speaker) for segment in found.segments}
    assert speakers == {(0, "SPEAKER_00"), (0, "SPEAKER_01"), (1, "SPEAKER_02")}
    assert found.speakers == 3
    assert turns[0][2] == 0


def test_text_follows_segments_that_another_channel_interrupts(
    options: WhisperOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def window(channel: int, *words: Word) -> WindowText:
        text = "".join(word.word for word in words)
        start, end = words[0].start, words[-1].end
        return WindowText(channel, 0, (), text, "en", -0.1, 0.0, 1.0, 0.0, False, True, start, end, words)

    engine = get_engine(options)
    monkeypatch.setattr(engine, "options", dataclasses.replace(options, channels="split"))
    # One segment of two speakers, and in the other channel one that begins with the second of them.
    one = window(0, Word(0.0, 0.9, " Ready", 0.9), Word(1.2, 2.5, " yes", 0.9))
    other = window(1, Word(1.0, 1.1, " who", 0.9))
    apart = ChannelSpeakers(
        np.array([0.0, 1.2]), np.array([1.0, 2.5]), np.array([[9, 0], [0, 9]], np.float32), True
    )
    alone = ChannelSpeakers(np.array([1.0]), np.array([1.1]), np.array([[9]], np.float32), True)
    work = FileWork(AudioFile("file:///a.wav"), language="en", speakers={0: apart, 1: alone})
    work.texts = [one, other]
    found = engine._transcript(work)
    assert [segment.text for segment in found.segments] == ["Ready", "who", "yes"]
    assert found.text == "Ready who yes"
    assert is_in_step(found)


def test_silence_has_no_speakers_and_half_a_second_one(
    librivox: list[Clip], tmp_path: Path, options: WhisperOptions
) -> None:
    quiet = one_of(write(tmp_path / "quiet.wav", silence(3.0)), options)
    assert (quiet.speakers, quiet.quality_flags) == (0, ("no_speech",))
    clip = samples_of(librivox[0].path)
    short = one_of(
        write(tmp_path / "short.wav", np.concatenate([silence(1), clip[16_000:24_000], silence(1)])), options
    )
    assert short.speakers in (0, 1)


def test_music_costs_nothing_but_speakers(tmp_path: Path, options: WhisperOptions) -> None:
    seconds = np.arange(10 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * tone * seconds) for tone in (220, 277, 330, 440))
    tremolo = (0.6 + 0.4 * np.sin(2 * np.pi * 3 * seconds)) * chord / 8
    found = one_of(write(tmp_path / "music.wav", tremolo.astype(np.float32)), options)
    assert found.speakers == len({segment.speaker for segment in found.segments})


@pytest.mark.parametrize(
    ("where", "name"),
    [(SpeakerModel, "embed"), (voices, "speakers_of"), (transcriber, "with_speakers")],
    ids=["embedding", "clustering", "assignment"],
)
def test_a_failure_after_loading_costs_a_file_its_speakers_only(
    mixed: Path,
    transcript: Transcript,
    options: WhisperOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: Any,
    name: str,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    engine = get_engine(options)
    monkeypatch.setattr(where, name, fail)
    [found] = engine.transcribe([AudioFile(f"file://{mixed}")])
    assert found.text == transcript.text
    assert (found.speakers, "uncertain_speakers" in found.quality_flags) == (None, True)
    assert {segment.speaker for segment in found.segments} == {None}
    [record] = [record for record in caplog.records if record.exc_info]
    assert f"file://{mixed} gets no speakers" in record.getMessage()


def test_a_wrong_speaker_model_fails_before_the_first_file(tmp_path: Path, options: WhisperOptions) -> None:
    with pytest.raises(ModelError, match=r"must hold one \.onnx file"):
        Engine(dataclasses.replace(options, speaker_model=str(tmp_path)))
    write_model(tmp_path / "model.onnx", ("B", "T", 40))
    with pytest.raises(ModelError, match="Two inputs are understood"):
        Engine(dataclasses.replace(options, speaker_model=str(tmp_path)))


def test_filter_banks_as_input_work_from_file_to_transcript(
    mixed: Path, tmp_path: Path, transcript: Transcript, options: WhisperOptions
) -> None:
    write_model(tmp_path / "model.onnx", ("B", "T", 80))
    found = one_of(mixed, dataclasses.replace(options, speaker_model=str(tmp_path)))
    assert found.text == transcript.text
    assert found.speakers
