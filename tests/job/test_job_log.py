"""The lines that the job prints, which Airflow reads."""

from __future__ import annotations

import logging
import sys

import pytest

from whisper_spark.contract.text import visible
from whisper_spark.job import LineFormatter

NAME = "a\nwhisper: failed: forged\r\x85\u2028\x1b[31m\ud800.wav"
SHOWN = r"a\u000awhisper: failed: forged\u000d\u0085\u2028\u001b[31m\ud800.wav"


def formatted(message: str, error: BaseException | None = None) -> str:
    record = logging.LogRecord("whisper_spark", logging.WARNING, __file__, 1, "%s", (message,), None)
    if error is not None:
        try:
            raise error
        except type(error):
            record.exc_info = sys.exc_info()
    return LineFormatter().format(record)


def test_names_of_files_cannot_forge_lines_of_the_job() -> None:
    assert formatted(NAME) == f"whisper: {SHOWN}"


def test_traceback_cannot_either() -> None:
    first, *traceback = formatted("unexpected error", ValueError(NAME)).splitlines()
    assert first == "whisper: unexpected error"
    assert traceback
    assert all(line.startswith("  | ") for line in traceback)


@pytest.mark.parametrize(
    ("value", "limit", "keep", "shown"),
    [
        ("Gespräch 通話 🎙.wav", None, "", "Gespräch 通話 🎙.wav"),
        ("a\tb\nc", None, "\n\t", "a\tb\nc"),
        ("a\tb", None, "\n", r"a\u0009b"),
        ("invoice\u202egpj.exe", None, "", r"invoice\u202egpj.exe"),
        ("\U000e0041", None, "", r"\U000e0041"),
        ("abcdef", 3, "", "abc…"),
        (ValueError("x\x00"), None, "", r"x\u0000"),
    ],
)
def test_text_is_shown_with_everything_that_is_in_it(
    value: object, limit: int | None, keep: str, shown: str
) -> None:
    assert visible(value, limit=limit, keep=keep) == shown
    visible("\ud800").encode()
