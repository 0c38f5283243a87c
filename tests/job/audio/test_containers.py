"""Every container, codec and channel layout: each sentence is found in its place, whatever happened.

`make quick` decodes the common formats, `make test` all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from audio_matrix import (
    FORMATS,
    PAUSE,
    RATE,
    Format,
    Samples,
    Spans,
    decoded,
    encode,
    moved,
    recording,
    spans,
)
from recordings import samples_of
from speech import Clip

# One format for each way of reading: headers, bare frames, an index, fragments, pages, packets with times.
COMMON = {"wav", "wav-mulaw", "flac", "mp3", "adts", "amr", "m4a-aac", "mp4-fragments"}
COMMON |= {"ogg-opus", "webm-opus", "mka-pcm", "ts-ac3"}


def case(form: Format, *others: Any) -> Any:
    """Parameters of a test. They are marked as slow unless the format is common."""
    marks = [] if form.name in COMMON else [pytest.mark.slow]
    return pytest.param(form, *others, id="-".join(map(str, (form, *others))), marks=marks)


WITH_TIMES = [form for form in FORMATS if form.timed]


@pytest.fixture(scope="module")
def sentences(librivox: list[Clip]) -> list[Samples]:
    """Three pieces of speech, each longer than the one before it."""
    longest = sorted(librivox, key=lambda clip: clip.seconds)[:3]
    return [
        _loud(samples_of(clip.path))[: int(seconds * RATE)]
        for clip, seconds in zip(longest, (1.0, 1.6, 2.2), strict=True)
    ]


def _loud(samples: Samples) -> Samples:
    heard = np.flatnonzero(np.abs(samples) > 0.05 * np.abs(samples).max())
    return samples[heard[0] : heard[-1]]


@pytest.fixture(scope="module")
def sound(sentences: list[Samples]) -> Samples:
    return recording(sentences)


@pytest.fixture(scope="module")
def truth(sound: Samples) -> Spans:
    found = spans(sound)
    assert len(found) == 3
    return found


@pytest.fixture(scope="module")
def pauses(truth: Spans) -> list[float]:
    """The middle of the pause behind the first and behind the second sentence."""
    return [truth[0][1] + PAUSE / 2, truth[1][1] + PAUSE / 2]


@pytest.fixture(scope="module")
def short_sound(sentences: list[Samples]) -> Samples:
    """One sentence with pauses around it, for tests that decode many channels."""
    return recording(sentences[:1])


def heard(data: bytes, **how: object) -> tuple[Spans, bool]:
    """Where there is sound, and whether the file is called truncated."""
    channels, audio = decoded(data, **how)
    assert list(channels) == [0]
    return spans(channels[0]), audio.truncated


def assert_near(found: Spans, expected: Spans) -> None:
    assert np.array(found) == pytest.approx(np.array(expected), abs=0.25)


@pytest.mark.parametrize("form", [case(form) for form in FORMATS])
def test_whole_file(form: Format, sound: Samples, truth: Spans) -> None:
    found, truncated = heard(encode(form, sound[None]))
    assert_near(found, truth)
    assert not truncated


@pytest.mark.parametrize("form", [case(form) for form in FORMATS])
def test_joined_files_are_decoded_to_the_end(form: Format, sound: Samples, truth: Spans) -> None:
    data = encode(form, sound[None])
    found, _ = heard(data + data)
    assert_near(found, truth + moved(truth, len(sound) / RATE))


@pytest.mark.parametrize("form", [case(form) for form in FORMATS if not form.index])
def test_cut_file_gives_its_beginning(form: Format, sound: Samples, truth: Spans) -> None:
    data = encode(form, sound[None])
    found, truncated = heard(data[: len(data) * 7 // 10])
    assert 1 <= len(found) <= 3
    assert_near(found[:-1], truth[: len(found) - 1])
    assert found[-1][0] == pytest.approx(truth[len(found) - 1][0], abs=0.25)
    assert truncated or not form.exact


@pytest.mark.parametrize("form", [case(form) for form in WITH_TIMES])
def test_gap_counts_as_silence(form: Format, sound: Samples, truth: Spans, pauses: list[float]) -> None:
    found, truncated = heard(encode(form, sound[None], lambda time: time + 20 * (time > pauses[0])))
    assert_near(found, truth[:1] + moved(truth[1:], 20))
    assert not truncated


@pytest.mark.parametrize("form", [case(form) for form in WITH_TIMES if form.loses])
def test_lost_packets_move_nothing(form: Format, sound: Samples, truth: Spans, pauses: list[float]) -> None:
    lost = (pauses[1] - 0.6, pauses[1] + 0.6)
    found, truncated = heard(
        encode(form, sound[None], lambda time: None if lost[0] < time < lost[1] else time)
    )
    assert_near(found, truth)
    assert not truncated


@pytest.mark.parametrize("form", [case(form) for form in WITH_TIMES])
def test_absurd_jump_is_no_gap(form: Format, sound: Samples, truth: Spans, pauses: list[float]) -> None:
    data = encode(form, sound[None], lambda time: time + 90_000 * (time > pauses[0]))
    found, truncated = heard(data, max_duration_s=3600)
    assert_near(found, truth)
    assert not truncated


@pytest.mark.parametrize("form", [case(form) for form in FORMATS if form.video])
def test_sound_that_begins_late(form: Format, sound: Samples, truth: Spans) -> None:
    found, truncated = heard(encode(form, sound[None], lambda time: time + 8, video=20))
    assert_near(found, moved(truth, 8))
    assert not truncated


@pytest.mark.parametrize("form", [case(form) for form in FORMATS if form.starts])
def test_clock_that_does_not_begin_at_zero(form: Format, sound: Samples, truth: Spans) -> None:
    found, truncated = heard(encode(form, sound[None], lambda time: time + 1000), max_duration_s=60)
    assert_near(found, truth)
    assert not truncated


LAYOUTS = [case(form, channels) for form in FORMATS for channels in form.layouts if channels > 1]


@pytest.mark.parametrize(("form", "channels"), LAYOUTS)
def test_no_channel_is_lost(form: Format, channels: int, short_sound: Samples, truth: Spans) -> None:
    rows = np.zeros((channels, len(short_sound)), np.float32)
    rows[-1] = short_sound
    data = encode(form, rows)
    assert_near(heard(data)[0], truth[:1])
    apart, audio = decoded(data, split=True)
    assert list(apart) == list(range(channels))
    assert audio.channels == channels
    loud = [channel for channel, samples in apart.items() if np.abs(samples).max() > 0.05]
    assert len(loud) == 1 or form.codec in LOSSY
    assert_near(spans(apart[max(apart, key=lambda channel: np.abs(apart[channel]).max())]), truth[:1])


# Codecs that share sound between channels.
LOSSY = {"libmp3lame", "mp2", "aac", "ac3", "eac3", "libopus", "vorbis", "wmav2"}


@pytest.mark.parametrize("form", [case(form) for form in FORMATS if 2 in form.layouts])
def test_channels_that_cancel_out_are_heard(form: Format, short_sound: Samples, truth: Spans) -> None:
    assert_near(heard(encode(form, np.stack([short_sound, -short_sound])))[0], truth[:1])


# Bare streams of frames, which may change their layout on the way.
CHANGING = [form for form in FORMATS if form.name in {"mp3-no-xing", "mp2", "adts", "ac3", "eac3", "ts-ac3"}]
CHANGES = [
    case(form, layouts)
    for form in CHANGING
    for layouts in ((1, 2), (2, 1), (2, 6), (6, 1))
    if set(layouts) <= set(form.layouts)
]


@pytest.mark.parametrize(("form", "layouts"), CHANGES)
def test_layout_that_changes_on_the_way(
    form: Format, layouts: tuple[int, int], short_sound: Samples, truth: Spans
) -> None:
    parts = []
    for channels in layouts:
        rows = np.zeros((channels, len(short_sound)), np.float32)
        rows[-1] = short_sound
        parts.append(encode(form, rows))
    channels, _ = decoded(b"".join(parts))
    assert_halves_near(channels[0], short_sound, truth[:1])
    apart, audio = decoded(b"".join(parts), split=True)
    assert audio.channels == max(layouts)
    assert_halves_near(np.sum(list(apart.values()), axis=0), short_sound, truth[:1])


def assert_halves_near(samples: Samples, sound: Samples, truth: Spans) -> None:
    """Check both halves separately: in a mix, one channel of six is quieter than a single channel."""
    assert_near(spans(samples[: len(sound)]), truth)
    assert_near(spans(samples[len(sound) :]), truth)
