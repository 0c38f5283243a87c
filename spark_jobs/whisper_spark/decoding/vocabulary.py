"""Loads the tokenizer of a model, and checks that it matches the weights and the options.

With a wrong token CTranslate2 raises no error: it returns nonsense or crashes. So everything is checked when
a model is loaded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.model import ModelError

log = logging.getLogger(__name__)

_SPECIAL = ("<|startoftranscript|>", "<|endoftext|>", "<|startofprev|>", "<|notimestamps|>")
_TASKS = ("<|transcribe|>", "<|translate|>")

# Share of tokens that may differ: fine-tuning may rename a few, but the tokenizer of another model differs in
# most.
_MOST_RENAMED = 0.01

_REMEDY = "Copy tokenizer.json from the model that the weights were converted from"


def load_tokenizer(folder: Path) -> Any:
    """Load the ``tokenizers.Tokenizer`` of a model.

    :raises ModelError: when ``tokenizer.json`` cannot be read, or belongs to another model.
    """
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        # tokenizers has no exception class of its own.
        raise ModelError(f"cannot read tokenizer.json in {folder}: {error}. {_REMEDY}") from error
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    missing = [token for token in _SPECIAL if token not in ids]
    if missing:
        raise ModelError(f"tokenizer.json in {folder} is not Whisper's: it lacks {missing[0]}. {_REMEDY}")
    _check_same(ids, _vocabulary(folder), folder)
    return tokenizer


def _vocabulary(folder: Path) -> Sequence[str]:
    """The vocabulary that was stored with the weights; empty if there is no such file."""
    try:
        if (folder / "vocabulary.json").is_file():
            tokens = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            return tokens if isinstance(tokens, list) else ()
        if (folder / "vocabulary.txt").is_file():
            return (folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    except ValueError as error:
        raise ModelError(f"cannot read the vocabulary in {folder}: {error}") from error
    return ()


def _check_same(ids: Mapping[str, int], vocabulary: Sequence[str], folder: Path) -> None:
    known = {token: i for token, i in ids.items() if i < len(vocabulary)}
    different = sum(vocabulary[i] != token for token, i in known.items())
    special = next((t for t in (*_SPECIAL, *_TASKS) if t in known and vocabulary[known[t]] != t), None)
    if special or different > _MOST_RENAMED * len(known):
        example = special or "most tokens"
        raise ModelError(
            f"tokenizer.json in {folder} belongs to another model: the vocabulary of the weights has other "
            f"numbers for {example}. {_REMEDY}"
        )


def check_options(options: WhisperOptions, tokenizer: Any, *, multilingual: bool) -> None:
    """Check that a model has the tokens that the options need.

    :param tokenizer: result of :func:`load_tokenizer`.
    :param multilingual: whether the model is multilingual.
    :raises ModelError: when a token is missing; the message says what to change.
    """
    language = options.language
    if not multilingual and (options.multilingual or language not in (None, "en")):
        wrong = "multilingual" if options.multilingual else f"language={language!r}"
        raise ModelError(
            f"{options.model} knows English only, and the options say {wrong}: leave it out, or use a "
            "multilingual model"
        )
    if multilingual and language and tokenizer.token_to_id(f"<|{language}|>") is None:
        other = " Cantonese came with large-v3; older models know zh." if language == "yue" else ""
        raise ModelError(
            f"{options.model} does not know the language {language!r}.{other} Use another model, or leave "
            "language out to detect it for each file"
        )
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    outside = [token for token in options.suppress_tokens if token >= size]
    if outside:
        raise ModelError(
            f"suppress_tokens holds {outside[0]}, but {options.model} has the tokens 0 to {size - 1} only"
        )
