"""What CheckClusterOperator asks of spark-submit; a real check is in test_transcribe.py, on its cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from airflow.sdk.exceptions import AirflowFailException

from airflow_whisper.operators.check import CheckClusterOperator
from whisper_spark.contract import WhisperOptions


@pytest.fixture(autouse=True)
def _local_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))


def recorder(folder: Path, status: int = 0) -> str:
    """A spark-submit that writes down its arguments and properties."""
    script = folder / "spark-submit"
    script.write_text(
        f"""#!/bin/bash
printf '%s\\n' "$@" > {folder}/argv
for ((i = 1; i <= $#; i++)); do
  if [ "${{!i}}" = --properties-file ]; then j=$((i + 1)); cp "${{!j}}" {folder}/properties; fi
done
exit {status}
"""
    )
    script.chmod(0o755)
    return str(script)


def after(folder: Path, flag: str) -> str:
    argv = (folder / "argv").read_text().splitlines()
    return argv[argv.index(flag) + 1]


def test_check_gets_options_places_and_the_arguments_of_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"conn_type": "aws", "login": "AKIA", "password": "hunter2-hunter2"}
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", json.dumps(value))
    CheckClusterOperator(
        task_id="check",
        options=WhisperOptions(model="base", device="cuda", beam_size=2),
        source="s3://calls/raw/",
        staging="s3://calls/staging/",
        source_conn_id="calls_s3",
        executor_cores=8,
        spark_binary=recorder(tmp_path),
    ).execute({})
    options = WhisperOptions.from_json(after(tmp_path, "--options"))
    assert options == WhisperOptions(model="base", device="cuda", beam_size=2)
    places = {flag: after(tmp_path, flag) for flag in ("--source", "--staging", "--executor-cores", "--name")}
    assert places == {
        "--source": "s3://calls/raw/",
        "--staging": "s3://calls/staging/",
        "--executor-cores": "8",
        "--name": "airflow-whisper-check",
    }
    argv = (tmp_path / "argv").read_text().splitlines()
    assert "--check" in argv
    assert "--manifest" not in argv
    assert "hunter2" not in str(argv)
    # The source's connection serves for staging, too.
    properties = (tmp_path / "properties").read_text()
    assert "spark.whisper.secret.source=" in properties
    assert "spark.whisper.secret.staging=" in properties


def test_check_gets_the_credentials_of_a_speaker_model_in_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"conn_type": "aws", "login": "AKIA", "password": "hunter2-hunter2"}
    monkeypatch.setenv("AIRFLOW_CONN_MODELS_S3", json.dumps(value))
    CheckClusterOperator(
        task_id="check",
        options=WhisperOptions(model="base", diarize=True, speaker_model="s3://models/voices/"),
        model_conn_id="models_s3",
        spark_binary=recorder(tmp_path),
    ).execute({})
    assert "spark.whisper.secret.model=" in (tmp_path / "properties").read_text()


def test_check_that_fails_fails_the_task(tmp_path: Path) -> None:
    operator = CheckClusterOperator(task_id="check", spark_binary=recorder(tmp_path, status=1))
    with pytest.raises(AirflowException, match="the Spark job failed"):
        operator.execute({})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"options": {"modle": "base"}}, "did you mean 'model'"),
        ({"options": '{"model": "bse"}'}, "unknown model"),
        ({"source": "ftp://host/raw"}, "not supported"),
        ({"staging": "s3://calls/staging//"}, "Did you mean"),
        ({"staging": "staging"}, "staging: 'staging' is a relative path"),
        ({"deploy_mode": "clutser"}, "deploy_mode must be"),
    ],
)
def test_wrong_argument_is_refused_when_the_dag_is_parsed(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckClusterOperator(task_id="check", **wrong)


def test_templates_are_rendered_and_checked_when_the_task_starts(tmp_path: Path) -> None:
    operator = CheckClusterOperator(
        task_id="check",
        options={"model": "{{ model }}"},
        source="{{ source }}",
        spark_binary=recorder(tmp_path),
    )
    operator.render_template_fields({"model": "base", "source": f"file://{tmp_path}/raw"})  # type: ignore[typeddict-item, typeddict-unknown-key]
    operator.execute({})
    assert after(tmp_path, "--source") == f"file://{tmp_path}/raw"
    assert json.loads(after(tmp_path, "--options"))["model"] == "base"
    operator.options = {"model": "bse"}
    with pytest.raises(AirflowFailException, match="unknown model"):
        operator.execute({})
