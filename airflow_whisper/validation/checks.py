"""What has to be true of staged transcripts before anyone may read them.

Plain functions and accumulators over Arrow record batches: no Airflow, no object storage. An accumulator is
fed one batch after the other and keeps counts and a few examples, so ten million rows need no more memory
than ten thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from airflow_whisper.scratch import ScratchDatabase
from whisper_spark.contract import ERROR_CODES, QUALITY_FLAGS, Run, partition_path, transcript_schema

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Bools = npt.NDArray[np.bool_]

MAX_OFFENDERS = 10
"""Examples that a check names. The count is always complete."""

TIME_TOLERANCE_S = 0.05
"""Seconds by which a time may pass the end of its file. Whisper's alignment moves in steps of 20 ms and times
are rounded, so the last word may end just behind the last sample."""


@dataclass(frozen=True)
class Check:
    """One rule and what became of it.

    :param offenders: at most :data:`MAX_OFFENDERS` examples, each a URI and what is wrong with it.
    """

    check: str
    expected: str
    found: str
    passed: bool
    offenders: tuple[str, ...] = ()


@dataclass
class Offences:
    """How often a rule was broken, and the first examples."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count, and keep the example if there is room."""
        self.count += 1
        if len(self.examples) < MAX_OFFENDERS:
            self.examples.append(example)

    def check(self, name: str, *, expected: str, found: str, when_none: str) -> Check:
        """The outcome: passed when nothing was counted."""
        passed = self.count == 0
        return Check(name, expected, when_none if passed else found, passed, tuple(self.examples))


