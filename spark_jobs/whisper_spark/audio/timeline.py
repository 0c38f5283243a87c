"""Where the samples of a stream belong: times as a player shows them."""

from __future__ import annotations

# Seconds that a timestamp may be off: containers round, capture clocks jitter. What is less stays where the
# samples before it end; what is more is a gap. DTX leaves out 0.4 s at a time.
_TOLERANCE = 0.2

# Seconds by which timestamps may go back before they count as another clock: joined files, wrap-around.
_BACKWARDS = 1.0

# The longest gap that is believed, in seconds. A participant may be muted for hours where the container has
# timestamps of its own; a broadcast stream that jumps by hours was spliced, or lost its clock.
_LONGEST_GAP = 12 * 3600.0
_LONGEST_GAP_IN_BROADCAST = 3600.0
_BROADCAST = frozenset({"mpegts", "mpeg", "flv", "live_flv", "kux", "asf", "rm"})


class Timeline:
    """Positions of the frames of one stream, in seconds from the start of the file.

    Frames never overlap: one that says so follows the one before it.

    :param longest: where the last sample may end; a gap that would reach further is no gap.
    :ivar end: where the last frame ends.
    :ivar skipped: how far the clock went in jumps that were not believed.
    """

    def __init__(self, longest: float = float("inf")) -> None:
        self.end = 0.0
        self.skipped = 0.0
        self._longest = longest
        self._longest_gap = _LONGEST_GAP
        self._zero: float | None = None
        self._start = 0.0

    def start(self, zero: float | None, at: float, container_format: str) -> None:
        """Frames of a container follow.

        :param zero: what its clock shows at its start; the time of the first frame when unknown.
        :param at: where in the file it starts.
        """
        self._start = at
        self._zero = None if zero is None else zero - at
        self._longest_gap = _LONGEST_GAP_IN_BROADCAST if container_format in _BROADCAST else _LONGEST_GAP

    def gap_before(self, time: float) -> float:
        """Seconds of silence that belong before a frame.

        :param time: of its first sample, in the container's clock.
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
