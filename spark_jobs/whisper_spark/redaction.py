"""Hide parts of a transcript in its text, segments and words at once.

.. code-block:: python

    from whisper_spark.redaction import redact


    def hide_names(transcript):
        spans = [match.span() for match in NAMES.finditer(transcript.text)]
        return redact(transcript, spans, "[name]")


    hide_names.version = "1"  # WhisperOptions(transform="my_module:hide_names@1")

Needs only the standard library and ``whisper_spark.contract``.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from whisper_spark.contract import Segment, Transcript, Word

__all__ = ["is_in_step", "redact"]

# A range of letters, which are the characters of a text that are no spaces: the first one, and the one behind
# the last. Unlike positions, it is the same in text, segments and words, which differ in spaces only.
_Range = tuple[int, int]


def redact(
    transcript: Transcript, spans: Iterable[tuple[int, int]], replacement: str = "[...]"
) -> Transcript:
    """A copy of a transcript in which some spans of its text are replaced, in segments and words as well.

    A replaced span is one word: it starts with the first word that the span touches, and ends with the last.
    Letters of these words that are outside of the span remain, such as punctuation. A span over several
    segments is replaced in each of them.

    :param spans: (start, end) positions in ``transcript.text``, in any order; overlapping ones are joined.
    :param replacement: the text to put there; without spaces around it.
    :raises ValueError: if the text is not that of the segments and words, see :func:`is_in_step`, or a span
        is outside of the text.
    """
    text = transcript.text or ""
    wanted = sorted(spans)
    for start, end in wanted:
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"the span ({start}, {end}) is not in the text, which has {len(text)} characters"
            )
    if not is_in_step(transcript):
        raise ValueError("the segments or words of the transcript are not its text: redact it before that")
    positions = _letters(text)
    hidden = _joined((bisect_left(positions, start), bisect_left(positions, end)) for start, end in wanted)
    if not hidden:
        return transcript
    segments, written, first, place = [], [], 0, 0
    for segment in transcript.segments:
        last = first + len(_letters(segment.text))
        here = _within(hidden, first, last)
        if here:
            written += [text[place : positions[first]], _replaced(segment.text, here, replacement).strip()]
            place = positions[last - 1] + 1
            segments.append(_hidden(segment, here, replacement))
        else:
            segments.append(segment)
        first = last
    return replace(transcript, text="".join([*written, text[place:]]), segments=tuple(segments))


def is_in_step(transcript: Transcript) -> bool:
    """Whether the text is that of the segments, and each segment that of its words, apart from spaces."""
    if _without_spaces([transcript.text or ""]) != _without_spaces(s.text for s in transcript.segments):
        return False
    return all(
        segment.words is None
        or _without_spaces([segment.text]) == _without_spaces(word.word for word in segment.words)
        for segment in transcript.segments
    )


def _without_spaces(texts: Iterable[str]) -> str:
    return "".join("".join(text.split()) for text in texts)


def _letters(text: str) -> list[int]:
    """The positions of all letters."""
    return [position for position, character in enumerate(text) if not character.isspace()]


def _joined(ranges: Iterable[_Range]) -> list[_Range]:
    """Ranges in order, with overlapping ones joined, without empty ones."""
    joined: list[_Range] = []
    for start, end in ranges:
        if start == end:
            continue
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _within(ranges: Sequence[_Range], first: int, last: int) -> list[_Range]:
    """The parts of ranges between two letters, counted from the first of these."""
    cut = ((max(start, first) - first, min(end, last) - first) for start, end in ranges)
    return [(start, end) for start, end in cut if start < end]


def _replaced(text: str, ranges: Sequence[_Range], replacement: str) -> str:
    """A text in which ranges of letters are replaced."""
    positions, pieces, place = _letters(text), [], 0
    for start, end in ranges:
        pieces += [text[place : positions[start]], replacement]
        place = positions[end - 1] + 1
    return "".join([*pieces, text[place:]])


def _hidden(segment: Segment, ranges: Sequence[_Range], replacement: str) -> Segment:
    words = segment.words
    if words is not None:
        words = tuple(_hidden_words(words, ranges, replacement))
    return replace(segment, text=_replaced(segment.text, ranges, replacement), words=words)


def _hidden_words(words: Sequence[Word], ranges: Sequence[_Range], replacement: str) -> Iterator[Word]:
    """Words of a segment, where those that a range touches are one word."""
    first, group = 0, list[Word]()
    for word, following in itertools.zip_longest(words, words[1:]):
        group.append(word)
        last = first + sum(len(_letters(member.word)) for member in group)
        # The group is complete unless a range goes on in the next word.
        if following is not None and any(start < last < end for start, end in ranges):
            continue
        here = _within(ranges, first, last)
        yield _one_word(group, here, replacement) if here else word
        first, group = last, []


def _one_word(words: Sequence[Word], ranges: Sequence[_Range], replacement: str) -> Word:
    text = _replaced("".join(word.word for word in words), ranges, replacement)
    probability = min(word.probability for word in words)
    return replace(words[0], end=words[-1].end, word=text, probability=probability)
