"""The text before a window, which Whisper was trained to be told: openai/whisper's
``condition_on_previous_text``, made for windows that are decoded out of order."""

from __future__ import annotations

from whisper_spark.decoding.window_text import WindowText

LONGEST = 60
"""Tokens of previous text that a window is given at most. Whisper takes up to 223 (openai/whisper
``n_text_ctx // 2 - 1``), but beam search slows down with every one of them; RESULTS.md has figures."""

# The windows of a batch need equally many: fewer than LONGEST come in multiples of this.
_STEP = 20


class PreviousText:
    """The first texts of the windows of one channel of a file.

    What a window is given depends on these alone, not on when it is decoded again: results are the same
    in every order. A text that failed the quality gate is never passed on.
    """

    def __init__(self) -> None:
        self._texts: dict[int, WindowText | None] = {}
        self._known = 0

    def add(self, number: int, text: WindowText | None) -> None:
        """The first text of a window; ``None``: there is none that can be passed on.

        :param number: counts the windows of the channel, from 0.
        """
        self._texts[number] = text if text is not None and text.reliable else None
        while self._known in self._texts:
            self._known += 1

    def is_known(self, number: int) -> bool:
        """Whether all windows before this one have been added."""
        return self._known >= number

    def tokens(self, number: int, language: str) -> tuple[int, ...]:
        """Tokens of the text before a window, as far as it is in the same language.

        :param number: the window.
        :param language: Whisper language code of the window.
        """
        tokens: tuple[int, ...] = ()
        while number > 0 and len(tokens) < LONGEST:
            number -= 1
            text = self._texts[number]
            if text is not None and text.language == language:
                tokens = text.tokens + tokens
        keep = min(len(tokens), LONGEST) // _STEP * _STEP
        return tokens[len(tokens) - keep :]
