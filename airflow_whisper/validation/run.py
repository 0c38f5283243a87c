"""Read what a run has staged, apply the checks, and write the report."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_whisper.validation.checks import (
    Check,
    Completeness,
    Offences,
    RowChecks,
    check_error_rate,
    check_flags,
    check_staged_files,
    flag_limits,
    schema_problem,
)
from airflow_whisper.validation.distributions import Distributions, Throughput
from whisper_spark.contract import QUALITY_FLAGS, Run, partition_path
from whisper_spark.staging.result import RunResult, StagingError, read_result

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    import pyarrow.parquet as pq

    from whisper_spark.storage.objects import ObjectStorage

MAX_WORST = 20
"""Rows that the report names as worth listening to, and error rows that it quotes."""

_BATCH_ROWS = 1024
_READ_AHEAD = 4
# Staged files on their way from object storage while one is checked: each takes at most 32 MiB of memory.

_OFFENDERS_IN_LOG = 3

_STAYING = ("unchanged", "kept_stale", "kept_removed")
# Counts of discovery: rows that the table holds and this run leaves alone.


@dataclass(frozen=True, kw_only=True)
class Report:
    """What validation found. Lies in staging as ``RUN/report.json``.

    :param passed: every check passed; the run may be registered.
    :param partition: canonical Hive form, ``dt=2026-11-01``.
    :param checked_at: ISO 8601, UTC.
    :param checks: the blocking checks.
    :param warnings: rows per quality flag.
    :param counts: ``files``, ``ok`` and ``errors``, and rows per error code (``error_codes``) and per
        language of the transcripts (``languages``). Of this run, not of the whole partition.
    :param totals: ``audio_seconds``, ``speech_seconds`` and ``audio_hours`` of this run.
    :param distributions: see :meth:`airflow_whisper.validation.distributions.Distributions.to_dict`.
    :param job: ``model``; and of the Spark job, when it left a result, ``transcribed``, ``resumed``,
        ``reused``, ``real_time_factor``, ``wall_seconds`` and ``engine_version``.
    :param worst: transcripts to listen to first: most quality flags, then lowest average log probability.
    :param errors: the first error rows, with code and message.
    """

    passed: bool
    table: str
    partition: str
    manifest_uri: str
    manifest_id: str
    fingerprint: str
    checked_at: str
    checks: tuple[Check, ...]
    warnings: Mapping[str, int]
    counts: Mapping[str, Any]
    totals: Mapping[str, float]
    distributions: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    worst: Sequence[Mapping[str, Any]] = ()
    errors: Sequence[Mapping[str, Any]] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The inverse of :meth:`to_json`.

        :raises ValueError: when the text is no report. Fields of later releases are ignored.
        """
        try:
            values = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            values = {key: value for key, value in values.items() if key in known}
            values["checks"] = tuple(
                Check(**{**check, "offenders": tuple(check["offenders"])}) for check in values["checks"]
            )
            return cls(**values)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no validation report: {error}") from error


def validate_run(
    run: Run,
    storage: ObjectStorage,
    *,
    max_error_rate: float,
    block_on: Sequence[str] | Mapping[str, float] = (),
) -> Report:
    """Check everything that a run has staged. Reads each staged file once, in bounded memory.

    A fault in what is staged makes a failed check, never an exception.

    :param max_error_rate: largest allowed share of error rows in the partition, 0 to 1.
    :param block_on: see :func:`airflow_whisper.validation.checks.flag_limits`.
    :raises ValueError: when ``block_on`` is wrong.
    :raises StorageError: when staging cannot be read.
    """
    limits = flag_limits(block_on)
    result = _job_result(run, storage)
    done = result if isinstance(result, RunResult) else None
    completeness, rows, summary, schema = Completeness(), RowChecks(run), Summary(done), Offences()
    manifest_rows = 0
    for batch in _manifest_batches(run, storage):
        completeness.add_manifest(batch)
        manifest_rows += batch.num_rows
    present: dict[str, int | None] = {}
    for uri, parquet in _staged_parquet(run, storage):
        if isinstance(parquet, str):
            schema.add(f"{uri}: {parquet}")
            present[uri] = None
            continue
        present[uri] = parquet.metadata.num_rows
        if problem := schema_problem(parquet.schema_arrow, tuple(run.partition)):
            schema.add(f"{uri}: {problem}")
            continue
        for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
            completeness.add_staged(batch)
            rows.add(batch)
            summary.add(batch)
    checks = (
        check_staged_files(_listed_files(result, manifest_rows), present),
        schema.check(
            "schema", expected="the transcript schema", found=f"{schema.count} differ", when_none="all files"
        ),
        completeness.result(),
        check_error_rate(
            rows=summary.files,
            errors=summary.errors,
            unchanged=sum(run.counts.get(kind, 0) for kind in _STAYING),
            unchanged_errors=run.counts.get("unchanged_errors", 0),
            limit=max_error_rate,
            examples=[f"{row['audio_uri']}: {row['error_code']}" for row in summary.first_errors],
        ),
        *rows.results(),
        *check_flags(summary.flags, summary.files, limits),
    )
    return Report(
        passed=all(check.passed for check in checks),
        table=run.table,
        partition=partition_path(run.partition),
        manifest_uri=run.manifest_uri,
        manifest_id=run.manifest_id,
        fingerprint=run.options.fingerprint(),
        checked_at=datetime.now(UTC).isoformat(timespec="seconds"),
        checks=checks,
        warnings={flag: summary.flags[flag] for flag in QUALITY_FLAGS if summary.flags[flag]},
        counts=summary.counts(),
        totals=summary.totals(),
        distributions=summary.distributions.to_dict(),
        job={"model": run.options.model, **_job_summary(done)},
        worst=summary.worst,
        errors=summary.first_errors,
    )


