"""The words of a transcript row, as tokens that layout never splits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from whisper_spark.contract import Transcript
from whisper_spark.subtitles.script import is_spaceless, pieces, width


@dataclass(frozen=True, slots=True)
class Token:
    """A word of Whisper, or a piece of a segment that has no words. Times are seconds.

    :param text: with the space before it, where the script has one.
    :param columns: its width without that space.
    :param voice: name of the speaker, or ``None``.
    """

    text: str
    columns: int
    start: float
    end: float
    voice: str | None


def plain_row(row: Any) -> Mapping[str, Any]:
    """A transcript row as a mapping, whatever a reader of the table gave.

    :raises TypeError: if it is no row.
    """
    if isinstance(row, Transcript):
        return row.to_row()
    if isinstance(row, Mapping):
        return row
    # A Spark Row, which turns nested rows into dicts only when asked to.
    if hasattr(row, "asDict"):
        values: Mapping[str, Any] = row.asDict(recursive=True)
        return values
    # A row of a pandas DataFrame.
    if hasattr(row, "to_dict"):
        values = row.to_dict()
        return values
    raise TypeError(f"a transcript row is a mapping or a Transcript, got {type(row).__name__}")


def items(values: Any) -> list[Any]:
    """A list column; empty where it is missing. Pandas gives arrays, whose truth is undefined."""
    return [] if values is None else list(values)


def segments_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The segments of a row that have text, in order of time."""
    segments = [segment for segment in items(row.get("segments")) if clean(segment.get("text") or "").strip()]
    return sorted(segments, key=_times_of)


def _times_of(segment: Mapping[str, Any]) -> tuple[float, float]:
    """Start and end of a segment; where it has none, those of its words."""
    times = [segment, *items(segment.get("words"))]
    start = next((t for t in (_known(item.get("start")) for item in times) if t is not None), 0.0)
    end = _known(segment.get("end"))
    return start, start if end is None else end


def _known(time: float | None) -> float | None:
    """A time; ``None`` for one that is missing, as those of numerals are in what other aligners write."""
    return None if time is None or math.isnan(time) else float(time)


def voice_of(item: Mapping[str, Any], segment: Mapping[str, Any]) -> str | None:
    """The speaker of a word or segment; where speakers are unknown but channels are split, the channel."""
    speaker = item.get("speaker") or segment.get("speaker")
    channel = segment.get("channel")
    if channel is None:
        return speaker
    return f"Channel {channel + 1}" if speaker is None else f"Channel {channel + 1} {speaker}"


def tokens_by_channel(row: Mapping[str, Any]) -> list[list[Token]]:
    """The tokens of each channel in order, without overlaps; one list when channels are mixed."""
    channels: dict[int | None, list[Token]] = {}
    for segment in segments_of(row):
        tokens = channels.setdefault(segment.get("channel"), [])
        low = tokens[-1].end if tokens else 0.0
        for token in _tokens(segment, before=tokens[-1].text if tokens else ""):
            start = max(token.start, low)
            low = max(token.end, start)
            tokens.append(Token(token.text, token.columns, start, low, token.voice))
    return list(channels.values())


def _tokens(segment: Mapping[str, Any], *, before: str) -> Iterator[Token]:
    """The tokens of a segment. The first one gets a space unless the text before it needs none.

    :param before: text of the last token before the segment; empty if there is none.
    """
    words = [word for word in items(segment.get("words")) if clean(word["word"]).strip()]
    start, end = _times_of(segment)
    if words:
        texts = _with_spaces([word["word"] for word in words], segment["text"], before)
        for word, spelled in zip(words, texts, strict=True):
            known = _known(word.get("start")), _known(word.get("end"))
            start = start if known[0] is None else known[0]
            end = start if known[1] is None else known[1]
            yield _token(spelled, start, end, voice_of(word, segment))
            start = end
        return
    text = clean(segment["text"]).strip()
    found = pieces(" " + text if before else text)
    total = sum(map(width, found)) or 1
    done = 0
    for piece in found:
        begin = start + (end - start) * done / total
        done += width(piece)
        yield _token(piece, begin, start + (end - start) * done / total, voice_of(segment, segment))


def _with_spaces(words: list[str], text: str, before: str) -> Iterator[str]:
    """Words with the spaces before them that stand in the text: who changes words may have left them out."""
    place = 0
    for word in words:
        bare = word.strip()
        found = text.find(bare, place)
        if found < 0 or word[:1].isspace():
            spaced = False
        elif found == 0:
            spaced = before != "" and not (is_spaceless(before[-1]) or is_spaceless(bare[0]))
        else:
            spaced = text[found - 1].isspace()
        place = max(place, found + len(bare))
        yield f" {word}" if spaced else word


def _token(text: str, start: float, end: float, voice: str | None) -> Token:
    text = clean(text)
    return Token(text, width(text.strip()), start, end, voice)


def clean(text: str) -> str:
    """Text in one line without control characters, which end a cue or confuse players."""
    lead = " " if text[:1].isspace() else ""
    joined = " ".join(text.split())
    return lead + "".join(c for c in joined if c >= " " and c != "\x7f" and not "\ud800" <= c <= "\udfff")
