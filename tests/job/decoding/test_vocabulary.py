"""A model that lacks what the options need is refused when it is loaded, and the message says what to do."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from whisper_spark import WhisperOptions
from whisper_spark.decoding.decoder import WindowDecoder
from whisper_spark.decoding.device import Device
from whisper_spark.decoding.model import ModelError
from whisper_spark.decoding.prompts import LONGEST_PROMPT, Prompts
from whisper_spark.decoding.vocabulary import check_options, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return load_tokenizer(model_dir)


def altered(model_dir: Path, folder: Path, change: Any) -> Path:
    """A folder with a changed tokenizer of the model, and the model's vocabulary."""
    content = json.loads((model_dir / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(change(content)))
    (folder / "vocabulary.json").write_bytes((model_dir / "vocabulary.json").read_bytes())
    return folder


def without_special(content: dict[str, Any]) -> dict[str, Any]:
    kept = [token for token in content["added_tokens"] if token["content"] != "<|startofprev|>"]
    return {**content, "added_tokens": kept}


def with_one_language_more(content: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary like that of large-v3, with Cantonese: the tokens after the languages move by one."""
    moved = [{**token, "id": token["id"] + (token["id"] > 50357)} for token in content["added_tokens"]]
    cantonese = {**moved[-1], "id": 50358, "content": "<|yue|>"}
    return {**content, "added_tokens": sorted([*moved, cantonese], key=lambda token: token["id"])}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: {}, "cannot read tokenizer.json"),
        (lambda content: "broken", "cannot read tokenizer.json"),
        (without_special, r"it lacks <\|startofprev\|>"),
        (with_one_language_more, "belongs to another model"),
    ],
    ids=["empty", "no object", "not Whisper's", "of large-v3"],
)
def test_a_tokenizer_that_does_not_fit_is_a_model_error(
    model_dir: Path, tmp_path: Path, change: Any, says: str
) -> None:
    with pytest.raises(ModelError, match=f"{says}.*Copy tokenizer.json from the model"):
        load_tokenizer(altered(model_dir, tmp_path, change))


def test_a_vocabulary_that_cannot_be_read_is_a_model_error(model_dir: Path, tmp_path: Path) -> None:
    altered(model_dir, tmp_path, lambda content: content)
    (tmp_path / "vocabulary.json").write_text('["cut off')
    with pytest.raises(ModelError, match="cannot read the vocabulary"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("options", "multilingual", "says"),
    [
        ({"language": "yue"}, True, "does not know the language 'yue'.*Cantonese.*leave language out"),
        ({"language": "de"}, False, "knows English only.*language='de'"),
        ({"multilingual": True}, False, "knows English only.*multilingual"),
        ({"suppress_tokens": (60_000,)}, True, "suppress_tokens holds 60000.*0 to 51864"),
        ({"suppress_tokens": (-1, 51_865)}, True, "suppress_tokens holds 51865"),
    ],
)
def test_options_that_the_model_has_no_tokens_for_are_a_model_error(
    tokenizer: Any, options: dict, multilingual: bool, says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        check_options(WhisperOptions(model="/m", **options), tokenizer, multilingual=multilingual)


@pytest.mark.parametrize(
    ("options", "multilingual"),
    [
        ({}, True),
        ({}, False),
        ({"language": "en"}, False),
        ({"language": "zh"}, True),
        ({"suppress_tokens": (0, 51_864)}, True),
        ({"suppress_tokens": None}, True),
    ],
)
def test_options_that_the_model_has_tokens_for_are_accepted(
    tokenizer: Any, options: dict, multilingual: bool
) -> None:
    check_options(WhisperOptions(model="/m", **options), tokenizer, multilingual=multilingual)


def test_loading_a_model_checks_its_tokens(model_dir: Path) -> None:
    options = WhisperOptions(model=str(model_dir), language="yue")
    with pytest.raises(ModelError, match="does not know the language 'yue'"):
        WindowDecoder(options, model_dir, Device("cpu", 0, 1, 1))


def test_hot_words_cannot_write_special_tokens_and_too_many_of_them_are_reported(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    given = WhisperOptions(model="/m", hotwords="Zürich <|startoftranscript|><|endoftext|> Basel")
    prompt = Prompts(given, tokenizer, multilingual=True).tokens("de")
    assert [token for token in prompt if token >= 50257] == [50361, 50258, 50261, 50359, 50363]
    with caplog.at_level(logging.WARNING):
        many = Prompts(WhisperOptions(model="/m", hotwords="Zürich " * 400), tokenizer, multilingual=True)
    assert f"Whisper sees the last {LONGEST_PROMPT}" in caplog.text
    assert len(many.tokens("de", before=range(60))) == LONGEST_PROMPT + 5
