"""Turns token alignments into words with times in the file, and words into segments of subtitle length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from whisper_spark.audio.windows import ChunkMap
from whisper_spark.contract import Segment, Word

TOKENS_PER_SECOND = 50
"""Resolution of Whisper's cross-attention: the encoder emits 1,500 positions for 30 seconds."""

MAX_SEGMENT_SECONDS = 7.0
MAX_SEGMENT_CHARS = 84
"""Longest subtitle in common style guides: 7 seconds, two lines of 42 characters."""

PAUSE_SECONDS = 0.6
"""A pause between words that ends a segment."""

_SENTENCE_END = (".", "?", "!", "。", "？", "！", "…", "؟", "।")
_CLAUSE_END = (*_SENTENCE_END, ",", ";", ":", "、", "，", "；", "：", "،")
# Abbreviations, whose full stop does not end a sentence.
_ABBREVIATIONS = frozenset("mr. mrs. ms. dr. prof. st. vs. sr. sra. jr. mme. sig. dott. e.g. i.e.".split())
_PREPENDED = "\"'“¿([{-«"
_APPENDED = "\"'.。,，!！?？:：”)]}、»…"


def words_of_window(alignment: Any, tokens: Sequence[int], tokenizer: Any, chunk_map: ChunkMap) -> list[Word]:
    """The words of one window with times in the file, in order and without overlaps.

    :param alignment: a ``ctranslate2.models.WhisperAlignmentResult``.
    :param tokens: the text tokens that were aligned.
    :param tokenizer: faster-whisper's tokenizer, set to the language of the text.
    """
    texts, groups = tokenizer.split_to_word_tokens([*tokens, tokenizer.eot])
    # Without the end-of-text token.
    groups = groups[:-1]
    if not groups or not alignment.alignments:
        return []
    starts = _token_starts(alignment.alignments, len(tokens))
    words: list[Word] = []
    first = 0
    for text, group in zip(texts, groups, strict=False):
        last = first + len(group)
        probabilities = alignment.text_token_probs[first:last]
        probability = math.fsum(probabilities) / max(len(probabilities), 1)
        words.append(Word(starts[first], starts[last], text, min(max(probability, 0.0), 1.0)))
        first = last
    return _in_order([_in_file(word, chunk_map) for word in _merge_punctuation(words)])


def _token_starts(alignments: Sequence[tuple[int, int]], tokens: int) -> list[float]:
    """Start of each token and of the end-of-text token, in seconds from the start of the window."""
    starts = [-1.0] * (tokens + 1)
    for token, position in alignments:
        if token <= tokens and starts[token] < 0:
            starts[token] = position / TOKENS_PER_SECOND
    end = max(alignments[-1][1] / TOKENS_PER_SECOND, max(starts))
    for index in range(tokens, -1, -1):
        if starts[index] < 0:
            starts[index] = end
        end = starts[index]
    return starts


def _merge_punctuation(words: list[Word]) -> list[Word]:
    """Merge punctuation with the adjacent word; on its own it would be a word without length."""
    merged: list[Word] = []
    opening: Word | None = None
    for word in words:
        text = word.word.strip()
        if (
            merged
            and opening is None
            and text
            and all(c in _APPENDED for c in text)
            and not _is_opening(word.word)
        ):
            before = merged[-1]
            merged[-1] = Word(before.start, before.end, before.word + word.word, before.probability)
        elif _is_opening(word.word):
            opening = (
                word
                if opening is None
                else Word(opening.start, word.end, opening.word + word.word, word.probability)
            )
        else:
            prefix = opening.word if opening else ""
            merged.append(Word(word.start, word.end, prefix + word.word, word.probability))
            opening = None
    if opening is not None and merged:
        before = merged[-1]
        merged[-1] = Word(before.start, before.end, before.word + opening.word, before.probability)
    return [word for word in merged if word.word.strip()]


def _is_opening(text: str) -> bool:
    return text.startswith(" ") and text.strip() != "" and all(c in _PREPENDED for c in text.strip())


def _in_file(word: Word, chunk_map: ChunkMap) -> Word:
    start, end = chunk_map.span_in_file(word.start, word.end)
    return Word(round(start, 3), round(end, 3), word.word, round(word.probability, 4))


def _in_order(words: list[Word]) -> list[Word]:
    ordered: list[Word] = []
    low = 0.0
    for word in words:
        start = max(word.start, low)
        end = max(word.end, start)
        ordered.append(Word(start, end, word.word, word.probability))
        low = end
    return ordered


def split_into_segments(words: Sequence[Word]) -> list[list[Word]]:
    """Group words into segments that end at pauses and sentence ends, and are not longer than a subtitle."""
    groups: list[list[Word]] = []
    current: list[Word] = []
    for word, following in itertools.zip_longest(words, words[1:]):
        current.append(word)
        if following is None or _ends_segment(current, following):
            groups.extend(_subtitle_sized(current))
            current = []
    return groups


def _ends_segment(current: list[Word], following: Word) -> bool:
    last = current[-1]
    if following.start - last.end >= PAUSE_SECONDS:
        return True
    said = last.word.strip().rstrip("\"'”»)")
    if said.lower() in _ABBREVIATIONS:
        return False
    return said.endswith(_SENTENCE_END)


def _subtitle_sized(words: list[Word]) -> Iterable[list[Word]]:
    if len(words) == 1 or _fits(words):
        return [words]
    cut = _best_cut(words)
    return [*_subtitle_sized(words[:cut]), *_subtitle_sized(words[cut:])]


def _fits(words: list[Word]) -> bool:
    chars = sum(len(w.word) for w in words)
    return chars <= MAX_SEGMENT_CHARS and words[-1].end - words[0].start <= MAX_SEGMENT_SECONDS


def _best_cut(words: list[Word]) -> int:
    """Index of the best split: after a comma, at a long pause, near the middle."""
    middle = (words[0].start + words[-1].end) / 2
    span = max(words[-1].end - words[0].start, 0.01)

    def score(index: int) -> float:
        before, after = words[index - 1], words[index]
        comma = 1.0 if before.word.endswith(_CLAUSE_END) else 0.0
        pause = min(max(after.start - before.end, 0.0) / PAUSE_SECONDS, 1.0)
        return comma + pause - 2 * abs(before.end - middle) / span

    return max(range(1, len(words)), key=score)


def join_texts(texts: Iterable[str], spaced: bool = True) -> str:
    """Join the texts of segments; ``spaced`` is false for scripts without spaces between words."""
    return (" " if spaced else "").join(text for text in texts if text)


def numbered(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Segments of all channels, ordered by time, with ids from 0."""
    from dataclasses import replace

    ordered = sorted(segments, key=lambda s: (s.start, s.channel or 0, s.end))
    return tuple(replace(segment, id=number) for number, segment in enumerate(ordered))
