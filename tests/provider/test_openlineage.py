"""Lineage facets without a run of Airflow, and everything else without OpenLineage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from staged_runs import error, row, staged_run

from airflow_whisper import openlineage as lineage
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.validate import ValidateTranscriptsOperator

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        # The entry point of the provider stays: Airflow reads it because the package's metadata is there.
        provider = "airflow.providers.openlineage"
        if name.split(".")[0] == "openlineage" or name.startswith((f"{provider}.extr", f"{provider}.plug")):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from airflow_whisper.operators.validate import ValidateTranscriptsOperator

class TaskInstance:
    def xcom_push(self, key, value): pass

done = ValidateTranscriptsOperator(task_id="validate", manifest=sys.argv[1]).execute({"ti": TaskInstance()})
assert done["passed"]
try:
    import openlineage.client
except ModuleNotFoundError:
    print("worked without")
"""


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://calls/raw/", ("s3://calls", "raw")),
        ("gs://calls", ("gs://calls", "/")),
        ("file:///data/raw/", ("file", "/data/raw")),
        ("/data/raw", ("file", "/data/raw")),
    ],
)
def test_datasets_are_named_by_openlineages_rules(uri: str, name: tuple[str, str]) -> None:
    assert lineage.dataset_name(uri) == name


def test_all_partitions_of_a_source_are_one_dataset() -> None:
    datasets = []
    for day in ("2026-11-01", "2026-11-02"):
        operator = DiscoverAudioOperator(
            task_id="discover",
            source=f"s3://calls/raw/dt={day}/",
            partition={"dt": day},
            table="speech.transcripts",
            staging="s3://calls/staging/",
        )
        datasets += operator.get_openlineage_facets_on_start().inputs
    assert {(dataset.namespace, dataset.name) for dataset in datasets} == {("s3://calls", "raw")}
    assert datasets[0].inputFacets["subset"] != datasets[1].inputFacets["subset"]


def test_failed_checks_are_reported_too(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav", "b.wav"], [row("a.wav"), error("b.wav")])
    operator = ValidateTranscriptsOperator(task_id="validate", manifest=run.manifest_uri)
    assert operator.get_openlineage_facets_on_complete(None) is None  # nothing is checked yet
    ti: Any = type("TaskInstance", (), {"xcom_push": lambda self, key, value: None})()
    with pytest.raises(Exception, match="error rate"):
        operator.execute({"ti": ti})  # type: ignore[typeddict-item]
    (staged,) = operator.get_openlineage_facets_on_complete(None).inputs
    failed = [a.assertion for a in staged.inputFacets["dataQualityAssertions"].assertions if not a.success]
    assert failed == ["error rate"]


def test_job_that_failed_still_names_its_input(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")], new=1)
    facets = lineage.of_transcription(run, None)
    assert [dataset.name for dataset in facets.inputs] == ["raw"]
    assert facets.outputs == []
    parameters = {p.key: p.value for p in facets.run_facets["executionParameters"].parameters}
    assert parameters["model"] == "base"
    assert parameters["fingerprint"] == run.options.fingerprint()


@pytest.mark.slow
def test_everything_works_where_openlineage_is_not_installed(tmp_path: Path) -> None:
    run = staged_run(tmp_path, ["a.wav"], [row("a.wav")])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, run.manifest_uri],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "worked without" in done.stdout
