"""Finds bytes that FFmpeg skips while it reads a file, and the audio that is lost with them."""

from __future__ import annotations

from typing import Any

from whisper_spark.audio.container import Bytes
from whisper_spark.audio.headers import id3_bytes

# FFmpeg's names of streams of frames without timestamps, and the largest frame of each in bytes. FFmpeg puts
# bytes that it skips into the next packet.
_BARE = {"mp3": 1800, "ac3": 4096, "eac3": 4096, "dts": 16_384}

_FRAMES = frozenset({*_BARE, "aac"})

# Bytes before the first frame that are no damage: headers of streams, and what servers send before them.
_PREAMBLE = 16 * 1024

# Containers in which all bytes between the packets belong to headers, so that other bytes are damage.
_TIMED = frozenset({"ogg", "matroska,webm", "flv", "live_flv", "asf", "asf_o", "mpeg", "mpegts"})

# Containers of which nothing follows behind the last packet.
_ENDS = _FRAMES | {"ogg", "flv"}

# Seconds after skipped bytes within which a gap in the timestamps is blamed on them: a page of Ogg has one
# timestamp for about a second of packets.
_RECENT = 5.0

# Bytes between packets that are not worth a look: headers of pages, clusters and tags.
_OVERHEAD = 512

# Share of the bytes of an average gap that must have been skipped, so that the gap counts as damage.
_SHARE = 0.3

# Seconds of audio at the end of a file that may be missing: the last frame of a recording is often cut.
_TAIL = 0.5

# Number of packets between two looks for skipped bytes in ADTS, whose packets do not tell their position.
_STEP = 16

# Length in bytes of a packet of a transport stream, with a time stamp or an error correction or without, and
# how many bytes to look at: eight packets.
_TRANSPORT = (188, 192, 204)
_PROBE = 8 * 204

# What each packet of a program stream begins with, and twice the bytes of the largest usual ones.
_START_CODE = b"\x00\x00\x01"
_PACK = 8192

_SEARCHED = 64 * 1024 * 1024
_BLOCK = 1024 * 1024


