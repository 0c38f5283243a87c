"""The length that a file declares, and whether that length is exact or an estimate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import av

from whisper_spark.audio.container import Bytes
from whisper_spark.audio.headers import MOST_CHUNKS, id3_bytes, wav_chunks

# Seconds that may be missing although the declared length is exact: MP3 and AAC include the encoder's
# padding.
_EXACT = 0.5

# Seconds, and share of the length, that may be missing when the declared length is rounded or that of all
# streams.
_ROUGH = (1.0, 0.02)

# FFmpeg's names of containers that declare an exact length for each stream.
_EXACT_FORMATS = frozenset(
    "wav w64 aiff au caf flac tta wv ape tak mpc mpc8 mov,mp4,m4a,3gp,3g2,mj2 dsf iff shn voc".split()
)

# Containers whose length FFmpeg estimates from the bit rate, or derives from the data that is present.
_ESTIMATED_FORMATS = frozenset(
    "aac ac3 ac4 eac3 amr amrnb amrwb dts dtshd truehd mlp loas mpegts mpeg ogg gsm g722 g723_1 g726 g726le "
    "g728 g729 ilbc sbc aptx aptx_hd codec2 adx adp qcp nsv pva".split()
)

# Lowest plausible bit rate, in bytes per second. A declared length that would need less is not trusted: the
# file is decoded before it is refused as too long.
_LEAST_BYTES_PER_SECOND = 250

# GUIDs of the ASF header and of the object in it that declares the file size.
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

_XING = re.compile(rb"Xing|Info|VBRI")


@dataclass(frozen=True, slots=True)
class Length:
    """The length that a container declares for a stream.

    :param seconds: end of the stream, in seconds from the start of the file; ``None`` when unknown.
    :param slack: seconds by which the stream may be shorter; ``None`` when the length is an estimate.
    :param plausible: whether the file is large enough for this length.
    :param cut_short: whether the file is smaller than its header declares.
    """

    seconds: float | None
    slack: float | None
    plausible: bool = False
    cut_short: bool = False

    def missed_by(self, end: float) -> bool:
        """Whether a stream that ends at ``end``, in seconds, is shorter than declared."""
        if self.seconds is None or self.slack is None:
            return self.cut_short
        return self.cut_short or end < self.seconds - self.slack


def declared_length(file: Bytes, container: Any, stream: Any) -> Length:
    """The length that an open container declares for one of its streams."""
    name = container.format.name
    zero = (container.start_time or 0) / av.time_base
    start, length = 0.0, None
    if stream.duration and stream.time_base:
        length = float(stream.duration * stream.time_base)
        start = float((stream.start_time or 0) * stream.time_base) - zero
    elif container.duration:
        length = container.duration / av.time_base
    # The length of an Ogg stream is the timestamp of its last page.
    if name == "ogg" and length is not None:
        start = -zero
    if name == "matroska,webm":
        length, start = _matroska_length(file, container, stream), -zero
    cut_short = _promised_bytes(file) > len(file)
    if length is None:
        return Length(None, None, False, cut_short)
    seconds = start + length
    # ASF declares one length, which FFmpeg takes for that of each stream.
    of_all = (not stream.duration or name in ("asf", "asf_o")) and len(container.streams) > 1
    if name in _ESTIMATED_FORMATS or of_all or not _is_exact(name, file, length, stream.rate):
        return Length(seconds, None, False, cut_short)
    slack = _EXACT if name in _EXACT_FORMATS or name == "mp3" else max(_ROUGH[0], _ROUGH[1] * seconds)
    return Length(seconds, slack, len(file) > seconds * _LEAST_BYTES_PER_SECOND, cut_short)


def _is_exact(name: str, file: Bytes, length: float, rate: int) -> bool:
    """Whether the length is exact, in formats whose headers may or may not contain one.

    :param length: the length in seconds.
    :param rate: sample rate in Hz.
    """
    if name == "mp3":
        return _is_length_of_mp3(file, length, rate)
    if name == "flac":
        head = file.at(id3_bytes(file.at(0, 10)), 26)
        return head[:4] == b"fLaC" and int.from_bytes(head[21:26], "big") & 0xF_FFFF_FFFF > 0
    return True


def _is_length_of_mp3(file: Bytes, length: float, rate: int) -> bool:
    """Whether the header of an MP3 file tells its length. FFmpeg estimates that of concatenated files."""
    head = file.at(id3_bytes(file.at(0, 10)), 4096)
    found = _XING.search(head)
    if found is None or not rate:
        return False
    if found.group() == b"VBRI":
        frames = int.from_bytes(head[found.start() + 14 : found.start() + 18], "big")
    elif any(head[found.end() + 3 : found.end() + 4]) and head[found.end() + 3] & 1:
        frames = int.from_bytes(head[found.end() + 4 : found.end() + 8], "big")
    else:
        return False
    samples = 1152 if rate >= 32_000 else 576
    return abs(frames * samples / rate - length) < max(1.0, 0.01 * length)


def _matroska_length(file: Bytes, container: Any, stream: Any) -> float | None:
    """End of a stream by its ``DURATION`` tag; without one, the length of the file if it has only this
    stream.

    The length of a file with several streams may be that of its video.
    """
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:
        hours, minutes, seconds = tag.groups()
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    # Without the element Duration (0x4489), FFmpeg estimates the length.
    if len(container.streams) == 1 and b"\x44\x89" in file.at(0, 4096) and container.duration:
        return float(container.duration / av.time_base)
    return None


def _promised_bytes(file: Bytes) -> int:
    """File size that the header declares, in bytes; 0 when it declares none.

    FFmpeg derives the length of such files from their actual size.
    """
    head = file.at(0, 16)
    if head.startswith(b"caff"):
        return _data_end(file, 8, 4, "big", 0)
    if head.startswith(b"riff\x2e\x91\xcf\x11"):
        return _data_end(file, 40, 16, "little", 24)
    if head.startswith(_ASF_HEADER):
        return _asf_bytes(file.at(0, 4096))
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size < 0x7FFF_0000 else 0
    data = wav_data(file)
    return data[1] if data else 0


def _asf_bytes(head: bytes) -> int:
    """File size in the file properties of ASF; 0 for a broadcast."""
    at = head.find(_ASF_PROPERTIES) + len(_ASF_PROPERTIES)
    properties = head[at : at + 76]
    if at < len(_ASF_PROPERTIES) or len(properties) < 76 or properties[72] & 1:
        return 0
    return int.from_bytes(properties[24:32], "little")


def _data_end(file: Bytes, position: int, name: int, order: Literal["little", "big"], header: int) -> int:
    """End of the chunk "data", in containers whose chunks have lengths of 64 bits; 0 when it is not known.

    :param position: offset of the first chunk.
    :param name: size of the name of a chunk, in bytes.
    :param header: size of the name and length of a chunk, if its length includes them, else 0. Chunks that
        include them are aligned to 8 bytes.
    """
    for _ in range(MOST_CHUNKS):
        if len(chunk := file.at(position, name + 8)) < name + 8:
            break
        size = int.from_bytes(chunk[name:], order)
        if chunk.startswith(b"data"):
            return 0 if size >= 1 << 62 else position + (0 if header else name + 8) + size
        position += -(-max(size, header) // 8) * 8 if header else name + 8 + size
    return 0


def wav_data(file: Bytes) -> tuple[int, int] | None:
    """Start and end of the samples of a WAV file by its header, as byte offsets; the end is exclusive.

    ``None`` when the header declares no size: recorders that do not update it leave 0, or a placeholder of
    almost 2 or 4 GiB.
    """
    head = file.at(0, 12)
    if not head.startswith((b"RIFF", b"RF64")) or head[8:] != b"WAVE":
        return None
    long = 0
    for position, chunk in wav_chunks(file):
        size = int.from_bytes(chunk[4:8], "little")
        if chunk[:4] == b"ds64":
            long = int.from_bytes(chunk[16:24], "little")
        if chunk[:4] == b"data":
            size = long if size == 0xFFFF_FFFF else size if size < 0x7FFF_0000 else 0
            return (position + 8, position + 8 + size) if size else None
    return None
