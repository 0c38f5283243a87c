"""The engines of ``gpu.py`` that run in Spark: the packaged job, and the article's method 3, on one GPU.

A standalone cluster on this machine, whose one worker has all cores and the GPU, as its discovery script
says. Both engines get the same cluster settings, and both are timed as ``spark-submit``, start-up included:
with ten hours of audio and more it hardly counts. Audio lies in local files under names of their own, as
the job has one row for each URI.

    spark-submit gpu_spark.py PLAN.json          what the cluster runs for method 3
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "contenders"), str(HERE.parent / "tests" / "support")]

EXECUTOR_MEMORY_MB = 4096
"""Heap of the executor's JVM. Python's memory, which holds audio and models, is outside it."""


@dataclass(frozen=True)
class Setting:
    """Where and how a Spark engine runs.

    :param device: ``"cuda"`` or ``"cpu"``.
    :param gpu: number of the GPU; with ``"cpu"`` the worker pretends to have it.
    :param share: tasks that share the GPU.
    """

    device: str
    gpu: int
    share: int

    def conf(self) -> dict[str, str]:
        """Properties for ``spark-submit``."""
        cores = os.cpu_count() or 1
        return {
            "spark.executor.cores": str(cores),
            "spark.executor.memory": f"{EXECUTOR_MEMORY_MB}m",
            "spark.driver.memory": "1g",
            "spark.executor.resource.gpu.amount": "1",
            "spark.task.resource.gpu.amount": f"{1 / self.share:.4g}",
            "spark.task.cpus": str(max(1, cores // self.share)),
            "spark.ui.enabled": "false",
        }


def transcribe(
    engine: str, options: dict[str, Any], files: Sequence[Path], repeats: int, setting: Setting
) -> dict[str, Any]:
    """Transcribe files in a cluster of their own, each so many times.

    :param engine: ``"spark"`` or ``"spark-method3"``.
    :return: ``wall_s``, ``cpu_s`` (of all processes), ``load_s`` (start-up of Spark, if known) and what the
        engines of ``gpu_process.py`` return.
    :raises RuntimeError: If the job fails; with its last lines that name an error.
    """
    from spark_cluster import spark_binary, standalone_cluster

    before = _children_seconds()
    with tempfile.TemporaryDirectory(prefix="gpu-spark-") as name:
        folder = Path(name)
        audio = _copies(files, repeats, folder / "audio")
        memory = f"{EXECUTOR_MEMORY_MB + 1024}m"
        with standalone_cluster(
            folder, 1, os.cpu_count() or 1, memory=memory, gpu=str(setting.gpu)
        ) as cluster:
            prepare = {"spark": _job, "spark-method3": _method3}[engine]
            arguments, read = prepare(options, audio, folder)
            conf = [part for key, value in setting.conf().items() for part in ("--conf", f"{key}={value}")]
            command = [spark_binary("spark-submit"), "--master", cluster.master, *conf, *arguments]
            started = time.monotonic()
            done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
            wall = time.monotonic() - started
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode} of spark-submit: {_cause(done.stderr)}")
        found = read(wall)
    return {"wall_s": wall, "cpu_s": _children_seconds() - before, **found}


def _cause(log: str) -> str:
    lines = [line for line in log.splitlines() if "Error" in line or "Exception" in line or "failed:" in line]
    return " | ".join(lines[-3:])[:1000]


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment() -> dict[str, str]:
    path = [str(HERE), str(HERE / "contenders"), str(HERE.parent / "spark_jobs")]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def _copies(files: Sequence[Path], repeats: int, folder: Path) -> list[Path]:
    """Links to the files under the names of their first copy, with a number before it."""
    folder.mkdir()
    copies = []
    for number in range(repeats):
        for file in files:
            copy = folder / f"{number:04d}-{file.name}"
            copy.symlink_to(file.resolve())
            copies.append(copy)
    return copies


def _original(name: str) -> str:
    return Path(name).name.split("-", 1)[1]


_Read = Callable[[float], dict[str, Any]]


def _job(options: dict[str, Any], audio: Sequence[Path], folder: Path) -> tuple[list[str], _Read]:
    """The packaged job, from a manifest to staged rows."""
    from contenders.common import Spoken
    from spark_cluster import staged_table, write_run

    from airflow_whisper.hooks.job_package import job_script, write_archive
    from whisper_spark import WhisperOptions
    from whisper_spark.staging.result import complete_result
    from whisper_spark.storage.objects import ObjectStorage

    chosen = WhisperOptions(**options)
    run = write_run(f"file://{folder}/staging", [f"file://{path}" for path in audio], chosen)

    def read(wall: float) -> dict[str, Any]:
        result = complete_result(run, ObjectStorage())
        if result is None:
            raise RuntimeError(f"the job left no complete result in {run.run_uri}")
        heard, errors = {}, []
        for row in staged_table(run).to_pylist():
            words = [
                (w["start"], w["end"], w["word"]) for s in row["segments"] or () for w in s["words"] or ()
            ]
            file = _original(row["audio_uri"])
            heard[file] = Spoken(file, row["text"] or "", row["language"], words)
            if row["error_code"]:
                errors.append(f"{row['audio_uri']}: {row['error_code']} {row['error_message']}")
        return {
            "load_s": wall - result.transcribe_seconds,
            "windows": result.windows,
            "retried": result.retried_windows,
            "stages": dict(result.stage_seconds),
            "threads_busy": result.device_busy,
            "heard": heard,
            "errors": errors,
        }

    arguments = ["--py-files", str(write_archive(folder)), str(job_script())]
    return [*arguments, "--manifest", run.manifest_uri], read


def _method3(options: dict[str, Any], audio: Sequence[Path], folder: Path) -> tuple[list[str], _Read]:
    """The article's method 3, see ``contenders/method3.py``."""
    from contenders.common import Spoken

    out = folder / "heard.jsonl"
    plan = folder / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "model": options["model"],
                "device": options["device"],
                "files": [str(path) for path in audio],
                "out": str(out),
            }
        )
    )

    def read(wall: float) -> dict[str, Any]:
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        heard = {
            _original(line["file"]): Spoken(**{**line, "file": _original(line["file"])}) for line in lines
        }
        return {
            "load_s": None,
            "windows": 0,
            "retried": 0,
            "stages": {},
            "threads_busy": None,
            "heard": heard,
            "errors": [],
        }

    modules = ",".join(
        str(HERE / "contenders" / name) for name in ("common.py", "method3.py", "spark_session.py")
    )
    return ["--py-files", modules, str(Path(__file__).resolve()), str(plan)], read


def _run_method3(plan: dict[str, Any]) -> None:
    """Method 3 on the driver of a cluster: a partition for each file, so that Spark can balance them."""
    from method3 import predictor
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StringType

    compute_type = "float16" if plan["device"] == "cuda" else "int8"
    session = SparkSession.builder.appName("method 3").getOrCreate()
    files = plan["files"]
    rows = session.sparkContext.parallelize([(file,) for file in files], len(files)).toDF(["file"])
    predict = predictor(plan["model"], plan["device"], compute_type)
    udf = predict_batch_udf(predict, return_type=StringType(), batch_size=1)
    found = rows.select(udf("file").alias("json")).collect()
    Path(plan["out"]).write_text("".join(row.json + "\n" for row in found), encoding="utf-8")
    session.stop()


if __name__ == "__main__":
    _run_method3(json.loads(Path(sys.argv[1]).read_text()))
