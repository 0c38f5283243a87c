"""The previous text that a window gets as its prompt, whatever the order in which windows are decoded."""

from __future__ import annotations

import random

from transcripts import window_text

from whisper_spark.decoding.previous_text import LONGEST, PreviousText
from whisper_spark.decoding.window_text import WindowText


def window(*tokens: int, **changes: object) -> WindowText:
    return window_text("heard", tokens=tokens, **changes)


def twenty(first: int, **changes: object) -> WindowText:
    return window(*range(first, first + 20), **changes)


def test_windows_are_told_what_was_said_before_them_in_whatever_order_it_is_found_out() -> None:
    numbers = list(range(4))
    random.Random(1).shuffle(numbers)
    previous = PreviousText()
    for position, number in enumerate(numbers):
        assert previous.is_known(4) == (position == 4)
        previous.add(number, twenty(100 * number))
    assert previous.is_known(4)
    assert previous.tokens(0, "en") == ()
    assert previous.tokens(2, "en") == (*range(20), *range(100, 120))


def test_the_last_tokens_are_kept_and_their_number_is_one_that_others_share() -> None:
    previous = PreviousText()
    previous.add(0, window(*range(LONGEST)))
    previous.add(1, window(*range(500, 507)))
    assert previous.tokens(1, "en") == tuple(range(LONGEST))
    assert previous.tokens(2, "en") == (*range(7, LONGEST), *range(500, 507))
    short = PreviousText()
    short.add(0, window(*range(27)))
    assert short.tokens(1, "en") == tuple(range(7, 27))


def test_doubtful_text_and_other_languages_are_not_passed_on() -> None:
    previous = PreviousText()
    previous.add(0, twenty(0))
    previous.add(1, twenty(100, reliable=False))
    previous.add(2, twenty(200, language="fr"))
    previous.add(3, None)
    assert previous.is_known(4)
    assert previous.tokens(4, "en") == tuple(range(20))
    assert previous.tokens(4, "fr") == tuple(range(200, 220))
