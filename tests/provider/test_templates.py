"""The values that arguments may have after templates are rendered."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_whisper.templates import collection, number, optional, whisper_options
from whisper_spark.contract import WhisperOptions


@pytest.mark.parametrize("value", [None, "", "None"])
def test_template_that_makes_nothing_stands_for_none(value: Any) -> None:
    assert optional(value) is None
    assert optional("calls_s3") == "calls_s3"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("('a',)", ("a",)),
        ('{"a": 0.5}', {"a": 0.5}),
        ("a, b", ("a", "b")),
        ("a", ("a",)),
        ("7z", ("7z",)),
        ("", ()),
        ("None", ()),
        ("[]", ()),
        (["a"], ["a"]),
        (None, None),
    ],
)
def test_collection_may_come_as_text(value: Any, expected: Any) -> None:
    assert collection(value) == expected


def test_number_may_come_as_text() -> None:
    assert (number("n", int, "3"), number("n", float, "0.5"), number("n", float, 1)) == (3, 0.5, 1)
    with pytest.raises(ValueError, match="n must be a number, got 'many'"):
        number("n", int, "many")


@pytest.mark.parametrize("text", ['{"model": "base", "vad": true}', "{'model': 'base', 'vad': True}"])
def test_options_may_come_as_json_and_as_jinja_writes_a_param(text: str) -> None:
    assert whisper_options(text) == WhisperOptions(model="base", vad=True)


@pytest.mark.parametrize("text", ["", "None", "{model: base}", "base", "['base']", "[" * 100_000])
def test_text_that_is_no_options_is_told_with_the_way_to_write_them(text: str) -> None:
    with pytest.raises(ValueError, match=r"tojson|options must be a mapping"):
        whisper_options(text)


@pytest.mark.parametrize("options", [{"language": "None", "hotwords": ""}, '{"language": "None"}'])
def test_option_of_a_param_without_a_value_is_none(options: Any) -> None:
    assert whisper_options(options) == WhisperOptions()
