"""Distributions of values over the rows of a run, counted batch by batch in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

    from whisper_spark.staging.result import RunResult

DURATION_EDGES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)
"""Bin edges in seconds of audio. Bins widen with duration, because collections hold both prompts of a second
and calls of hours."""

CONFIDENCE_EDGES = tuple(round(0.05 * step, 2) for step in range(21))
"""Bin edges of ``exp(avg_logprob)``, 0 to 1."""

ROUND_SECONDS = tuple(
    number * unit
    for unit, numbers in (
        (1.0, (1, 2, 5, 10, 20, 30)),
        (60.0, (1, 2, 5, 10, 20, 30)),
        (3600.0, (1, 2, 3, 6, 12, 24)),
    )
    for number in numbers
)
"""Lengths of a bin of time, and distances between the labels of its axis. Bins are at least a second long,
because the times of rows are not much more precise."""

# So few that a number fits on each bar.
_MOST_BINS = 16


@dataclass
class Histogram:
    """Counts of values between edges.

    :param edges: ascending edges. A value belongs to the last edge that does not exceed it.
    :param counts: one count for each edge; the last one includes all larger values.
    :param unknown: number of values that are not finite.
    """

    edges: Sequence[float]
    counts: list[int] = field(default_factory=list)
    unknown: int = 0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * len(self.edges)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count values; values below the first edge count in the first bin."""
        import numpy as np

        finite = values[np.isfinite(values)]
        self.unknown += len(values) - len(finite)
        places = np.searchsorted(np.asarray(self.edges), finite, side="right") - 1
        counted = np.bincount(np.maximum(places, 0), minlength=len(self.edges))
        self.counts = [old + int(new) for old, new in zip(self.counts, counted, strict=True)]


class Throughput:
    """Seconds of audio transcribed per second of wall time, over the duration of the transcription.

    The mean over time is the real-time factor of the job's result, where no row is an error.

    :param start, end: start and end of the transcription, UTC. Rows that were transcribed at other times, by
        earlier job runs or other runs, are ignored.
    """

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start = start
        self.seconds = max((end - start).total_seconds(), 1.0)
        longest = ROUND_SECONDS[-1]
        self.seconds_a_bin = next(
            (length for length in ROUND_SECONDS if self.seconds <= _MOST_BINS * length),
            longest * math.ceil(self.seconds / _MOST_BINS / longest),
        )
        self.bins = math.ceil(self.seconds / self.seconds_a_bin)
        self.audio_seconds = [0.0] * self.bins

    @classmethod
    def of(cls, result: RunResult | None) -> Throughput | None:
        """Create one for a job's result; ``None`` if there is no result or nothing was transcribed."""
        if result is None or not result.transcribed or not result.finished_at:
            return None
        if result.transcribe_started_at:
            start = datetime.fromisoformat(result.transcribe_started_at).astimezone(UTC)
            return cls(start, start + timedelta(seconds=result.transcribe_seconds))
        # Earlier releases told only the end of the job, rounded down to a second.
        end = datetime.fromisoformat(result.finished_at).astimezone(UTC) + timedelta(seconds=1)
        return cls(end - timedelta(seconds=result.wall_seconds + 1), end)

    def add(self, batch: pa.RecordBatch) -> None:
        """Add ``transcribed_at`` and ``duration_s`` of rows."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        start = pa.scalar(self.start, pa.timestamp("us", tz="UTC"))
        after = pc.microseconds_between(start, batch.column("transcribed_at"))
        seconds = pc.fill_null(after, -1).to_numpy(zero_copy_only=False) / 1e6
        audio = pc.fill_null(batch.column("duration_s"), 0.0).to_numpy(zero_copy_only=False)
        # A row may be dated a moment after the last task has ended, if the clock of its host is ahead.
        inside = (seconds >= 0) & (seconds < self.bins * self.seconds_a_bin) & np.isfinite(audio)
        place = np.floor(seconds / self.seconds_a_bin).astype(np.int64)
        sums = np.bincount(place[inside], audio[inside], minlength=self.bins)
        self.audio_seconds = [old + float(new) for old, new in zip(self.audio_seconds, sums, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return ``start`` (ISO 8601), ``seconds``, ``seconds_a_bin`` and ``real_time_factors``, one a bin.

        The last bin may be shorter than the others.
        """
        last = self.seconds - (self.bins - 1) * self.seconds_a_bin
        lengths = [self.seconds_a_bin] * (self.bins - 1) + [last]
        return {
            "start": self.start.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "seconds_a_bin": self.seconds_a_bin,
            "real_time_factors": [
                round(audio / length, 2) for audio, length in zip(self.audio_seconds, lengths, strict=True)
            ],
        }


class Distributions:
    """The distributions that the report plots."""

    def __init__(self, throughput: Throughput | None = None) -> None:
        self._duration = Histogram(DURATION_EDGES_S)
        self._confidence = Histogram(CONFIDENCE_EDGES)
        self._throughput = throughput

    def add(self, batch: pa.RecordBatch, ok: pa.RecordBatch, logprobs: npt.NDArray[Any]) -> None:
        """Add rows in the schema of ``contract.transcript_schema``.

        :param ok: the rows of ``batch`` that are transcripts.
        :param logprobs: average log probability of each row of ``ok``; NaN if it has no text.
        """
        import numpy as np

        duration = ok.column("duration_s").to_numpy(zero_copy_only=False)
        self._duration.add(duration.astype(np.float64))
        self._confidence.add(np.exp(np.minimum(logprobs, 0.0)))
        if self._throughput is not None:
            self._throughput.add(batch)

    def to_dict(self) -> dict[str, Any]:
        """Return ``duration_s`` and ``confidence`` as edges and counts, and ``throughput`` over time."""
        parts: dict[str, Any] = {
            name: {"edges": list(histogram.edges), "counts": histogram.counts, "unknown": histogram.unknown}
            for name, histogram in (("duration_s", self._duration), ("confidence", self._confidence))
        }
        if self._throughput is not None:
            parts["throughput"] = self._throughput.to_dict()
        return parts
