"""The validation report, as an object and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_whisper.validation.checks import Check
from whisper_spark.contract.text import visible

MAX_DAMAGED = 100
"""Maximum number of damaged files in the JSON, to keep reports small."""

_OFFENDERS_IN_LOG = 3
_LONGEST_OFFENDER = 2000


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of validation, written to staging as ``RUN/report.json``.

    :param passed: whether every check passed, so that the run may be registered.
    :param partition: canonical Hive form, ``dt=2026-11-01``.
    :param checked_at: ISO 8601, UTC.
    :param checks: the blocking checks.
    :param warnings: number of rows per quality flag.
    :param counts: ``files``, ``ok`` and ``errors``, and the number of rows per error code (``error_codes``)
        per language (``languages``) and per number of speakers (``speakers``), for this run only, not for the
        whole partition.
    :param totals: ``audio_seconds``, ``speech_seconds`` and ``audio_hours`` of this run.
    :param distributions: see :meth:`airflow_whisper.validation.distributions.Distributions.to_dict`.
    :param job: ``model``; and, if the Spark job wrote a result, its ``transcribed``, ``resumed``,
        ``reused``, ``real_time_factor``, ``transcribed_audio_seconds``, ``transcribe_seconds``,
        ``task_seconds``, ``gpu_seconds``, ``wall_seconds`` and ``engine_version``.
    :param worst: the transcripts to review first: those with most quality flags, then with the lowest average
        log probability.
    :param errors: the first error rows, with code and message.
    :param damaged: staged files that cannot be read or used. The job recreates them once they are deleted.
    :param rows_id: which rows were checked, see :attr:`whisper_spark.staging.result.RunResult.rows_id`; empty
        if the job had no usable result, and in reports of earlier releases.
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
    damaged: Sequence[str] = ()
    rows_id: str = ""

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> str:
        """Return all fields as one JSON object, with at most :data:`MAX_DAMAGED` damaged files."""
        values = dataclasses.asdict(self)
        values["damaged"] = values["damaged"][:MAX_DAMAGED]
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """Parse the output of :meth:`to_json`. Fields of later releases are ignored.

        :raises ValueError: if the text is not a report.
        """
        try:
            values = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            values = {key: value for key, value in values.items() if key in known}
            values["checks"] = tuple(
                Check(**{**check, "offenders": tuple(check["offenders"])}) for check in values["checks"]
            )
            report = cls(**values)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"this is no validation report: {error}") from error
        for name, kind in _KINDS.items():
            if not isinstance(getattr(report, name), kind):
                raise ValueError(f"this is no validation report: {name} is {getattr(report, name)!r:.80}")
        return report


_KINDS: dict[str, type | tuple[type, ...]] = {
    "passed": bool,
    **dict.fromkeys(("table", "partition", "manifest_uri", "manifest_id", "fingerprint"), str),
    **dict.fromkeys(("checked_at", "rows_id"), str),
    **dict.fromkeys(("warnings", "counts", "totals", "distributions", "job"), Mapping),
    **dict.fromkeys(("worst", "errors", "damaged"), (list, tuple)),
}


def check_table(checks: Sequence[Check]) -> str:
    """Format the checks as an aligned text table, for a log."""
    rows = [("check", "expected", "found", "first offenders")]
    for check in checks:
        offenders = list(check.offenders[:_OFFENDERS_IN_LOG])
        if len(check.offenders) > _OFFENDERS_IN_LOG:
            offenders.append("... more in the report")
        offenders = [visible(offender, limit=_LONGEST_OFFENDER) for offender in offenders]
        rows.append((check.check, check.expected, visible(check.found), offenders[0] if offenders else ""))
        rows.extend(("", "", "", offender) for offender in offenders[1:])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        " | ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    rule = "-+-".join(["-" * width for width in [*widths, len("first offenders")]])
    return "\n".join([lines[0], rule, *lines[1:]])
