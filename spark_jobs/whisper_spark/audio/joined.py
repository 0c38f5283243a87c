"""Files that hold more than their first container says: joined recordings, headers never completed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from whisper_spark.audio.container import AudioError, Bytes, open_container
from whisper_spark.audio.demuxer import Demuxer
from whisper_spark.audio.length import wav_data

# How containers begin, those that FFmpeg does not read on by itself when they follow each other.
_BEGINNING = re.compile(
    rb"(?:RIFF|RF64|RIFX).{4}WAVE|riff.{12}|\x00\x00\x00[\x08-\xff]ftyp|FLV\x01|caff\x00\x01\x00\x00desc|"
    rb"FORM.{4}AIF[FC]|\.snd\x00\x00|\x1aE\xdf\xa3|#!AMR(?:-WB)?\n|OggS\x00\x02|fLaC|"
    rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|RIFF.{4}AVI |TTA[12]\x01\x00|wvpk.{4}[\x02-\x10]\x04|"
    rb"Creative Voice File\x1a|MAC \xff|MPCK|MP\+[\x07\x17]|\.RMF\x00\x00",
    re.DOTALL,
)

# Broadcast streams begin anywhere. What may be left of the last packet, in bytes.
_BROADCAST = {"mpegts": 2 * 188, "mpeg": 16 * 1024}

# How much is searched for another container, and in which steps, in bytes.
_SEARCHED = 32 * 1024 * 1024
_STEP = 1024 * 1024
_LONGEST_BEGINNING = 24

# A remainder of fewer bytes holds no word.
_LEAST = 512

# Containers in which FFmpeg would read on, and take what follows for damage or skip some of it.
_READ_ON = {
    b"#!AMR": re.compile(rb"#!AMR(?:-WB)?\n"),
    b"caff": re.compile(rb"caff\x00\x01\x00\x00desc"),
    b".snd": re.compile(rb"\.snd\x00\x00\x00[\x18-\xff]"),
    b"ftyp": re.compile(rb"\x00\x00\x00[\x08-\xff]ftyp"),
}


def first_container(file: Bytes) -> tuple[Bytes, dict[str, str]]:
    """The bytes that FFmpeg is to see first, and options for its demuxer."""
    head = file.at(0, 12)
    if head.startswith((b"RIFF", b"RF64")) and head[8:] == b"WAVE":
        return file, {"ignore_length": "1"} if _says_too_little(file) else {}
    for beginning, pattern in _READ_ON.items():
        if head.startswith(beginning) or head[4:].startswith(beginning):
            return file.until(pattern), {}
    return file, {}


def next_container(file: Bytes, before: Demuxer) -> Demuxer | None:
    """What follows a container that has been read to its end.

    :param file: all of the file.
    :param before: reads a part of it.
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
    """Where a pattern matches, in bytes."""
    done = start
    for position in range(start, min(start + _SEARCHED, len(file)), _STEP):
        for match in pattern.finditer(file.at(position, _STEP + _LONGEST_BEGINNING)):
            if position + match.start() >= done:
                done = position + match.start() + 1
                yield position + match.start()


def _says_too_little(file: Bytes) -> bool:
    """Whether a WAV file goes on behind the end of its samples with what can only be samples."""
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
