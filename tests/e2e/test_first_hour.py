"""The page "Your bucket, your catalog, your cluster", walked in environments that hold only what it says.

Three environments: an Airflow worker with the wheel and ``[spark]``, a Spark standalone cluster, and the
Python of its executors, which has no Airflow and no pyspark of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docs_blocks import commands, connection, named_block
from servers import S3Server
from spark_cluster import SparkCluster, standalone_cluster
from speech import Clip

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
UV = (sys.executable, "-m", "uv")
PINNED = ("--constraints", ROOT / "constraints.txt")


def run(*command: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command that succeeds, and return its output, both streams together."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=env,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout[-12000:]
    return done.stdout


def replaced(text: str, values: Mapping[str, str]) -> str:
    """The text with other values. The page must have each of them, or it no longer says what is tested."""
    for old, new in values.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


# --- environments -------------------------------------------------------------------------------------------


def lend(folder: Path, *names: str) -> None:
    """Link installed packages into an environment: building these from source takes a minute each time."""
    target = next(folder.glob("lib/python*/site-packages"))
    for name in names:
        for file in importlib.metadata.files(name) or ():
            source = Path(str(file.locate()))
            place = target / file
            # pyspark and pyspark-client share files; scripts lie outside of the packages.
            if ".." in file.parts or not source.is_file() or place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, place)
            # Another file system.
            except OSError:
                shutil.copyfile(source, place)


@pytest.fixture(scope="module")
def worker(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs on an Airflow worker: the wheel with the extra ``[spark]``, and nothing else."""
    folder = tmp_path_factory.mktemp("worker") / "venv"
    run(*UV, "venv", "--quiet", "--python", sys.executable, folder)
    lend(folder, "pyspark", "pyspark-client")
    run(*UV, "pip", "install", "--quiet", "--python", folder, *PINNED, f"{wheel}[spark]")
    return folder / "bin"


