"""Builds the prompts of the decoder: language and task, hot words, initial prompt, and previous text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.passes import MAX_LENGTH

log = logging.getLogger(__name__)

LONGEST_PROMPT = MAX_LENGTH // 2 - 1
"""Maximum number of tokens of hot words and previous text (openai/whisper ``n_text_ctx // 2 - 1``)."""


class Prompts:
    """The prompts and tokenizers of a model. Thread-safe.

    :param tokenizer: the model's ``tokenizers.Tokenizer``.
    :param multilingual: whether the model is multilingual.
    """

    def __init__(self, options: WhisperOptions, tokenizer: Any, *, multilingual: bool) -> None:
        self._options = options
        self._multilingual = multilingual
        self._tokenizer = tokenizer
        self._for_language = lru_cache(maxsize=None)(self._made_for)
        self._given = self._given_tokens()

    def tokenizer(self, language: str) -> Any:
        """faster-whisper's tokenizer for a language."""
        return self._for_language(language)

    def tokens(self, language: str, *, timestamps: bool = False, before: Sequence[int] = ()) -> list[int]:
        """The prompt of one window.

        :param timestamps: whether the model generates timestamps.
        :param before: tokens of the text before the window; the last ones that fit are used.
        """
        tokenizer = self.tokenizer(language)
        room = min(len(before), LONGEST_PROMPT - len(self._given))
        said = [*self._given, *before[len(before) - room :]]
        opening = [tokenizer.sot_prev, *said] if said else []
        ending = [] if timestamps else [tokenizer.no_timestamps]
        return [*opening, *tokenizer.sot_sequence, *ending]

    def _made_for(self, language: str) -> Any:
        from faster_whisper.tokenizer import Tokenizer

        return Tokenizer(self._tokenizer, self._multilingual, task=self._options.task, language=language)

    def _given_tokens(self) -> list[int]:
        """Tokens of hot words and initial prompt, which take the place of previous text in the prompt."""
        tokenizer = self.tokenizer("en")
        texts = [text.strip() for text in (self._options.hotwords, self._options.initial_prompt) if text]
        tokens = [token for text in texts for token in tokenizer.encode(" " + text)]
        # Without special tokens, which would end the prompt.
        tokens = [token for token in tokens if token < tokenizer.eot]
        if len(tokens) > LONGEST_PROMPT:
            log.warning(
                "hotwords and initial_prompt are %d tokens long; Whisper sees the last %d of them",
                len(tokens),
                LONGEST_PROMPT,
            )
        return tokens[-LONGEST_PROMPT:]
