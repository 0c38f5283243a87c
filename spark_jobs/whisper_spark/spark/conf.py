"""How the job asks Spark to run it: properties, and how many tasks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from whisper_spark.contract import WhisperOptions
from whisper_spark.storage.credentials import redaction_regex

FILES_A_SLOT = 200
"""Up to so many files for each slot, every slot gets one task; beyond, four smaller ones."""

_ALWAYS = {
    # Two copies of a task would pay twice for the same files.
    "spark.speculation": "false",
    # A wrongly named column in a task's output is otherwise accepted in silence.
    "spark.sql.execution.arrow.pyspark.validateSchema.enabled": "true",
    # A file that ends a whole executor does so twice before it is given up, and there may be several.
    "spark.task.maxFailures": "8",
    # A crash in native code leaves a Python traceback in the executor's log.
    "spark.python.worker.faulthandler.enabled": "true",
    "spark.sql.execution.pyspark.udf.faulthandler.enabled": "true",
    # Rows are only URIs. Small batches bring the first files to the engine at once.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "100",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}


def spark_defaults(conf: Mapping[str, str], options: WhisperOptions) -> dict[str, str]:
    """Properties to add to those that the user has set, before the session starts.

    One task runs one engine with the cores of a whole executor, so ``spark.task.cpus`` becomes
    ``spark.executor.cores`` where that is known. ``device="cuda"`` asks for one GPU for each executor and
    task. What ``conf`` has already stays, with two exceptions: more ``spark.task.cpus`` than a local
    master has cores, which would wait forever, and a redaction that would show our credentials.
    """
    defaults = dict(_ALWAYS)
    cores = local_cores(conf.get("spark.master", ""))
    engine_cores = cores or _integer(conf.get("spark.executor.cores"))
    if engine_cores:
        defaults["spark.task.cpus"] = str(engine_cores)
    if options.device == "cuda" and not cores:
        # A local master's tasks see the GPUs of the machine as they are.
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
    """Cores of a local master: ``local``, ``local[4]``, ``local[*]``, ``local[4,2]``; else ``None``."""
    if master == "local":
        return 1
    match = re.fullmatch(r"local\[\s*(\*|\d+)\s*(?:,\s*\d+\s*)?\]", master)
    if match is None:
        return None
    return (os.cpu_count() or 1) if match[1] == "*" else max(1, int(match[1]))


def slots(conf: Mapping[str, str], parallelism: int) -> int:
    """Tasks that can run at the same time.

    Executors may still be on their way when the job starts, so what was asked for counts as well as what
    is there.

    :param parallelism: Spark's ``defaultParallelism``: cores that are there now.
    """
    each = _integer(conf.get("spark.task.cpus")) or 1
    cores = _integer(conf.get("spark.executor.cores"))
    executors = _integer(conf.get("spark.executor.instances"))
    if conf.get("spark.dynamicAllocation.enabled") == "true":
        executors = _integer(conf.get("spark.dynamicAllocation.maxExecutors"))
    asked = [
        (cores // each) * executors if cores and executors else 0,
        (_integer(conf.get("spark.cores.max")) or 0) // each,
    ]
    return max(1, parallelism // each, *asked)


def task_count(files: int, slots: int) -> int:
    """Tasks to divide files among.

    Few, because a task's pipeline runs empty at its end; more than slots once there are many files, so
    that a lost task costs less and fast executors take over from slow ones.
    """
    return max(1, min(files, slots if files <= FILES_A_SLOT * slots else 4 * slots))


def _integer(value: str | None) -> int | None:
    return int(value) if value and value.isdigit() else None