def write_report(report: Report, run: Run, storage: ObjectStorage) -> str:
    """Write ``RUN/report.html`` and ``RUN/report.json``, over earlier ones. Returns the URI of the JSON."""
    from airflow_whisper.report.page import report_page

    storage.write_bytes(run.report_page_uri, report_page(report).encode())
    storage.write_bytes(run.report_uri, report.to_json().encode())
    return run.report_uri


def check_table(checks: Sequence[Check]) -> str:
    """The checks as aligned text, for a log."""
    rows = [("check", "expected", "found", "first offenders")]
    for check in checks:
        offenders = list(check.offenders[:_OFFENDERS_IN_LOG])
        if len(check.offenders) > _OFFENDERS_IN_LOG:
            offenders.append("... more in the report")
        rows.append((check.check, check.expected, check.found, offenders[0] if offenders else ""))
        rows.extend(("", "", "", offender) for offender in offenders[1:])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        " | ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    rule = "-+-".join(["-" * width for width in [*widths, len("first offenders")]])
    return "\n".join([lines[0], rule, *lines[1:]])


class Summary:
    """Counts, totals and the most conspicuous rows, gathered batch by batch."""

    def __init__(self, result: RunResult | None = None) -> None:
        self.distributions = Distributions(Throughput.of(result))
        self.files = 0
        self.errors = 0
        self.error_codes: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.audio_seconds = 0.0
        self.speech_seconds = 0.0
        self.worst: list[dict[str, Any]] = []
        self.first_errors: list[dict[str, Any]] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows in the schema of ``contract.transcript_schema``."""
        import pyarrow.compute as pc

        ok = batch.filter(pc.equal(batch.column("status"), "ok"))
        errors = batch.filter(pc.equal(batch.column("status"), "error"))
        self.files += batch.num_rows
        self.errors += errors.num_rows
        self.error_codes.update(_value_counts(errors.column("error_code")))
        self.languages.update(_value_counts(ok.column("language")))
        self.flags.update(_value_counts(pc.list_flatten(batch.column("quality_flags"))))
        self.audio_seconds += _sum(batch.column("duration_s"))
        self.speech_seconds += _sum(batch.column("speech_s"))
        room = MAX_WORST - len(self.first_errors)
        quoted = errors.select(["audio_uri", "error_code", "error_message"]).slice(0, room)
        self.first_errors.extend(quoted.to_pylist())
        logprobs = _average_logprobs(ok)
        self.distributions.add(batch, ok, logprobs)
        self.worst = sorted([*self.worst, *_worst_rows(ok, logprobs)], key=_badness)[:MAX_WORST]

    def counts(self) -> dict[str, Any]:
        """Rows of this run, in all and by kind."""
        return {
            "files": self.files,
            "ok": self.files - self.errors,
            "errors": self.errors,
            "error_codes": dict(self.error_codes.most_common()),
            "languages": dict(self.languages.most_common()),
        }

    def totals(self) -> dict[str, float]:
        """Audio of this run."""
        return {
            "audio_seconds": round(self.audio_seconds, 3),
            "speech_seconds": round(self.speech_seconds, 3),
            "audio_hours": round(self.audio_seconds / 3600, 4),
        }


def _average_logprobs(ok: pa.RecordBatch) -> npt.NDArray[np.float64]:
    """Average log probability of each row, its segments weighted by their letters.

    NaN without a text, minus infinity for a text whose probability is no number.
    """
    import numpy as np
    import pyarrow.compute as pc

    segments = ok.column("segments")
    row = pc.list_parent_indices(segments).to_numpy(zero_copy_only=False)
    segment = pc.list_flatten(segments)
    logprob = pc.fill_null(segment.field("avg_logprob"), 0.0).to_numpy(zero_copy_only=False)
    letters = pc.fill_null(pc.utf8_length(segment.field("text")), 0).to_numpy(zero_copy_only=False)
    weight = np.bincount(row, letters, minlength=ok.num_rows)
    total = np.bincount(row, letters * logprob, minlength=ok.num_rows)
    average: npt.NDArray[np.float64] = np.full(ok.num_rows, math.nan)
    np.divide(total, weight, out=average, where=weight > 0)
    average[(weight > 0) & ~np.isfinite(average)] = -math.inf
    return average


def _worst_rows(ok: pa.RecordBatch, logprobs: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """The worst rows of a batch of transcripts. One without a text is bad only if there was speech."""
    columns = ok.select(["audio_uri", "language", "duration_s", "quality_flags", "text"]).to_pylist()
    rows = []
    for values, average in zip(columns, logprobs.tolist(), strict=True):
        flags = values["quality_flags"] or []
        if not math.isnan(average) or set(flags) - {"no_speech"}:
            values["avg_logprob"] = round(average, 4) if math.isfinite(average) else None
            values["quality_flags"] = flags
            values["text"] = (values["text"] or "")[:200]
            rows.append(values)
    return sorted(rows, key=_badness)[:MAX_WORST]


def _badness(row: Mapping[str, Any]) -> tuple[int, float]:
    return -len(row["quality_flags"]), row["avg_logprob"] or 0.0


def _value_counts(array: pa.Array) -> dict[str, int]:
    counts = array.drop_null().value_counts()
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def _sum(array: pa.Array) -> float:
    import numpy as np

    values = array.drop_null().to_numpy(zero_copy_only=False)
    return float(values[np.isfinite(values)].sum())


def _manifest_batches(run: Run, storage: ObjectStorage) -> Iterator[pa.RecordBatch]:
    from whisper_spark.storage.parquet import open_parquet

    with open_parquet(run.manifest_uri, storage) as manifest:
        yield from manifest.iter_batches(columns=["audio_uri", "audio_etag"])


def _job_result(run: Run, storage: ObjectStorage) -> RunResult | str | None:
    """What the job says it did, or in words why that is unreadable; ``None`` when there is nothing."""
    from whisper_spark.storage.objects import ObjectNotFound

    try:
        return read_result(run, storage)
    except ObjectNotFound:
        return None
    except StagingError as error:
        return str(error)


def _listed_files(result: RunResult | str | None, manifest_rows: int) -> dict[str, int] | str:
    """Rows for each file that the job says it wrote, or in words why that is not known."""
    if result is None:
        return "no result.json: the job has not finished" if manifest_rows else {}
    return result if isinstance(result, str) else {file.uri: file.rows for file in result.staged}


def _job_summary(result: RunResult | None) -> dict[str, Any]:
    names = ("transcribed", "resumed", "reused", "real_time_factor", "wall_seconds", "engine_version")
    return {name: getattr(result, name) for name in names} if result else {}


def _staged_parquet(run: Run, storage: ObjectStorage) -> Iterator[tuple[str, pq.ParquetFile | str]]:
    """Each file that lies among the staged rows, opened, or in words why it cannot be."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    uris = sorted(
        uri for batch in storage.list(run.rows_uri) for uri in batch.column("audio_uri").to_pylist()
    )
    for uri, file in _opened(uris, storage):
        with file:
            try:
                parquet = pq.ParquetFile(file)
            except pa.ArrowInvalid as error:
                yield uri, f"no Parquet file: {error}"
                continue
            yield uri, parquet


def _opened(uris: Sequence[str], storage: ObjectStorage) -> Iterator[tuple[str, BinaryIO]]:
    """The files in order, some read ahead: a run of ten million files leaves thousands of them."""
    ahead: deque[tuple[str, Future[BinaryIO]]] = deque()
    waiting = iter(uris)
    with ThreadPoolExecutor(_READ_AHEAD) as pool:
        try:
            while True:
                while len(ahead) < _READ_AHEAD and (uri := next(waiting, None)) is not None:
                    ahead.append((uri, pool.submit(storage.open, uri)))
                if not ahead:
                    return
                uri, future = ahead.popleft()
                yield uri, future.result()
        finally:
            for _, future in ahead:
                if not future.cancel() and future.exception() is None:
                    future.result().close()
