"""The text of one window, with its scores."""

from __future__ import annotations

from dataclasses import dataclass

from whisper_spark.contract import Word


@dataclass(frozen=True, slots=True)
class WindowText:
    """The text of one window, with its scores.

    :param channel: channel of the window, see :class:`~whisper_spark.audio.windows.Window`.
    :param number: index of the window among those of its channel.
    :param tokens: text tokens, without special tokens.
    :param avg_logprob: average log probability of a token.
    :param no_speech_prob: probability that the window contains no speech.
    :param capped: whether the text reached the maximum number of tokens.
    :param reliable: whether the text passed the quality gate.
    :param doubled: whether it failed the gate only because the whole text is a repeated phrase.
    :param start: start of the speech in the window, in seconds from the start of the file.
    :param end: end of the speech in the window, in seconds from the start of the file.
    :param words: words with times in the file; ``None`` when word timestamps are off.
    :param incomplete: whether detected speech has no words; ``False`` without words.
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