class Losses:
    """Watches the packets of all streams of a container.

    :param container_format: FFmpeg's name of the container format.
    :ivar seconds: audio that was skipped in a stream without timestamps. Later packets come so much later.
    :ivar damaged: whether audio was skipped.
    """

    def __init__(self, file: Bytes, container_format: str) -> None:
        self.seconds = 0.0
        self.damaged = False
        self._file = file
        self._format = container_format
        self._watches = container_format in _FRAMES | _TIMED
        self._largest = _BARE.get(container_format, 0)
        # End of the last packet, as far as the packets tell, and the number of bytes in packets.
        self._end = self._bytes = 0
        self._position: int | None = None
        self._packets = 0
        # Sizes of the ADTS packets behind it.
        self._sizes: list[int] = []
        # Length of the audio so far, in seconds, and where bytes were skipped, in seconds and bytes.
        self._length = 0.0
        self._skipped_at = float("-inf")
        self._skipped = 0.0
        # The last gap in the timestamps, in seconds, and where it was.
        self._gap_at = float("-inf")
        self._gap = 0.0

    @property
    def _rate(self) -> float:
        """Bytes per second so far; 0 when unknown."""
        return self._bytes / self._length if self._length else 0.0

    def see(self, packet: Any, seconds: float) -> None:
        """Look at the next packet of any stream.

        :param seconds: its duration if it belongs to the stream by which time is measured, else 0.
        """
        if not self._watches:
            return
        size = packet.size
        if not self._packets:
            self._begin(packet, seconds)
        if self._largest and size > self._largest:
            size = min(size, int(self._rate * seconds)) or self._largest
            self._lose(packet.pos or self._end, packet.size - size)
        elif self._format == "aac":
            self._sizes.append(size)
            if len(self._sizes) == _STEP:
                self._compare()
        elif not self._largest:
            self._follow(packet, size)
        self._packets += 1
        self._bytes += size
        self._length += min(seconds, 1.0)

    def explain(self, gap: float) -> None:
        """Take note of a gap in the timestamps, in seconds. It is damage if bytes were skipped near it."""
        self.damaged = self.damaged or self._format == "flac"
        self._gap, self._gap_at = gap, self._length
        self._judge()

    def finish(self, end: int) -> None:
        """Take note of the end of the last packet of the file, in bytes."""
        if self._format in _ENDS and self._rate:
            if self._sizes:
                self._compare()
            end = end if self._largest else self._end
            left = _before_tags(self._file) - _behind_tags(self._file, end)
            self.damaged = self.damaged or left > max(_TAIL * self._rate, _OVERHEAD)

    def _begin(self, packet: Any, seconds: float) -> None:
        """Notice bytes before the first frame, which are part of the recording if they are zero."""
        if self._format not in _FRAMES:
            return
        self._end = packet.pos or 0
        junk = self._end - _behind_tags(self._file, 0)
        if junk > _PREAMBLE:
            self.damaged = True
            if seconds and not any(self._file.at(packet.pos - junk // 2, _OVERHEAD)):
                self.seconds = junk / (packet.size / seconds)

    def _follow(self, packet: Any, size: int) -> None:
        """Notice bytes between this packet and the one before it."""
        position = packet.pos
        if self._format == "mpegts" and packet.is_corrupt:
            self._skip(float("inf"))
        # All packets of a page of Ogg have the position of the page. Some packets have none.
        if position is None or position == self._position:
            self._end += size
            return
        skipped = position - self._end
        # A transport stream has a header in each of its packets of 188 bytes.
        overhead = _OVERHEAD + (self._end - (self._position or 0)) // 16
        if self._position is not None and skipped > overhead and not self._is_filler(skipped):
            self._skip(skipped)
        self._position = position
        self._end = position + size

    def _is_filler(self, skipped: int) -> bool:
        """Whether the bytes between two packets are packets, of no stream or of one that comes later."""
        if self._format == "mpeg":
            half = self._file.at(self._end + skipped // 4, min(skipped // 2, _BLOCK))
            return skipped < _PACK or _START_CODE in half
        middle = self._end + skipped // 2
        return self._format == "mpegts" and _is_transport_stream(self._file.at(middle, _PROBE))

    def _skip(self, skipped: float) -> None:
        recent = self._skipped if self._length - self._skipped_at < _RECENT else 0.0
        self._skipped, self._skipped_at = recent + skipped, self._length
        self._judge()

    def _judge(self) -> None:
        """Whether the last gap and the last skipped bytes belong together."""
        near = self._gap > 0 and abs(self._gap_at - self._skipped_at) < _RECENT
        if near and self._skipped > _SHARE * self._rate * self._gap:
            self.damaged = True

    def _compare(self) -> None:
        """Look whether the last ADTS packets follow each other without other bytes between them."""
        sizes, self._sizes = self._sizes, []
        end = self._end + sum(sizes)
        if _is_adts_frame(self._file.at(end - sizes[-1], 6), sizes[-1]):
            self._end = end
            return
        for size in sizes:
            found = _adts_frame(self._file, self._end, size)
            if found is None:
                continue
            if found > self._end:
                self._lose(self._end, found - self._end)
            self._end = found + size

    def _lose(self, start: int, junk: int) -> None:
        end = min(start + junk, _before_tags(self._file))
        lost = max(end - _behind_tags(self._file, start), 0)
        seconds = lost / self._rate if self._rate else 0.0
        # A single frame that is lost is no damage.
        if seconds > 0.1 or (not self._rate and lost > _BLOCK):
            self.damaged = True
            self.seconds += seconds


def _behind_tags(file: Bytes, position: int) -> int:
    """Offset of the first byte behind the tags at a position: ID3, APE."""
    while True:
        head = file.at(position, 32)
        size = id3_bytes(head)
        if head.startswith(b"TAG"):
            size = 128
        elif head.startswith(b"APETAGEX"):
            # The size includes the footer, of 32 bytes, but not the header.
            size = 32 + int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 32
        if not size:
            return position
        position += size


def _before_tags(file: Bytes) -> int:
    """Offset of the first byte of the tags at the end of a file: ID3v1, Lyrics3, APE without a header."""
    end = len(file)
    if file.at(end - 128, 3) == b"TAG":
        end -= 128
    lyrics = file.at(end - 15, 15)
    if lyrics[6:] == b"LYRICS200" and lyrics[:6].isdigit():
        end -= 15 + int(lyrics[:6])
    footer = file.at(end - 32, 32)
    if footer.startswith(b"APETAGEX"):
        end -= int.from_bytes(footer[12:16], "little")
    return end


def _adts_frame(file: Bytes, position: int, size: int) -> int | None:
    """Offset of the first ADTS frame of a size in bytes at or behind a position."""
    if _is_adts_frame(file.at(position, 6), size):
        return position
    for start in range(position, min(position + _SEARCHED, len(file)), _BLOCK):
        block = file.at(start, _BLOCK + 6)
        at = block.find(b"\xff")
        while at >= 0:
            if _is_adts_frame(block[at : at + 6], size):
                return start + at
            at = block.find(b"\xff", at + 1)
    return None


def _is_adts_frame(head: bytes, size: int) -> bool:
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return False
    return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 == size


def _is_transport_stream(data: bytes) -> bool:
    """Whether bytes are packets of a transport stream, which begin with a fixed byte."""
    if len(data) < _PROBE:
        return True
    return any(
        all(data[at] == 0x47 for at in range(start, len(data), size))
        for size in _TRANSPORT
        for start in range(size)
    )
