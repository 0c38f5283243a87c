"""Quality flags: loops and nonsense are flagged, ordinary speech is not."""

from __future__ import annotations

import pytest

from whisper_spark.contract import QUALITY_FLAGS, Segment, Transcript, WhisperOptions
from whisper_spark.decoding.quality import compression_ratio, phrase_words, quality_flags, repeated_phrase

OPTIONS = WhisperOptions(model="base")


def segment(
    text: str, start: float = 0.0, end: float = 5.0, *, logprob: float = -0.3, channel: int | None = None
) -> Segment:
    return Segment(
        id=0,
        channel=channel,
        start=start,
        end=end,
        text=text,
        language="en",
        avg_logprob=logprob,
        compression_ratio=compression_ratio(text),
        no_speech_prob=0.01,
    )


def transcript(*segments: Segment, speech_s: float | None = 5.0, **values: object) -> Transcript:
    defaults: dict[str, object] = {
        "audio_uri": "file:///a.wav",
        "language": "en",
        "language_probability": 0.99,
        "duration_s": 10.0,
        "speech_s": speech_s,
        "text": " ".join(s.text for s in segments),
        "segments": segments,
    }
    return Transcript(**(defaults | values))  # type: ignore[arg-type]


def flags(*segments: Segment, options: WhisperOptions = OPTIONS, **values: object) -> tuple[str, ...]:
    return quality_flags(transcript(*segments, **values), options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "speech_s"),
    [
        ("Yes.", 0.2),
        ("Yes.", 0.4),
        ("No, no, no.", 0.9),
        ("Five, five, five, one two one two.", 3.0),
        ("555-5555", 3.5),
        ("4111 1111 1111 1111", 14.0),
        ("Bye. Bye bye. Bye bye.", 1.5),
        ("Thank you. Thank you. Thank you.", 2.0),
        ("Ha ha ha ha ha!", 1.2),
        ("Your call is important to us. Please stay on the line and an agent will be with you.", 5.0),
        ("Please hold. All agents are busy. Please hold. All agents are busy.", 5.0),
        ("Internationalization of counterrevolutionaries.", 3.0),
        ("See https://www.example.com/documentation/getting-started-with-transcription.", 6.0),
    ],
)
def test_ordinary_clip_gets_no_flags(text: str, speech_s: float) -> None:
    assert flags(segment(text), speech_s=speech_s) == ()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("今日はとても良い天気ですね。公園を散歩してから、友達と一緒に昼ご飯を食べました。", "ja"),
        ("今天天气非常好，我们一起去公园散步，然后和朋友们一起吃午饭，晚上再回家看书。", "zh"),
        ("วันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะด้วยกันแล้วไปกินข้าวกลางวัน", "th"),
        ("오늘은 날씨가 아주 좋아서 친구들과 함께 공원을 산책했습니다.", "ko"),
        ("आज मौसम बहुत अच्छा है और हम सब साथ में पार्क में घूमने जा रहे हैं।", "hi"),
        ("Donaudampfschifffahrtsgesellschaft", "de"),
    ],
)
def test_ordinary_speech_in_other_scripts_gets_no_flags(text: str, language: str) -> None:
    assert flags(segment(text), language=language, speech_s=6.0) == ()


def test_silence_is_no_speech() -> None:
    assert flags(speech_s=0.0) == ("no_speech",)
    assert flags(speech_s=None, text=None) == ("no_speech",)


def test_a_cough_taken_for_a_voice_is_no_speech() -> None:
    assert flags(speech_s=0.4, text=" ") == ("no_speech",)


def test_text_missing_where_speech_was_heard() -> None:
    assert flags(speech_s=4.0) == ("empty_text_over_speech",)


def test_model_that_heard_no_speech_overrules_the_voice_detector() -> None:
    assert flags(speech_s=4.0, quality_flags=("no_speech",)) == ("no_speech",)


def test_without_voice_detection_no_speech_was_heard() -> None:
    options = WhisperOptions(model="base", vad=False)
    assert flags(speech_s=60.0, options=options) == ("no_speech",)
    assert flags(segment("Hello there."), speech_s=60.0, options=options) == ()


def test_flags_of_the_decoder_stay_and_come_in_the_order_of_the_contract() -> None:
    found = flags(segment("Hello."), quality_flags=("token_limit", "truncated"), language_probability=0.3)
    assert found == ("truncated", "uncertain_language", "token_limit")
    assert list(found) == [flag for flag in QUALITY_FLAGS if flag in found]


def test_error_row_gets_no_flags() -> None:
    assert flags(status="error", error_code="corrupt", text=None, speech_s=None) == ()


def test_low_confidence_weighs_segments_by_their_text() -> None:
    long, short = "A long sentence about nothing in particular.", "Uh."
    assert flags(segment(long, logprob=-0.2), segment(short, logprob=-2.5)) == ()
    assert flags(segment(long, logprob=-1.2), segment(short, logprob=-0.1)) == ("low_confidence",)


