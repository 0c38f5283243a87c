"""Subtitles from transcript rows: what is shown when, in which lines, in files that others can read."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from typing import Any

import av
import pandas as pd
import pyarrow as pa
import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st
from transcripts import make_transcript_rows

from whisper_spark.contract import Segment, Transcript, Word, transcript_schema
from whisper_spark.subtitles import Cue, Layout, cues, to_json, to_srt, to_txt, to_vtt
from whisper_spark.subtitles.cues import LINE_COLUMNS_OF, MIN_CUE_SECONDS
from whisper_spark.subtitles.script import may_break, pieces, width

WordTuple = tuple[str, float, float]


def words_of(text: str, start: float = 0.0, each: float = 0.3) -> list[WordTuple]:
    """Words at an even pace: those of a text with spaces."""
    return [
        (f" {word}", round(start + n * each, 3), round(start + (n + 1) * each, 3))
        for n, word in enumerate(text.split())
    ]


def segment(said: list[WordTuple], **changes: Any) -> dict[str, Any]:
    plain = {
        "start": said[0][1],
        "end": said[-1][2],
        "text": "".join(word for word, _, _ in said).strip(),
        "words": [{"word": w, "start": s, "end": e, "probability": 0.9} for w, s, e in said],
        "channel": None,
    }
    return plain | changes


def row(*segments: dict[str, Any], language: str = "en") -> dict[str, Any]:
    return {"language": language, "segments": list(segments)}


def texts(found: list[Cue]) -> list[str]:
    return [cue.text for cue in found]


# --- which words share a cue -----------------------------------------------------------------------------


def test_cue_ends_with_its_sentence() -> None:
    said = words_of("The meeting starts at nine in the morning. Please bring your laptop with you.")
    assert texts(cues(row(segment(said)))) == [
        "The meeting starts at nine in the morning.",
        "Please bring your laptop with you.",
    ]


def test_short_sentences_share_a_cue_so_that_they_can_be_read() -> None:
    assert texts(cues(row(segment(words_of("Yes. No. Maybe so."))))) == ["Yes. No. Maybe so."]


def test_pause_ends_a_cue() -> None:
    said = [*words_of("so I went there"), *words_of("and nobody was home", start=3.0)]
    assert texts(cues(row(segment(said)))) == ["so I went there", "and nobody was home"]


def test_abbreviation_ends_no_cue() -> None:
    said = words_of("I would like to see what Dr. Brown says")
    assert texts(cues(row(segment(said)))) == ["I would like to see what Dr. Brown says"]


def test_long_sentence_is_cut_at_a_comma() -> None:
    said = words_of(
        "when the door had closed behind them and the street was quiet again at last, she sat down at "
        "the table and read the letter"
    )
    assert cues(row(segment(said)))[0].text.endswith("again at last,")


def test_line_ends_at_a_comma_rather_than_in_the_middle() -> None:
    (cue,) = cues(row(segment(words_of("I would have come to you, but the train was late"))))
    assert cue.lines == ("I would have come to you,", "but the train was late")


def test_lines_are_of_similar_length() -> None:
    (cue,) = cues(row(segment(words_of("the quick brown fox jumps over the lazy sleeping dog"))))
    assert cue.lines == ("the quick brown fox jumps", "over the lazy sleeping dog")


def test_text_that_fits_stays_in_one_line() -> None:
    (cue,) = cues(row(segment(words_of("the quick brown fox jumps over a lazy dog"))))
    assert len(cue.lines) == 1


def test_limits_are_those_of_the_caller() -> None:
    found = cues(
        row(segment(words_of("one two three four five six"))), Layout(max_line_width=9, max_line_count=1)
    )
    assert texts(found) == ["one two", "three", "four five", "six"]
    found = cues(row(segment(words_of("one two three four", each=1.0))), Layout(max_line_duration=2.0))
    assert texts(found) == ["one two", "three four"]


@pytest.mark.parametrize("name", ["max_line_width", "max_line_count", "max_line_duration"])
@pytest.mark.parametrize("value", [0, "42", True, float("nan")])
def test_limit_that_is_no_positive_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        Layout(**{name: value})


def test_a_cue_has_whole_lines_and_some_number_of_them() -> None:
    with pytest.raises(ValueError, match="max_line_count must be a positive whole number"):
        Layout(max_line_count=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_line_count must be a positive whole number, got None"):
        Layout(max_line_count=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("speakers", ["Agent", None, ["Agent"], {0: "Agent"}, {"SPEAKER_00": 7}])
def test_names_of_speakers_that_are_none_are_refused(speakers: Any) -> None:
    with pytest.raises(ValueError, match="speakers must be True, False, or names"):
        Layout(speakers=speakers)


def test_word_wider_than_a_line_stays_whole() -> None:
    long = "https://example.com/" + "a" * 60
    found = cues(row(segment(words_of(f"see {long} now"))))
    assert " ".join(texts(found)).split() == ["see", long, "now"]


# --- when it is on screen --------------------------------------------------------------------------------


def test_short_word_stays_until_it_can_be_read() -> None:
    (cue,) = cues(row(segment([(" Yes.", 10.0, 10.2)])))
    assert (cue.start, cue.end) == (10_000, 10_833)


def test_fast_speech_stays_for_its_reading_time_if_nothing_follows() -> None:
    said = words_of("forty characters said in half a second!!", each=0.06)
    (cue,) = cues(row(segment(said)))
    assert cue.end - cue.start == 2000  # 40 characters at 20 in a second


def test_reading_time_ends_before_the_next_cue() -> None:
    said = [*words_of("forty characters said in half a second!!", each=0.06), *words_of("next", start=1.5)]
    first, second = cues(row(segment(said)))
    assert (first.end, second.start) == (1417, 1500)  # two frames before


def test_word_drawn_out_for_seconds_is_taken_away() -> None:
    (cue,) = cues(row(segment([(" Well", 0.0, 6.0)])))
    assert cue.end == 1200  # 4 characters at a sixth of 20 in a second


def test_cross_talk_does_not_overlap_and_is_hardly_late() -> None:
    agent = segment(words_of("how can I help you today my friend", each=0.25), channel=0)
    caller = segment(words_of("hello hello can you hear me", start=0.3, each=0.25), channel=1)
    first, second = cues(row(agent, caller))
    assert first.end <= second.start <= 300 + 1000 * MIN_CUE_SECONDS
    assert (first.voice, second.voice) == ("Channel 1", "Channel 2")


# --- speakers --------------------------------------------------------------------------------------------


def conversation() -> dict[str, Any]:
    said = segment(words_of("Good morning to you. Hello."))
    for word in said["words"][:4]:
        word["speaker"] = "SPEAKER_00"
    said["words"][4]["speaker"] = "SPEAKER_01"
    return row(said | {"speaker": "SPEAKER_00"})


def test_cue_ends_where_the_speaker_changes() -> None:
    assert texts(cues(conversation())) == ["Good morning to you.", "Hello."]


def test_speakers_are_named_when_asked_for() -> None:
    names = {"SPEAKER_00": "Agent"}
    assert "Agent: Good morning to you.\n" in to_srt(conversation(), speakers=names)
    assert "SPEAKER_01: Hello.\n" in to_srt(conversation(), speakers=names)
    assert "<v Agent>Good morning to you.\n" in to_vtt(conversation(), speakers=names)
    assert to_txt(conversation(), speakers=names) == "Agent: Good morning to you. Hello.\n"
    for written in (to_srt(conversation()), to_vtt(conversation()), to_txt(conversation())):
        assert "SPEAKER" not in written


def test_name_takes_its_room_in_the_first_line() -> None:
    said = segment(words_of("the quick brown fox jumps over a lazy dog"), speaker="SPEAKER_00")
    (written,) = srt.parse(to_srt(row(said), speakers=True))
    assert len(written.content.splitlines()) == 2
    assert all(width(line) <= 42 for line in written.content.splitlines())


def test_channel_stands_for_the_speaker_of_a_call() -> None:
    said = segment(words_of("Good morning."), channel=1)
    assert to_txt(row(said), speakers={"Channel 2": "Caller"}) == "Caller: Good morning.\n"


# --- scripts without spaces ------------------------------------------------------------------------------

CHINESE = "今天 天气 很 好 ， 我们 一起 去 公园 散步 吧 。 明天 可能 会 下雨 ， 所以 别 忘了 带 伞 。"
JAPANESE = "きょう は とても いい 天気 です から 、 公園 を ゆっくり 散 歩 し ま し ょ う 。"
THAI = "วัน นี้ อา กา ศ ดี มา ก เ รา ไป เดิน เล่น ที่ สวน กั น นะ ค ะ แล้ว ก็ ท ำ ไม ไม่ มา ด้วย กั น"


def tokens(spelled: str, language: str, each: float = 0.2) -> dict[str, Any]:
    """A row whose words are those between the spaces, which the script does not write."""
    said = [(word, round(n * each, 3), round((n + 1) * each, 3)) for n, word in enumerate(spelled.split(" "))]
    return row(segment(said), language=language)


@pytest.mark.parametrize(("spelled", "language"), [(CHINESE, "zh"), (JAPANESE, "ja"), (THAI, "th")])
def test_lines_break_between_tokens_by_width(spelled: str, language: str) -> None:
    found = cues(tokens(spelled, language))
    lines = [line for cue in found for line in cue.lines]
    assert max(map(width, lines)) <= LINE_COLUMNS_OF[language]
    assert len(lines) > 1
    assert "".join(lines) == spelled.replace(" ", "")
    # Each line is made of whole tokens.
    ends = set(itertools.accumulate(len(word) for word in spelled.split(" ")))
    assert set(itertools.accumulate(map(len, lines))) <= ends


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("天气", "。"),
        ("「", "天气"),
        ("し", "ょ"),
        ("コ", "ー"),
        ("เ", "รา"),
        ("ท", "ำ"),
        ("ท", "ี่"),
        ("ក្", "រ"),
        ("Wi", "Fi"),
        (" well", "-known"),
        ("한", "국"),
        (" Bonjour", " !"),
        ("e", "\u0301"),
        ("👩\u200d", "👧"),
    ],
)
def test_what_belongs_together_stays_in_a_line(before: str, after: str) -> None:
    assert not may_break(before, after)


@pytest.mark.parametrize(
    ("before", "after"), [("天", "气"), ("iPhone", "を"), (" a", " b"), ("ไป", "เดิน"), (" 한국", " 사람")]
)
def test_line_may_end_between_words(before: str, after: str) -> None:
    assert may_break(before, after)


def test_width_is_that_of_the_screen() -> None:
    assert (width("abc"), width("天气"), width("ที่นี่"), width("ｶﾞ"), width("e\u0301")) == (3, 4, 2, 2, 1)


def test_translation_is_laid_out_as_english() -> None:
    said = "the weather is very nice today, so let us go to a café in the park"
    (cue,) = cues({**row(segment(words_of(said)), language="ja"), "text": said})
    assert cue.lines == ("the weather is very nice today,", "so let us go to a café in the park")


# --- rows without words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun for hours", "en"),
        (CHINESE.replace(" ", "") * 3, "zh"),
        (THAI.replace(" ", "") * 2, "th"),
    ],
)
def test_row_without_words_is_laid_out_from_its_segments(text: str, language: str) -> None:
    silent = {"start": 2.0, "end": 12.0, "text": text, "words": None, "channel": None}
    found = cues(row(silent, language=language))
    assert len(found) > 1
    assert (found[0].start, found[-1].end <= 12_834) == (2000, True)
    joint = " " if language == "en" else ""
    assert joint.join(line for cue in found for line in cue.lines) == text
    assert all(width(line) <= LINE_COLUMNS_OF.get(language, 42) for cue in found for line in cue.lines)


def test_pieces_are_the_text() -> None:
    for text in ("  two  words ", "Bonjour !", CHINESE, THAI.replace(" ", ""), "mixed 天气 and ไทย"):
        assert "".join(pieces(text)).split() == text.split()


@pytest.mark.parametrize("empty", [{}, {"segments": None}, {"segments": [], "text": ""}])
def test_row_without_text_has_no_cues(empty: dict[str, Any]) -> None:
    assert (to_srt(empty), to_vtt(empty), to_txt(empty)) == ("", "WEBVTT\n", "")


@pytest.mark.parametrize("nothing", [float("nan"), pd.NA])
def test_missing_values_of_pandas_are_no_text(nothing: Any) -> None:
    empty = {"language": nothing, "text": nothing, "segments": None}
    assert (to_srt(empty), to_txt(empty)) == ("", "")


def test_a_name_in_the_narrowest_line_leaves_room_for_the_text() -> None:
    said = {**segment(words_of("a b")), "speaker": "SPEAKER_00"}
    assert "SPEAKER_00: a\nb" in to_srt(row(said), max_line_width=1, speakers=True)


def test_words_without_times_stand_between_their_neighbours() -> None:
    said = segment([(" In", 0.0, 0.4), (" 2026", 0.4, 0.8), (" we", 0.8, 1.2)])
    for missing in (None, float("nan")):
        said["words"][1] |= {"start": missing, "end": missing}
        (cue,) = cues(row(said))
        assert (cue.start, cue.end, cue.text) == (0, 1200, "In 2026 we")
    late = segment([(" Good", None, None), (" bye", 4.0, 4.5)], start=None, end=None)  # type: ignore[list-item]
    found = [(cue.start, cue.text) for cue in cues(row(late, said))]
    assert found == [(0, "In 2026 we"), (4000, "Good bye")]


def test_words_have_the_spaces_of_their_text() -> None:
    """A function that changes words may leave out the space that Whisper has before each."""
    bare = segment([("my", 0.0, 0.3), ("[name],", 0.3, 0.6), (" is", 0.6, 0.9)], text="my [name], is")
    following = segment([("[name]", 1.0, 1.3), ("'s", 1.3, 1.5)], text="[name]'s")
    assert texts(cues(row(bare, following))) == ["my [name], is [name]'s"]
    chinese = segment([("我", 0.0, 0.3), ("的", 0.3, 0.6)])
    assert texts(cues(row(chinese, segment([("号", 0.7, 1.0)]), language="zh"))) == ["我的号"]


def test_text_without_a_space_takes_no_longer_than_other_text() -> None:
    said = segment([("word", n * 0.3, n * 0.3 + 0.3) for n in range(20_000)])
    (cue,) = cues(row(said))
    assert cue.text == "word" * 20_000


def test_a_name_that_cannot_be_seen_is_none() -> None:
    blank = segment(words_of("hello"), speaker=" \n")
    odd = segment(words_of("bye", 3.0), speaker="A\nB\x00 --> C")
    assert texts(cues(row(blank))) == ["hello"]
    captions = webvtt.from_string(to_vtt(row(blank, odd), speakers=True)).captions
    assert [caption.voice for caption in captions] == [None, "A B --&gt; C"]
    assert "\nhello\n" in to_srt(row(blank), speakers=True)
    assert to_txt(row(blank, odd), speakers=True) == "hello\nA B --> C: bye\n"


# --- any transcript --------------------------------------------------------------------------------------

_WORD = st.text(
    st.sampled_from("ab.,?! 天。ー「ำที่ี\u0301한<&>-\n\x85\x00\u2028e"), min_size=1, max_size=8
).map(lambda text: f" {text}" if text[0] in "abe" else text)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    found, now = [], draw(st.floats(0, 5))
    for _ in range(draw(st.integers(0, 6))):
        said = []
        for _ in range(draw(st.integers(1, 12))):
            start = max(0.0, now + draw(st.sampled_from([0.0, 0.0, 0.1, 0.7, 3.0, -0.5])))
            now = start + draw(st.sampled_from([0.0, 0.05, 0.3, 1.0, 9.0]))
            said.append((draw(_WORD), start, now))
        changes = {
            "channel": draw(st.sampled_from([None, 0, 1])),
            "speaker": draw(st.sampled_from(["A", None])),
        }
        if draw(st.booleans()):
            changes["words"] = None
        found.append(segment(said, **changes))
    return row(*found, language=draw(st.sampled_from(["en", "zh", "th", "xx"])))


def ink(text: str) -> str:
    return "".join(sorted(c for c in text if c > " " and c not in "\x7f\x85\u2028"))


@settings(deadline=None, max_examples=150)
@given(rows(), st.integers(1, 50), st.integers(1, 3), st.sampled_from([1.0, 7.0]))
def test_any_row_gives_cues_in_order_that_lose_no_letter(
    any_row: dict[str, Any], columns: int, lines: int, seconds: float
) -> None:
    layout = Layout(max_line_width=columns, max_line_count=lines, max_line_duration=seconds)
    found = cues(any_row, layout)
    assert all(cue.start < cue.end for cue in found)
    assert all(cue.end - cue.start <= 1000 * max(seconds, MIN_CUE_SECONDS) + 1 for cue in found)
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    assert all(line == line.strip() and line for cue in found for line in cue.lines)
    said = "".join(item["text"] for item in any_row["segments"])
    assert ink("".join(texts(found))) == ink(said)
    written = list(srt.parse(to_srt(any_row), ignore_errors=False))
    assert len(written) == len(cues(any_row, labelled=True))
    captions = webvtt.from_string(to_vtt(any_row)).captions
    assert len(captions) == len(cues(any_row))


# --- files -----------------------------------------------------------------------------------------------


def opened(text: str, format_name: str) -> list[tuple[float, str]]:
    """Start and text of each subtitle, as FFmpeg reads it."""
    with av.open(io.BytesIO(text.encode()), format=format_name) as container:
        (stream,) = container.streams.subtitles
        return [
            (float(packet.pts * packet.time_base), bytes(packet).decode())
            for packet in container.demux(stream)
            if packet.size
        ]


def test_srt_opens_in_ffmpeg_and_in_a_strict_parser() -> None:
    written = to_srt(conversation(), speakers=True)
    assert [(item.index, item.content) for item in srt.parse(written)] == [
        (1, "SPEAKER_00: Good morning to you."),
        (2, "SPEAKER_01: Hello."),
    ]
    assert [text for _, text in opened(written, "srt")] == [item.content for item in srt.parse(written)]


def test_vtt_opens_in_ffmpeg_and_in_a_strict_parser() -> None:
    written = to_vtt(conversation(), speakers=True)
    captions = webvtt.from_string(written).captions
    assert [(c.start, c.voice, c.text) for c in captions] == [
        ("00:00:00.000", "SPEAKER_00", "Good morning to you."),
        ("00:00:01.200", "SPEAKER_01", "Hello."),
    ]
    assert [start for start, _ in opened(written, "webvtt")] == [0.0, 1.2]


def test_characters_that_mean_something_in_a_file_are_text() -> None:
    said = segment(words_of("a --> b & <b>bold</b>"))
    assert "a --&gt; b &amp; &lt;b&gt;bold&lt;/b&gt;" in to_vtt(row(said))
    assert [item.content for item in srt.parse(to_srt(row(said)))] == ["a -> b & <b>bold</b>"]


def test_times_pass_a_hundred_hours() -> None:
    said = segment([(" late", 3600 * 100 + 61.5, 3600 * 100 + 62.5)])
    assert "100:01:01,500 --> 100:01:02,500" in to_srt(row(said))


def test_json_holds_every_column() -> None:
    table = make_transcript_rows(["s3://calls/a.wav"])
    (plain,) = table.to_pylist()
    read = json.loads(to_json(plain))
    assert read.keys() == plain.keys()
    assert read["segments"] == plain["segments"]
    assert read["transcribed_at"] == "2026-11-02T00:00:00+00:00"


def test_json_has_null_for_what_is_missing_or_no_number() -> None:
    plain = {"speakers": float("nan"), "at": pd.NaT, "language": pd.NA, "p": [float("inf"), 0.5], "n": None}
    strict = json.loads(to_json(plain), parse_constant=pytest.fail)
    assert strict == {"speakers": None, "at": None, "language": None, "p": [None, 0.5], "n": None}


def test_rows_of_all_readers_give_the_same_subtitles() -> None:
    from pyspark.sql import Row

    words = (Word(0.0, 0.5, " Good", 0.9), Word(0.5, 1.0, " morning.", 0.9))
    transcript = Transcript(
        "a", language="en", text="Good morning.", segments=(
            Segment(0, None, 0.0, 1.0, "Good morning.", "en", -0.1, 1.0, 0.0, words),
        )
    )  # fmt: skip
    plain = transcript.to_row()
    table = pa.Table.from_pylist([plain], schema=transcript_schema())
    nested = [Row(**{**s, "words": [Row(**w) for w in s["words"]]}) for s in plain["segments"]]
    spark_row = Row(**{**plain, "segments": nested})
    pandas_row = table.to_pandas().iloc[0]
    assert isinstance(pandas_row, pd.Series)
    written = to_srt(plain)
    assert "Good morning." in written
    assert [to_srt(r) for r in (transcript, spark_row, pandas_row, table.to_pylist()[0])] == [written] * 4
    assert json.loads(to_json(pandas_row))["segments"][0]["words"][1]["word"] == " morning."


def test_subtitles_need_neither_engine_nor_arrow() -> None:
    program = (
        "import sys; import whisper_spark.subtitles; heavy = {'numpy', 'pyarrow', 'faster_whisper', 'av', "
        "'ctranslate2', 'obstore', 'pyspark'}; print(sorted(heavy & {m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
