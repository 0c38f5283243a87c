"""What the table tells about its own past: speed of its latest runs, and bytes of a second of its audio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from airflow_whisper.table.commit import ancestors, summary_of
from airflow_whisper.table.read import read_data_file
from airflow_whisper.table.replace import FINGERPRINT

if TYPE_CHECKING:
    from pyiceberg.table import FileScanTask, Table

    from whisper_spark.staging.result import RunResult

MODEL = "whisper.model"
TRANSCRIBED_SECONDS = "whisper.transcribed-audio-seconds"
TRANSCRIBE_SECONDS = "whisper.transcribe-seconds"
TASK_SECONDS = "whisper.task-seconds"
GPU_SECONDS = "whisper.gpu-seconds"
REAL_TIME_FACTOR = "whisper.real-time-factor"
"""These are properties in the summary of a snapshot whose run transcribed something. The numbers are those of
the same fields of :class:`whisper_spark.staging.result.RunResult`."""

# Limits that keep the estimate cheap for tables of any size: snapshots looked at, runs that count, and data
# files read with the rows that one may hold.
_SNAPSHOTS = 500
_RUNS = 10
_FILES = 4
_ROWS_A_FILE = 500_000

# What tells the bytes of a second.
_COLUMNS = ("audio_uri", "audio_bytes", "status", "duration_s")


@dataclass(frozen=True, kw_only=True)
class PastRuns:
    """The cost of a table's latest runs, added up.

    :param runs: number of runs.
    :param audio_seconds: seconds of audio that their jobs transcribed.
    :param transcribe_seconds: wall time of these jobs, model loading included.
    :param task_seconds: duration of all Spark tasks together.
    :param gpu_seconds: seconds in which tasks held a GPU; ``None`` if a run had none.
    :param alike: what they have in common with the run in question: ``"options"``, ``"model"`` or nothing.
    """

    runs: int
    audio_seconds: float
    transcribe_seconds: float
    task_seconds: float
    gpu_seconds: float | None
    alike: str = ""

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio per second of wall time, of the whole cluster."""
        return self.audio_seconds / self.transcribe_seconds

    def __str__(self) -> str:
        """Describe which runs these are: ``last 10 runs with these options``."""
        which = {"options": " with these options", "model": " with this model"}.get(
            self.alike, ", with another model"
        )
        return f"last {self.runs} runs{which}" if self.runs > 1 else f"last run{which}"


def cost_properties(result: RunResult, model: str) -> dict[str, str]:
    """Return the cost of a run as snapshot properties; none if it transcribed nothing."""
    if not result.transcribed or result.transcribe_seconds <= 0:
        return {}
    properties = {
        MODEL: model,
        TRANSCRIBED_SECONDS: repr(result.transcribed_audio_seconds),
        TRANSCRIBE_SECONDS: repr(result.transcribe_seconds),
        TASK_SECONDS: repr(result.task_seconds),
        REAL_TIME_FACTOR: repr(result.real_time_factor or 0.0),
    }
    if result.gpu_seconds is not None:
        properties[GPU_SECONDS] = repr(result.gpu_seconds)
    return properties


def past_runs(table: Table, fingerprint: str, model: str) -> PastRuns | None:
    """Return the cost of the latest runs: with these options, else with this model, else of any.

    :return: ``None`` if no snapshot tells, because they are expired or of an earlier release.
    """
    summaries = [
        summary
        for snapshot in islice(ancestors(table), _SNAPSHOTS)
        if _number(summary := summary_of(snapshot), TRANSCRIBE_SECONDS) > 0
        and _number(summary, TRANSCRIBED_SECONDS) > 0
    ]
    for alike, key, value in (("options", FINGERPRINT, fingerprint), ("model", MODEL, model)):
        if chosen := [summary for summary in summaries if summary.get(key) == value]:
            return _added_up(chosen[:_RUNS], alike)
    return _added_up(summaries[:_RUNS], "") if summaries else None


def _added_up(summaries: list[Mapping[str, str]], alike: str) -> PastRuns:
    def added(key: str) -> float:
        return sum(_number(summary, key) for summary in summaries)

    return PastRuns(
        runs=len(summaries),
        audio_seconds=added(TRANSCRIBED_SECONDS),
        transcribe_seconds=added(TRANSCRIBE_SECONDS),
        task_seconds=added(TASK_SECONDS),
        gpu_seconds=added(GPU_SECONDS) if all(GPU_SECONDS in summary for summary in summaries) else None,
        alike=alike,
    )


def _number(summary: Mapping[str, str], key: str) -> float:
    try:
        return float(summary[key])
    except (KeyError, ValueError):
        return 0.0


def byte_rates(table: Table, source: str) -> dict[str, float]:
    """Return bytes per second of audio by extension, from the table's newest data files.

    :param source: only rows of audio below this URI count.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # The table may lack columns that runs do not need.
    if not {*_COLUMNS} <= {*table.schema().column_names}:
        return {}
    scan = table.scan(selected_fields=_COLUMNS)
    sizes: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for task in _newest_files(table):
        for batch in read_data_file(table, scan, task):
            rows = pa.table([batch.column(name) for name in _COLUMNS], names=list(_COLUMNS))
            rows = rows.filter(
                (pc.field("status") == "ok")
                & (pc.field("duration_s") > 0)
                & pc.starts_with(pc.field("audio_uri"), source)
            )
            names = pc.replace_substring_regex(rows["audio_uri"], r"^.*[./]", "")
            rows = rows.set_column(0, "extension", pc.utf8_lower(names))
            sums = rows.group_by("extension").aggregate([("audio_bytes", "sum"), ("duration_s", "sum")])
            for row in sums.to_pylist():
                sizes[row["extension"]] += row["audio_bytes_sum"] or 0
                seconds[row["extension"]] += row["duration_s_sum"] or 0
    return {extension: size / seconds[extension] for extension, size in sizes.items() if size}


def _newest_files(table: Table) -> Iterator[FileScanTask]:
    from pyiceberg.manifest import DataFileContent, ManifestContent
    from pyiceberg.table import FileScanTask

    snapshot = table.current_snapshot()
    manifests = snapshot.manifests(table.io) if snapshot else []
    newest = sorted(
        (m for m in manifests if m.content == ManifestContent.DATA),
        key=lambda manifest: -(manifest.sequence_number or 0),
    )
    left = _FILES
    # One manifest may hold only deleted entries, so look at a few.
    for manifest in newest[:_FILES]:
        entries = manifest.fetch_manifest_entry(table.io)
        for entry in sorted(entries, key=lambda entry: -(entry.sequence_number or 0)):
            file = entry.data_file
            if left and file.content == DataFileContent.DATA and file.record_count <= _ROWS_A_FILE:
                left -= 1
                yield FileScanTask(file)
