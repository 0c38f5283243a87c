"""The Spark properties that the job sets, and the number of its tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from whisper_spark.contract import WhisperOptions
from whisper_spark.decoding.device import GPU_TASKS, TASK_CORES
from whisper_spark.storage.credentials import redaction_regex

FILES_A_SLOT = 200
"""Up to this many files per slot, every slot gets one task; with more files, four smaller tasks."""

FILES_A_SLOT_OF_GPU = 2_000
"""The same for a GPU, which is ten times as fast. It has less to do at the beginning and end of each task."""

_GPU_OF_TASK = "spark.task.resource.gpu.amount"
_GPU_OF_EXECUTOR = "spark.executor.resource.gpu.amount"

_ALWAYS = {
    # A speculative copy of a task would transcribe the same files twice.
    "spark.speculation": "false",
    # Without it, Spark silently accepts a wrongly named column in the output of a task.
    "spark.sql.execution.arrow.pyspark.validateSchema.enabled": "true",
    # A file that crashes a whole executor does so twice before it becomes an error row, and there may be
    # several.
    "spark.task.maxFailures": "8",
    # Write a Python traceback to the executor's log when native code crashes.
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    # The rows are only URIs. With small batches the engine gets its first files sooner.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}


def spark_defaults(conf: Mapping[str, str], options: WhisperOptions) -> dict[str, str]:
    """Properties to set before the session starts, in addition to those of the user.

    One task runs one engine with all cores of an executor, so ``spark.task.cpus`` becomes
    ``spark.executor.cores`` if that is known. Where GPUs allow several tasks per executor, each gets its part
    of the cores. ``device="cuda"`` requests one GPU per executor and task.
    Properties in ``conf`` are not changed, with two exceptions: more ``spark.task.cpus`` than a local master
    has cores, because such a task would never start, and a redaction regex that does not match the properties
    with credentials.
    """
    defaults = dict(_ALWAYS)
    cores = local_cores(conf.get("spark.master", ""))
    engine_cores = cores or _integer(conf.get("spark.executor.cores"))
    if engine_cores:
        defaults["spark.task.cpus"] = str(max(1, engine_cores // _gpu_tasks(conf)))
    if options.device == "cuda" and not cores:
        # Not for a local master, whose tasks can use all GPUs of the machine.
        defaults["spark.executor.resource.gpu.amount"] = "1"
        defaults["spark.task.resource.gpu.amount"] = "1"
    missing = {key: value for key, value in defaults.items() if key not in conf}
    if cores and (_integer(conf.get("spark.task.cpus")) or 0) > cores:
        missing["spark.task.cpus"] = str(cores)
    redaction = redaction_regex(conf.get("spark.redaction.regex"))
    if redaction:
        missing["spark.redaction.regex"] = redaction
    return missing


def local_cores(master: str) -> int | None:
    """Cores of a local master (``local``, ``local[4]``, ``local[*]``, ``local[4,2]``), else ``None``."""
    if master == "local":
        return 1
    match = re.fullmatch(r"local\[\s*(\*|\d+)\s*(?:,\s*\d+\s*)?\]", master)
    if match is None:
        return None
    return (os.cpu_count() or 1) if match[1] == "*" else max(1, int(match[1]))


def task_share(conf: Mapping[str, str]) -> dict[str, str]:
    """Local properties that tell each task which part of its executor it may use.

    :return: :data:`~whisper_spark.decoding.device.TASK_CORES`, if the cores of an executor are known, and
        :data:`~whisper_spark.decoding.device.GPU_TASKS`.
    """
    share = {GPU_TASKS: str(max(1, int(1 / (_amount(conf.get(_GPU_OF_TASK)) or 1.0))))}
    cores = local_cores(conf.get("spark.master", "")) or _integer(conf.get("spark.executor.cores"))
    if cores:
        by_cores = max(1, cores // (_integer(conf.get("spark.task.cpus")) or 1))
        by_gpus = _gpu_tasks(conf) if _amount(conf.get(_GPU_OF_TASK)) else by_cores
        share[TASK_CORES] = str(max(1, cores // min(by_cores, by_gpus)))
    return share


def _gpu_tasks(conf: Mapping[str, str]) -> int:
    """Number of tasks of an executor that its GPUs allow at the same time; 1 if tasks need no GPU."""
    each, gpus = _amount(conf.get(_GPU_OF_TASK)), _amount(conf.get(_GPU_OF_EXECUTOR)) or 1.0
    if not each:
        return 1
    # Spark gives a task parts of one GPU, or whole GPUs.
    return max(1, int(gpus) * int(1 / each) if each < 1 else int(gpus / each))


def slots(conf: Mapping[str, str], parallelism: int) -> int:
    """Number of tasks that can run at the same time.

    Executors may not have started yet when the job starts, so the requested cores count as well as the
    present ones.

    :param parallelism: Spark's ``defaultParallelism``: the cores of the executors that are running.
    """
    each = _integer(conf.get("spark.task.cpus")) or 1
    cores = _integer(conf.get("spark.executor.cores"))
    executors = _instances(conf)
    asked = [
        (cores // each) * executors if cores and executors else 0,
        (_integer(conf.get("spark.cores.max")) or 0) // each,
    ]
    return max(1, parallelism // each, *asked)


def asked_executors(conf: Mapping[str, str]) -> int | None:
    """Number of executors that the job asks for; ``None`` if it takes as many as the cluster gives."""
    cores, most = _integer(conf.get("spark.executor.cores")), _integer(conf.get("spark.cores.max"))
    return _instances(conf) or (most // cores if cores and most else None)


def _instances(conf: Mapping[str, str]) -> int | None:
    if conf.get("spark.dynamicAllocation.enabled") == "true":
        return _integer(conf.get("spark.dynamicAllocation.maxExecutors"))
    return _integer(conf.get("spark.executor.instances"))


def task_count(files: int, slots: int, *, gpu: bool = False) -> int:
    """Number of tasks among which to divide the files.

    It is small, because the device is not fully used at the end of each task. With many files it is larger
    than the number of slots, so that less work is lost with a task, and fast executors get more tasks than
    slow ones.

    :param slots: number of tasks that run at the same time.
    :param gpu: whether Spark gives each task a GPU, or a part of one.
    """
    most = (FILES_A_SLOT_OF_GPU if gpu else FILES_A_SLOT) * slots
    return max(1, min(files, slots if files <= most else 4 * slots))


def _integer(value: str | None) -> int | None:
    return int(value) if value and value.isdigit() else None


def _amount(value: str | None) -> float | None:
    """A positive number; ``None`` for anything else."""
    try:
        return max(float(value or 0), 0.0) or None
    except ValueError:
        return None
