"""Computes the quality flags of a transcript, see :data:`contract.QUALITY_FLAGS`.

Pure functions over one transcript. A flag is a warning: the row is published unless a check of the pipeline
is configured to block it.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence

from whisper_spark.contract import QUALITY_FLAGS, WINDOW_SECONDS, Segment, Transcript, WhisperOptions

MIN_SPEECH_S = 1.0
"""Seconds of detected speech from which an empty text is suspicious. With less, the voice detector more
likely took a cough or a click for speech."""

MIN_LANGUAGE_PROBABILITY = 0.5
"""faster-whisper's own default of ``language_detection_threshold``."""

MAX_CHARS_PER_S = 40.0
"""``max_char_rate`` of ``WhisperHallucinationStage`` in NVIDIA NeMo Curator. Fast English is about 25."""

SUSPICIOUS_CHARS_PER_S = 25.0
"""Characters per second above which a window is decoded again: text that Whisper repeats has twice the rate
of speech."""

MAX_CHARS_PER_S_CJK = 15.0
"""The limit for scripts that write a syllable or a word as one character. Fast Mandarin, Japanese and Korean
stay below 10 syllables per second."""

MIN_TOKENS_PER_S = 1.0
"""Tokens per second of detected speech below which text is probably missing. Conversation has 3 to 5."""

SLOW_SPEECH_MIN_S = 5.0
"""Seconds of detected speech from which :data:`MIN_TOKENS_PER_S` is applied."""

LONG_WORD_LETTERS = 25
"""``long_word_threshold`` of NeMo Curator's ``WhisperHallucinationStage``."""

LONG_WORD_LETTERS_COMPOUNDING = 35
"""The limit for languages that write compounds as one word (NeMo Curator)."""

COMPOUNDING_LANGUAGES = frozenset({"fi", "hu", "et", "de", "nl", "da", "sv", "no", "nb", "nn", "is"})

MIN_REPETITION_BYTES = 48
"""Minimum length in UTF-8 bytes of a text whose compression ratio is checked. A shorter text, such as a
spoken number ("five five five, five five five five"), may compress as well as a loop."""

REPEATS = {1: 8, 2: 5}
"""Number of consecutive repetitions from which a phrase counts as a loop, by its number of words. People do
say "no no no no", "bye bye bye bye" and seven equal digits of a phone number."""

REPEATS_LONGER = 4
"""The number of repetitions for phrases of three words and more."""

MAX_PHRASE_WORDS = 40
"""Longest phrase to search for, in words. Loops of Whisper repeat a sentence at most."""

# Thai, Lao, Tibetan, Burmese, Khmer, kana, Han: no spaces between words.
_HAN_AND_KANA = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff" + _HAN_AND_KANA
_SPACELESS_CHARACTER = re.compile(f"[{_SPACELESS}]")
_LETTER_RUN = re.compile(rf"[^\W\d_{_SPACELESS}]+")
# Han, kana, Hangul syllables: one character is a syllable or more.
_SYLLABIC = re.compile(f"[{_HAN_AND_KANA}\uac00-\ud7af]")
_EDGE_PUNCTUATION = re.compile(r"^[\W_]+|[\W_]+$")


def quality_flags(transcript: Transcript, options: WhisperOptions) -> tuple[str, ...]:
    """The warnings that apply to a transcript, in the order of ``contract.QUALITY_FLAGS``.

    Flags that ``transcript`` already has are kept: only the engine can set ``truncated``, ``missed_speech``
    and ``token_limit``, and ``no_speech`` from the engine (the model detected no speech although the voice
    detector did) takes precedence over ``empty_text_over_speech``. Error rows get no other flags.
    """
    flags = set(transcript.quality_flags)
    if transcript.status == "ok":
        text = (transcript.text or "").strip()
        flags |= _flags_of_text(transcript, text, options) if text else _flags_of_no_text(transcript, options)
    return tuple(flag for flag in QUALITY_FLAGS if flag in flags)