def check_staged_files(listed: Mapping[str, int] | str, present: Mapping[str, int | None]) -> Check:
    """Staging holds the files that the job says it wrote. What else lies there is not asked about.

    :param listed: rows for each file in the job's result, or in words why there is no such result.
    :param present: rows for each of them that is there; ``None`` for a file that cannot be read.
    """
    expected = "the files in result.json"
    if isinstance(listed, str):
        return Check("staged files", expected, listed, False)
    offences = Offences()
    for uri in sorted(listed):
        if uri not in present:
            offences.add(f"{uri}: missing")
        elif (found := present[uri]) != listed[uri]:
            rows = "unreadable" if found is None else _count(found, "row")
            offences.add(f"{uri}: {rows}, expected {listed[uri]}")
    return offences.check(
        "staged files",
        expected=expected,
        found=f"{offences.count} differ",
        when_none=_count(len(listed), "file"),
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
    """Errors are at most ``limit`` of the partition as it will be once this run is registered.

    Rows that the table holds already and this run leaves alone count too. Otherwise one late file that is
    corrupt would be an error rate of 100 %, and would keep a partition of thousands from ever converging.
    A run without rows of its own only removes: it passes, so that old errors cannot stop an erasure.

    :param rows, errors: staged by this run.
    :param unchanged, unchanged_errors: in the table, and staying as they are.
    :param limit: 0 to 1.
    :param examples: errors to name when there are too many.
    """
    total, failed = rows + unchanged, errors + unchanged_errors
    rate = failed / total if total else 0.0
    found = f"{_percent(rate)} ({failed} of {_count(total, 'file')})"
    passed = rows == 0 or rate <= limit
    offenders = () if passed else tuple(examples[:MAX_OFFENDERS])
    return Check("error rate", f"at most {_percent(limit)}", found, passed, offenders)


def check_flags(flags: Mapping[str, int], rows: int, limits: Mapping[str, float]) -> list[Check]:
    """For each flag in ``limits``: at most that share of the ``rows`` of this run carries it."""
    checks = []
    for flag, limit in limits.items():
        share = flags.get(flag, 0) / rows if rows else 0.0
        expected = "no row" if limit == 0 else f"at most {_percent(limit)}"
        found = f"{_percent(share)} ({flags.get(flag, 0)} of {_count(rows, 'file')})"
        checks.append(Check(f"flag {flag}", expected, found, share <= limit))
    return checks


def flag_limits(block_on: Sequence[str] | Mapping[str, float] | str) -> dict[str, float]:
    """Largest allowed share of rows for each quality flag that blocks.

    :param block_on: flags of which no row may have any, or the largest share (0 to 1) for each.
    :raises ValueError: on a flag that does not exist, or a share outside 0 to 1.
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
    """Every row of the manifest has exactly one staged row, made from the same version of the audio.

    Both sides go into a temporary SQLite database, which sorts on disk what does not fit into memory.
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
        """Take ``audio_uri`` and ``audio_etag`` of manifest rows."""
        self._add(batch, "manifest")

    def add_staged(self, batch: pa.RecordBatch) -> None:
        """Take ``audio_uri`` and ``audio_etag`` of staged rows."""
        self._add(batch, "staged")

    def _add(self, batch: pa.RecordBatch, side: str) -> None:
        staged = side == "staged"
        self._rows[side] += self._database.insert("seen", [batch], ("audio_uri", "audio_etag"), [staged])

    def result(self) -> Check:
        """The outcome. Ends the accumulator and frees its disk space."""
        kinds: Counter[str] = Counter()
        examples: list[str] = []
        for uri, listed, staged in self._differences():
            kind, detail = _difference(listed, staged)
            kinds[kind] += 1
            if len(examples) < MAX_OFFENDERS:
                examples.append(f"{uri}: {detail}")
        self._database.close()
        found = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or _count(
            self._rows["staged"], "row"
        )
        expected = f"one row for each of {_count(self._rows['manifest'], 'file')}"
        return Check("completeness", expected, found, not kinds, tuple(examples))

    def _differences(self) -> Iterator[tuple[str, int, int]]:
        """URI, times in the manifest and times staged, of every URI where something is wrong."""
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


class RowChecks:
    """What has to be true of each staged row by itself.

    Feed it batches in the schema of ``contract.transcript_schema``; see :func:`schema_problem`.
    """

    def __init__(self, run: Run) -> None:
        self._partition = run.partition
        self._fingerprint = run.options.fingerprint()
        self._offences = {name: Offences() for name in ("partition", "fingerprint", "status", "times")}

    def add(self, batch: pa.RecordBatch) -> None:
        """Check the rows of one batch."""
        for name, problems in (
            ("partition", self._partition_problems(batch)),
            ("fingerprint", self._fingerprint_problems(batch)),
            ("status", _status_problems(batch)),
            ("times", _time_problems(batch)),
        ):
            self._note(name, batch, problems)

    def results(self) -> list[Check]:
        """The outcomes."""
        expected = {
            "partition": f"every row in {partition_path(self._partition)}",
            "fingerprint": f"every row made with options {self._fingerprint}",
            "status": "ok with a text, or error with a code",
            "times": "in order, inside the file",
        }
        return [
            offences.check(
                name, expected=expected[name], found=_count(offences.count, "row"), when_none="all rows"
            )
            for name, offences in self._offences.items()
        ]

    def _note(self, name: str, batch: pa.RecordBatch, problems: Mapping[str, Bools]) -> None:
        """Count rows, not problems: a row with three bad times is one row to look at."""
        import numpy as np

        if not batch.num_rows or not problems:
            return
        bad = np.flatnonzero(np.logical_or.reduce(list(problems.values())))
        offences = self._offences[name]
        named = bad[: MAX_OFFENDERS - len(offences.examples)].tolist()
        for row in named:
            what = "; ".join(problem for problem, rows in problems.items() if rows[row])
            offences.add(f"{batch.column('audio_uri')[row].as_py()}: {what}")
        offences.count += len(bad) - len(named)

    def _partition_problems(self, batch: pa.RecordBatch) -> dict[str, Bools]:
        return {
            f"{key} is not {value!r}": ~_equal(batch.column(key), value)
            for key, value in self._partition.items()
        }

    def _fingerprint_problems(self, batch: pa.RecordBatch) -> dict[str, Bools]:
        return {"made with other options": ~_equal(batch.column("fingerprint"), self._fingerprint)}


def schema_problem(schema: pa.Schema, partition_keys: Sequence[str]) -> str | None:
    """How a staged file's schema differs from the contract, in words; ``None`` when it does not."""
    expected = transcript_schema(partition_keys)
    if schema.equals(expected):
        return None
    for column in expected:
        if column.name not in schema.names:
            return f"column {column.name} is missing"
        found = schema.field(column.name)
        if found.type != column.type:
            return f"column {column.name} is {found.type}, expected {column.type}"
        if found.nullable != column.nullable:
            return f"column {column.name} must be declared {'nullable' if column.nullable else 'not null'}"
    extra = [name for name in schema.names if name not in expected.names]
    return f"unexpected columns {', '.join(extra)}" if extra else "columns are in another order"


def _status_problems(batch: pa.RecordBatch) -> dict[str, Bools]:
    """``status``, ``error_code``, ``text`` and ``quality_flags`` agree and use only documented values."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ok, error = _equal(batch.column("status"), "ok"), _equal(batch.column("status"), "error")
    code = batch.column("error_code")
    flags = batch.column("quality_flags")
    segments = pc.fill_null(pc.list_value_length(batch.column("segments")), 0)
    known_flag = _bools(pc.is_in(pc.list_flatten(flags), pa.array(list(QUALITY_FLAGS))))
    return {
        "status is neither ok nor error": ~(ok | error),
        "ok with an error code": ok & ~_bools(pc.is_null(code)),
        "ok without a text": ok & _bools(pc.is_null(batch.column("text"))),
        "error without a documented code": error & ~_bools(pc.is_in(code, pa.array(list(ERROR_CODES)))),
        "error with segments": error & _bools(pc.greater(segments, 0)),
        "unknown quality flag": _any_in_row(~known_flag, _parents(flags), batch.num_rows),
    }


def _time_problems(batch: pa.RecordBatch) -> dict[str, Bools]:
    """Times are seconds within the file and in order: segments within a channel, words within a segment."""
    import numpy as np
    import pyarrow.compute as pc

    rows = batch.num_rows
    ok = _equal(batch.column("status"), "ok")
    duration = _floats(batch.column("duration_s"))
    speech = _floats(batch.column("speech_s"), when_null=0.0)
    segments = batch.column("segments")
    row_of_segment = _parents(segments)
    segment = pc.list_flatten(segments)
    start, end = _floats(segment.field("start")), _floats(segment.field("end"))
    end_of_file = duration[row_of_segment]
    words = segment.field("words")
    segment_of_word = _parents(words)
    word = pc.list_flatten(words)
    word_start, word_end = _floats(word.field("start")), _floats(word.field("end"))
    row_of_word = row_of_segment[segment_of_word]
    channel = pc.fill_null(segment.field("channel"), -1).to_numpy(zero_copy_only=False)

    def in_rows(bad: Bools, row: npt.NDArray[np.int64]) -> Bools:
        return _any_in_row(bad, row, rows)

    # NaN fails every comparison, so each rule states what is right and is negated. A duration may be 0: it is
    # rounded to milliseconds, and a file may hold a single sample.
    return {
        "no duration": ok & ~(np.isfinite(duration) & (duration >= 0)),
        "negative speech_s": ok & ~(speech >= 0),
        "segment outside the file": in_rows(~_inside(start, end, end_of_file), row_of_segment),
        "segments out of order": in_rows(*_backwards(start, row_of_segment, channel)),
        "word outside the file": in_rows(~_inside(word_start, word_end, duration[row_of_word]), row_of_word),
        "words out of order": in_rows(*_backwards(word_start, row_of_word, segment_of_word)),
    }


def _inside(start: npt.NDArray[Any], end: npt.NDArray[Any], end_of_file: npt.NDArray[Any]) -> Bools:
    inside: Bools = (start >= 0) & (start <= end) & (end <= end_of_file + TIME_TOLERANCE_S)
    return inside


def _backwards(
    start: npt.NDArray[Any], row: npt.NDArray[Any], group: npt.NDArray[Any]
) -> tuple[Bools, npt.NDArray[np.int64]]:
    """Whether each step within a row's group goes back in time, and the row of each step."""
    import numpy as np

    order = np.lexsort((group, row))  # stable: inside a group, things stay as they come
    start, row, group = start[order], row[order], group[order]
    same = (row[1:] == row[:-1]) & (group[1:] == group[:-1])
    return same & ~(start[1:] >= start[:-1]), row[1:]


def _equal(column: pa.Array, value: str) -> Bools:
    import pyarrow.compute as pc

    return _bools(pc.fill_null(pc.equal(column, value), False))


def _bools(array: pa.Array) -> Bools:
    values: Bools = array.to_numpy(zero_copy_only=False).astype(bool)
    return values


def _floats(array: pa.Array, when_null: float = float("nan")) -> npt.NDArray[np.float64]:
    import pyarrow.compute as pc

    values: npt.NDArray[np.float64] = pc.fill_null(array, when_null).to_numpy(zero_copy_only=False)
    return values


def _parents(lists: pa.Array) -> npt.NDArray[np.int64]:
    import pyarrow.compute as pc

    parents: npt.NDArray[np.int64] = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    return parents


def _any_in_row(bad: Bools, row: npt.NDArray[np.int64], rows: int) -> Bools:
    import numpy as np

    found = np.zeros(rows, dtype=bool)
    found[row[bad]] = True
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
