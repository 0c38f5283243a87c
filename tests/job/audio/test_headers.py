"""Headers that are unusual, wrong or in the way, and files that are something else."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from audio_matrix import FORMATS, RATE, Format, decoded, encode, spans

from whisper_spark.audio.container import Bytes
from whisper_spark.audio.decode import AudioError, open_audio

PAUSE = np.zeros(RATE, np.float32)
SOUND = np.concatenate([PAUSE, 0.3 * np.sin(np.arange(RATE) * 0.2).astype(np.float32), PAUSE])
EXTENSIBLE = bytes.fromhex("0100000000001000800000aa00389b71")


def form(name: str) -> Format:
    return next(form for form in FORMATS if form.name == name)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def wav(description: bytes, samples: bytes) -> bytes:
    body = (
        b"WAVE" + chunk(b"LIST", b"INFO" + bytes(7)) + chunk(b"fmt ", description) + chunk(b"data", samples)
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def assert_sound(data: bytes) -> None:
    channels, audio = decoded(data)
    assert spans(channels[0]) == [pytest.approx((1, 2), abs=0.1)]
    assert np.abs(channels[0]).max() == pytest.approx(0.3, rel=0.1)
    assert not audio.truncated


@pytest.mark.parametrize("extensible", [True, False])
def test_24_bits_in_samples_of_32_are_decoded(extensible: bool) -> None:
    stored = ((SOUND * 2.0**31).astype("<i4") >> 8 << 8).tobytes()
    if extensible:
        description = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 4 * RATE, 4, 32, 22, 24, 4) + EXTENSIBLE
    else:
        description = struct.pack("<HHIIHH", 1, 1, RATE, 4 * RATE, 4, 24)
    assert_sound(wav(description, stored))


def test_20_bits_in_samples_of_24_are_decoded() -> None:
    stored = b"".join(value.tobytes()[1:] for value in (SOUND * 2.0**31).astype("<i4"))
    description = struct.pack("<HHIIHHHHI", 0xFFFE, 1, RATE, 3 * RATE, 3, 24, 22, 20, 4) + EXTENSIBLE
    assert_sound(wav(description, stored))


def test_au_file_that_says_it_is_empty_is_decoded() -> None:
    data = encode(form("au"), SOUND[None])
    assert_sound(data[:8] + bytes(4) + data[12:])


def test_mp3_behind_a_picture_of_many_megabytes_is_decoded() -> None:
    size = 12 << 20
    tag = (
        b"ID3\x04\x00\x00"
        + bytes(size >> shift & 127 for shift in (21, 14, 7, 0))
        + b"APIC".ljust(size, b"\xd8")
    )
    assert_sound(tag + encode(form("mp3"), SOUND[None]))


def test_mp4_that_hides_its_first_version_among_its_samples_is_decoded() -> None:
    data = encode(form("m4a-aac"), SOUND[None])
    at = data.index(b"mdat") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    # The index names the samples by their offset from the end of the file that is put before them.
    hidden = b"\x00\x00\x00\x14ftypisom\x00\x00\x02\x00isom"
    moved = data[:at] + struct.pack(">I", size + len(hidden)) + b"mdat" + hidden + data[at + 8 :]
    offsets = moved.index(b"stco") + 12
    first = int.from_bytes(moved[offsets : offsets + 4], "big") + len(hidden)
    assert_sound(moved[:offsets] + struct.pack(">I", first) + moved[offsets + 4 :])


@pytest.mark.parametrize("name", ["wav", "mp3", "ogg-opus", "flac", "m4a-aac"])
@pytest.mark.parametrize("how", ["line feeds", "replaced"])
def test_transfer_as_text_is_named(name: str, how: str) -> None:
    sound = 0.1 * np.random.default_rng(1).standard_normal((1, 5 * RATE)).astype(np.float32)
    data = encode(form(name), sound)
    changed = (
        data.replace(b"\n", b"\r\n") if how == "line feeds" else data.decode("utf-8", "replace").encode()
    )
    with pytest.raises(AudioError, match="in binary mode") as raised:
        decoded(changed)
    assert raised.value.code == "corrupt"


LOOK_ALIKES = {
    "gzip": (gzip.compress(encode(form("wav"), SOUND[None])), "gzip archive: unpack it"),
    "zip": (b"PK\x03\x04\x14\x00" + bytes(200), "zip archive: unpack it"),
    "playlist": (b"#EXTM3U\nhttp://127.0.0.1/a.mp3\n", "a playlist"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "a web page"),
    "s3": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "an object store"),
    "json": (b'{"error": {"code": 404}}', "JSON"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS"),
    "zeros": (bytes(1 << 20), "zeros"),
    "noise": (np.random.default_rng(1).bytes(5000), "no audio container that FFmpeg knows$"),
}


@pytest.mark.parametrize("kind", LOOK_ALIKES)
def test_what_is_no_audio_is_named(kind: str) -> None:
    data, name = LOOK_ALIKES[kind]
    with pytest.raises(AudioError, match=name) as raised:
        open_audio(io.BytesIO(data))
    assert raised.value.code == "not_audio"


def test_bytes_of_a_header_may_be_replaced_wherever_reading_begins() -> None:
    stretch = Bytes(io.BytesIO(b"0123456789"), 1, 9).fixed({2: b"xyz"})
    assert [stretch.at(start, 4) for start in range(7)] == [
        b"12xy",
        b"2xyz",
        b"xyz6",
        b"yz67",
        b"z678",
        b"678",
        b"78",
    ]


@pytest.mark.parametrize("scheme", [b"enca", b"drms", b"aavd"])
def test_encrypted_sound_is_named(scheme: bytes) -> None:
    data = encode(form("m4a-faststart"), SOUND[None])
    at = data.index(b"mp4a", data.index(b"stsd"))
    with pytest.raises(AudioError, match="encrypted") as raised:
        open_audio(io.BytesIO(data[:at] + scheme + data[at + 4 :]))
    assert raised.value.code == "corrupt"


def test_sound_that_common_encryption_turned_into_noise_is_named() -> None:
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    data = encode(Format("mp4", "mp4", "libopus", 48_000, options), SOUND[None])
    with pytest.raises(AudioError, match="encrypted"):
        open_audio(io.BytesIO(data))


@pytest.mark.parametrize("split", [False, True])
def test_header_with_more_channels_than_can_be_resampled_is_no_crash(split: bool) -> None:
    description = struct.pack("<HHIIHH", 1, 134, RATE, 268 * RATE, 268, 16)
    audio = open_audio(io.BytesIO(wav(description, bytes(268 * RATE))), split=split)
    assert not list(audio.blocks())
    assert audio.truncated
