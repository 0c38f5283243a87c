"""The size of a second of audio, from the first bytes of a file: WAV, FLAC, MP3 and MP4.

This is for estimates, so the parsers read only what is in front and trust it. Transcription itself never uses
them.
"""

from __future__ import annotations

import re
import struct

HEAD_BYTES = 65_536
"""Number of bytes that the parsers look at."""

# MPEG-1 and MPEG-2 (and 2.5) Layer III, ISO 11172-3 and 13818-3: kbit/s by the index in a frame's header.
_MP3_KBITS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MP3_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")


def bytes_per_second(head: bytes, size: int) -> float | None:
    """Return the average size of a second of audio.

    :param head: the first :data:`HEAD_BYTES` of the file, or all of it.
    :param size: size of the file in bytes.
    :return: bytes per second; ``None`` if the header does not tell.
    """
    try:
        if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
            rate = _wav_rate(head)
        elif head[:4] == b"fLaC":
            rate = size / _flac_seconds(head)
        elif head[4:8] == b"ftyp":
            rate = size / _mp4_seconds(head)
        else:
            rate = _mp3_rate(head, size)
    except (IndexError, ValueError, ZeroDivisionError, struct.error):
        return None
    return rate if rate > 0 else None


def _wav_rate(head: bytes) -> float:
    place = 12
    while head[place : place + 4] != b"fmt ":
        (length,) = struct.unpack_from("<I", head, place + 4)
        place += 8 + length + length % 2
    # WAVEFORMAT: format, channels, samples per second, bytes per second.
    rate: int = struct.unpack_from("<HHII", head, place + 8)[3]
    return rate


def _flac_seconds(head: bytes) -> float:
    # STREAMINFO is always the first block: 20 bits of sample rate, 3 of channels, 5 of bits per sample, 36 of
    # total samples (0: unknown).
    (bits,) = struct.unpack_from(">Q", head, 18)
    return float((bits & 0xFFFFFFFFF) / (bits >> 44))


def _mp4_seconds(head: bytes) -> float:
    # The box is in front if the file was written for streaming, otherwise at its end.
    place = head.index(b"mvhd") + 4
    layout, offset = (">IQ", 20) if head[place] else (">II", 12)
    scale, duration = struct.unpack_from(layout, head, place + offset)
    return float(duration / scale)


def _mp3_rate(head: bytes, size: int) -> float:
    start = 0
    if head[:3] == b"ID3":
        a, b, c, d = head[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
    found = _MP3_SYNC.search(head, start)
    # Only right behind the tag: elsewhere two such bytes may be anything.
    if found is None or found.start() > start + 4096:
        raise ValueError("no frame")
    place = found.start()
    version, layout = head[place + 1] >> 3 & 3, head[place + 2]
    generation = 1 if version == 3 else 2
    rate = _MP3_RATES[version][layout >> 2 & 3]
    # A file of variable bit rate says in its first frame how many frames there are.
    tag = re.compile(b"Xing|Info").search(head, place, place + 64)
    if tag and head[tag.start() + 7] & 1:
        (frames,) = struct.unpack_from(">I", head, tag.start() + 8)
        return float((size - place) / (frames * (1152 if generation == 1 else 576) / rate))
    return _MP3_KBITS[generation][layout >> 4] * 125.0
