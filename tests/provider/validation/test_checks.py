"""The rules for staged rows: each one passes what is right and names what is not."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from airflow_whisper.validation.checks import (
    MAX_OFFENDERS,
    Check,
    Completeness,
    check_error_rate,
    check_flags,
    check_staged_files,
    flag_limits,
)


def keys(**etag_of: str | None) -> pa.RecordBatch:
    columns = {"audio_uri": list(etag_of), "audio_etag": list(etag_of.values())}
    return pa.RecordBatch.from_pydict(
        columns, pa.schema([("audio_uri", pa.string()), ("audio_etag", pa.string())])
    )


def completeness(manifest: pa.RecordBatch, *staged: pa.RecordBatch) -> Check:
    accumulator = Completeness()
    accumulator.add_manifest(manifest)
    for rows in staged:
        accumulator.add_staged(rows)
    return accumulator.result()


# --- completeness --------------------------------------------------------------------------------------


def test_every_file_staged_once_is_complete_in_any_order_and_number_of_batches() -> None:
    check = completeness(keys(a="1", b="2", c=None), keys(c=None), keys(b="2", a="1"))
    assert check == Check("completeness", "one row for each of 3 files", "3 rows", True)


def test_nothing_to_do_is_complete() -> None:
    assert completeness(keys()).passed


@pytest.mark.parametrize(
    ("staged", "found", "offender"),
    [
        ([keys(a="1")], "1 missing", "b: in the manifest, but not staged"),
        ([keys(a="1", b="2"), keys(a="1")], "1 duplicate", "a: 2 staged rows"),
        ([keys(a="1", b="2", x="9")], "1 unexpected", "x: staged, but not in the manifest"),
        (
            [keys(a="1", b="7")],
            "1 of another version",
            "b: the staged row has another etag than the manifest",
        ),
        (
            [keys(a="1", b=None)],
            "1 of another version",
            "b: the staged row has another etag than the manifest",
        ),
    ],
)
def test_incomplete_staging_is_named(staged: list[pa.RecordBatch], found: str, offender: str) -> None:
    check = completeness(keys(a="1", b="2"), *staged)
    assert (check.passed, check.found, check.offenders) == (False, found, (offender,))


def test_file_twice_in_the_manifest_is_named() -> None:
    accumulator = Completeness()
    accumulator.add_manifest(keys(a="1"))
    accumulator.add_manifest(keys(a="1"))
    accumulator.add_staged(keys(a="1"))
    assert accumulator.result().offenders == ("a: 2 times in the manifest",)


def test_many_missing_files_are_counted_and_ten_named() -> None:
    manifest = keys(**{f"file-{i:03}": "e" for i in range(500)})
    check = completeness(manifest, keys(**{"file-007": "e"}))
    assert check.found == "499 missing"
    assert len(check.offenders) == MAX_OFFENDERS


# --- files ---------------------------------------------------------------------------------------------


def test_staged_files_as_listed_pass() -> None:
    assert check_staged_files({"a": 3, "b": 1}, {"b": 1, "a": 3}).passed
    assert check_staged_files({}, {}).passed


@pytest.mark.parametrize(
    ("present", "offender"),
    [
        ({"a": 3}, "b: missing"),
        ({"a": 3, "b": 2}, "b: 2 rows, expected 1"),
        ({"a": 3, "b": None}, "b: unreadable, expected 1"),
    ],
)
def test_staged_files_other_than_listed_fail(present: dict[str, int | None], offender: str) -> None:
    check = check_staged_files({"a": 3, "b": 1}, present)
    assert not check.passed
    assert check.offenders == (offender,)


def test_job_that_left_no_result_fails() -> None:
    check = check_staged_files("no result.json: the job has not finished", {"a": 3})
    assert (check.passed, check.found) == (False, "no result.json: the job has not finished")


# --- error rate ----------------------------------------------------------------------------------------


def test_error_rate_at_the_limit_passes_and_above_fails() -> None:
    assert check_error_rate(rows=20, errors=1, limit=0.05).passed
    check = check_error_rate(rows=20, errors=2, limit=0.05, examples=["a: corrupt", "b: empty"])
    assert not check.passed
    assert (check.expected, check.found) == ("at most 5 %", "10 % (2 of 20 files)")
    assert check.offenders == ("a: corrupt", "b: empty")


def test_one_late_corrupt_file_does_not_fail_a_partition_of_a_thousand() -> None:
    assert not check_error_rate(rows=1, errors=1, limit=0.05).passed
    assert check_error_rate(rows=1, errors=1, unchanged=999, unchanged_errors=3, limit=0.05).passed


def test_errors_that_the_table_holds_already_count() -> None:
    assert not check_error_rate(rows=10, errors=0, unchanged=90, unchanged_errors=6, limit=0.05).passed


def test_run_that_only_removes_rows_passes_whatever_errors_the_table_holds() -> None:
    check = check_error_rate(rows=0, errors=0, unchanged=10, unchanged_errors=9, limit=0.05)
    assert check.passed
    assert check.found == "90 % (9 of 10 files)"


def test_no_rows_have_no_error_rate() -> None:
    assert check_error_rate(rows=0, errors=0, limit=0.0).passed


# --- flags ---------------------------------------------------------------------------------------------


def test_flags_do_not_block_by_default() -> None:
    assert check_flags({"repetitive": 5}, 10, flag_limits(())) == []


def test_one_row_with_a_blocking_flag_fails() -> None:
    limits = flag_limits(["repetitive", "long_words"])
    checks = check_flags({"repetitive": 1}, 10, limits)
    assert [(c.check, c.expected, c.found, c.passed) for c in checks] == [
        ("flag repetitive", "no row", "10 % (1 of 10 files)", False),
        ("flag long_words", "no row", "0 % (0 of 10 files)", True),
    ]


def test_share_of_rows_with_a_flag_may_be_limited() -> None:
    limits = flag_limits({"low_confidence": 0.2})
    assert check_flags({"low_confidence": 2}, 10, limits)[0].passed
    assert not check_flags({"low_confidence": 3}, 10, limits)[0].passed


@pytest.mark.parametrize("wrong", [["repetetive"], {"repetitive": 1.5}, {"repetitive": "x"}, "repetitive"])
def test_wrong_block_on_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="block_on"):
        flag_limits(wrong)


def test_unknown_flag_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"'repetetive'.*no_speech, truncated.*repetitive"):
        flag_limits(["repetetive"])
