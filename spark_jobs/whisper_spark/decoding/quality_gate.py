"""The quality gate: whether the text of a window can be believed, and which of several tries is best.

Pure functions over one window. What a whole transcript looks like is judged in ``quality.py``.
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
"""Share of words in which two tries must agree to confirm each other."""

# The threshold of beam search for windows that stand alone, in parts of that for others: a search that is not
# told what was said before spares fewer errors (benchmarks/RESULTS.md: with -0.2, 450 prompts take 139
# seconds and make 530 word errors, with -0.12 they take 154 and make 524).
_ALONE = 1.5

MISSED_SPEECH_S = 1.0
"""Seconds of detected speech without a word, on top of the longest pause that counts as speech, that make a
text incomplete. Of 1,122 windows of prompts, calls and an hour (benchmarks/RESULTS.md) two had more than 0.8
seconds, 2.5 and 1.2, and both lacked words."""

LEAST_WORD_S = 0.3
"""Seconds that a word takes which is said three times and more. In less, nobody says it so often."""

MOST_TOKENS_PER_SECOND = 8.0
"""Of detected speech. Conversation has 3 to 5; a loop fills a window with many more."""


def is_reliable(text: WindowText, speech_s: float, options: WhisperOptions) -> bool:
    """Whether a text passes: no loop, no cap hit, no improbable rate, and sure enough of itself.

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
    """Whether a whole text is one phrase that was heard more often than it was said.

    Short contexts do that to a word that stands alone. Whoever does say "bye bye" says it twice to the full
    context, too.

    :param speech_s: seconds of detected speech.
    """
    words = phrase_words(text)
    times = next((n for n in range(len(words), 1, -1) if _is_repeated(words, n)), 1)
    return times == 2 or (times > 2 and speech_s < LEAST_WORD_S * len(words))


def _is_repeated(words: Sequence[str], times: int) -> bool:
    length, rest = divmod(len(words), times)
    return rest == 0 and words[length:] == words[:-length]


def has_no_length(words: Sequence[Word]) -> bool:
    """Whether alignment found no time for most words of a text: what is not in the audio has no place in it.

    Half of the words are not enough: short prompts of two words often have one without length.
    """
    return 2 * sum(word.end <= word.start for word in words) > len(words)


def misses_speech(words: Sequence[Word], chunk_map: ChunkMap, options: WhisperOptions) -> bool:
    """Whether somebody speaks for longer than :data:`MISSED_SPEECH_S` where no word lies.

    :param words: of one window, in order, with times in the file.
    """
    if not options.vad:  # nobody knows where speech is
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
    """Whether greedy text deserves a beam search.

    :param alone: the search would not be told the text before the window.
    """
    threshold = options.greedy_log_prob_threshold
    if not text.text or threshold is None:
        return False
    return text.avg_logprob < (threshold * _ALONE if alone else threshold)


def is_silence(text: WindowText, options: WhisperOptions) -> bool:
    """openai/whisper's rule: probably no speech, and what was heard is not credible.

    Words without any length are not, however sure the model is of them.
    """
    if options.no_speech_threshold is None or text.no_speech_prob <= options.no_speech_threshold:
        return False
    if has_no_length(text.words or ()):
        return True
    return options.log_prob_threshold is None or text.avg_logprob < options.log_prob_threshold


def credibility(text: WindowText, options: WhisperOptions) -> tuple[bool, bool, bool, float]:
    """Sorts the tries at one window: the largest is the best."""
    threshold = options.compression_ratio_threshold or float("inf")
    looping = text.capped or text.compression_ratio > threshold
    return text.reliable, not looping, bool(text.text), text.avg_logprob


def confirmed(text: WindowText, earlier: WindowText, speech_s: float) -> bool:
    """Whether two tries heard the same, at a rate that people speak at.

    What only sounds like a loop ends the retries so: lists, numbers, menus.
    """
    if not text.text or text.capped or len(text.tokens) > MOST_TOKENS_PER_SECOND * speech_s:
        return False
    return _agreement(phrase_words(text.text), phrase_words(earlier.text)) >= AGREEMENT


def is_echo(text: WindowText, first: WindowText, before: str) -> bool:
    """Whether a text repeats what was said before it, and the first try did not hear that.

    :param text: decoded with the text before it in the prompt, which a model may copy.
    :param first: decoded without.
    :param before: what stood in the prompt.
    """
    words = phrase_words(text.text)
    if not words:
        return False
    tail = phrase_words(before)[-len(words) :]
    return _agreement(words, tail) >= AGREEMENT and _agreement(words, phrase_words(first.text)) < AGREEMENT


def _agreement(words: Sequence[str], others: Sequence[str]) -> float:
    return difflib.SequenceMatcher(None, words, others, autojunk=False).ratio()
