"""The quality gate: whether the text of a window is reliable, and which of several texts is best.

Pure functions over one window. ``quality.py`` checks whole transcripts.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from whisper_spark.audio.windows import ChunkMap
from whisper_spark.contract import WhisperOptions, Word
from whisper_spark.decoding.quality import (
    MIN_SPEECH_S,
    SUSPICIOUS_CHARS_PER_S,
    phrase_words,
    repeated_phrase,
    unlikely_rate,
)
from whisper_spark.decoding.window_text import WindowText

AGREEMENT = 0.9
"""Share of words that two texts of a window must have in common to confirm each other."""

# Factor of the beam search threshold for windows without previous text, where beam search avoids fewer errors
# (benchmarks/RESULTS.md: with a threshold of -0.2, 450 prompts take 139 seconds and have 530 word errors,
# with -0.12 they take 154 seconds and have 524).
_ALONE = 1.5

MISSED_SPEECH_S = 1.0
"""Seconds of detected speech without a word, in addition to the longest pause that counts as speech, from
which a text is incomplete. Of 1,122 windows of prompts, calls and a recording of one hour
(benchmarks/RESULTS.md) two had more than 0.8 seconds (2.5 and 1.2), and both lacked words."""

LEAST_WORD_S = 0.3
"""Minimum length in seconds of a word that is spoken three times or more in a row."""

MOST_TOKENS_PER_SECOND = 8.0
"""Maximum number of tokens per second of detected speech. Conversation has 3 to 5, loops have many more."""


def is_reliable(text: WindowText, speech_s: float, options: WhisperOptions) -> bool:
    """Whether a text passes: no loop, token limit not reached, plausible rate, high enough probability.

    :param speech_s: seconds of detected speech in the window.
    """
    if not text.text:
        return speech_s < MIN_SPEECH_S
    if text.capped or repeated_phrase(phrase_words(text.text)):
        return False
    if unlikely_rate(text.text, speech_s, detected=options.vad, most=SUSPICIOUS_CHARS_PER_S):
        return False
    ratio, logprob = options.compression_ratio_threshold, options.log_prob_threshold
    if ratio is not None and text.compression_ratio > ratio:
        return False
    return logprob is None or text.avg_logprob >= logprob


def is_doubled(text: str, speech_s: float) -> bool:
    """Whether a whole text is a repeated phrase that was probably spoken less often.

    With short contexts, Whisper doubles single words. If "bye bye" really was spoken, it is also the text
    with the full context.

    :param speech_s: seconds of detected speech.
    """
    words = phrase_words(text)
    times = next((n for n in range(len(words), 1, -1) if _is_repeated(words, n)), 1)
    return times == 2 or (times > 2 and speech_s < LEAST_WORD_S * len(words))


def _is_repeated(words: Sequence[str], times: int) -> bool:
    length, rest = divmod(len(words), times)
    return rest == 0 and words[length:] == words[:-length]


def has_no_length(words: Sequence[Word]) -> bool:
    """Whether most words of a text have no length in the alignment, because they are not in the audio.

    Half of the words is not enough: in short prompts of two words, one often has no length.
    """
    return 2 * sum(word.end <= word.start for word in words) > len(words)


def misses_speech(words: Sequence[Word], chunk_map: ChunkMap, options: WhisperOptions) -> bool:
    """Whether more than :data:`MISSED_SPEECH_S` of detected speech has no word in the text.

    :param words: words of one window, in order, with times in the file.
    """
    # Without voice detection it is not known where speech is.
    if not options.vad:
        return False
    limit = MISSED_SPEECH_S + options.vad_min_silence_ms / 1000
    for chunk in chunk_map.chunks:
        reached, end = chunk.start + chunk.lead, chunk.start + chunk.length - chunk.tail
        for word in words:
            if min(word.start, end) - reached >= limit:
                return True
            reached = max(reached, word.end)
        if end - reached >= limit:
            return True
    return False


def is_unsure(text: WindowText, options: WhisperOptions, *, alone: bool = False) -> bool:
    """Whether the average log probability of a greedy text is so low that it is refined by beam search.

    :param alone: whether beam search would have no previous text.
    """
    threshold = options.greedy_log_prob_threshold
    if not text.text or threshold is None:
        return False
    return text.avg_logprob < (threshold * _ALONE if alone else threshold)


def is_silence(text: WindowText, options: WhisperOptions) -> bool:
    """Whether a window is silent, by openai/whisper's rule: likely no speech, and an improbable text.

    A text whose words have no length counts as improbable, whatever its log probability.
    """
    if options.no_speech_threshold is None or text.no_speech_prob <= options.no_speech_threshold:
        return False
    if has_no_length(text.words or ()):
        return True
    return options.log_prob_threshold is None or text.avg_logprob < options.log_prob_threshold


def credibility(text: WindowText, options: WhisperOptions) -> tuple[bool, bool, bool, float]:
    """A sort key for the texts of one window: the best text has the largest key."""
    threshold = options.compression_ratio_threshold or float("inf")
    looping = text.capped or text.compression_ratio > threshold
    return text.reliable, not looping, bool(text.text), text.avg_logprob


def confirmed(text: WindowText, earlier: WindowText, speech_s: float) -> bool:
    """Whether two passes gave the same text, at a plausible rate.

    This ends the retries for speech that resembles a loop: lists, numbers, menus.
    """
    if not text.text or text.capped or len(text.tokens) > MOST_TOKENS_PER_SECOND * speech_s:
        return False
    return _agreement(phrase_words(text.text), phrase_words(earlier.text)) >= AGREEMENT


def is_echo(text: WindowText, first: WindowText, before: str) -> bool:
    """Whether a text only repeats the previous text, and the first text of the window does not.

    :param text: decoded with the previous text in the prompt, which a model may copy.
    :param first: decoded without the previous text.
    :param before: the previous text in the prompt.
    """
    words = phrase_words(text.text)
    if not words:
        return False
    tail = phrase_words(before)[-len(words) :]
    return _agreement(words, tail) >= AGREEMENT and _agreement(words, phrase_words(first.text)) < AGREEMENT


def _agreement(words: Sequence[str], others: Sequence[str]) -> float:
    return difflib.SequenceMatcher(None, words, others, autojunk=False).ratio()