def compression_ratio(text: str) -> float:
    """The zlib compression ratio of a text, as in openai/whisper (``whisper/utils.py``); 0 for an empty text.

    30 seconds of English speech have a ratio of about 1.5; loops have more than 2.4.
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def phrase_words(text: str) -> list[str]:
    """The words of a text for :func:`repeated_phrase`: case-folded, without punctuation at their ends.

    Scripts without spaces between words are split into characters.
    """
    words: list[str] = []
    for token in text.casefold().split():
        word = _EDGE_PUNCTUATION.sub("", token)
        if _SPACELESS_CHARACTER.search(word):
            words.extend(character for character in word if character.isalnum())
        elif word:
            words.append(word)
    return words


def repeated_phrase(words: Sequence[str]) -> bool:
    """Whether a phrase is repeated more often than in natural speech.

    :param words: the words of the text in order, see :func:`phrase_words`.
    """
    for length in range(1, min(MAX_PHRASE_WORDS, len(words) // 2) + 1):
        # If a phrase occurs k times in a row, (k - 1) * length consecutive words equal the word one phrase
        # earlier.
        needed = (REPEATS.get(length, REPEATS_LONGER) - 1) * length
        run = 0
        for word, earlier in zip(itertools.islice(words, length, None), words, strict=False):
            run = run + 1 if word == earlier else 0
            if run >= needed:
                return True
    return False


def unlikely_rate(
    text: str, speech_s: float | None, *, detected: bool, most: float = MAX_CHARS_PER_S
) -> bool:
    """Whether a text is too long for its speech, or so short that text must be missing.

    :param speech_s: seconds of speech; ``None``: unknown.
    :param detected: whether a voice detector measured the speech. Otherwise ``speech_s`` includes pauses, and
        only too much text is detected.
    :param most: maximum number of characters per second, for scripts that write sounds as letters.
    """
    if speech_s is None:
        return False
    syllabic = len(_SYLLABIC.findall(text)) > len(text) / 2
    # At least one second, because a rate over less depends mostly on where the voice detector cut.
    if len(text) / max(speech_s, 1.0) > (MAX_CHARS_PER_S_CJK if syllabic else most):
        return True
    return detected and speech_s > SLOW_SPEECH_MIN_S and _about_tokens(text) / speech_s < MIN_TOKENS_PER_S


def _flags_of_no_text(transcript: Transcript, options: WhisperOptions) -> set[str]:
    heard = options.vad and (transcript.speech_s or 0.0) >= MIN_SPEECH_S
    silent = not heard or "no_speech" in transcript.quality_flags
    return {"no_speech"} if silent else {"empty_text_over_speech"}


def _flags_of_text(transcript: Transcript, text: str, options: WhisperOptions) -> set[str]:
    language = "en" if options.task == "translate" else transcript.language
    probability = transcript.language_probability
    signs = {
        "low_confidence": _low_confidence(transcript.segments, options.log_prob_threshold),
        "repetitive": _repetitive(transcript, options.compression_ratio_threshold),
        "unlikely_speech_rate": unlikely_rate(text, transcript.speech_s, detected=options.vad),
        "uncertain_language": options.language is None
        and probability is not None
        and probability < MIN_LANGUAGE_PROBABILITY,
        "long_words": _has_long_word(text, language),
    }
    return {flag for flag, applies in signs.items() if applies}


def _low_confidence(segments: Iterable[Segment], threshold: float | None) -> bool:
    """Whether the average log probability is below the threshold.

    Segments are weighted by their number of characters, which approximates their number of tokens.
    """
    weighted = [(len(s.text.strip()), s.avg_logprob) for s in segments if s.text.strip()]
    if threshold is None or not weighted:
        return False
    return sum(n * logprob for n, logprob in weighted) / sum(n for n, _ in weighted) < threshold


def _repetitive(transcript: Transcript, threshold: float | None) -> bool:
    # Check each channel separately: the answers of two speakers are not a loop.
    by_channel: dict[int | None, list[Segment]] = {}
    for segment in transcript.segments:
        by_channel.setdefault(segment.channel, []).append(segment)
    if any(repeated_phrase(phrase_words(_text_of(segments))) for segments in by_channel.values()):
        return True
    if threshold is None:
        return False
    # The threshold is meant for 30 s of speech. A longer text compresses better without being a loop.
    passages = itertools.chain.from_iterable(map(_passages, by_channel.values()))
    return any(len(text.encode()) >= MIN_REPETITION_BYTES and ratio > threshold for text, ratio in passages)


def _passages(segments: Iterable[Segment]) -> Iterator[tuple[str, float]]:
    """Text and compression ratio of each segment, and of each group of segments that fits into 30 seconds."""
    stretch: list[Segment] = []
    for segment in segments:
        yield segment.text, segment.compression_ratio
        if stretch and segment.end - stretch[0].start > WINDOW_SECONDS:
            yield _text_of(stretch), compression_ratio(_text_of(stretch))
            stretch = []
        stretch.append(segment)
    yield _text_of(stretch), compression_ratio(_text_of(stretch))


def _text_of(segments: Iterable[Segment]) -> str:
    return " ".join(s.text.strip() for s in segments)


def _about_tokens(text: str) -> float:
    """Estimated number of tokens: one per four bytes of text, and one per digit."""
    digits = sum(character.isdigit() for character in text)
    return digits + (len(text.encode()) - digits) / 4


def _has_long_word(text: str, language: str | None) -> bool:
    limit = LONG_WORD_LETTERS_COMPOUNDING if language in COMPOUNDING_LANGUAGES else LONG_WORD_LETTERS
    return any(len(run) >= limit for run in _LETTER_RUN.findall(text))
