"""Lay out a transcript as subtitles: when each appears and disappears, and where its lines end."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whisper_spark.subtitles.script import characters, may_break, width
from whisper_spark.subtitles.tokens import Token, clean, plain_row, tokens_by_channel

# The limits below are those of the Netflix Timed Text Style Guides: General Requirements, and the guide of
# each language (https://partnerhelp.netflixstudios.com, "Timed Text Style Guide").

# Shortest time on screen, in seconds: 20 frames of 24 a second.
MIN_CUE_SECONDS = 5 / 6
# Longest time on screen, in seconds.
MAX_CUE_SECONDS = 7.0
# Shortest gap to the next cue, where there is a gap: 2 frames.
MIN_GAP_SECONDS = 2 / 24
MAX_LINES = 2
# Columns of a line. East Asian wide characters take two: 16 in Chinese and Korean, 13 in Japanese.
LINE_COLUMNS = 42
LINE_COLUMNS_OF = {"zh": 32, "yue": 32, "ja": 26, "ko": 32, "th": 35}
# Fastest reading speed of adults, in characters per second. A cue stays this long if the next one lets it.
READING_SPEED = 17.0
READING_SPEED_OF = {"en": 20.0, "zh": 9.0, "yue": 9.0, "ja": 4.0, "ko": 12.0, "th": 17.0}

# Our own: no guide has a number for these.
# Slowest reading speed, as a fraction of the fastest. A cue is not shown for longer than it takes to read it
# so slowly, even if its last word is drawn out: whoever has read a cue several times looks for a new one.
SLOWEST_READING = 1 / 6
# A pause between words that ends a cue, in seconds.
PAUSE_SECONDS = 0.6
# A pause between words at which a line may well end.
LINE_PAUSE_SECONDS = 0.2
# Where many speakers say single words, each cue is shown at least so long, even if the next one is late then.
_LEAST_SECONDS = 0.1

# The start of a text tells its script.
_SAMPLE_CHARACTERS = 1_000

_CLOSING = "\"'”’»)]）」』】"
_SENTENCE_END = (".", "?", "!", "。", "？", "！", "…", "؟", "।")
_CLAUSE_END = (*_SENTENCE_END, ",", ";", ":", "、", "，", "；", "：", "،", "–", "—")
_ABBREVIATIONS = frozenset("mr. mrs. ms. dr. prof. st. vs. sr. sra. jr. mme. sig. dott. e.g. i.e.".split())


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle. ``start`` and ``end`` are whole milliseconds from the start of the file.

    :param voice: the speaker, or the channel; ``None`` when neither is known.
    """

    start: int
    end: int
    lines: tuple[str, ...]
    voice: str | None = None

    @property
    def text(self) -> str:
        """The lines, joined by line breaks."""
        return "\n".join(self.lines)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a transcript is laid out.

    :param max_line_width: columns of a line; East Asian wide characters take two. ``None``: as is usual in
        the language, 42 in most. Only a single word may be wider.
    :param max_line_count: lines of a cue.
    :param max_line_duration: longest time that a cue is shown, in seconds.
    :param speakers: whether each cue names its speaker. A mapping gives names:
        ``{"SPEAKER_00": "Agent"}``. With ``channels="split"`` the channel stands for a speaker.
    :raises ValueError: if a limit is no positive number, or ``speakers`` is neither a bool nor maps names
        to names.
    """

    max_line_width: int | None = None
    max_line_count: int = MAX_LINES
    max_line_duration: float = MAX_CUE_SECONDS
    speakers: bool | Mapping[str, str] = False

    def __post_init__(self) -> None:
        if self.max_line_width is not None:
            _check_limit("max_line_width", self.max_line_width, int)
        _check_limit("max_line_count", self.max_line_count, int)
        _check_limit("max_line_duration", self.max_line_duration, int, float)
        names = self.speakers.items() if isinstance(self.speakers, Mapping) else ()
        pairs = all(isinstance(one, str) and isinstance(other, str) for one, other in names)
        if not pairs or not isinstance(self.speakers, bool | Mapping):
            raise ValueError(
                "speakers must be True, False, or names for speakers such as {'SPEAKER_00': 'Agent'}, got "
                f"{self.speakers!r}"
            )

    def name_of(self, voice: str | None) -> str | None:
        """The name that a cue shows, in one line; ``None``: none."""
        if voice is None or self.speakers is False:
            return None
        names = self.speakers if isinstance(self.speakers, Mapping) else {}
        return clean(names.get(voice, voice)).strip() or None


def _check_limit(name: str, value: object, *kinds: type) -> None:
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:  # type: ignore[operator]
        kind = "whole number" if kinds == (int,) else "number"
        raise ValueError(f"{name} must be a positive {kind}, got {value!r}")


def cues(row: Any, layout: Layout | None = None, *, labelled: bool = False) -> list[Cue]:
    """The subtitles of a transcript row, in order of time, none of which overlap.

    Cues end at pauses, at the ends of sentences and where the speaker changes. A row without text has none.

    :param row: see :mod:`whisper_spark.subtitles`.
    :param labelled: whether names of speakers stand in the text, so that they take room in the first line.
    """
    values = plain_row(row)
    layout = layout or Layout()
    language = _written_language(values)
    columns = layout.max_line_width or LINE_COLUMNS_OF.get(language, LINE_COLUMNS)
    speed = READING_SPEED_OF.get(language, READING_SPEED)
    spoken = [
        _Spoken(group[0].start, group[-1].end, _lines(group, room), group[0].voice)
        for tokens in tokens_by_channel(values)
        for group, room in _groups(tokens, layout, columns, labelled)
    ]
    spoken.sort(key=lambda cue: (cue.start, cue.end))
    return list(_timed(spoken, speed, layout.max_line_duration))


def _written_language(row: Mapping[str, Any]) -> str:
    """The language that the text is written in; empty for a translation, which is in English.

    The row's language is the one that is spoken.
    """
    # Pandas may have NaN or NA where there is no text.
    language, text = (
        value[:_SAMPLE_CHARACTERS] if isinstance(value, str) else ""
        for value in (row.get("language"), row.get("text"))
    )
    foreign = sum(not character.isascii() for character in text)
    return "" if language in LINE_COLUMNS_OF and foreign < len(text) / 5 else language


# --- which words share a cue -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Room:
    """Room of a cue: columns of its first line and of the others, lines, and seconds."""

    first: int
    columns: int
    lines: int
    seconds: float

    def of(self, line: int) -> int:
        return self.first if line == 0 else self.columns


def _groups(
    tokens: Sequence[Token], layout: Layout, columns: int, labelled: bool
) -> Iterator[tuple[list[Token], _Room]]:
    current: list[Token] = []
    tokens = list(_whole(tokens))
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        current.append(token)
        name = layout.name_of(token.voice) if labelled else None
        # A name never takes more than half of the line.
        first = columns if name is None else max(columns - len(name) - 2, columns // 2, 1)
        room = _Room(first, columns, layout.max_line_count, layout.max_line_duration)
        if following is None or _ends_cue(current, following, columns):
            yield current, room
            current = []
            continue
        while current and not _fits([*current, following], room):
            cut = _best_cut(current, following)
            yield current[:cut], room
            current = current[cut:]


def _whole(tokens: Sequence[Token]) -> Iterator[Token]:
    """The tokens, where those that no line may end between are one."""
    group: list[Token] = []
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        group.append(token)
        if following and following.voice == token.voice and not may_break(token.text, following.text):
            continue
        yield group[0] if len(group) == 1 else _joined(group)
        group = []


def _joined(tokens: Sequence[Token]) -> Token:
    text = "".join(token.text for token in tokens)
    return Token(text, width(text.strip()), tokens[0].start, tokens[-1].end, tokens[0].voice)


def _ends_cue(current: list[Token], following: Token, columns: int) -> bool:
    last = current[-1]
    if following.voice != last.voice:
        return True
    # Else the cue would be gone before it is read.
    if following.start - current[0].start < MIN_CUE_SECONDS:
        return False
    if following.start - last.end >= PAUSE_SECONDS:
        return True
    return _ends_sentence(last.text) and _columns(current) >= columns / 2


def _ends_sentence(text: str) -> bool:
    said = text.strip().rstrip(_CLOSING)
    return said.endswith(_SENTENCE_END) and said.lower() not in _ABBREVIATIONS


def _fits(tokens: list[Token], room: _Room) -> bool:
    if tokens[-1].end - tokens[0].start > room.seconds:
        return False
    return _columns(tokens) <= room.first or len(_filled(tokens, room)) <= room.lines


def _best_cut(current: list[Token], following: Token) -> int:
    """How many tokens make the next cue: up to the end of a sentence or clause, or a pause, near its end."""
    after = [*current[1:], following]

    def score(cut: int) -> float:
        last, next_ = current[cut - 1], after[cut - 1]
        stop = 2.0 if _ends_sentence(last.text) else 1.0 if _ends_clause(last.text) else 0.0
        pause = min(max(next_.start - last.end, 0.0) / PAUSE_SECONDS, 1.0)
        shown = next_.start - current[0].start
        return stop + pause + 2.5 * cut / len(current) - (3.0 if shown < MIN_CUE_SECONDS else 0.0)

    return max(range(1, len(current) + 1), key=score)


def _ends_clause(text: str) -> bool:
    return text.strip().rstrip(_CLOSING).endswith(_CLAUSE_END)


# --- where its lines end ---------------------------------------------------------------------------------


def _columns(tokens: Sequence[Token]) -> int:
    """Columns of tokens in one line."""
    return sum(token.columns + token.text[0].isspace() for token in tokens) - tokens[0].text[0].isspace()


def _filled(tokens: Sequence[Token], room: _Room) -> list[int]:
    """Fill line after line. Returns the number of tokens after each line."""
    ends: list[int] = []
    start = 0
    for end in range(2, len(tokens) + 1):
        if end - start > 1 and _columns(tokens[start:end]) > room.of(len(ends)):
            start = end - 1
            ends.append(start)
    return [*ends, len(tokens)]


def _lines(tokens: Sequence[Token], room: _Room) -> tuple[str, ...]:
    """The lines of a cue: as few as possible, of similar length, ending at punctuation or pauses."""
    count = len(_filled(tokens, room))

    @functools.cache
    def best(start: int, line: int) -> tuple[float, tuple[int, ...]]:
        """Cost and ends of the lines from this one on, for the tokens from ``start`` on."""
        if line == count - 1:
            return _line_cost(tokens[start:], room.of(line)), (len(tokens),)
        options: list[tuple[float, tuple[int, ...]]] = [
            (_line_cost(tokens[start:], room.of(line)) + 1.0, (len(tokens),))
        ]
        for end in range(start + 1, len(tokens)):
            cost = _line_cost(tokens[start:end], room.of(line))
            rest, ends = best(end, line + 1)
            options.append((cost + _break_cost(tokens[end - 1], tokens[end]) + rest, (end, *ends)))
            if cost > _TOO_WIDE:
                break
        return min(options)

    start, lines = 0, []
    for end in best(0, 0)[1]:
        lines.append("".join(token.text for token in tokens[start:end]).strip())
        start = end
    return tuple(lines)


_TOO_WIDE = 100.0


def _line_cost(tokens: Sequence[Token], columns: int) -> float:
    share = _columns(tokens) / columns
    return share * share + (_TOO_WIDE * share if share > 1.0 else 0.0)


def _break_cost(last: Token, following: Token) -> float:
    if _ends_clause(last.text):
        return 0.0
    return 0.1 if following.start - last.end >= LINE_PAUSE_SECONDS else 0.25


# --- when it is on screen --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A cue with the times of its words, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]
    voice: str | None


def _timed(spoken: list[_Spoken], speed: float, most: float) -> Iterator[Cue]:
    start = spoken[0].start if spoken else 0.0
    for cue, following in itertools.zip_longest(spoken, spoken[1:]):
        wanted = _wanted_end(cue, start, speed, most)
        if following is None:
            end = later = wanted
        else:
            later = _start_after(start, following.start)
            end = min(wanted, later)
            if cue.end <= later - MIN_GAP_SECONDS < end:
                end = max(later - MIN_GAP_SECONDS, start + _LEAST_SECONDS)
        yield Cue(round(start * 1000), round(end * 1000), cue.lines, cue.voice)
        start = later


def _wanted_end(cue: _Spoken, start: float, speed: float, most: float) -> float:
    """When a cue ends if no other follows: when it is spoken and read, and not long after."""
    reading = sum(map(characters, cue.lines)) / speed
    shortest = max(MIN_CUE_SECONDS, reading)
    longest = max(MIN_CUE_SECONDS, reading / SLOWEST_READING)
    return start + min(max(cue.end - start, shortest), longest, most)


def _start_after(start: float, spoken: float) -> float:
    """When the next cue starts: when it is spoken, or late by one shortest cue at most."""
    return max(spoken, min(start + MIN_CUE_SECONDS, spoken + MIN_CUE_SECONDS), start + _LEAST_SECONDS)
