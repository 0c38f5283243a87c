"""Handles files with more audio than their first container declares.

These are concatenated recordings, and recordings whose header was never completed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from whisper_spark.audio.container import AudioError, Beginning, Bytes, open_container
from whisper_spark.audio.demuxer import Demuxer
from whisper_spark.audio.headers import boxes, header_fixes, id3_bytes
from whisper_spark.audio.length import wav_data

# Broadcast formats, which can be opened at any position, and the size in bytes that the rest of the last
# packet may have.
_BROADCAST = {"mpegts": 2 * 188, "mpeg": 16 * 1024}

# Number of bytes to search for another container, and the step of the search.
_SEARCHED = 32 * 1024 * 1024
_STEP = 1024 * 1024
_LONGEST_BEGINNING = 24

# A remainder with fewer bytes is too short to contain a word.
_LEAST = 512

# Patterns of beginnings that are long enough not to occur by chance, by a part that all matches have.
_MP4 = {b"ftyp": rb"\x00\x00\x00[\x08-\xff]ftyp"}
_OGG = {b"OggS\x00\x02": rb"OggS\x00\x02"}
_FLAC = {b"fLaC": rb"fLaC[\x00\x80]\x00\x00\x22"}
_ID3 = {b"ID3": rb"ID3[\x02-\x04]\x00[\x00-\xf0][\x00-\x7f]{4}"}
_WAV = {b"WAVE": rb"(?:RIFF|RF64).{4}WAVE"}
_MATROSKA = {b"\x1aE\xdf\xa3": rb"\x1aE\xdf\xa3(?:[\x80-\xff]|\x01.{7})B\x86\x81\x01"}

# Beginnings of all containers. When such containers follow each other in a file, FFmpeg stops after the first
# one.
_BEGINNING = re.compile(
    rb"(?:RIFF|RF64|RIFX).{4}WAVE|riff.{12}|\x00\x00\x00[\x08-\xff]ftyp|FLV\x01|caff\x00\x01\x00\x00desc|"
    rb"FORM.{4}AIF[FC]|\.snd\x00\x00|\x1aE\xdf\xa3|#!AMR(?:-WB)?\n|OggS\x00\x02|fLaC|"
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|RIFF.{4}AVI |TTA[12]\x01\x00|wvpk.{4}[\x02-\x10]\x04|"
    rb"Creative Voice File\x1a|MAC \xff|MPCK|MP\+[\x07\x17]|\.RMF\x00\x00|"
    rb"ID3[\x02-\x04]\x00[\x00-\xf0][\x00-\x7f]{4}",
    re.DOTALL,
)


def _beginning(patterns: Mapping[bytes, bytes]) -> Beginning:
    return Beginning(re.compile(b"|".join(patterns.values()), re.DOTALL), tuple(patterns))


# Containers at whose end FFmpeg continues to read: it takes a second container for damage, skips part of it,
# or decodes it with the parameters of the first.
_READ_ON = {
    b"#!AMR": _beginning({b"#!AMR": rb"#!AMR(?:-WB)?\n"}),
    b"caff": _beginning({b"caff": rb"caff\x00\x01\x00\x00desc"}),
    b".snd": _beginning({b".snd": rb"\.snd\x00\x00\x00[\x18-\xff]"}),
    b"ftyp": _beginning(_MP4),
    b"OggS": _beginning(_OGG | _ID3),
    b"\x1aE\xdf\xa3": _beginning(_MATROSKA),
    b"fLaC": _beginning(_FLAC),
    # Bare frames, with or without a tag before them.
    **dict.fromkeys(
        (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"\xff\xf9"), _beginning(_WAV | _MP4 | _OGG | _FLAC)
    ),
}

# Boxes of an MP4 file before its samples.
_BOXES = 20

# FFmpeg looks for the format of a file behind an ID3 tag only in the first megabyte.
_LONG_TAG = 512 * 1024


def first_container(file: Bytes) -> tuple[Bytes, dict[str, str]]:
    """The byte range of the first container in a file, and options for FFmpeg's demuxer."""
    head = file.at(0, 12)
    if (tag := id3_bytes(head)) > _LONG_TAG and tag < len(file):
        file = file.part(tag, len(file))
        head = file.at(0, 12)
    if head.startswith((b"RIFF", b"RF64")) and head[8:] == b"WAVE":
        return file.fixed(header_fixes(file)), {"ignore_length": "1"} if _says_too_little(file) else {}
    if head.startswith(b".snd\x00\x00"):
        file = file.fixed(header_fixes(file))
    for beginning, pattern in _READ_ON.items():
        if head.startswith(beginning) or head[4:].startswith(beginning):
            return file.until(pattern, _own_bytes(file, head)), {}
    return file, {}


