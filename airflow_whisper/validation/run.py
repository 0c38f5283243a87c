"""Check everything that a run has staged, and build the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_whisper.validation.checks import (
    Check,
    Completeness,
    Offences,
    check_error_rate,
    check_flags,
    check_staged_files,
    flag_limits,
)
from airflow_whisper.validation.report import Report
from airflow_whisper.validation.row_checks import RowChecks
from airflow_whisper.validation.staged import (
    DamagedError,
    OpenedFile,
    at_place,
    job_result,
    manifest_batches,
    manifest_problem,
    opened_files,
)
from airflow_whisper.validation.summary import Summary
from whisper_spark.contract import QUALITY_FLAGS, STAYING, Run, partition_path
from whisper_spark.staging.result import RunResult

if TYPE_CHECKING:
    from whisper_spark.storage.objects import ObjectStorage


def validate_run(
    run: Run,
    storage: ObjectStorage,
    *,
    max_error_rate: float,
    block_on: Sequence[str] | Mapping[str, float] = (),
    manifest_uri: str | None = None,
) -> Report:
    """Check everything that a run has staged. Reads each file that the result names once, in bounded memory.

    Other files among the staged rows are ignored, because another job may be writing them. Faulty staged data
    fails a check, but never raises an exception.

    :param run: the run that the manifest describes.
    :param max_error_rate: largest allowed fraction of error rows in the partition, 0 to 1.
    :param block_on: see :func:`airflow_whisper.validation.checks.flag_limits`.
    :param manifest_uri: URI from which the manifest was read; ``None``: the URI that the manifest states.
    :raises ValueError: if ``block_on`` is wrong.
    :raises StorageError: if staging cannot be read.
    """
    limits = flag_limits(block_on)
    manifest_uri = manifest_uri or run.manifest_uri
    problem = manifest_problem(run, manifest_uri)
    run = at_place(run, manifest_uri)
    with Completeness() as completeness:
        findings = _read_staged(run, storage, completeness, problem)
        checks = _checks(run, findings, max_error_rate, limits)
    return _report(run, findings, checks)


@dataclass
class _Findings:
    """The data collected while reading everything once."""

    run: Run
    result: RunResult | str | None
    completeness: Completeness
    summary: Summary
    rows: RowChecks
    manifest: Offences = field(default_factory=Offences)
    manifest_rows: int = 0
    schema: Offences = field(default_factory=Offences)
    present: dict[str, int | None] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def done(self) -> RunResult | None:
        """The result of the job, if there is a usable one."""
        return self.result if isinstance(self.result, RunResult) else None


def _read_staged(
    run: Run, storage: ObjectStorage, completeness: Completeness, manifest_problem: str | None
) -> _Findings:
    result = job_result(run, storage)
    done = result if isinstance(result, RunResult) else None
    findings = _Findings(run, result, completeness, Summary(done), RowChecks(run))
    if manifest_problem:
        findings.manifest.add(manifest_problem)
    try:
        for batch in manifest_batches(run, storage):
            completeness.add_manifest(batch)
            findings.manifest_rows += batch.num_rows
    except DamagedError as error:
        findings.manifest.add(f"{run.manifest_uri} cannot be read: {error}")
    for file in opened_files(done.staged if done else (), run, storage):
        _read_file(file, findings)
    return findings


def _read_file(file: OpenedFile, findings: _Findings) -> None:
    if file.missing:
        return
    findings.present[file.uri] = file.rows
    problem = file.problem
    if problem is None:
        try:
            for batch in file.batches():
                findings.completeness.add_staged(batch)
                findings.rows.add(batch)
                findings.summary.add(batch)
        except DamagedError as error:
            problem = f"cannot be read: {error}"
            findings.present[file.uri] = None
    if problem is not None:
        findings.schema.add(f"{file.uri}: {problem}")
        findings.damaged.append(file.uri)


def _checks(
    run: Run, findings: _Findings, max_error_rate: float, limits: Mapping[str, float]
) -> tuple[Check, ...]:
    summary = findings.summary
    return (
        findings.manifest.check(
            "manifest",
            expected="what DiscoverAudioOperator wrote here",
            found="something else: clear the discover task",
            when_none="as written",
        ),
        check_staged_files(_listed_files(findings.result, findings.manifest_rows), findings.present),
        findings.schema.check(
            "schema",
            expected="the transcript schema",
            found=f"{findings.schema.count} differ",
            when_none="all files",
        ),
        findings.completeness.result(),
        check_error_rate(
            rows=summary.files,
            errors=summary.errors,
            unchanged=sum(run.counts.get(kind, 0) for kind in STAYING),
            unchanged_errors=run.counts.get("unchanged_errors", 0),
            limit=max_error_rate,
            examples=[f"{row['audio_uri']}: {row['error_code']}" for row in summary.first_errors],
        ),
        *findings.rows.results(),
        *check_flags(summary.flags, summary.files, limits),
    )


def _report(run: Run, findings: _Findings, checks: tuple[Check, ...]) -> Report:
    summary = findings.summary
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
        job={"model": run.options.model, **_job_summary(findings.done)},
        worst=summary.worst,
        errors=summary.first_errors,
        damaged=tuple(findings.damaged),
        rows_id=findings.done.rows_id if findings.done else "",
    )


def _listed_files(result: RunResult | str | None, manifest_rows: int) -> dict[str, int] | str:
    """Number of rows of each file in the job's result, or the reason why there is no usable result."""
    if result is None:
        return "no result.json: the job has not finished" if manifest_rows else {}
    return result if isinstance(result, str) else {file.uri: file.rows for file in result.staged}


def _job_summary(result: RunResult | None) -> dict[str, Any]:
    names = (
        "transcribed",
        "resumed",
        "reused",
        "real_time_factor",
        "transcribed_audio_seconds",
        "transcribe_seconds",
        "task_seconds",
        "gpu_seconds",
        "wall_seconds",
        "engine_version",
    )
    return {name: getattr(result, name) for name in names} if result else {}
