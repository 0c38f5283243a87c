"""The language of a file: its windows vote, and in doubt the more probable text decides."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from transcripts import window_text

from whisper_spark.decoding.language import languages_of_files, vote
from whisper_spark.decoding.window_text import WindowText


def decided(detected: list[dict[str, float]], texts: dict[str, WindowText]) -> str:
    """The language of a file, given the texts of its windows in the candidate languages."""

    def first_texts(trials: Sequence[tuple[int, str]]) -> list[WindowText]:
        return [texts[language] for _, language in trials]

    windows = list(range(len(detected)))
    [found] = languages_of_files([windows], dict(enumerate(detected)), [1.0] * len(windows), first_texts)
    return found.language


def test_windows_vote_with_their_seconds_of_speech() -> None:
    ranking = vote([{"en": 0.9, "de": 0.1}, {"en": 0.2, "de": 0.8}], [1.0, 3.0])
    assert ranking == [("de", pytest.approx(0.625)), ("en", pytest.approx(0.375))]


def test_a_language_that_is_sure_needs_no_text() -> None:
    assert decided([{"en": 0.95, "de": 0.05}], {}) == "en"


def test_the_likelier_text_decides_where_the_vote_leaves_doubt() -> None:
    texts = {
        "de": window_text("Guten Tag.", language="de", avg_logprob=-0.3),
        "nl": window_text("Goede dag.", language="nl", avg_logprob=-0.9),
    }
    assert decided([{"nl": 0.5, "de": 0.4}], texts) == "de"


def test_a_loop_is_no_sign_of_its_language_and_a_word_heard_twice_is() -> None:
    other = window_text("Faire", language="fr", avg_logprob=-1.2)
    loop = window_text("five " * 60, language="en", avg_logprob=-0.05, reliable=False)
    twice = window_text("5 5", language="en", avg_logprob=-0.3, reliable=False, doubled=True)
    assert decided([{"en": 0.5, "fr": 0.4}], {"en": loop, "fr": other}) == "fr"
    assert decided([{"en": 0.5, "fr": 0.4}], {"en": twice, "fr": other}) == "en"


def test_files_are_decided_each_by_its_own_windows() -> None:
    detected = {0: {"en": 0.99}, 1: {"de": 0.97}, 2: {"en": 0.4, "de": 0.59}}
    found = languages_of_files([[0], [1, 2]], detected, [5.0, 5.0, 1.0], lambda trials: [])
    assert [file.language for file in found] == ["en", "de"]
    assert all(file.texts == {} for file in found)
