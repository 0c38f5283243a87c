"""The text before a window, for its prompt: openai/whisper's ``condition_on_previous_text``.

In contrast to openai/whisper, windows are decoded out of order here.
"""

from __future__ import annotations

from whisper_spark.decoding.window_text import WindowText

LONGEST = 60
"""Maximum number of tokens of previous text in a prompt. Whisper takes up to 223 (openai/whisper
``n_text_ctx // 2 - 1``), but each of them slows down beam search; ``benchmarks/RESULTS.md`` has figures."""

# The number of tokens is a multiple of this, because the windows of a batch must have the same number.
_STEP = 20


class PreviousText:
    """The first texts of the windows of one channel of a file.

    The previous text of a window depends only on these first texts, so results do not depend on the order of
    decoding. A text that failed the quality gate is never used.
    """

    def __init__(self) -> None:
        self._texts: dict[int, WindowText | None] = {}
        self._known = 0

    def add(self, number: int, text: WindowText | None) -> None:
        """Add the first text of a window; ``None`` if it has none.

        :param number: index of the window in its channel, from 0.
        """
        self._texts[number] = text if text is not None and text.reliable else None
        while self._known in self._texts:
            self._known += 1

    def is_known(self, number: int) -> bool:
        """Whether all windows before this one have been added."""
        return self._known >= number

    def tokens(self, number: int, language: str) -> tuple[int, ...]:
        """Tokens of the previous text in the same language, at most :data:`LONGEST`.

        :param number: index of the window in its channel.
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
