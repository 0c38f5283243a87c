"""What is redacted disappears from text, segments and words at once, and times stay."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_spark import Segment, Transcript, Word
from whisper_spark.redaction import is_in_step, redact


def transcript(*segments: str, words: bool = True, joint: str = " ") -> Transcript:
    """One second a segment. Words are separated by spaces, or by ``|`` where the script has none."""
    made = []
    for number, spelled in enumerate(segments):
        parts = [part for word in spelled.split(" ") for part in _parts(word)]
        each = 1 / max(len(parts), 1)
        timed = tuple(
            Word(round(number + n * each, 3), round(number + (n + 1) * each, 3), part, 0.9 - n / 100)
            for n, part in enumerate(parts)
        )
        text = spelled.replace("|", "")
        segment = Segment(
            number, None, number, number + 1.0, text, "en", -0.1, 1.0, 0.0, timed if words else None
        )
        made.append(segment)
    text = joint.join(segment.text for segment in made if segment.text)
    return Transcript("a", language="en", text=text, segments=tuple(made))


def _parts(word: str) -> list[str]:
    first, *others = word.split("|")
    return [f" {first}", *others]


def hide(given: Transcript, *secrets: str, replacement: str = "[...]") -> Transcript:
    assert given.text is not None
    spans = [(given.text.index(s), given.text.index(s) + len(s)) for s in secrets]
    return redact(given, spans, replacement)


def words_of(given: Transcript) -> list[tuple[str, float, float]]:
    return [(w.word, w.start, w.end) for s in given.segments for w in s.words or ()]


def test_span_becomes_one_word_from_its_first_to_its_last() -> None:
    hidden = hide(transcript("my number is 4111 1111 please"), "4111 1111")
    assert hidden.text == hidden.segments[0].text == "my number is [...] please"
    assert words_of(hidden)[3] == (" [...]", 0.5, 0.833)
    assert [word for word, _, _ in words_of(hidden)] == [" my", " number", " is", " [...]", " please"]
    assert hidden.segments[0].words[3].probability == pytest.approx(0.86)  # type: ignore[index]


def test_letters_around_the_span_remain() -> None:
    hidden = hide(transcript("call (555|-1234), now"), "555-1234")
    assert hidden.text == "call ([...]), now"
    assert [word for word, _, _ in words_of(hidden)] == [" call", " ([...]),", " now"]


def test_span_over_segments_is_hidden_in_each() -> None:
    given = transcript("it is 4111 1111", "2222 3333 thanks", "bye")
    hidden = hide(given, "4111 1111 2222 3333")
    assert [segment.text for segment in hidden.segments] == ["it is [...]", "[...] thanks", "bye"]
    assert hidden.text == "it is [...] [...] thanks bye"
    assert [(s.start, s.end) for s in hidden.segments] == [(s.start, s.end) for s in given.segments]
    assert hidden.segments[2] is given.segments[2]


def test_several_spans_in_any_order_may_overlap_or_touch() -> None:
    hidden = redact(transcript("one two three four five"), [(14, 18), (0, 3), (2, 7), (8, 13)], "X")
    assert hidden.text == "X X X five"
    assert [word for word, _, _ in words_of(hidden)] == [" X", " X", " X", " five"]
    assert redact(transcript("abcd"), [(0, 2), (2, 4)], "X").text == "XX"


def test_scripts_without_spaces() -> None:
    hidden = hide(transcript("我|的|号码|是", "一二|三四|吧", joint=""), "一二三四")
    assert hidden.text == "我的号码是[...]吧"


def test_transcript_without_words_is_redacted_in_its_segments() -> None:
    hidden = hide(transcript("my name is Bob", words=False), "Bob")
    assert (hidden.text, hidden.segments[0].words) == ("my name is [...]", None)


def test_nothing_to_hide_changes_nothing() -> None:
    given = transcript("a b", "c")
    assert redact(given, []) == given
    assert redact(given, [(1, 1), (1, 2)]) == given  # only a space
    assert redact(Transcript("a", status="error"), []) == Transcript("a", status="error")


def test_span_outside_of_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 9\) is not in the text, which has 3"):
        redact(transcript("a b"), [(2, 9)])


def test_text_that_is_not_that_of_the_words_is_refused() -> None:
    given = transcript("my card is 4111")
    for wrong in (
        replace(given, text="MY CARD IS 4111"),
        replace(given, segments=(replace(given.segments[0], text="my card"),)),
        replace(given, segments=(replace(given.segments[0], words=given.segments[0].words[:-1]),)),  # type: ignore[index]
    ):
        assert not is_in_step(wrong)
        with pytest.raises(ValueError, match="not its text"):
            redact(wrong, [(11, 15)])


@given(st.data())
def test_no_letter_of_a_span_is_left_anywhere(data: st.DataObject) -> None:
    segments = data.draw(
        st.lists(st.text(st.sampled_from("abc| "), max_size=12).map(str.strip), min_size=1, max_size=4)
    )
    given_ = transcript(*segments, joint=data.draw(st.sampled_from([" ", ""])))
    assert given_.text is not None
    ends = st.integers(0, len(given_.text))
    spans = [tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(ends, ends), max_size=3))]
    secret = {i for start, end in spans for i in range(start, end)}
    # Each hidden letter is one that stands nowhere else.
    letters = iter(chr(0x4E00 + n) for n in range(10_000))
    marks = {i: next(letters) for i, c in enumerate(given_.text) if not c.isspace()}
    marked = _marked(given_, marks)
    hidden = redact(marked, spans, "#")  # type: ignore[arg-type]
    assert is_in_step(hidden)
    everything = repr(hidden.to_row())
    for position, mark in marks.items():
        assert (mark in everything) == (position not in secret)
    assert [(s.start, s.end) for s in hidden.segments] == [(s.start, s.end) for s in given_.segments]
    assert pickle.loads(pickle.dumps(hidden)) == hidden


def _marked(given_: Transcript, marks: dict[int, str]) -> Transcript:
    """The same transcript with each letter replaced by the mark of its position in the text."""
    assert given_.text is not None
    in_text, in_segments, in_words = (iter(list(marks.values())) for _ in range(3))

    def spelled(text: str, letters: object) -> str:
        return "".join(c if c.isspace() else next(letters) for c in text)  # type: ignore[call-overload]

    segments = tuple(
        replace(
            s,
            text=spelled(s.text, in_segments),
            words=tuple(replace(w, word=spelled(w.word, in_words)) for w in s.words or ()),
        )
        for s in given_.segments
    )
    return replace(given_, text=spelled(given_.text, in_text), segments=segments)
