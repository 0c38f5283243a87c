"""Which texts the quality gate accepts, which windows are decoded again, and which try is kept."""

from __future__ import annotations

import dataclasses

import pytest
from transcripts import window_text as heard

from whisper_spark import WhisperOptions, Word
from whisper_spark.audio.windows import Chunk, ChunkMap
from whisper_spark.decoding.quality_gate import (
    confirmed,
    credibility,
    has_no_length,
    is_doubled,
    is_echo,
    is_reliable,
    is_silence,
    is_unsure,
    misses_speech,
)
from whisper_spark.decoding.window_text import WindowText

OPTIONS = WhisperOptions(model="base")
SENTENCE = "Please leave your message after the tone."


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        (heard(" ".join([SENTENCE] * 8)), 20.0),
        (heard(SENTENCE, capped=True), 3.0),
        (heard(SENTENCE, avg_logprob=-1.3), 3.0),
        (heard(f"{SENTENCE} {SENTENCE}"), 2.5),
        (heard("you"), 12.0),
        (heard(""), 3.0),
    ],
    ids=["loop", "cap hit", "improbable", "a sentence heard twice", "words missing", "nothing over speech"],
)
def test_suspicious_text_is_decoded_again(text: WindowText, speech_s: float) -> None:
    assert not is_reliable(text, speech_s, OPTIONS)


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        (heard(SENTENCE), 2.5),
        (heard("No no no no."), 2.0),
        (heard("Oui."), 0.3),
        (heard(""), 0.4),
        (heard("您好，请在提示音后留言。"), 3.0),
    ],
    ids=["speech", "a repeated word", "a short word", "a cough", "a script without spaces"],
)
def test_plausible_text_is_believed(text: WindowText, speech_s: float) -> None:
    assert is_reliable(text, speech_s, OPTIONS)


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        ("5 5", 0.3),
        ("12, 12.", 0.5),
        ("Oui oui", 0.4),
        ("Bye bye.", 1.0),
        ("Speed dial. Speed dial", 0.8),
        ("four four four", 0.5),
        ("谢谢", 0.6),
    ],
)
def test_a_text_that_is_one_phrase_twice_is_decoded_again(text: str, speech_s: float) -> None:
    assert is_doubled(text, speech_s)


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        ("", 0.3),
        ("5", 0.3),
        ("55", 0.7),
        ("No no no no.", 2.0),
        ("1 2 1 2 3", 2.0),
        ("five five five, five five five", 3.0),
        ("Bye bye Anna.", 1.0),
        ("Extension five five.", 1.5),
    ],
)
def test_a_phrase_that_there_was_time_to_repeat_is_not_doubled(text: str, speech_s: float) -> None:
    assert not is_doubled(text, speech_s)


def test_words_that_alignment_finds_no_time_for_have_no_length() -> None:
    assert has_no_length(spoken((1.0, 1.0)))
    assert has_no_length(spoken((1.0, 1.0), (1.0, 1.0), (1.0, 1.2)))
    assert not has_no_length(spoken((1.0, 1.0), (1.0, 1.2)))
    assert not has_no_length([])


def spoken(*spans: tuple[float, float]) -> list[Word]:
    return [Word(start, end, " word", 0.9) for start, end in spans]


# Speech from 10.4 to 13.6 and from 60.4 to 62.6 seconds of the file, with padding around it.
TWO = ChunkMap((Chunk(0.0, 10.0, 4.0, 0.4, 0.4), Chunk(4.0, 60.0, 3.0, 0.4, 0.4)))


@pytest.mark.parametrize(
    "words",
    [
        spoken((11.6, 12.5), (12.5, 13.6), (60.4, 62.6)),
        spoken((10.4, 11.0), (12.2, 13.6), (60.4, 62.6)),
        spoken((10.4, 12.4), (60.4, 62.6)),
        spoken((10.4, 13.6), (60.4, 61.4)),
        spoken((10.4, 13.6)),
        [],
    ],
    ids=["at the start", "between words", "before a pause", "at the end", "after a pause", "everything"],
)
def test_speech_without_words_is_missed(words: list[Word]) -> None:
    assert misses_speech(words, TWO, OPTIONS)


