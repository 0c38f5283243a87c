"""Run a real Spark standalone cluster on loopback, and write manifests for it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from servers import free_ports, stop

from whisper_spark.contract import Run, WhisperOptions, manifest_schema, run_folder
from whisper_spark.storage.objects import ObjectStorage

START_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class SparkCluster:
    """A master and its workers. ``folder`` holds their logs, and the executors' logs below ``work``."""

    master: str
    folder: Path
    ui_port: int


@contextmanager
def standalone_cluster(
    folder: Path,
    workers: int = 2,
    cores: int = 1,
    python: str = sys.executable,
    *,
    memory: str = "1g",
    gpu: str = "7",
) -> Iterator[SparkCluster]:
    """Start a master and workers of the installed Spark, and stop them at the end.

    ``python`` is the ``PYSPARK_PYTHON`` in the environment of the master and the workers.

    Each worker says that it has one GPU with the address ``gpu``, so that tests can see which tasks get it.
    ``memory`` is what a worker may give to executors.
    """
    port, web_port = free_ports(2)
    discovery = folder / "gpus.sh"
    discovery.write_text(f"""#!/bin/sh\necho '{{"name": "gpu", "addresses": ["{gpu}"]}}'\n""")
    discovery.chmod(0o755)
    resource = "-Dspark.worker.resource.gpu"
    loopback = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_NO_DAEMONIZE": "1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1",
        "PYSPARK_PYTHON": python,
        "SPARK_WORKER_OPTS": f"{resource}.amount=1 {resource}.discoveryScript={discovery}",
    }
    common = ["--host", "127.0.0.1"]
    processes = []
    try:
        log = folder / "master.log"
        arguments = [*common, "--port", str(port), "--webui-port", str(web_port)]
        processes.append(_daemon("org.apache.spark.deploy.master.Master", arguments, log, loopback))
        _wait_for(log, r"New state: ALIVE", 1)
        master = f"spark://127.0.0.1:{port}"
        for number in range(workers):
            arguments = [*common, "--webui-port", "0", "--cores", str(cores), "--memory", memory]
            arguments += ["--work-dir", str(folder / "work" / str(number)), master]
            worker_log = folder / f"worker-{number}.log"
            processes.append(
                _daemon("org.apache.spark.deploy.worker.Worker", arguments, worker_log, loopback)
            )
        _wait_for(log, r"Registering worker", workers)
        yield SparkCluster(master, folder, web_port)
    finally:
        for process in reversed(processes):
            stop(process)


def _daemon(java_class: str, arguments: list[str], log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        # spark-class ends with exec, so the process started here becomes the JVM.
        return subprocess.Popen(
            [spark_binary("spark-class"), java_class, *arguments], stdout=out, stderr=out, env=env
        )


def _wait_for(log: Path, pattern: str, times: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if len(re.findall(pattern, log.read_text(errors="replace"))) >= times:
            return
        time.sleep(0.1)
    raise RuntimeError(f"Spark did not come up; the end of {log}:\n{log.read_text(errors='replace')[-3000:]}")


def spark_binary(name: str) -> str:
    """Path of a program of the installed pyspark."""
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / name)


def write_run(
    staging: str,
    audio: Iterable[str],
    options: WhisperOptions,
    *,
    storage: ObjectStorage | None = None,
    manifest_id: str = "0" * 32,
    partition: dict[str, str] | None = None,
    source: str = "file:///audio/",
    row_group_size: int = 10_000,
) -> Run:
    """Write a manifest for existing files, as discovery does, and return its run."""
    storage = storage or ObjectStorage()
    partition = partition or {"dt": "2026-11-01"}
    infos = sorted((storage.info(uri) for uri in audio), key=lambda info: -info.size)
    schema = manifest_schema(partition)
    rows = [
        {
            "audio_uri": info.uri,
            "audio_etag": info.etag,
            "audio_bytes": info.size,
            "last_modified": datetime.now(UTC),
            "change": "new",
            "attempt": 1,
            **partition,
        }
        for info in infos
    ]
    run = Run(
        table="speech.calls",
        partition=partition,
        source=source,
        options=options,
        run_uri=run_folder(staging, "speech.calls", partition, options.fingerprint(), manifest_id),
        manifest_id=manifest_id,
        counts={"new": len(rows)},
        audio_bytes=sum(info.size for info in infos),
    )
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata(run.to_metadata()))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=row_group_size)
    storage.write_bytes(run.manifest_uri, buffer.getvalue().to_pybytes())
    return run


def staged_table(run: Run, storage: ObjectStorage | None = None) -> pa.Table:
    """Read the staged rows that the result of a run names, or all staged rows if there is no result."""
    from whisper_spark.staging.result import complete_result, staged_files
    from whisper_spark.storage.parquet import open_parquet

    storage = storage or ObjectStorage()
    tables = []
    result = complete_result(run, storage)
    for file in staged_files(storage, run.rows_uri) if result is None else result.staged:
        with open_parquet(file.uri, storage) as parquet:
            tables.append(parquet.read())
    return pa.concat_tables(tables)
