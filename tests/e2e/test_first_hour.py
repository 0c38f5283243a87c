"""The page "Your bucket, your catalog, your cluster", walked in environments that hold only what it says.

Three environments: an Airflow worker with the wheel and ``[spark]``, a Spark standalone cluster, and the
Python of its executors, which has no Airflow and no pyspark of its own. Bucket and REST catalog are servers
of their own. The first run publishes through the REST catalog, the second one through a SQL catalog.
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

    def command(self, name: str, values: Mapping[str, str], words: Mapping[str, str] | None = None) -> str:
        """Run the commands of a block, with other values in their JSON, and other words."""
        return "".join(
            run(
                *(replaced(word, values) if "{" in word else (words or {}).get(word, word) for word in line),
                env=self.environment,
            )
            for line in commands(named_block(name))
        )


@pytest.fixture
def site(worker: Path, airflow_home: Path, tmp_path: Path) -> Site:
    home = tmp_path / "airflow"
    (home / "dags").mkdir(parents=True)
    # In place of `airflow db migrate`, which takes ten seconds.
    shutil.copyfile(airflow_home / "airflow.db", home / "airflow.db")
    return Site(worker, home)


@dataclass(frozen=True)
class Lakes:
    """The catalogs of the page, at the servers that run here. The values replace those of the page."""

    rest: Mapping[str, str]
    sql: Mapping[str, str]

    def rows(self, block: str, values: Mapping[str, str]) -> list[dict[str, Any]]:
        """The rows of the table, read with PyIceberg and the properties of a connection of the page."""
        from pyiceberg.catalog import load_catalog

        said = json.loads(replaced(json.dumps(connection(block)), values))
        properties = said["extra"]
        if "host" in said:
            properties |= {"uri": said["host"], "credential": f"{said['login']}:{said['password']}"}
        table = load_catalog(properties.pop("name", "lake"), **properties).load_table("speech.transcripts")
        rows: list[dict[str, Any]] = table.scan().to_arrow().to_pylist()
        return sorted(rows, key=lambda row: str(row["audio_uri"]))


@pytest.fixture
def lakes(s3: S3Server, site: Site) -> Lakes:
    keys = {"ACCESS_KEY": s3.access_key, "SECRET_KEY": s3.secret_key, "https://s3.example.com": s3.endpoint}
    rest = {
        **keys,
        "CLIENT_ID": s3.access_key,
        "CLIENT_SECRET": s3.secret_key,
        "https://catalog.example.com/api/catalog": s3.iceberg_uri,
        '"warehouse": "speech"': f'"warehouse": "{s3.lake().name}"',
    }
    sql = {
        **keys,
        "postgresql+psycopg2://USER:PASSWORD@db.example.com/iceberg": f"sqlite:///{site.home}/iceberg.db",
        "s3://lake/": f"s3://{s3.bucket('lake')}/",
    }
    return Lakes(rest, sql)


def test_page_leads_to_a_published_partition(
    s3: S3Server,
    site: Site,
    lakes: Lakes,
    cluster: SparkCluster,
    executors: Path,
    librivox: list[Clip],
    model_dir: Path,
) -> None:
    keys = {"ACCESS_KEY": s3.access_key, "SECRET_KEY": s3.secret_key, "https://s3.example.com": s3.endpoint}
    site.command("bucket-s3-compatible", keys)
    site.command("catalog-rest-keys", lakes.rest)
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
    (row,) = lakes.rows("catalog-rest-keys", lakes.rest)
    assert (row["audio_uri"], row["status"]) == (f"s3://{bucket}/raw/dt=2026-11-01/1.wav", "ok")
    assert "young man" in row["text"]

    # A file comes late, the executors' environment is now the archive, and the table is in another catalog.
    s3.client().put_object(Bucket=bucket, Key="raw/dt=2026-11-01/4.wav", Body=audio["4.wav"])
    archive = f"{executors}/whisper-env.tar.gz#environment"
    file.write_text(
        replaced(
            dag,
            {
                str(executors / "whisper-env" / "bin" / "python"): "./environment/bin/python",
                '"executor_cores"': f'"archives": {archive!r}, "executor_cores"',
                '"lake"': '"sql_lake"',
            },
        )
    )
    shutil.move(executors / "whisper-env", executors / "elsewhere")
    site.command("catalog-sql", lakes.sql, {"lake": "sql_lake"})
    site.command("first-run", {})
    found = lakes.rows("catalog-sql", lakes.sql)
    assert [row["status"] for row in found] == ["ok", "ok"]
    assert found[0]["text"] == row["text"]
