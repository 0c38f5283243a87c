"""Distributions of values over the rows of a run, counted batch by batch in bounded memory."""

from __future__ import annotations

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

_TIME_BINS = 60


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
    """Seconds of audio transcribed per second of wall time, over the duration of the job.

    :param start, end: start and end of the job, UTC. Rows that were transcribed at other times, by earlier
        job runs or other runs, are ignored.
    """

    def __init__(self, start: datetime, end: datetime) -> None:
        self.start = start
        # Each bin is at least a second long, because the times of rows are not much more precise.
        self.bins = max(1, min(_TIME_BINS, int((end - start).total_seconds())))
        self.seconds_a_bin = max((end - start).total_seconds(), 1.0) / self.bins
        self.audio_seconds = [0.0] * self.bins

    @classmethod
    def of(cls, result: RunResult | None) -> Throughput | None:
        """Create one for a job's result; ``None`` if there is no result or nothing was transcribed."""
        if result is None or not result.transcribed or not result.finished_at:
            return None
        # The time in the result is rounded down to a second.
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
        place = np.floor(seconds / self.seconds_a_bin).astype(np.int64)
        inside = (place >= 0) & (place < self.bins) & np.isfinite(audio)
        sums = np.bincount(place[inside], audio[inside], minlength=self.bins)
        self.audio_seconds = [old + float(new) for old, new in zip(self.audio_seconds, sums, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return ``start`` (ISO 8601), ``seconds_a_bin`` and ``real_time_factors``, one for each bin."""
        return {
            "start": self.start.isoformat(timespec="seconds"),
            "seconds_a_bin": round(self.seconds_a_bin, 3),
            "real_time_factors": [round(audio / self.seconds_a_bin, 2) for audio in self.audio_seconds],
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
