"""Computes the positions of the frames of a stream in the file, as a player shows them."""

from __future__ import annotations

# Seconds by which a timestamp may be off, because containers round and capture clocks jitter. A frame within
# this tolerance follows the one before it; one that is later follows a gap. DTX omits 0.4 s at a time.
_TOLERANCE = 0.2

# Timestamps that go back by more than this many seconds belong to another clock: joined files, wrap-around.
_BACKWARDS = 1.0

# The longest gap, in seconds, that counts as silence. In containers with their own timestamps a participant
# may be muted for hours; a broadcast stream that jumps by hours was spliced, or lost its clock.
_LONGEST_GAP = 12 * 3600.0
_LONGEST_GAP_IN_BROADCAST = 3600.0
_BROADCAST = frozenset({"mpegts", "mpeg", "flv", "live_flv", "kux", "asf", "rm"})


class Timeline:
    """Positions of the frames of one stream, in seconds from the start of the file.

    Frames never overlap: a frame whose timestamp lies before the end of the previous one follows it directly.

    :param longest: longest possible length of the stream; a gap that would exceed it is ignored.
    :ivar end: end of the last frame.
    :ivar skipped: sum of the timestamp jumps that did not count as gaps.
    """

    def __init__(self, longest: float = float("inf")) -> None:
        self.end = 0.0
        self.skipped = 0.0
        self._longest = longest
        self._longest_gap = _LONGEST_GAP
        self._zero: float | None = None
        self._start = 0.0

    def start(self, zero: float | None, at: float, container_format: str) -> None:
        """Start a container, to which the following frames belong.

        :param zero: timestamp of the start of the container; ``None``: that of its first frame.
        :param at: start of the container in the file.
        """
        self._start = at
        self._zero = None if zero is None else zero - at
        self._longest_gap = _LONGEST_GAP_IN_BROADCAST if container_format in _BROADCAST else _LONGEST_GAP

    def gap_before(self, time: float) -> float:
        """Seconds of silence to insert before a frame.

        :param time: timestamp of the frame, in seconds of the container's clock.
        """
        if self._zero is None:
            self._zero = time - self._start
        late = time - self._zero - self.end
        if late > _TOLERANCE and late <= self._longest_gap and self.end + late <= self._longest:
            return late
        if late > _TOLERANCE or late < -_BACKWARDS:
            self._zero += late
            self.skipped += late
        return 0.0
