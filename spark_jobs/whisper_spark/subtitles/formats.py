"""Write a transcript row as SRT, WebVTT, plain text or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from whisper_spark.subtitles.cues import MAX_CUE_SECONDS, MAX_LINES, Layout, cues
from whisper_spark.subtitles.tokens import clean, plain_row, segments_of, voice_of


def to_srt(
    row: Any,
    *,
    max_line_width: int | None = None,
    max_line_count: int = MAX_LINES,
    max_line_duration: float = MAX_CUE_SECONDS,
    speakers: bool | Mapping[str, str] = False,
) -> str:
    """SubRip subtitles. Arguments are those of :class:`Layout`. Write it as UTF-8.

    :return: an empty string for a row without text.
    """
    layout = Layout(
        max_line_width=max_line_width,
        max_line_count=max_line_count,
        max_line_duration=max_line_duration,
        speakers=speakers,
    )
    blocks = []
    for number, cue in enumerate(cues(row, layout, labelled=True), 1):
        name = layout.name_of(cue.voice)
        text = (f"{name}: " if name else "") + cue.text
        times = f"{_time(cue.start, ',')} --> {_time(cue.end, ',')}"
        # Players take an arrow for the times of a cue.
        blocks.append(f"{number}\n{times}\n{text.replace('-->', '->')}\n\n")
    return "".join(blocks)


def to_vtt(
    row: Any,
    *,
    max_line_width: int | None = None,
    max_line_count: int = MAX_LINES,
    max_line_duration: float = MAX_CUE_SECONDS,
    speakers: bool | Mapping[str, str] = False,
) -> str:
    """WebVTT subtitles, for ``<track>`` in a browser. Arguments are those of :class:`Layout`.

    Names of speakers are voice spans, ``<v Agent>``, which take no room in the line.
    """
    layout = Layout(
        max_line_width=max_line_width,
        max_line_count=max_line_count,
        max_line_duration=max_line_duration,
        speakers=speakers,
    )
    blocks = ["WEBVTT\n"]
    for cue in cues(row, layout):
        name = layout.name_of(cue.voice)
        voice = f"<v {_escaped(name)}>" if name else ""
        times = f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}"
        blocks.append(f"\n{times}\n{voice}{_escaped(cue.text)}\n")
    return "".join(blocks)


def to_txt(row: Any, *, speakers: bool | Mapping[str, str] = False) -> str:
    """Plain text, one line for each segment.

    :param speakers: see :class:`Layout`; the name stands where the speaker changes.
    """
    layout = Layout(speakers=speakers)
    lines, before = [], None
    for segment in segments_of(plain_row(row)):
        name = layout.name_of(voice_of(segment, segment))
        label = f"{name}: " if name and name != before else ""
        lines.append(label + clean(segment["text"]).strip() + "\n")
        before = name
    return "".join(lines)


def to_json(row: Any) -> str:
    """All columns as one JSON object, with the names that the table, faster-whisper and Whisper have.

    What is no number is null.
    """
    return json.dumps(_plain(plain_row(row)), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


FORMATS: Mapping[str, Callable[..., str]] = {"srt": to_srt, "vtt": to_vtt, "txt": to_txt, "json": to_json}
"""The function that writes each kind of file, by file name extension."""


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    # An array of pandas, or a number of NumPy.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if _is_missing(value):
        return None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _is_missing(value: Any) -> bool:
    """Whether pandas means a missing value: NaN and NaT differ from themselves, NA cannot be compared."""
    try:
        return bool(value != value) or value in (math.inf, -math.inf)
    except TypeError:
        return True


def _time(milliseconds: int, point: str) -> str:
    seconds, thousandths = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
