"""Recordings that are joined from others: of another rate, layout, codec or container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
from audio_matrix import FORMATS, RATE, Format, decoded, encode, spans

PAUSE = np.zeros(2 * RATE, np.float32)
# A second of sound with pauses around it: 5 seconds.
PART = np.concatenate([PAUSE, 0.3 * np.sin(np.arange(RATE) * 0.2).astype(np.float32), PAUSE])


def form(name: str, rate: int | None = None) -> Format:
    found = next(form for form in FORMATS if form.name == name)
    return replace(found, rate=rate or found.rate)


def joined(parts: Sequence[tuple[str, int | None, int]]) -> bytes:
    """Files of a format, sample rate and number of channels, one behind the other."""
    return b"".join(
        encode(form(name, rate), np.repeat(PART[None], channels, axis=0)) for name, rate, channels in parts
    )


def assert_all_in_place(data: bytes, parts: int, flagged: bool = False) -> None:
    channels, audio = decoded(data)
    starts = [start for start, _ in spans(channels[0])]
    # Codecs add up to 0.15 s of padding to each part.
    assert starts == pytest.approx([5 * number + 2 for number in range(parts)], abs=0.5)
    assert audio.truncated == flagged


RATES = [(8_000, 16_000, 48_000), (48_000, 16_000, 8_000), (16_000, 48_000, 16_000)]


@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("name", ["adts", "mp3-no-xing", "ts-aac", "ogg-flac", "flac"])
def test_sample_rate_that_changes_on_the_way(name: str, rates: tuple[int, ...]) -> None:
    assert_all_in_place(joined([(name, rate, 1) for rate in rates]), 3)


@pytest.mark.parametrize("name", ["ogg-opus", "ogg-flac", "ogg-vorbis", "flac", "m4a-aac", "webm-opus"])
def test_layout_of_joined_files_that_changes_on_the_way(name: str) -> None:
    layouts = [channels for channels, _ in zip(cycle(form(name).layouts[:3]), range(4), strict=False)]
    assert_all_in_place(joined([(name, None, channels) for channels in layouts]), 4)


@pytest.mark.parametrize(
    "names",
    [
        ("ogg-vorbis", "ogg-opus", "ogg-flac"),
        ("ogg-opus", "ogg-flac", "ogg-vorbis"),
        ("mp3-no-xing", "wav", "m4a-aac"),
        ("m4a-aac", "mp3", "mp3"),
        ("wav", "mp3"),
        ("ogg-opus", "mp3"),
        ("adts", "flac"),
    ],
    ids=" ".join,
)
def test_codec_or_container_that_changes_on_the_way(names: tuple[str, ...]) -> None:
    assert_all_in_place(joined([(name, None, 2) for name in names]), len(names))
