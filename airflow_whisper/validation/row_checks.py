"""Checks of individual staged rows, and of the schema of a staged file.

They work on arrays instead of rows, because a run may have ten million rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_whisper.validation.checks import MAX_OFFENDERS, Check, Offences, count_text
from whisper_spark.contract import (
    ERROR_CODES,
    QUALITY_FLAGS,
    TIME_TOLERANCE_S,
    Run,
    earlier_transcript_schema,
    partition_path,
    transcript_schema,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Bools = npt.NDArray[np.bool_]


class RowChecks:
    """Accumulates the checks of individual staged rows.

    It takes batches in the schema of ``contract.transcript_schema``; see :func:`schema_problem`.
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
        """Return the checks."""
        expected = {
            "partition": f"every row in {partition_path(self._partition)}",
            "fingerprint": f"every row made with options {self._fingerprint}",
            "status": "ok with a text, or error with a code",
            "times": "in order, inside the file",
        }
        return [
            offences.check(
                name, expected=expected[name], found=count_text(offences.count, "row"), when_none="all rows"
            )
            for name, offences in self._offences.items()
        ]

    def _note(self, name: str, batch: pa.RecordBatch, problems: Mapping[str, Bools]) -> None:
        """Count each row with problems once, even if it has several."""
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
    """Describe how a staged file's schema differs from the contract; ``None`` if it does not.

    The schema of an earlier release is accepted: an upgrade may come between the job and its validation.
    """
    expected = transcript_schema(partition_keys)
    if schema.equals(expected) or schema.equals(earlier_transcript_schema(partition_keys)):
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
    """Find rows whose ``status``, ``error_code``, ``text`` and ``quality_flags`` contradict each other.

    Undocumented values count as problems, too.
    """
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
    """Find rows with times outside the file or out of order.

    Segments must be in order within a channel, words within a segment.
    """
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

    # NaN fails every comparison, so each rule states what is valid and is then negated. A duration may be 0,
    # because it is rounded to milliseconds, and a file may hold a single sample.
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

    # The sort is stable, so it keeps the order within a group.
    order = np.lexsort((group, row))
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