def test_pauses_and_what_is_no_speech_need_no_words() -> None:
    assert not misses_speech(spoken((10.5, 11.5), (12.6, 13.5), (60.5, 61.0), (62.1, 62.5)), TWO, OPTIONS)
    assert not misses_speech([], TWO, dataclasses.replace(OPTIONS, vad=False))  # nobody knows what is speech
    with_pauses = dataclasses.replace(OPTIONS, vad_min_silence_ms=2000)  # speech holds pauses of two seconds
    assert not misses_speech(spoken((10.4, 11.0), (13.0, 13.6), (60.4, 62.6)), TWO, with_pauses)


def test_beam_search_is_for_what_greedy_decoding_is_unsure_of() -> None:
    options = dataclasses.replace(OPTIONS, greedy_log_prob_threshold=-0.2)
    assert not is_unsure(heard(SENTENCE, avg_logprob=-0.19), options)
    assert is_unsure(heard(SENTENCE, avg_logprob=-0.21), options)
    assert not is_unsure(heard(SENTENCE, avg_logprob=-0.29), options, alone=True)
    assert is_unsure(heard(SENTENCE, avg_logprob=-0.31), options, alone=True)
    all_ = dataclasses.replace(OPTIONS, greedy_log_prob_threshold=0.0)
    assert is_unsure(heard(SENTENCE, avg_logprob=-0.01), all_, alone=True)
    every = dataclasses.replace(OPTIONS, greedy_log_prob_threshold=None)
    assert not is_unsure(heard(SENTENCE, avg_logprob=-0.21), every)  # there was no greedy decoding


def test_silence_is_what_is_neither_likely_speech_nor_credible_text() -> None:
    assert is_silence(heard("Thank you.", no_speech_prob=0.8, avg_logprob=-1.2), OPTIONS)
    assert not is_silence(heard("Thank you.", no_speech_prob=0.8, avg_logprob=-0.5), OPTIONS)
    assert not is_silence(heard("Thank you.", no_speech_prob=0.3, avg_logprob=-1.2), OPTIONS)
    nowhere = tuple(spoken((1.0, 3.0), (3.0, 3.0), (3.0, 3.0)))
    assert is_silence(heard("I'm not sure", no_speech_prob=0.8, avg_logprob=-0.3, words=nowhere), OPTIONS)
    assert not is_silence(heard("I'm not sure", no_speech_prob=0.3, avg_logprob=-0.3, words=nowhere), OPTIONS)


def test_the_best_of_several_tries_is_no_loop_however_sure_it_is() -> None:
    loop = heard(" ".join([SENTENCE] * 8), avg_logprob=-0.05, reliable=False)
    doubtful = heard("Please live your massage.", avg_logprob=-1.1, reliable=False)
    passed = heard(SENTENCE, avg_logprob=-0.9)
    nothing = heard("", avg_logprob=-0.1, reliable=False)
    tries = sorted([loop, passed, nothing, doubtful], key=lambda text: credibility(text, OPTIONS))
    assert tries == [loop, nothing, doubtful, passed]


def test_two_tries_that_agree_confirm_each_other_unless_nobody_speaks_that_fast() -> None:
    numbers = heard("five five five, five five five, five five five", reliable=False)
    assert confirmed(numbers, dataclasses.replace(numbers, avg_logprob=-0.4), speech_s=5.0)
    assert not confirmed(numbers, heard(SENTENCE), speech_s=5.0)
    assert not confirmed(numbers, numbers, speech_s=1.0)
    assert not confirmed(heard(""), heard(""), speech_s=1.0)


def test_a_text_that_only_repeats_what_was_said_before_is_an_echo() -> None:
    before = f"Thank you for calling. {SENTENCE}"
    first = heard("Please hold the line.")
    assert is_echo(heard(SENTENCE), first, before)
    assert not is_echo(heard(SENTENCE), heard(SENTENCE.lower()), before)  # it was said twice
    assert not is_echo(heard("Please hold the lane."), first, before)
    assert not is_echo(heard(SENTENCE), first, "")
    assert not is_echo(heard(""), first, before)
