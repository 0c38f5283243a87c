"""Validation of a run's folder in staging: the report, the task log, and the task's verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.sdk.exceptions import AirflowFailException
from staged_runs import OPTIONS, PARTITION, STORAGE, error, row, staged_run

from airflow_whisper.operators.validate import ValidateTranscriptsOperator
from airflow_whisper.validation.report import Report
from airflow_whisper.validation.run import validate_run
from whisper_spark.contract import (
    Run,
    transcript_schema,
)
from whisper_spark.staging.result import staged_file_uri
from whisper_spark.staging.rows import write_table


class TaskInstance:
    """Keeps what a task pushes."""

    def __init__(self) -> None:
        self.xcom: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcom[key] = value


def failed_checks(run: Run, **arguments: Any) -> list[str]:
    report = validate_run(run, STORAGE, **({"max_error_rate": 0.05} | arguments))
    assert report.passed == (not report.failed)
    return [check.check for check in report.failed]


def validate(run: Run, **arguments: Any) -> tuple[dict[str, Any], TaskInstance]:
    ti = TaskInstance()
    operator = ValidateTranscriptsOperator(task_id="validate", manifest=run.manifest_uri, **arguments)
    return operator.execute({"ti": ti}), ti  # type: ignore[typeddict-item]


def report_of(run: Run) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(STORAGE.read_bytes(run.report_uri))
    return report


# --- the operator --------------------------------------------------------------------------------------


def test_good_run_passes_and_leaves_a_report(tmp_path: Path) -> None:
    looped = row("c.wav", quality_flags=("repetitive", "low_confidence"), logprob=-1.5)
    silent = row("d.wav", text="", speech_s=0.0, quality_flags=("no_speech",), language=None)
    run = staged_run(
        tmp_path, ["a.wav", "b.wav", "c.wav", "d.wav"], [row("a.wav"), looped], [silent, row("b.wav")]
    )

    returned, ti = validate(run)

    assert returned == {
        "report_uri": run.report_uri,
        "passed": True,
        "files": 4,
        "errors": 0,
        "warnings": {"no_speech": 1, "low_confidence": 1, "repetitive": 1},
    }
    assert ti.xcom == {"report_uri": run.report_uri, "report": {"uri": run.report_uri, "conn_id": None}}
    report = report_of(run)
    assert report["passed"] is True
    assert report["partition"] == "dt=2026-11-01"
    assert report["table"] == "speech.transcripts"
    assert report["manifest_uri"] == run.manifest_uri
    assert report["fingerprint"] == OPTIONS.fingerprint()
    assert report["counts"] == {
        "files": 4,
        "ok": 4,
        "errors": 0,
        "error_codes": {},
        "languages": {"en": 3},
        "speakers": {},
    }
    assert report["totals"] == {"audio_seconds": 40.0, "speech_seconds": 12.0, "audio_hours": 0.0111}
    assert [(w["audio_uri"][-5:], w["quality_flags"], w["avg_logprob"]) for w in report["worst"]] == [
        ("c.wav", ["repetitive", "low_confidence"], -1.5),
        ("a.wav", [], -0.3),
        ("b.wav", [], -0.3),
    ]
    assert all(check["passed"] for check in report["checks"])


def test_bad_run_fails_for_good_with_a_table_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav", "c.wav"], [row("a.wav"), error("c.wav")])
    ti = TaskInstance()
    operator = ValidateTranscriptsOperator(task_id="validate", manifest=run.manifest_uri)

    with pytest.raises(
        AirflowFailException, match=r"2 of \d+ checks failed.*completeness, error rate"
    ) as raised:
        operator.execute({"ti": ti})  # type: ignore[typeddict-item]

    assert run.report_page_uri in str(raised.value)
    assert ti.xcom["report_uri"] == run.report_uri
    log = [re.sub(r"^\S+ \[error +\] ", "", line) for line in capsys.readouterr().out.splitlines()]
    start = next(i for i, line in enumerate(log) if line.startswith("check "))
    header, _, *table = log[start : start + 4]
    assert [line.split("|")[0].strip() for line in table] == ["completeness", "error rate"]
    assert len({line.index(" | ") for line in (header, *table)}) == 1
    assert "s3://calls/raw/b.wav: in the manifest, but not staged" in table[0]
    assert "50 % (1 of 2 files)" in table[1]
    assert "s3://calls/raw/c.wav: corrupt" in table[1]
    report = report_of(run)
    assert report["passed"] is False
    assert report["counts"]["error_codes"] == {"corrupt": 1}
    assert report["errors"] == [
        {"audio_uri": "s3://calls/raw/c.wav", "error_code": "corrupt", "error_message": "no frame"}
    ]


def test_names_of_files_cannot_forge_records_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = staged_run(tmp_path, ["a\n2026 [error] forged\x85 too\x1b[2J.wav"])
    with pytest.raises(AirflowFailException):
        validate(run)
    out = capsys.readouterr().out
    assert r"a\u000a2026 [error] forged\u0085 too\u001b[2J.wav: in the manifest, but not staged" in out
    assert not [line for line in out.splitlines() if line.startswith("2026 [error]")]


def test_source_of_non_audio_only_fails_with_a_report(tmp_path: Path) -> None:
    names = [f"{i}.html" for i in range(30)]
    run = staged_run(tmp_path, names, [error(name, "not_audio") for name in names])
    with pytest.raises(AirflowFailException, match=r"error rate"):
        validate(run)
    assert report_of(run)["counts"]["error_codes"] == {"not_audio": 30}
    assert len(report_of(run)["errors"]) == 20


def test_error_rate_from_a_template_is_a_number(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav"], [row("a.wav"), error("b.wav")])
    assert validate(run, max_error_rate="0.5")[0]["errors"] == 1


def test_blocking_flag_fails_the_task(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav", quality_flags=("repetitive",))])
    assert validate(run, block_on=["long_words"])[0]["passed"]
    with pytest.raises(AirflowFailException, match="flag repetitive"):
        validate(run, block_on=["repetitive"])


def test_missing_manifest_asks_to_clear_discover(tmp_path: Path) -> None:
    operator = ValidateTranscriptsOperator(task_id="validate", manifest=f"file://{tmp_path}/manifest.parquet")
    with pytest.raises(AirflowFailException, match=r"manifest\.parquet.*clear the discover task"):
        operator.execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("rate", [1.5, -0.1, "five", float("nan"), True, None])
def test_wrong_error_rate_is_refused_at_once(rate: Any) -> None:
    with pytest.raises(ValueError, match="max_error_rate must be a number from 0 to 1"):
        ValidateTranscriptsOperator(task_id="validate", manifest="m", max_error_rate=rate)


@pytest.mark.parametrize("block_on", [["repetetive"], "repetitive", {"repetitive": 2}])
def test_wrong_block_on_is_refused_at_once(block_on: Any) -> None:
    with pytest.raises(ValueError, match="block_on"):
        ValidateTranscriptsOperator(task_id="validate", manifest="m", block_on=block_on)


def test_templates_are_checked_when_they_are_rendered(tmp_path: Path) -> None:
    operator = ValidateTranscriptsOperator(
        task_id="validate",
        manifest="{{ params.manifest }}",
        max_error_rate="{{ params.rate }}",
        block_on=["{{ params.flag }}"],
    )
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    params = {"manifest": run.manifest_uri, "rate": "2", "flag": "repetitive"}
    operator.render_template_fields({"params": params})  # type: ignore[typeddict-unknown-key]
    assert (operator.manifest, operator.block_on) == (run.manifest_uri, ["repetitive"])
    with pytest.raises(ValueError, match="max_error_rate"):
        operator.execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    "rendered",
    [
        "repetitive, low_confidence",
        '["repetitive"]',
        '{"repetitive": 0.4}',
        ["repetitive"],
        {"repetitive": "0.4"},
    ],
)
@pytest.mark.parametrize("connection", ["", None])
def test_block_on_may_be_a_template(tmp_path: Path, rendered: Any, connection: str | None) -> None:
    run = staged_run(
        tmp_path, ["a.wav", "b.wav"], [row("a.wav"), row("b.wav", quality_flags=("repetitive",))]
    )
    operator = ValidateTranscriptsOperator(
        task_id="validate",
        manifest=run.manifest_uri,
        block_on="{{ params.flags }}",
        staging_conn_id="{{ params.connection }}",
    )
    params = {"flags": rendered, "connection": connection}
    operator.render_template_fields({"params": params})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(AirflowFailException, match=r"1 of \d+ checks failed.*flag repetitive"):
        operator.execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]


@pytest.mark.parametrize("values", [{"max_error_rate": "2"}, {"block_on": "repetetive"}])
def test_wrong_rendered_argument_is_not_retried(tmp_path: Path, values: dict[str, Any]) -> None:
    operator = ValidateTranscriptsOperator(
        task_id="validate", manifest="m", max_error_rate="{{ rate }}", block_on="{{ flags }}"
    )
    operator.max_error_rate, operator.block_on = 0.05, ""
    for name, value in values.items():
        setattr(operator, name, value)
    with pytest.raises(AirflowFailException, match=next(iter(values))):
        operator.execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]


# --- the checks, on files ------------------------------------------------------------------------------


def test_late_corrupt_file_of_a_large_partition_passes(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [error("a.wav")], unchanged=99, unchanged_errors=2)
    assert failed_checks(run) == []
    assert failed_checks(run, max_error_rate=0.01) == ["error rate"]


def test_rows_kept_by_choice_belong_to_the_partition_too(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [error("a.wav")], kept_stale=10, kept_removed=10)
    assert failed_checks(run) == []
    assert failed_checks(run, max_error_rate=0.04) == ["error rate"]


def test_run_that_only_removes_passes(tmp_path: Path) -> None:
    run = staged_run(tmp_path, [], removed=3)
    assert failed_checks(run) == []
    STORAGE.delete([run.result_uri])
    assert failed_checks(run) == []


def _drop_result(run: Run) -> None:
    STORAGE.delete([run.result_uri])


def _result_of_another_run(run: Run) -> None:
    result = json.loads(STORAGE.read_bytes(run.result_uri))
    STORAGE.write_bytes(run.result_uri, json.dumps(result | {"manifest_id": "f" * 32}).encode())


def _garbled_result(run: Run) -> None:
    STORAGE.write_bytes(run.result_uri, b"{")


@pytest.mark.parametrize(
    ("tamper", "failed"),
    [
        (_drop_result, ["staged files", "completeness"]),
        (_result_of_another_run, ["staged files", "completeness"]),
        (_garbled_result, ["staged files", "completeness"]),
    ],
)
def test_staging_that_is_not_what_the_job_left_fails(
    tmp_path: Path, tamper: Callable[[Run], None], failed: list[str]
) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    assert failed_checks(run) == []
    tamper(run)
    assert failed_checks(run) == failed


def test_manifest_of_another_run_asks_to_clear_discover(tmp_path: Path) -> None:
    run = staged_run(tmp_path / "one", ["a.wav"], [row("a.wav")])
    other = staged_run(tmp_path / "other", ["a.wav"], [row("a.wav")])
    STORAGE.write_bytes(run.manifest_uri, STORAGE.read_bytes(other.manifest_uri))
    with pytest.raises(AirflowFailException, match="Clear the discover task"):
        validate(run)


def test_what_other_jobs_leave_in_the_folder_is_not_judged(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    table = pa.Table.from_pylist([row("a.wav"), error("b.wav")], schema=transcript_schema(PARTITION))
    write_table(STORAGE, staged_file_uri(run.rows_uri, "part", "9", 2), table)
    STORAGE.write_bytes(f"{run.rows_uri}/_SUCCESS", b"")
    assert failed_checks(run, max_error_rate=0.0) == []
    assert validate(run)[0]["files"] == 1


def test_lost_staged_file_fails(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav"], [row("a.wav")], [row("b.wav")])
    lost = sorted(Path(run.rows_uri.removeprefix("file://")).iterdir())[0]
    lost.unlink()
    assert failed_checks(run) == ["staged files", "completeness"]
    with pytest.raises(AirflowFailException, match="Clear the transcribe task"):
        validate(run)


def test_validation_before_the_transcription_asks_to_clear_it(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"])
    Path(run.result_uri.removeprefix("file://")).unlink()
    with pytest.raises(AirflowFailException, match="Clear the transcribe task"):
        validate(run)


def test_file_with_another_schema_fails_and_the_others_are_still_checked(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav"], [row("a.wav")], [row("b.wav", error_code="corrupt")])
    path = sorted(Path(run.rows_uri.removeprefix("file://")).iterdir())[0]
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("speech_s"), path)
    report = validate_run(run, STORAGE, max_error_rate=0.05)
    assert [check.check for check in report.failed] == ["schema", "completeness", "status"]
    assert report.failed[0].offenders == (f"file://{path}: column speech_s is missing",)


def test_row_in_the_wrong_partition_fails(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav") | {"dt": "2026-11-02"}])
    assert failed_checks(run) == ["partition"]


def test_report_survives_json(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav"], [row("a.wav")])
    report = validate_run(run, STORAGE, max_error_rate=0.05)
    again = Report.from_json(report.to_json())
    assert again.failed == report.failed
    assert again.to_json() == report.to_json()
    with pytest.raises(ValueError, match="no validation report"):
        Report.from_json(b"[]")


def test_only_the_twenty_worst_transcripts_are_named(tmp_path: Path) -> None:
    names = [f"{i:03}.wav" for i in range(1500)]
    rows = [row(name, logprob=-i / 10_000) for i, name in enumerate(names)]
    run = staged_run(tmp_path, names, rows[:1100], rows[1100:])
    report = validate_run(run, STORAGE, max_error_rate=0.05)
    assert report.passed
    assert [entry["audio_uri"][-8:] for entry in report.worst] == [f"{i}.wav" for i in range(1499, 1479, -1)]