def test_low_confidence_obeys_its_option() -> None:
    options = WhisperOptions(model="base", log_prob_threshold=None)
    assert flags(segment("Hello there.", logprob=-3.0), options=options) == ()


@pytest.mark.parametrize(
    "text",
    [
        "no " * 8,
        "thank you. " * 5,
        "I don't know. " * 4,
        "We will be with you in a moment. " * 4,
        "ありがとうございました。" * 4,
        "так что " * 6,
    ],
)
def test_loop_is_repetitive(text: str) -> None:
    assert "repetitive" in flags(segment(text.strip()), speech_s=6.0)


def test_loop_over_several_segments_is_repetitive() -> None:
    loop = [segment("Thank you.", start=i, end=i + 0.9) for i in range(5)]
    assert "repetitive" in flags(*loop)


def test_loop_of_almost_equal_sentences_compresses_too_well() -> None:
    lines = [f"And then the man went to the house number {i} of the street." for i in range(9)]
    loop = [segment(line, start=i * 3.0, end=i * 3.0 + 2.9) for i, line in enumerate(lines)]
    assert not repeated_phrase(phrase_words(" ".join(lines)))
    assert "repetitive" in flags(*loop, speech_s=26.0)


def test_two_speakers_who_agree_are_no_loop() -> None:
    answers = [segment("Yes, yes.", start=i, end=i + 0.9, channel=i % 2) for i in range(6)]
    assert flags(*answers, speech_s=5.0) == ()


def test_an_hour_of_speech_is_not_repetitive_because_it_is_long() -> None:
    names = ["Anna", "Bert", "Carla", "David", "Emil", "Frida", "Gustav", "Hanna", "Ivan", "Judith", "Karl"]
    verbs = ["called", "missed", "visited", "paid", "praised", "forgot", "warned"]
    lines = [
        f"{names[i % 11]} {verbs[i % 7]} {names[i * i % 11]} before {names[3 * i % 11]} could {i * 37 % 101}."
        for i in range(1200)
    ]
    segments = [segment(line, start=i * 3.0, end=i * 3.0 + 2.8) for i, line in enumerate(lines)]
    assert compression_ratio(" ".join(lines)) > 2.4
    assert flags(*segments, speech_s=3300.0, duration_s=3600.0) == ()


def test_repetition_obeys_its_option() -> None:
    lines = [f"And then the man went to the house number {i} of the street." for i in range(9)]
    loop = [segment(line, start=i * 3.0, end=i * 3.0 + 2.9) for i, line in enumerate(lines)]
    options = WhisperOptions(model="base", compression_ratio_threshold=None)
    assert flags(*loop, speech_s=26.0, options=options) == ()


def test_more_text_than_anyone_can_say() -> None:
    text = "The quick brown fox jumps over the lazy dog while the cat sleeps."
    assert flags(segment(text), speech_s=1.2) == ("unlikely_speech_rate",)
    assert flags(segment(text), speech_s=3.0) == ()


def test_speech_rate_of_a_script_with_a_syllable_a_character() -> None:
    text = "今日はとても良い天気ですね。公園を散歩してから昼ご飯を食べました。"
    assert flags(segment(text), language="ja", speech_s=1.5) == ("unlikely_speech_rate",)
    assert flags(segment(text), language="ja", speech_s=5.0) == ()


def test_hardly_any_text_for_much_speech() -> None:
    assert flags(segment("Okay."), speech_s=20.0) == ("unlikely_speech_rate",)
    assert flags(segment("Okay."), speech_s=4.0) == ()


def test_language_is_uncertain_only_when_it_was_detected() -> None:
    assert flags(segment("Hello."), language_probability=0.4) == ("uncertain_language",)
    told = WhisperOptions(model="base", language="en")
    assert flags(segment("Hello."), language_probability=0.4, options=told) == ()
    assert flags(segment("Hello."), language_probability=None) == ()


def test_words_too_long_to_be_words() -> None:
    assert flags(segment("Bla" + "a" * 25), speech_s=3.0) == ("long_words",)
    assert flags(segment("Bla" + "a" * 25), language="fi", speech_s=3.0) == ()
    assert flags(segment("Bla" + "a" * 35), language="fi", speech_s=3.0) == ("long_words",)


def test_translation_is_judged_as_english() -> None:
    options = WhisperOptions(model="base", task="translate")
    assert flags(segment("Bla" + "a" * 25), language="fi", speech_s=3.0, options=options) == ("long_words",)


def test_compression_ratio_is_that_of_openai_whisper() -> None:
    # len(text) / len(zlib.compress(text)), whisper/utils.py
    assert compression_ratio("") == 0
    assert compression_ratio("a" * 1000) == pytest.approx(1000 / 17)
