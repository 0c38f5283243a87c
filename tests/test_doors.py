"""Every name that users, DAGs and Airflow's database hold keeps its path."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What README, docs and example DAGs import, and what design and entry points promise.
DOORS = {
    "airflow_whisper": ["WhisperOptions", "__version__", "transcribe_partition"],
    "airflow_whisper.catalog": [
        "current_rows",
        "current_snapshot_id",
        "load_table",
        "open_catalog",
        "partition_rows",
    ],
    "airflow_whisper.events": ["arrived_partitions", "pending_events"],
    "airflow_whisper.examples": ["DEMO_AUDIO", "EXAMPLE_DAGS", "copy"],
    "airflow_whisper.get_provider_info": ["get_provider_info"],
    "airflow_whisper.links": ["ReportLink", "SparkUILink", "TableLink"],
    "airflow_whisper.operators.check": ["CheckClusterOperator"],
    "airflow_whisper.operators.discover": ["DiscoverAudioOperator"],
    "airflow_whisper.operators.export": ["ExportTranscriptsOperator"],
    "airflow_whisper.operators.maintain": ["MaintainTableOperator", "PurgeStagingOperator"],
    "airflow_whisper.operators.register": ["RegisterTranscriptsOperator"],
    "airflow_whisper.operators.transcribe": ["WhisperTranscribeOperator"],
    "airflow_whisper.operators.validate": ["ValidateTranscriptsOperator"],
    "airflow_whisper.plugin": ["WhisperPlugin"],
    "airflow_whisper.sensors.audio": ["NewAudioSensor"],
    "airflow_whisper.settings": ["connection", "default_args", "locations", "setting", "staging"],
    "airflow_whisper.storage": ["object_storage"],
    "airflow_whisper.task_groups": ["transcribe_partition"],
    "airflow_whisper.triggers.audio": ["NewAudioTrigger"],
    "airflow_whisper.triggers.sensor": ["AudioToTranscribeTrigger"],
    "whisper_spark": ["Segment", "Transcript", "WhisperOptions", "Word", "transcribe_files", "whisper_udf"],
    "whisper_spark.contract": [
        "ERROR_CODES",
        "QUALITY_FLAGS",
        "Run",
        "WhisperOptions",
        "manifest_schema",
        "parse_partition_path",
        "partition_path",
        "transcript_schema",
    ],
    "whisper_spark.job": ["main"],
    "whisper_spark.options": ["KNOWN_MODELS", "LANGUAGES", "WhisperOptions"],
    "whisper_spark.parquet": ["open_parquet", "read_manifest", "read_run"],
    "whisper_spark.redaction": ["is_in_step", "redact"],
    "whisper_spark.subtitles": ["Cue", "Layout", "cues", "to_json", "to_srt", "to_txt", "to_vtt"],
    "whisper_spark.udf": ["whisper_udf"],
}


# ``from airflow_whisper... import a, b`` in one line or in brackets.
IMPORT = re.compile(
    r"^\s*from ((?:airflow_whisper|whisper_spark)[\w.]*) import (\([^)]*\)|[^(\n]*)$", re.MULTILINE
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "dags").glob("*.py"))]


def imports(path: Path) -> set[tuple[str, str]]:
    """``(module, name)`` of everything that a page or a DAG file imports from this project."""
    return {
        (module, name.partition(" as ")[0].strip())
        for module, names in IMPORT.findall(path.read_text())
        for name in re.sub(r"#.*", "", names).strip("()").split(",")
        if name.strip()
    }


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_import_that_users_are_shown_works(path: Path) -> None:
    missing = [(m, name) for m, name in imports(path) if not hasattr(importlib.import_module(m), name)]
    assert missing == []


def test_every_import_that_users_are_shown_is_one_of_the_doors() -> None:
    shown = set().union(*map(imports, DOCUMENTS))
    assert len(shown) > 10
    assert shown <= {(module, name) for module, names in DOORS.items() for name in names}


@pytest.mark.parametrize(("module", "name"), [(m, name) for m, names in DOORS.items() for name in names])
def test_documented_name_imports_from_its_path(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize(
    "path",
    [
        "airflow_whisper.links.ReportLink",
        "airflow_whisper.links.SparkUILink",
        "airflow_whisper.links.TableLink",
        "airflow_whisper.operators.transcribe.WhisperTranscribeOperator",
        "airflow_whisper.sensors.audio.NewAudioSensor",
        "airflow_whisper.triggers.audio.NewAudioTrigger",
        "airflow_whisper.triggers.sensor.AudioToTranscribeTrigger",
    ],
)
def test_class_that_airflow_stores_says_the_path_it_is_stored_under(path: str) -> None:
    module, name = path.rsplit(".", 1)
    stored = getattr(importlib.import_module(module), name)
    assert f"{stored.__module__}.{stored.__qualname__}" == path


def test_settings_of_earlier_examples_still_work_and_say_that_they_go() -> None:
    # In a process of its own: the warning comes with the first import.
    program = (
        "import warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from airflow_whisper.settings import connection, locations, setting\n"
        "print([w.category.__name__ for w in caught if 'airflow_whisper.settings' in str(w.message)])\n"
        "print(locations()['table'], setting('MODEL', 'm'), connection('SOURCE'))\n"
    )
    environment = {**os.environ, "AIRFLOW_WHISPER_TABLE": "a.b", "AIRFLOW_WHISPER_SOURCE_CONN_ID": "c"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines() == ["['DeprecationWarning']", "a.b m c"]
