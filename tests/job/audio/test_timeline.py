"""Frames stand where their timestamps say, except where timestamps jump absurdly."""

from __future__ import annotations

import pytest

from whisper_spark.audio.timeline import Timeline


def end_after(times: list[float], longest: float = float("inf"), container: str = "matroska,webm") -> float:
    """End in seconds of frames of a tenth of a second with these timestamps."""
    timeline = Timeline(longest)
    timeline.start(0.0, 0.0, container)
    for time in times:
        timeline.end += timeline.gap_before(time)
        timeline.end += 0.1
    return timeline.end


@pytest.mark.parametrize(
    ("times", "end"),
    [
        ([0.0, 0.1, 0.2], 0.3),
        ([0.0, 0.13, 0.17, 0.32], 0.4),
        ([5.0, 5.1], 5.2),
        ([0.0, 30.0, 30.1], 30.2),
        ([0.0, 0.1, 90_000.0, 90_000.1], 0.4),
        ([0.0, 0.1, 90_000.0, 0.3, 0.4], 0.5),
        ([10.0, 10.1, 0.0, 0.1], 10.4),
        ([0.0, 0.0, 0.0], 0.3),
    ],
    ids=["in step", "jitter", "late", "gap", "splice", "one wrong time", "restart", "overlap"],
)
def test_clock_is_believed_unless_it_jumps(times: list[float], end: float) -> None:
    assert end_after(times) == pytest.approx(end)


def test_drift_is_bounded() -> None:
    """Timestamps over ten minutes that run 1 % slower than the samples."""
    assert end_after([0.101 * number for number in range(6000)]) == pytest.approx(606, abs=0.3)


def test_clock_of_a_broadcast_may_be_spliced_hours_ahead() -> None:
    assert end_after([0.0, 7200.0]) == pytest.approx(7200.1)
    assert end_after([0.0, 7200.0], container="mpegts") == pytest.approx(0.2)


def test_gap_beyond_the_longest_length_is_no_gap() -> None:
    assert end_after([0.0, 100.0], longest=50.0) == pytest.approx(0.2)
