"""What was heard in one window."""

from __future__ import annotations

from dataclasses import dataclass

from whisper_spark.contract import Word


@dataclass(frozen=True, slots=True)
class WindowText:
    """What was said in one window.

    :param channel: of the window, see :class:`~whisper_spark.audio.windows.Window`.
    :param number: of the window among those of its channel.
    :param tokens: text tokens, without special ones.
    :param avg_logprob: log probability of a token, on average.
    :param no_speech_prob: probability that nothing was said.
    :param capped: all tokens that were allowed are used up.
    :param reliable: passed the quality gate.
    :param doubled: would have passed it, were the whole text not one phrase twice.
    :param start: first moment of speech in it, in seconds of the file.
    :param end: last moment of speech in it, in seconds of the file.
    :param words: with times in the file; ``None`` when word timestamps are off.
    :param incomplete: the words leave out detected speech; unknown, and ``False``, without words.
    """

    channel: int
    number: int
    tokens: tuple[int, ...]
    text: str
    language: str
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float
    capped: bool
    reliable: bool
    start: float
    end: float
    words: tuple[Word, ...] | None = None
    incomplete: bool = False
    doubled: bool = False
