"""Walks through the headers of files, and corrects those that FFmpeg misreads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from whisper_spark.audio.container import Bytes

# WAVE_FORMAT_PCM and WAVE_FORMAT_EXTENSIBLE.
_PCM, _EXTENSIBLE = 1, 0xFFFE

# Containers have a handful of chunks. A recording that was allocated and never written is all zeros, which
# read as millions of empty ones.
MOST_CHUNKS = 10_000

# Chunks to look at for the format of a WAV file.
_CHUNKS = 100

# Boxes of an MP4 file to look at for its description, and the largest description in bytes.
_BOXES = 1000
_LARGEST = 64 * 1024 * 1024

# The first sound of an MP4 file that is encrypted: Common Encryption, FairPlay, Audible.
_ENCRYPTED = re.compile(rb"stsd\x00{4}\x00\x00\x00[\x01-\x08].{4}(?:enca|drms|aavd)", re.DOTALL)


def id3_bytes(head: bytes) -> int:
    """Size in bytes of the ID3v2 tag that begins with ``head``; 0 without one."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size


def boxes(file: Bytes, most: int = _BOXES) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and size in bytes of the boxes at the top of an MP4 file, until one has no valid size.

    :param most: number of boxes to look at.
    """
    position = 0
    for _ in range(most):
        box = file.at(position, 16)
        size = int.from_bytes(box[:4], "big")
        if size == 1:
            size = int.from_bytes(box[8:], "big")
        if len(box) < 16 or size < 8:
            return
        yield box[4:8], position, size
        position += size


def is_encrypted(file: Bytes) -> bool:
    """Whether the sound of an MP4 file is encrypted. FFmpeg decodes it to noise, or not at all."""
    for name, position, size in boxes(file):
        if name == b"moov":
            return _ENCRYPTED.search(file.at(position, min(size, _LARGEST))) is not None
    return False


def wav_chunks(file: Bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and first 48 bytes of each chunk of a WAV file; fewer bytes at the end of the file."""
    position = 12
    for _ in range(MOST_CHUNKS):
        if len(chunk := file.at(position, 8 + 40)) < 8:
            return
        yield position, chunk
        size = int.from_bytes(chunk[4:8], "little")
        position += 8 + size + size % 2


def header_fixes(file: Bytes) -> dict[int, bytes]:
    """Bytes to read instead of those in the header of a WAV or AU file, by offset."""
    if file.at(0, 4) == b".snd":
        # Size of the samples. Recorders to a pipe leave 0, where FFmpeg expects the value for unknown.
        return {8: b"\xff\xff\xff\xff"} if file.at(8, 4) == bytes(4) else {}
    for position, chunk in islice(wav_chunks(file), _CHUNKS):
        if chunk[:4] == b"fmt " and len(chunk) >= 24:
            size = int.from_bytes(chunk[4:8], "little")
            return _sample_size_fixes(position + 8, chunk[8 : 8 + size])
        if chunk[:4] == b"data":
            break
    return {}


def _sample_size_fixes(position: int, form: bytes) -> dict[int, bytes]:
    """FFmpeg takes the number of valid bits for the size of a sample: 24 bits may be stored in 32.

    :param position: offset of the contents of the chunk ``fmt``.
    """
    tag, channels, block, bits = (int.from_bytes(form[at : at + 2], "little") for at in (0, 2, 12, 14))
    if tag not in (_PCM, _EXTENSIBLE) or not channels or block % channels:
        return {}
    stored = 8 * block // channels
    valid = int.from_bytes(form[18:20], "little") if tag == _EXTENSIBLE and len(form) >= 20 else bits
    read = -(-(valid or bits) // 8) * 8
    if stored not in (16, 24, 32) or not 8 < read < stored:
        return {}
    right = stored.to_bytes(2, "little")
    return {position + 14: right, **({position + 18: right} if tag == _EXTENSIBLE else {})}
