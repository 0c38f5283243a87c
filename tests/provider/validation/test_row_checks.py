"""Checks of single staged rows, and of the schema of a file."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from airflow_whisper.validation.checks import (
    MAX_OFFENDERS,
    Check,
)
from airflow_whisper.validation.row_checks import RowChecks, schema_problem
from whisper_spark.contract import (
    ERROR_CODES,
    TIME_TOLERANCE_S,
    Run,
    Segment,
    Transcript,
    WhisperOptions,
    Word,
    earlier_transcript_schema,
    transcript_schema,
)

PARTITION = {"dt": "2026-11-01", "hour": "13"}
OPTIONS = WhisperOptions(model="base")
RUN = Run(
    table="speech.transcripts",
    partition=PARTITION,
    source="s3://calls/raw/",
    options=OPTIONS,
    run_uri="s3://calls/staging/run",
    manifest_id="0" * 32,
)


def segment(
    start: float = 0.0, end: float = 2.0, *, channel: int | None = None, words: Any = None
) -> Segment:
    return Segment(0, channel, start, end, "Hello there.", "en", -0.3, 1.0, 0.01, words)


def transcript(uri: str = "s3://calls/raw/a.wav", **values: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "audio_uri": uri,
        "audio_etag": "e1",
        "language": "en",
        "duration_s": 10.0,
        "speech_s": 4.0,
        "text": "Hello there.",
        "segments": (segment(),),
        "fingerprint": OPTIONS.fingerprint(),
    }
    return {**Transcript(**(defaults | values)).to_row(), **PARTITION}


def error(uri: str = "s3://calls/raw/b.wav", **values: Any) -> dict[str, Any]:
    defaults = {"status": "error", "error_code": "corrupt", "text": None, "segments": (), "duration_s": None}
    return transcript(uri, **(defaults | values))


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=transcript_schema(PARTITION))


def row_check(name: str, *rows: dict[str, Any]) -> Check:
    checks = RowChecks(RUN)
    checks.add(batch(*rows))
    return next(check for check in checks.results() if check.check == name)


# --- schema --------------------------------------------------------------------------------------------


def test_schema_of_the_contract_passes() -> None:
    assert schema_problem(transcript_schema(PARTITION), tuple(PARTITION)) is None


def test_schema_of_an_earlier_release_passes() -> None:
    earlier = earlier_transcript_schema(PARTITION)
    assert not earlier.equals(transcript_schema(PARTITION))
    assert schema_problem(earlier, tuple(PARTITION)) is None


def test_wrong_schema_is_described() -> None:
    schema = transcript_schema(PARTITION)
    at = schema.get_field_index("duration_s")

    def problem(changed: pa.Schema) -> str | None:
        return schema_problem(changed, tuple(PARTITION))

    assert problem(schema.remove(at)) == "column duration_s is missing"
    assert problem(schema.set(at, pa.field("duration_s", pa.float32()))) == (
        "column duration_s is float, expected double"
    )
    assert (
        problem(schema.set(0, pa.field("audio_uri", pa.string())))
        == "column audio_uri must be declared not null"
    )
    assert problem(schema.append(pa.field("more", pa.string()))) == "unexpected columns more"
    assert problem(schema.remove(at).append(schema.field(at))) == "columns are in another order"
    assert problem(transcript_schema(["dt"])) == "column hour is missing"


# --- rows ----------------------------------------------------------------------------------------------


def test_right_rows_pass_every_check() -> None:
    words = (Word(0.0, 0.5, " Hello", 0.9), Word(0.5, 2.0, " there.", 0.8))
    checks = RowChecks(RUN)
    checks.add(
        batch(
            transcript("a"),
            transcript("silence", text="", segments=(), speech_s=0.0, quality_flags=("no_speech",)),
            transcript("words", segments=(segment(words=words), segment(2.0, 3.0, words=()))),
            transcript(
                "call",
                channels=2,
                segments=(segment(0, 4, channel=0), segment(1, 2, channel=1), segment(4, 5, channel=0)),
            ),
            transcript("last word", segments=(segment(9.0, 10.0 + TIME_TOLERANCE_S),)),
            *(error(code, error_code=code) for code in ERROR_CODES),
        )
    )
    assert [(c.check, c.passed, c.found) for c in checks.results()] == [
        (name, True, "all rows") for name in ("partition", "fingerprint", "status", "times")
    ]


def test_row_of_another_partition_is_named() -> None:
    check = row_check("partition", transcript("a"), transcript("b") | {"hour": "14"})
    assert (check.passed, check.found) == (False, "1 row")
    assert check.offenders == ("b: hour is not '13'",)


@pytest.mark.parametrize("fingerprint", ["deadbeefdeadbeef", ""])
def test_row_made_with_other_options_is_named(fingerprint: str) -> None:
    check = row_check("fingerprint", transcript("a"), transcript("b", fingerprint=fingerprint))
    assert check.offenders == ("b: made with other options",)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (transcript("x", status="done"), "status is neither ok nor error"),
        (transcript("x", error_code="corrupt"), "ok with an error code"),
        (transcript("x", text=None), "ok without a text"),
        (error("x", error_code=None), "error without a documented code"),
        (error("x", error_code="oops"), "error without a documented code"),
        (error("x", segments=(segment(),)), "error with segments"),
        (transcript("x", quality_flags=("no_speech", "strange")), "unknown quality flag"),
    ],
)
def test_contradictory_status_is_named(row: dict[str, Any], problem: str) -> None:
    check = row_check("status", transcript("a"), row, error("b"))
    assert (check.passed, check.offenders) == (False, (f"x: {problem}",))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"duration_s": None, "segments": ()}, "no duration"),
        ({"duration_s": -1.0, "segments": ()}, "no duration"),
        ({"duration_s": math.inf}, "no duration"),
        ({"speech_s": -1.0}, "negative speech_s"),
        ({"segments": (segment(-0.1, 1.0),)}, "segment outside the file"),
        ({"segments": (segment(2.0, 1.0),)}, "segment outside the file"),
        ({"segments": (segment(9.0, 10.2),)}, "segment outside the file"),
        ({"segments": (segment(math.nan, 1.0),)}, "segment outside the file"),
        ({"segments": (segment(2.0, 3.0), segment(1.0, 2.0))}, "segments out of order"),
        (
            {"segments": (segment(2, 3, channel=0), segment(0, 1, channel=1), segment(1, 2, channel=0))},
            "segments out of order",
        ),
        ({"segments": (segment(words=(Word(1.0, 11.0, " Hello", 0.9),)),)}, "word outside the file"),
        ({"segments": (segment(words=(Word(1.0, 0.5, " Hello", 0.9),)),)}, "word outside the file"),
        (
            {"segments": (segment(words=(Word(1.0, 1.5, " Hello", 0.9), Word(0.5, 1.0, " there", 0.9))),)},
            "words out of order",
        ),
    ],
)
def test_impossible_times_are_named(values: dict[str, Any], problem: str) -> None:
    # Neighbours with segments and words of their own: positions in the flat arrays must find their rows.
    words = (Word(0.0, 0.5, " Hello", 0.9),)
    before = transcript("a", segments=(segment(words=words), segment(3.0, 4.0)))
    check = row_check("times", error("b"), before, transcript("x", **values), transcript("c"))
    assert (check.passed, check.offenders) == (False, (f"x: {problem}",))


def test_words_of_the_next_segment_may_start_earlier_on_another_channel() -> None:
    left = segment(2.0, 4.0, channel=0, words=(Word(2.0, 4.0, " Hello", 0.9),))
    right = segment(1.0, 3.0, channel=1, words=(Word(1.0, 3.0, " there.", 0.9),))
    assert row_check("times", transcript(segments=(left, right))).passed


def test_slice_of_a_batch_is_checked_as_its_rows_are() -> None:
    rows = batch(transcript("bad", segments=(segment(9, 11),)), transcript("a"), transcript("b", segments=()))
    checks = RowChecks(RUN)
    checks.add(rows.slice(1))
    assert all(check.passed for check in checks.results())


def test_row_with_several_faults_counts_once_and_offenders_end_at_ten() -> None:
    bad = {"segments": (segment(-1.0, 20.0), segment(-2.0, 1.0))}
    checks = RowChecks(RUN)
    for _ in range(3):
        checks.add(batch(*(transcript(f"x{i}", **bad) for i in range(4))))
    check = checks.results()[-1]
    assert check.found == "12 rows"
    assert len(check.offenders) == MAX_OFFENDERS
    assert check.offenders[0] == "x0: segment outside the file; segments out of order"