@pytest.fixture(scope="module")
def executors(worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the executors' environment, made as the page says, and beside it its archive."""
    folder = tmp_path_factory.mktemp("executors")
    (printed,) = commands(named_block("requirements"))
    *command, arrow, file = printed
    assert (command[0], arrow) == ("python", ">")
    (folder / file).write_text(run(worker / command[0], *command[1:]))
    for name in ("executors-installed", "executors-archive"):
        make, install, *_ = commands(named_block(name))
        assert make[:3] == ["python3", "-m", "venv"]
        assert install[:2] == [f"{make[3]}/bin/pip", "install"]
    # The block of the archive does what the other one does, and packs. pip takes longer than uv.
    *_, install, pack = commands(named_block("executors-archive"))
    run(*UV, "venv", "--quiet", "--python", sys.executable, folder / "whisper-env")
    python = ("--python", folder / "whisper-env")
    run(*UV, "pip", *install[1:2], "--quiet", *python, *PINNED, *install[2:], cwd=folder)
    run(folder / pack[0], *pack[1:], cwd=folder)
    installed = {path.name for path in (folder / "whisper-env").glob("lib/python*/site-packages/*")}
    assert not installed & {"airflow", "pyspark", "whisper_spark"}
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    # Were the worker's PYSPARK_PYTHON what decides, no task could start.
    folder = tmp_path_factory.mktemp("cluster")
    with standalone_cluster(folder, workers=1, cores=2, python="/no/such/python") as running:
        yield running


# --- the walk -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A fresh Airflow, whose command line is that of the worker's environment."""

    worker: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        # Python's caches of compiled modules make the second command fast.
        names = ("PYTHONDONTWRITEBYTECODE", "PYSPARK_PYTHON", "PYTHONPATH", "VIRTUAL_ENV")
        inherited = {k: v for k, v in os.environ.items() if k not in names}
        return {
            **inherited,
            "PATH": f"{self.worker}{os.pathsep}{os.environ['PATH']}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
        }

    def command(self, name: str, values: Mapping[str, str]) -> str:
        """Run the commands of a block, with other values."""
        return "".join(
            run(*(replaced(word, values) if "{" in word else word for word in words), env=self.environment)
            for words in commands(named_block(name))
        )


@pytest.fixture
def site(worker: Path, airflow_home: Path, tmp_path: Path) -> Site:
    home = tmp_path / "airflow"
    (home / "dags").mkdir(parents=True)
    # In place of `airflow db migrate`, which takes ten seconds.
    shutil.copyfile(airflow_home / "airflow.db", home / "airflow.db")
    return Site(worker, home)


def test_page_leads_to_a_published_partition(
    s3: S3Server,
    site: Site,
    cluster: SparkCluster,
    executors: Path,
    librivox: list[Clip],
    model_dir: Path,
) -> None:
    keys = {"ACCESS_KEY": s3.access_key, "SECRET_KEY": s3.secret_key, "https://s3.example.com": s3.endpoint}
    site.command("bucket-s3-compatible", keys)
    database = f"sqlite:///{site.home}/iceberg.db"
    warehouse = s3.bucket("lake")
    there = {
        "postgresql+psycopg2://USER:PASSWORD@db.example.com/iceberg": database,
        "s3://lake/": f"s3://{warehouse}/",
    }
    site.command("catalog-sql", {**keys, **there})
    site.command("spark-standalone", {"spark://spark-master.example.com:7077": cluster.master})
    site.command("pool", {})

    bucket = s3.bucket("calls")
    dag = replaced(
        named_block("first-dag").text,
        {
            "s3://calls/": f"s3://{bucket}/",
            '"large-v3-turbo"': repr(str(model_dir)),
            '"executor_cores": 8': '"executor_cores": 1',
            '"executor_memory": "16g"': '"executor_memory": "512m"',
            "/opt/whisper/bin/python": str(executors / "whisper-env" / "bin" / "python"),
            # The cluster's hosts are this one.
            '"conf": {': '"conf": {"spark.driver.host": "127.0.0.1", "spark.ui.enabled": "false",',
        },
    )
    file = site.home / "dags" / "calls.py"
    file.write_text(dag)
    audio = {f"{i}.wav": librivox[i].path.read_bytes() for i in (1, 4)}
    s3.client().put_object(Bucket=bucket, Key="raw/dt=2026-11-01/1.wav", Body=audio["1.wav"])
    log = site.command("first-run", {})
    # What the page tells people to look at.
    assert re.search(r"To transcribe: .*\n", log)
    assert "whisper: Spark application app-" in log
    assert re.search(r"in catalog 'lake' at s3://", log)

    def rows() -> list[dict[str, Any]]:
        from pyiceberg.catalog.sql import SqlCatalog

        extra = connection("catalog-sql")["extra"]
        properties = json.loads(replaced(json.dumps(extra), {**keys, **there}))
        catalog = SqlCatalog(properties.pop("name"), **properties)
        found = catalog.load_table("speech.transcripts").scan().to_arrow().to_pylist()
        return sorted(found, key=lambda row: str(row["audio_uri"]))

    assert [(row["audio_uri"], row["status"]) for row in rows()] == [
        (f"s3://{bucket}/raw/dt=2026-11-01/1.wav", "ok")
    ]
    assert "young man" in rows()[0]["text"]

    # A file comes late, and the executors' environment is now the archive.
    s3.client().put_object(Bucket=bucket, Key="raw/dt=2026-11-01/4.wav", Body=audio["4.wav"])
    archive = f"{executors}/whisper-env.tar.gz#environment"
    file.write_text(
        replaced(
            dag,
            {
                str(executors / "whisper-env" / "bin" / "python"): "./environment/bin/python",
                '"executor_cores"': f'"archives": {archive!r}, "executor_cores"',
            },
        )
    )
    shutil.move(executors / "whisper-env", executors / "elsewhere")
    site.command("first-run", {})
    assert [row["status"] for row in rows()] == ["ok", "ok"]
