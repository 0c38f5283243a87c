"""What FFmpeg may open, and the kinds of files that it or PyAV do not handle by themselves."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from audio_matrix import FORMATS, RATE, Format, decoded, encode, spans

from whisper_spark.audio.container import Bytes
from whisper_spark.audio.decode import AudioError, open_audio
from whisper_spark.audio.length import wav_data

SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
PLAYLISTS = {
    "sdp": SDP,
    "ffconcat": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nhttp://127.0.0.1/a.ts\n#EXT-X-ENDLIST\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="isoff-live"></MPD>',
    "rtsp": b"[playlist]\nFile1=rtsp://127.0.0.1/a\n",
    "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nHello.\n\n" * 20,
    "ffmetadata": b";FFMETADATA1\ntitle=x\n",
    "sbagen": b"-SE\noff: -\non: pink/40 200+4/30\nNOW off\n+00:01 on\n",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "gif": b"GIF89a\x01\x00\x01\x00\x80\x00\x00"
    + bytes(3)
    + b"\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00;",
}


def form(name: str) -> Format:
    return next(form for form in FORMATS if form.name == name)


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * RATE)) * 0.2)).astype(np.float32)


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_what_names_other_files_or_hosts_is_not_audio(kind: str) -> None:
    began = time.monotonic()
    with pytest.raises(AudioError) as raised:
        open_audio(io.BytesIO(PLAYLISTS[kind]))
    assert raised.value.code == "not_audio"
    assert time.monotonic() - began < 1


def caf(labels: list[int], rows: np.ndarray) -> bytes:
    """A CAF file that lists its channels one by one, in an unusual order."""
    description = struct.pack(">d4sIIIII", RATE, b"lpcm", 2, 2 * len(labels), 1, len(labels), 16)
    names = b"".join(struct.pack(">II3f", label, 0, 0, 0, 0) for label in labels)
    layout = struct.pack(">III", 0, 0, len(labels)) + names
    sound = struct.pack(">I", 0) + (rows.T * 32767).astype("<i2").tobytes()
    chunks = ((b"desc", description), (b"chan", layout), (b"data", sound))
    return b"caff\x00\x01\x00\x00" + b"".join(n + struct.pack(">q", len(c)) + c for n, c in chunks)


DECODE = """
import io, sys
from whisper_spark.audio.decode import open_audio
audio = open_audio(io.BytesIO(sys.stdin.buffer.read()), split=True)
print(len({block.channel for block in audio.blocks()}))
"""


@pytest.mark.parametrize("labels", [[2, 1], [1, 1], [4, 1, 2]], ids=str)
def test_channels_in_an_order_of_their_own_do_not_kill_the_process(labels: list[int]) -> None:
    data = caf(labels, np.stack([tone(3)] * len(labels)))
    done = subprocess.run([sys.executable, "-c", DECODE], input=data, capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(labels)).encode())


def test_ambisonic_opus_with_a_stereo_bed_does_not_kill_the_process() -> None:
    opus = encode(form("webm-opus"), np.stack([tone(2)] * 6))
    head = opus.index(b"OpusHead")
    mapped = opus[: head + 18] + b"\x02" + opus[head + 19 :]
    done = subprocess.run([sys.executable, "-c", DECODE], input=mapped, capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"6")


def test_nine_and_more_channels_are_averaged() -> None:
    rows = np.zeros((64, RATE), np.float32)
    rows[40] = tone(1, 0.8)
    channels, audio = decoded(encode(form("wav"), rows))
    assert audio.channels == 64
    assert np.abs(channels[0]).max() == pytest.approx(0.8 / 64, rel=0.05)


def test_mix_is_the_average_and_keeps_what_one_channel_alone_says() -> None:
    rows = np.stack([tone(2, 0.4), np.zeros(2 * RATE, np.float32), tone(2, 0.2)])
    channels, _ = decoded(encode(form("wav"), rows))
    np.testing.assert_allclose(channels[0], rows.mean(axis=0), atol=1e-3)


def test_speakers_in_phase_and_out_of_phase_are_both_heard() -> None:
    pause = np.zeros(2 * RATE, np.float32)
    speech = tone(1)
    left, right = (np.concatenate([speech, pause, sign * speech]) for sign in (1, -1))
    channels, _ = decoded(encode(form("wav"), np.stack([left, right])))
    assert len(spans(channels[0])) == 2


@pytest.mark.parametrize("scale", [2.0**15, 2.0**23, 2.0**31])
def test_floats_that_are_integers_are_scaled(scale: float) -> None:
    sound = tone(2)
    header = encode(form("wav-float"), sound[None])
    at = header.index(b"data") + 8
    whole = header[:at] + (sound * scale).astype("<f4").tobytes()
    channels, _ = decoded(whole)
    assert np.abs(channels[0]).max() == pytest.approx(0.3, rel=0.05)


def test_single_samples_that_are_no_numbers_do_no_harm() -> None:
    sound = tone(2)
    sound[[100, 5000, 20000]] = np.nan, np.inf, 1e30
    plain = encode(form("wav-float"), tone(2)[None])
    at = plain.index(b"data") + 8
    channels, _ = decoded(plain[:at] + sound.astype("<f4").tobytes())
    assert np.abs(channels[0]).max() <= 1
    assert np.abs(channels[0] - tone(2)).mean() < 1e-3


@pytest.mark.parametrize("name", ["wav", "mp3", "m4a-faststart", "flac", "rf64"])
def test_exact_length_that_is_missed_is_flagged(name: str) -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal((1, 30 * RATE)).astype(np.float32)
    data = encode(form(name), noise)
    assert not decoded(data)[1].truncated
    assert decoded(data[: len(data) * 95 // 100])[1].truncated


def test_wav_that_says_less_than_there_is_is_decoded_to_its_end() -> None:
    data = bytearray(
        encode(form("wav"), np.concatenate([tone(1), np.zeros(RATE, np.float32), tone(1)])[None])
    )
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 2 * RATE)
    channels, audio = decoded(bytes(data))
    assert len(channels[0]) == 3 * RATE
    assert not audio.truncated


def test_chunks_behind_the_samples_of_a_wav_are_no_sound() -> None:
    data = encode(form("wav"), tone(1)[None])
    notes = b"LIST" + struct.pack("<I", 2000) + b"INFO" + b"x" * 1996
    channels, audio = decoded(data + notes)
    assert len(channels[0]) == RATE
    assert not audio.truncated


def test_gap_of_hours_costs_no_memory_and_is_kept() -> None:
    sound = np.concatenate([tone(1), np.zeros(2 * RATE, np.float32), tone(1)])
    data = encode(form("mka-pcm"), sound[None], lambda at: at + 7200 * (at > 2))
    audio = open_audio(io.BytesIO(data))
    blocks = list(audio.blocks())
    assert audio.decoded_s == pytest.approx(7204, abs=0.1)
    assert sum(len(block.samples) for block in blocks) == pytest.approx(7204 * RATE, abs=RATE)
    silent = [block.samples for block in blocks if not block.samples.any()]
    assert len({id(samples.base) for samples in silent if samples.base is not None}) < 10


def test_gap_beyond_the_longest_duration_is_no_gap() -> None:
    sound = np.concatenate([tone(1), np.zeros(2 * RATE, np.float32), tone(1)])
    data = encode(form("mka-pcm"), sound[None], lambda at: at + 7200 * (at > 2))
    channels, _ = decoded(data, max_duration_s=3600)
    assert len(channels[0]) == pytest.approx(4 * RATE, abs=100)


def test_longer_than_allowed_is_refused() -> None:
    for name in ("wav", "mp3-no-xing", "ogg-opus"):
        data = encode(form(name), tone(10)[None])
        with pytest.raises(AudioError) as raised:
            decoded(data, max_duration_s=5)
        assert raised.value.code == "too_long"


def test_places_before_the_beginning_are_errors_of_the_file() -> None:
    stretch = Bytes(io.BytesIO(b"0123456789"), 2, 8)
    assert stretch.seek(-1) < 0
    assert stretch.seek(-7, 2) < 0
    assert stretch.seek(2) == 2
    assert stretch.read(100) == b"4567"
    assert stretch.read(100) == b""


def test_wav_that_was_allocated_and_never_written_is_not_read_chunk_by_chunk() -> None:
    class Counting(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            return super().read(size)

    data = b"RIFF\xff\xff\xff\x7fWAVE" + bytes(8 << 20)
    stream = Counting(data)
    assert wav_data(Bytes(stream, 0, len(data))) is None
    assert stream.reads < 50_000
