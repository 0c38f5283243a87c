"""Files of which a part is missing in the middle: what is left keeps its place, and the loss is flagged."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from audio_matrix import FORMATS, RATE, Format, Samples, Spans, decoded, encode, recording, spans
from recordings import samples_of
from speech import Clip

# One of each kind: bare frames, pages, clusters, tags, packets.
COMMON = {"mp3-no-xing", "adts", "flac", "ogg-opus", "ts-mp2", "ps-mp2"}
# Formats whose packets can be found behind a hole.
HOLES = [
    pytest.param(form, id=form.name, marks=[] if form.name in COMMON else [pytest.mark.slow])
    for form in FORMATS
    if form.container
    in {"mp3", "mp2", "adts", "ac3", "eac3", "flac", "ogg", "flv", "mpegts", "mpeg", "vob", "asf"}
]
CLUSTERS = [form for form in FORMATS if form.name in {"webm-opus", "mka-aac"}]


def form(name: str) -> Format:
    return next(form for form in FORMATS if form.name == name)


@pytest.fixture(scope="module")
def sound(librivox: list[Clip]) -> Samples:
    """Three sentences over faint noise, so that every second takes bytes in every codec."""
    clips = sorted(librivox, key=lambda clip: clip.seconds)[:3]
    pieces = [samples_of(clip.path) for clip in clips]
    loud = [piece[np.flatnonzero(np.abs(piece) > 0.05 * np.abs(piece).max())[0] :] for piece in pieces]
    sentences = [piece[: int(s * RATE)] for piece, s in zip(loud, (1.0, 1.6, 2.2), strict=True)]
    whole = recording(sentences)
    noise = 0.0005 * np.random.default_rng(3).standard_normal(len(whole))
    return (whole + noise).astype(np.float32)


@pytest.fixture(scope="module")
def truth(sound: Samples) -> Spans:
    return spans(sound)


def hole(data: bytes, around: tuple[float, float], seconds: float) -> tuple[int, int]:
    """The bytes of the sound between two times, about."""
    start, end = (int(len(data) * time / seconds) for time in around)
    return start, end


@pytest.mark.parametrize("form", HOLES)
def test_lost_part_of_an_upload_is_flagged_and_moves_nothing(
    form: Format, sound: Samples, truth: Spans
) -> None:
    data = encode(form, sound[None])
    start, end = hole(data, (truth[1][0] - 0.1, truth[1][1] + 0.1), len(sound) / RATE)
    channels, audio = decoded(data[:start] + bytes(end - start) + data[end:])
    found = spans(channels[0])
    assert audio.truncated
    assert found[0] == pytest.approx(truth[0], abs=0.25)
    assert found[-1] == pytest.approx(truth[2], abs=0.4)


@pytest.mark.parametrize("form", CLUSTERS, ids=str)
def test_lost_part_of_a_cluster_is_flagged(form: Format, sound: Samples, truth: Spans) -> None:
    data = encode(form, sound[None])
    start, end = hole(data, truth[1], len(sound) / RATE)
    _, audio = decoded(data[:start] + bytes(end - start) + data[end:])
    assert audio.truncated
    assert audio.decoded_s == pytest.approx(len(sound) / RATE, abs=0.3)


@pytest.mark.parametrize("name", ["mp3-no-xing", "adts", "ac3", "ogg-opus", "flac"])
def test_upload_whose_end_was_never_written_is_flagged(name: str, sound: Samples) -> None:
    data = encode(form(name), sound[None])
    half = len(data) // 2
    assert decoded(data[:half] + bytes(len(data) - half))[1].truncated


def test_upload_whose_beginning_was_never_written_keeps_the_times(sound: Samples, truth: Spans) -> None:
    data = encode(form("mp3-no-xing"), sound[None])
    start = int(len(data) * (truth[1][0] - 0.5) / (len(sound) / RATE))
    channels, audio = decoded(bytes(start) + data[start:])
    assert audio.truncated
    assert spans(channels[0])[-1] == pytest.approx(truth[2], abs=0.4)


def test_tags_between_joined_files_are_no_loss(sound: Samples, truth: Spans) -> None:
    cover = b"ID3\x04\x00\x00" + bytes([0, 12, 0, 0]) + b"APIC".ljust(12 << 14, b"\x07")
    for name in ("mp3-no-xing", "adts"):
        part = cover + encode(form(name), sound[None])
        channels, audio = decoded(part + b"TAG".ljust(128, b" ") + part)
        assert not audio.truncated
        assert len(channels[0]) == pytest.approx(2 * len(sound), abs=0.3 * RATE)


def test_joined_podcasts_with_exact_lengths_are_whole(sound: Samples) -> None:
    part = encode(form("mp3"), sound[None])
    channels, audio = decoded(part * 3)
    assert len(channels[0]) == pytest.approx(3 * len(sound), abs=0.3 * RATE)
    assert not audio.truncated


def ape(size: int) -> bytes:
    """An APE tag without a header."""
    return bytes(size).replace(b"\0", b"x") + b"APETAGEX" + struct.pack("<IIIIQ", 2000, size + 32, 1, 0, 0)


@pytest.mark.parametrize("name", ["mp3-no-xing", "adts"])
@pytest.mark.parametrize(
    "tags",
    [ape(100_000), ape(100_000) + b"TAG".ljust(128), b"x" * 90_000 + b"090000LYRICS200" + b"TAG".ljust(128)],
    ids=["ape", "ape id3", "lyrics id3"],
)
def test_tags_at_the_end_are_no_loss(name: str, tags: bytes, sound: Samples) -> None:
    assert not decoded(encode(form(name), sound[None]) + tags)[1].truncated


@pytest.mark.parametrize("name", ["wav-mulaw", "wav-u8"])
@pytest.mark.parametrize("channels", [1, 2])
def test_bytes_that_were_never_written_are_no_silence(name: str, channels: int, sound: Samples) -> None:
    data = encode(form(name), np.repeat(sound[None], channels, axis=0))
    start, end = hole(data, (4.0, 6.0), len(sound) / RATE)
    assert not decoded(data)[1].truncated
    for split in (False, True):
        assert decoded(data[:start] + bytes(end - start) + data[end:], split=split)[1].truncated


def test_clipped_sound_and_a_muted_converter_are_no_loss() -> None:
    square = np.sign(np.sin(np.arange(5 * RATE) * 2 * np.pi * 10 / RATE)).astype(np.float32)
    for samples in (square, np.full(5 * RATE, 0.01, np.float32)):
        assert not decoded(encode(form("wav"), samples[None]))[1].truncated


WITH_VIDEO = [form for form in FORMATS if form.video and form.name != "mp4-fragments"]


@pytest.mark.parametrize("form", WITH_VIDEO, ids=str)
def test_muted_part_of_a_video_is_no_loss(form: Format, sound: Samples) -> None:
    seconds = len(sound) / RATE
    muted = encode(form, sound[None], lambda time: None if 2.9 < time < 6 else time, video=seconds)
    assert not decoded(muted)[1].truncated
