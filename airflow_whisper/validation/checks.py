"""Checks that staged transcripts must pass before they are published.

Plain functions and accumulators over Arrow record batches, without Airflow or object storage. An accumulator
processes one batch after the other and keeps only counts and a few examples, so ten million rows need no more
memory than ten thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.contract import QUALITY_FLAGS

if TYPE_CHECKING:
    import pyarrow as pa

MAX_OFFENDERS = 10
"""Maximum number of examples in a check. The count is always complete."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    :param offenders: at most :data:`MAX_OFFENDERS` examples, each a URI and its problem.
    """

    check: str
    expected: str
    found: str
    passed: bool
    offenders: tuple[str, ...] = ()


@dataclass
class Offences:
    """The number of violations of a rule, and the first examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count a violation, and keep the example if there is room."""
        self.count += 1
        if len(self.examples) < MAX_OFFENDERS:
            self.examples.append(example)

    def check(self, name: str, *, expected: str, found: str, when_none: str) -> Check:
        """Return the check, which passed if no violation was counted."""
        passed = self.count == 0
        return Check(name, expected, when_none if passed else found, passed, tuple(self.examples))


def check_staged_files(listed: Mapping[str, int] | str, present: Mapping[str, int | None]) -> Check:
    """Check that staging holds the files named in the job's result. Other files are ignored.

    :param listed: number of rows of each file in the job's result, or the reason why there is no result.
    :param present: number of rows of each of these files that exists; ``None`` for an unreadable file.
    """
    expected = "the files in result.json"
    if isinstance(listed, str):
        return Check("staged files", expected, listed, False)
    offences = Offences()
    for uri in sorted(listed):
        if uri not in present:
            offences.add(f"{uri}: missing")
        elif (found := present[uri]) != listed[uri]:
            rows = "unreadable" if found is None else count_text(found, "row")
            offences.add(f"{uri}: {rows}, expected {listed[uri]}")
    return offences.check(
        "staged files",
        expected=expected,
        found=f"{offences.count} differ",
        when_none=count_text(len(listed), "file"),
    )


def check_error_rate(
    *,
    rows: int,
    errors: int,
    unchanged: int = 0,
    unchanged_errors: int = 0,
    limit: float,
    examples: Sequence[str] = (),
) -> Check:
    """Check that at most a fraction ``limit`` of the partition will be errors after registration.

    Rows of the table that this run does not change are included. Otherwise one corrupt late file would be an
    error rate of 100 %, and a partition of thousands of files would never converge. A run without rows of its
    own only removes rows. It passes, so that old errors cannot prevent an erasure.

    :param rows, errors: number of rows and error rows staged by this run.
    :param unchanged, unchanged_errors: number of rows and error rows of the table that this run keeps.
    :param limit: largest allowed fraction, 0 to 1.
    :param examples: errors to name if there are too many.
    """
    total, failed = rows + unchanged, errors + unchanged_errors
    rate = failed / total if total else 0.0
    found = f"{_percent(rate)} ({failed} of {count_text(total, 'file')})"
    passed = rows == 0 or rate <= limit
    offenders = () if passed else tuple(examples[:MAX_OFFENDERS])
    return Check("error rate", f"at most {_percent(limit)}", found, passed, offenders)


def check_flags(flags: Mapping[str, int], rows: int, limits: Mapping[str, float]) -> list[Check]:
    """Check, for each flag in ``limits``, that at most this fraction of the run's ``rows`` has it."""
    checks = []
    for flag, limit in limits.items():
        share = flags.get(flag, 0) / rows if rows else 0.0
        expected = "no row" if limit == 0 else f"at most {_percent(limit)}"
        found = f"{_percent(share)} ({flags.get(flag, 0)} of {count_text(rows, 'file')})"
        checks.append(Check(f"flag {flag}", expected, found, share <= limit))
    return checks


def flag_limits(block_on: Sequence[str] | Mapping[str, float] | str) -> dict[str, float]:
    """Return the largest allowed fraction of rows for each blocking quality flag.

    :param block_on: flags that no row may have, or the largest fraction (0 to 1) for each flag.
    :raises ValueError: for an unknown flag, or a fraction outside 0 to 1.
    """
    if isinstance(block_on, str):
        raise ValueError(f"block_on must be a list of quality flags, or {{flag: share}}; got {block_on!r}")
    limits = dict(block_on) if isinstance(block_on, Mapping) else dict.fromkeys(block_on, 0.0)
    for flag, share in limits.items():
        if flag not in QUALITY_FLAGS:
            raise ValueError(f"block_on: unknown quality flag {flag!r}. Flags are {', '.join(QUALITY_FLAGS)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"block_on: the share of {flag!r} must be a number from 0 to 1, got {share!r}")
    return {flag: float(share) for flag, share in limits.items()}


class Completeness:
    """Checks that every manifest row has exactly one staged row, made from the same version of the audio.

    It inserts both sides into a temporary SQLite database, which sorts on disk.
    """

    def __init__(self) -> None:
        self._rows = {"manifest": 0, "staged": 0}
        tables = "CREATE TABLE seen (uri TEXT, etag TEXT, staged INTEGER)"
        self._database = ScratchDatabase("whisper-validate-", tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add_manifest(self, batch: pa.RecordBatch) -> None:
        """Add ``audio_uri`` and ``audio_etag`` of manifest rows."""
        self._add(batch, "manifest")

    def add_staged(self, batch: pa.RecordBatch) -> None:
        """Add ``audio_uri`` and ``audio_etag`` of staged rows."""
        self._add(batch, "staged")

    def _add(self, batch: pa.RecordBatch, side: str) -> None:
        staged = side == "staged"
        self._rows[side] += self._database.insert("seen", [batch], ("audio_uri", "audio_etag"), [staged])

    def result(self) -> Check:
        """Return the check. Closes the accumulator and frees its disk space."""
        kinds: Counter[str] = Counter()
        examples: list[str] = []
        for uri, listed, staged in self._differences():
            kind, detail = _difference(listed, staged)
            kinds[kind] += 1
            if len(examples) < MAX_OFFENDERS:
                examples.append(f"{uri}: {detail}")
        self._database.close()
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or count_text(
            self._rows["staged"], "row"
        )
        expected = f"one row for each of {count_text(self._rows['manifest'], 'file')}"
        return Check("completeness", expected, found, not kinds, tuple(examples))

    def _differences(self) -> Iterator[tuple[str, int, int]]:
        """Yield each wrong URI with its number of manifest rows and of staged rows."""
        return iter(
            self._database.execute(
                """
                SELECT uri, SUM(NOT staged) AS listed, SUM(staged) AS made
                FROM seen GROUP BY uri
                HAVING listed != 1 OR made != 1
                    OR MAX(CASE WHEN staged THEN etag END) IS NOT MAX(CASE WHEN NOT staged THEN etag END)
                """
            )
        )


def _difference(listed: int, staged: int) -> tuple[str, str]:
    if not listed:
        return "unexpected", "staged, but not in the manifest"
    if listed > 1:
        return "listed twice", f"{listed} times in the manifest"
    if not staged:
        return "missing", "in the manifest, but not staged"
    if staged > 1:
        return "duplicate", f"{staged} staged rows"
    return "of another version", "the staged row has another etag than the manifest"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def count_text(count: int, noun: str) -> str:
    """Format a number with its noun: ``1 row``, ``2 rows``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
