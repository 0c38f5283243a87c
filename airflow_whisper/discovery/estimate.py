"""Estimate what a run will cost: hours of audio from the sizes of files, hours of GPU from earlier runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_whisper.discovery.headers import HEAD_BYTES, bytes_per_second
from whisper_spark.storage.objects import StorageError

if TYPE_CHECKING:
    from airflow_whisper.table.history import PastRuns
    from whisper_spark.storage.objects import ObjectStorage

HEADER_READS = 20
"""Largest number of files whose headers one run reads for its estimate; each is one small range request."""

_READS_AN_EXTENSION = 5

# Bytes of a second of recorded speech, by extension: least, typical, most. For extensions that neither the
# table nor headers tell about. From the bit rates that recorders and telephone systems offer: 8 kHz mu-law to
# 48 kHz stereo for PCM; 32 to 320 kbit/s for MP3; 16 to 96 kbit/s for Opus. Video counts with its pictures.
TYPICAL_BYTES_A_SECOND: dict[str, tuple[int, int, int]] = {
    "wav": (8_000, 32_000, 192_000),
    "aiff": (32_000, 96_000, 192_000),
    "flac": (8_000, 20_000, 100_000),
    "mp3": (4_000, 12_000, 40_000),
    "m4a": (4_000, 12_000, 32_000),
    "aac": (4_000, 12_000, 32_000),
    "ogg": (2_000, 8_000, 24_000),
    "oga": (2_000, 8_000, 24_000),
    "opus": (1_500, 4_000, 12_000),
    "wma": (4_000, 8_000, 24_000),
    "amr": (600, 1_600, 3_000),
    "gsm": (1_650, 1_650, 1_650),
    "webm": (4_000, 50_000, 400_000),
    "mp4": (12_000, 150_000, 800_000),
    "mkv": (12_000, 150_000, 800_000),
    "mov": (12_000, 150_000, 800_000),
}
_ANYTHING = (2_000, 12_000, 192_000)


class Work(NamedTuple):
    """The files with one extension that a run has to transcribe.

    :param extension: in lower case, without a dot; empty for extensions that are not in
        :data:`TYPICAL_BYTES_A_SECOND`.
    :param files: number of files.
    :param audio_bytes: their size in bytes.
    :param known_seconds: seconds of audio in files whose length a row of the table tells.
    :param unknown_bytes: size of the other files, in bytes.
    """

    extension: str
    files: int
    audio_bytes: int
    known_seconds: float
    unknown_bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run is expected to cost. Values are sums if it stands for several runs.

    :param files: files to transcribe.
    :param audio_bytes: their size in bytes.
    :param audio_hours: expected hours of audio.
    :param audio_hours_range: the least and the most that is plausible; both equal ``audio_hours`` where the
        table or headers tell the length of a second.
    :param based_on: where ``audio_hours`` comes from, in words.
    :param real_time_factor: seconds of audio per second of the Spark job, of earlier runs; ``None`` without.
    :param job_hours: expected duration of the Spark job, or jobs; ``None`` without earlier runs.
    :param task_hours: expected duration of its Spark tasks together; ``None`` without earlier runs.
    :param gpu_hours: expected hours in which tasks hold a GPU; ``None`` if earlier runs had none.
    :param runs: which earlier runs that is from, in words.
    """

    files: int = 0
    audio_bytes: int = 0
    audio_hours: float = 0.0
    audio_hours_range: tuple[float, float] = (0.0, 0.0)
    based_on: str = ""
    real_time_factor: float | None = None
    job_hours: float | None = None
    task_hours: float | None = None
    gpu_hours: float | None = None
    runs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the values for XCom: a dozen numbers and two texts."""
        values = dataclasses.asdict(self)
        values["audio_hours_range"] = list(self.audio_hours_range)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """The inverse of :meth:`to_dict`."""
        low, high = values["audio_hours_range"]
        return cls(**{**values, "audio_hours_range": (low, high)})

    def __str__(self) -> str:
        """Describe the estimate in two sentences, for the log."""
        low, high = self.audio_hours_range
        spread = f", {hours_text(low)} to {hours_text(high)}" if high > 1.05 * low else ""
        audio = f"{hours_text(self.audio_hours)} of audio{spread} (from {self.based_on})"
        if self.real_time_factor is None:
            return f"{audio}. {self.runs[:1].upper()}{self.runs[1:]}."
        return (
            f"{audio}. At {self.real_time_factor:.3g} times real time ({self.runs}) that takes "
            f"{hours_text(self.job_hours or 0.0)} and {self.cost_text()}."
        )

    def cost_text(self) -> str:
        """Return the hours of GPUs, or of Spark tasks where no GPU is known."""
        if self.gpu_hours is not None:
            return f"{self.gpu_hours:.2g} GPU hours"
        return f"{self.task_hours or 0.0:.2g} hours of Spark tasks"


def work_text(files: int, audio_bytes: int, expected: Estimate | None) -> str:
    """Describe the work of a run for the log: files, bytes, and what they are expected to cost."""
    size = f"{audio_bytes / 1e9:,.1f} GB" if audio_bytes >= 1e9 else f"{audio_bytes / 1e6:,.1f} MB"
    text = f"{files:,} files, {size}"
    return f"{text}; expected: {expected}" if expected and files else f"{text}."


def hours_text(hours: float) -> str:
    """Format a duration: ``3.4 h``, ``12 min`` or ``40 s``."""
    if hours >= 1:
        return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 2 else f"{hours * 3600:.0f} s"


def estimate(
    work: Sequence[Work],
    rates: Sequence[tuple[str, Mapping[str, float]]],
    past: PastRuns | None,
) -> Estimate:
    """Estimate the cost of a run.

    :param work: the files to transcribe, by extension.
    :param rates: sources of bytes per second by extension, best first, each with its description.
    :param past: the table's latest runs; ``None`` if none recorded its duration.
    """
    seconds = low = high = 0.0
    bases: dict[str, None] = {}
    for part in work:
        if part.known_seconds:
            bases["the rows of these files"] = None
        basis, (least, typical, most) = _rate(part.extension, rates)
        if part.unknown_bytes:
            bases[basis] = None
        seconds += part.known_seconds + part.unknown_bytes / typical
        low += part.known_seconds + part.unknown_bytes / most
        high += part.known_seconds + part.unknown_bytes / least
    audio = Estimate(
        files=sum(part.files for part in work),
        audio_bytes=sum(part.audio_bytes for part in work),
        audio_hours=round(seconds / 3600, 4),
        audio_hours_range=(round(low / 3600, 4), round(high / 3600, 4)),
        based_on=", ".join(bases) or "nothing",
        runs="no earlier run of this table recorded how long it took",
    )
    return _with_cost(audio, past) if past else audio


def _with_cost(audio: Estimate, past: PastRuns) -> Estimate:
    hours = audio.audio_hours
    return dataclasses.replace(
        audio,
        real_time_factor=round(past.real_time_factor, 2),
        job_hours=round(hours / past.real_time_factor, 4),
        task_hours=round(hours * past.task_seconds / past.audio_seconds, 4),
        gpu_hours=(
            None if past.gpu_seconds is None else round(hours * past.gpu_seconds / past.audio_seconds, 4)
        ),
        runs=str(past),
    )


def _rate(
    extension: str, rates: Sequence[tuple[str, Mapping[str, float]]]
) -> tuple[str, tuple[float, float, float]]:
    for basis, found in rates:
        if rate := found.get(extension):
            return basis, (rate, rate, rate)
    name = f".{extension}" if extension else "such files"
    return f"the typical size of {name}", TYPICAL_BYTES_A_SECOND.get(extension, _ANYTHING)


def header_rates(
    work: Iterable[Work], sample: Callable[[str, int], Iterable[tuple[str, int]]], storage: ObjectStorage
) -> dict[str, float]:
    """Read the headers of a few files of each extension: at most :data:`HEADER_READS` in total.

    :param work: the extensions to read.
    :param sample: returns URI and size of so many files with an extension.
    :return: bytes per second by extension, without extensions whose headers do not tell.
    """
    rates = {}
    left = HEADER_READS
    # Those with the most bytes first: they matter most, if there are more extensions than reads.
    for part in sorted(work, key=lambda part: -part.unknown_bytes):
        files = [*sample(part.extension, min(left, _READS_AN_EXTENSION))] if left else []
        left -= len(files)
        told = [(size, rate) for uri, size in files if (rate := _header_rate(uri, size, storage))]
        if told:
            rates[part.extension] = sum(size for size, _ in told) / sum(size / rate for size, rate in told)
    return rates


def _header_rate(uri: str, size: int, storage: ObjectStorage) -> float | None:
    try:
        with storage.open_ranges(uri) as file:
            return bytes_per_second(file.read(min(HEAD_BYTES, size)), size)
    except StorageError:
        # The job will tell which file cannot be read, and why.
        return None


def total(estimates: Sequence[Estimate]) -> Estimate:
    """Add up the estimates of several runs."""

    def added(name: str) -> float | None:
        values = [getattr(part, name) for part in estimates if part.files]
        known = [value for value in values if value is not None]
        return round(sum(known), 4) if len(known) == len(values) else None

    hours, job_hours = added("audio_hours") or 0.0, added("job_hours")
    return Estimate(
        files=sum(part.files for part in estimates),
        audio_bytes=sum(part.audio_bytes for part in estimates),
        audio_hours=hours,
        audio_hours_range=(
            round(sum(part.audio_hours_range[0] for part in estimates), 4),
            round(sum(part.audio_hours_range[1] for part in estimates), 4),
        ),
        based_on=", ".join(dict.fromkeys(part.based_on for part in estimates if part.files)) or "nothing",
        real_time_factor=round(hours / job_hours, 2) if job_hours else None,
        job_hours=job_hours,
        task_hours=added("task_hours"),
        gpu_hours=added("gpu_hours"),
        runs=", ".join(dict.fromkeys(part.runs for part in estimates if part.files)),
    )
