"""One real Airflow for all tests in this folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_airflow import airflow_standalone
from live_site import TABLE, Site
from servers import S3Server

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The watcher looks at all days of the source: if its tests were not the first, it would begin with the
    # files of the others.
    items.sort(key=lambda item: item.path.name != "test_arrival.py")


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """Where logs and screenshots are kept after the tests; empty at first."""
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    ARTIFACTS.mkdir()
    return ARTIFACTS


@pytest.fixture(scope="session")
def site(
    s3: S3Server, model_dir: Path, artifacts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    bucket, lake = s3.bucket("calls"), s3.lake()
    settings = {
        "AIRFLOW_CONN_CALLS": s3.connection,
        "AIRFLOW_CONN_LAKE": lake.connection,
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        "AIRFLOW_WHISPER_SOURCE": f"s3://{bucket}/daily/dt={{dt}}/",
        "AIRFLOW_WHISPER_STAGING": f"s3://{bucket}/staging/",
        "AIRFLOW_WHISPER_TABLE": TABLE,
        "AIRFLOW_WHISPER_PARTITIONED_SOURCE": f"s3://{bucket}/partitioned/dt={{dt}}/hour={{hour}}/",
        "AIRFLOW_WHISPER_MODEL": str(model_dir),
        "AIRFLOW_WHISPER_SOURCE_CONN_ID": "calls",
        "AIRFLOW_WHISPER_CATALOG_CONN_ID": "lake",
        "AIRFLOW_WHISPER_RETRIES": "2",
        "AIRFLOW_WHISPER_POOL": "spark",
        "AIRFLOW_WHISPER_POLL_INTERVAL": "3",
        "STANDIN_ENGINE": str(ROOT / "tests" / "support" / "standin_engine.py"),
        "AIRFLOW_WHISPER_SPARK_CONF": json.dumps({"spark.ui.enabled": "false"}),
    }
    folder = tmp_path_factory.mktemp("standalone")
    dags = folder / "dags"
    shutil.copytree(ROOT / "dags", dags, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("stopped.py"), dags)
    with airflow_standalone(folder / "airflow", artifacts / "logs", dags, settings) as airflow:
        airflow.wait_until_ready([path.stem for path in dags.glob("*.py")])
        airflow.send("POST", "pools", {"name": "spark", "slots": 2})
        yield Site(airflow, s3, lake, bucket)
