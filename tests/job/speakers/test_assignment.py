"""Words and segments get speakers; segments end where the speaker changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisper_spark.contract import Segment, Word
from whisper_spark.speakers.assignment import with_speakers
from whisper_spark.speakers.diarization import ChannelSpeakers


def heard(
    *turns: tuple[float, float, int], speakers: int = 2, clearly: float = 8.0, sure: bool = True
) -> ChannelSpeakers:
    """Speech in which each turn of start, end and speaker has evidence for one speaker every half second."""
    starts, ends, evidence = [], [], []
    for start, end, speaker in turns:
        for step in np.arange(start, max(end - 0.5, start + 0.1), 0.5):
            starts.append(step)
            ends.append(min(step + 1.0, end))
            evidence.append([clearly if number == speaker else 0.0 for number in range(speakers)])
    return ChannelSpeakers(
        np.array(starts), np.array(ends), np.array(evidence, np.float32).reshape(-1, speakers), sure
    )


def said(text: str, start: float, channel: int | None = None, step: float = 0.5) -> Segment:
    words = tuple(
        Word(start + step * number, start + step * (number + 1), f" {word}", 0.9)
        for number, word in enumerate(text.split())
    )
    return Segment(0, channel, words[0].start, words[-1].end, text, "en", -0.2, 1.1, 0.01, words)


def lines(segments: Sequence[Segment]) -> list[tuple[str | None, str]]:
    return [(segment.speaker, segment.text) for segment in segments]


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    segment = said("How are you? Fine thanks.", 0.0)
    found = with_speakers([segment], {0: heard((0.0, 1.5, 1), (1.5, 2.5, 0))})
    assert lines(found.segments) == [("SPEAKER_00", "How are you?"), ("SPEAKER_01", "Fine thanks.")]
    assert (found.speakers, found.uncertain) == (2, False)
    first, second = found.segments
    assert (first.id, first.start, first.end) == (0, 0.0, 1.5)
    assert (second.id, second.start, second.end) == (1, 1.5, 2.5)
    assert [word.speaker for word in second.words or ()] == ["SPEAKER_01", "SPEAKER_01"]
    assert second.avg_logprob == segment.avg_logprob


def test_speakers_are_named_in_order_of_appearance() -> None:
    segments = [said("three", 0.0), said("one", 5.0), said("three again", 10.0), said("two", 20.0)]
    speech = heard((0, 1, 2), (5, 6, 0), (10, 12, 2), (20, 21, 1), speakers=3)
    found = with_speakers(segments, {0: speech})
    assert [segment.speaker for segment in found.segments] == [
        "SPEAKER_00",
        "SPEAKER_01",
        "SPEAKER_00",
        "SPEAKER_02",
    ]


def test_weak_evidence_for_a_single_word_does_not_interrupt_a_sentence() -> None:
    segment = said("this is one long sentence without any pause", 0.0, step=0.3)
    speech = heard((0, 1.2, 0), (1.2, 1.5, 1), (1.5, 2.4, 0), clearly=2.0)
    found = with_speakers([segment], {0: speech})
    assert lines(found.segments) == [("SPEAKER_00", segment.text)]


def test_a_short_answer_between_pauses_is_somebody_else() -> None:
    segments = [said("is it ready?", 0.0), said("yes", 2.2), said("good then", 3.5)]
    found = with_speakers(segments, {0: heard((0, 1.5, 0), (2.2, 2.7, 1), (3.5, 4.5, 0))})
    assert [segment.speaker for segment in found.segments] == ["SPEAKER_00", "SPEAKER_01", "SPEAKER_00"]


def test_channels_have_speakers_of_their_own() -> None:
    segments = [
        said("hello", 0.0, channel=1),
        said("good day", 1.0, channel=0),
        said("and me", 2.0, channel=1),
    ]
    channels = {0: heard((1, 2, 0), speakers=1), 1: heard((0, 0.5, 1), (2, 3, 0))}
    found = with_speakers(segments, channels)
    assert [(s.channel, s.speaker) for s in found.segments] == [
        (1, "SPEAKER_00"),
        (0, "SPEAKER_01"),
        (1, "SPEAKER_02"),
    ]
    assert found.speakers == 3


def test_a_speaker_without_a_word_is_not_counted() -> None:
    found = with_speakers([said("hello", 0.0)], {0: heard((0, 1, 0), (5, 9, 1))})
    assert found.speakers == 1


def test_words_of_a_channel_without_embeddings_have_no_speaker() -> None:
    segments = [said("hello", 0.0, channel=0), said("good day", 1.0, channel=1)]
    found = with_speakers(segments, {0: heard((0, 1, 0), speakers=1)})
    assert [segment.speaker for segment in found.segments] == ["SPEAKER_00", None]
    assert {word.speaker for word in found.segments[1].words or ()} == {None}
    assert found.speakers == 1


def test_a_file_without_words_has_no_speakers() -> None:
    found = with_speakers([], {})
    assert (found.segments, found.speakers, found.uncertain) == ((), 0, False)


def test_speech_that_sounds_like_both_is_uncertain() -> None:
    segments = [said("who is this", 0.0), said("nobody can tell", 3.0)]
    speech = heard((0, 1.5, 0), (3.0, 4.5, 1), clearly=0.5)
    assert with_speakers(segments, {0: speech}).uncertain
    assert with_speakers(segments, {0: heard((0, 1.5, 0), (3.0, 4.5, 1), sure=False)}).uncertain


def test_text_of_a_language_without_spaces_stays_together() -> None:
    words = (
        Word(0, 0.5, "你好", 0.9),
        Word(0.5, 1, "吗。", 0.9),
        Word(2, 2.5, "很", 0.9),
        Word(2.5, 3, "好。", 0.9),
    )
    segment = Segment(0, None, 0, 3, "你好吗。很好。", "zh", -0.2, 1.1, 0.01, words)
    found = with_speakers([segment], {0: heard((0, 1, 0), (2, 3, 1))})
    assert lines(found.segments) == [("SPEAKER_00", "你好吗。"), ("SPEAKER_01", "很好。")]