def _own_bytes(file: Bytes, head: bytes) -> int:
    """Offset behind the part of a container that may contain the beginning of another one."""
    position = 0
    # Ogg: every stream begins with a page of its own, all at the start.
    while (page := file.at(position, 27 + 255)).startswith(b"OggS") and len(page) > 27 and page[5] & 2:
        position += 27 + page[26] + sum(page[27 : 27 + page[26]])
    # MP4: some recorders hide a first version of the file among the samples.
    if head[4:8] == b"ftyp":
        position = _end_of_samples(file)
    return max(position, 1)


def _end_of_samples(file: Bytes) -> int:
    """Offset behind the first box of samples in an MP4 file; 0 when its size is not known."""
    found = (position + size for name, position, size in boxes(file, _BOXES) if name == b"mdat")
    return next(found, 0)


def next_container(file: Bytes, before: Demuxer) -> Demuxer | None:
    """The container behind one that has been read to its end; ``None`` when there is no other.

    :param file: the whole file.
    :param before: the demuxer of the container before.
    """
    position = before.file.start - file.start + max(before.end, 1)
    if len(file) - position < _LEAST:
        return None
    if before.format in _BROADCAST:
        left = len(file) - position > _BROADCAST[before.format]
        return _opened(file, position, before.known) if left else None
    for number, found in enumerate(_found(file, _BEGINNING, position)):
        demuxer = _opened(file, found, None)
        if demuxer is not None:
            return demuxer
        if number == 8:
            break
    return None


def _opened(file: Bytes, position: int, known: frozenset[int] | None) -> Demuxer | None:
    try:
        part, options = first_container(file.part(position, len(file)))
        container = open_container(part, options)
    except AudioError:
        return None
    demuxer = Demuxer(part, container, known)
    if demuxer.streams:
        return demuxer
    container.close()
    return None


def _found(file: Bytes, pattern: re.Pattern[bytes], start: int) -> Iterator[int]:
    """Offsets of the matches of a pattern, in bytes."""
    done = start
    for position in range(start, min(start + _SEARCHED, len(file)), _STEP):
        for match in pattern.finditer(file.at(position, _STEP + _LONGEST_BEGINNING)):
            if position + match.start() >= done:
                done = position + match.start() + 1
                yield position + match.start()


def _says_too_little(file: Bytes) -> bool:
    """Whether samples follow behind the end that the header of a WAV file declares.

    This is so when the bytes there are neither another container nor a valid sequence of chunks.
    """
    data = wav_data(file)
    if data is None or len(file) - data[1] < _LEAST:
        return False
    position = data[1] + data[1] % 2
    if _BEGINNING.match(file.at(position, 16)) or _BEGINNING.match(file.at(data[1], 16)):
        return False
    while len(chunk := file.at(position, 8)) == 8:
        size = int.from_bytes(chunk[4:8], "little")
        if not re.fullmatch(rb"[\w ]{4}", chunk[:4]) or position + 8 + size > len(file) + 1:
            return True
        position += 8 + size + size % 2
    return False
