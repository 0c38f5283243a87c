"""The last line of a failed job says what went wrong and where."""

from __future__ import annotations

import pytest

from whisper_spark.spark.failures import MissingPackagesError, cause_of, is_wrong_configuration

LOST = "Job aborted due to stage failure: Task 0 failed 4 times, most recent failure: Lost task 0.3 in"
JAVA = """
\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handlePythonException(PythonRunner.scala:665)
\tat java.base/java.lang.Thread.run(Thread.java:840)
"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            (
                "[PYTHON_EXCEPTION] An exception was thrown from the Python worker:\n"
                "Traceback (most recent call last):\n"
                '  File "/w/task.py", line 1, in transcribe\n'
                "whisper_spark.decoding.model.ModelError: there is no model at s3://m/base\n"
                "In the engine's process:\n"
                "Traceback (most recent call last):\n"
                "whisper_spark.decoding.model.ModelError: there is no model at s3://m/base\n"
                f" SQLSTATE: 38000{JAVA}"
            ),
            "whisper_spark.decoding.model.ModelError: there is no model at s3://m/base",
        ),
        (
            (
                "An error occurred while calling o506.collectToPython.\n"
                f": org.apache.spark.SparkException: {LOST} "
                "stage 3.0 (TID 7) (10.0.0.5 executor 1): org.apache.spark.SparkException: "
                f"Python worker exited unexpectedly (crashed){JAVA}Caused by: java.io.EOFException\n"
            ),
            (
                "a Python worker ended on host 10.0.0.5 (executor 1): killed, perhaps for lack of memory "
                "(spark.executor.memoryOverhead)"
            ),
        ),
        (
            (
                f": org.apache.spark.SparkException: {LOST} stage 3.0 (TID 7) (10.0.0.5 executor 1): "
                "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed): "
                f"Fatal Python error: Segmentation fault\n{JAVA}"
            ),
            "a Python worker ended on host 10.0.0.5 (executor 1): Segmentation fault",
        ),
        (
            (
                f": org.apache.spark.SparkException: {LOST} stage 1.0 (TID 9) (node-7 executor 3): "
                "ExecutorLostFailure (executor 3 exited caused by one of the running tasks) "
                "Reason: Command exited with code 137\n"
                "Driver stacktrace:\n"
            ),
            (
                "an executor was lost on host node-7 (executor 3): Command exited with code 137. "
                "Give it more memory: spark.executor.memoryOverhead"
            ),
        ),
        (
            (
                "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n"
                ": java.lang.IllegalArgumentException: Executor memory 1048576 must be at least 471859200. "
                f"Please increase executor memory using the --executor-memory option.{JAVA}"
            ),
            (
                "IllegalArgumentException: Executor memory 1048576 must be at least 471859200. "
                "Please increase executor memory using the --executor-memory option."
            ),
        ),
        (
            (
                f": org.apache.spark.SparkException: {LOST} stage 0.0 (TID 3) (node-2 executor 0): "
                "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
                f"ModuleNotFoundError: No module named 'pandas'\n{JAVA}"
            ),
            "ModuleNotFoundError: No module named 'pandas' on host node-2 (executor 0)",
        ),
        (
            (
                f": org.apache.spark.SparkException: {LOST} stage 0.0 (TID 3) (node-2 executor 0): "
                "org.apache.spark.SparkException: \nError from python worker:\n"
                "  /usr/bin/python3: Error while finding module specification for 'pyspark.daemon' "
                f"(ModuleNotFoundError: No module named 'pyspark')\nPYTHONPATH was:\n  /x{JAVA}"
            ),
            (
                "Python does not start on host node-2 (executor 0): /usr/bin/python3: Error while finding "
                "module specification for 'pyspark.daemon' (ModuleNotFoundError: No module named 'pyspark'). "
                "Install pyspark for this interpreter"
            ),
        ),
        (
            (
                f": org.apache.spark.SparkException: {LOST} stage 0.0 (TID 3) (node-2 executor 0): "
                'java.io.IOException: Cannot run program "./environment/bin/python": error=2, No such file '
                f"or directory{JAVA}Caused by: java.io.IOException: error=2, No such file or directory{JAVA}"
            ),
            (
                "Python does not start on host node-2 (executor 0): there is no ./environment/bin/python. "
                "spark.pyspark.python must name an interpreter that every executor has"
            ),
        ),
        (
            # What Spark 4.2 says of --executor-memory 200m.
            (
                "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n"
                ": org.apache.spark.SparkIllegalArgumentException: [INVALID_EXECUTOR_MEMORY] Executor memory "
                "209715200 must be at least 471859200.\nPlease increase executor memory using the "
                '--executor-memory option or "spark.executor.memory" in Spark configuration. SQLSTATE: F0000'
                "\n\tat org.apache.spark.memory.UnifiedMemoryManager$.apply(UnifiedMemoryManager.scala:450)"
            ),
            (
                "SparkIllegalArgumentException: [INVALID_EXECUTOR_MEMORY] Executor memory 209715200 must be "
                "at least 471859200. Please increase executor memory using the --executor-memory option or "
                '"spark.executor.memory" in Spark configuration.'
            ),
        ),
        (
            (
                f": org.apache.spark.SparkException: {LOST} stage 0.0 (TID 3) (node-2 executor 0): "
                "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
                "pyspark.errors.exceptions.base.PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in "
                "worker has different version: 3.12 than that in driver: 3.11, PySpark cannot run with "
                f"different minor versions.\nPlease check environment variables PYSPARK_PYTHON\n{JAVA}"
            ),
            (
                "[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.12 than that in driver: "
                "3.11, PySpark cannot run with different minor versions on host node-2 (executor 0). Set "
                "spark.pyspark.python to the same minor version on all executors"
            ),
        ),
        ("3 of 5 files have no row in s3://s/rows", "3 of 5 files have no row in s3://s/rows"),
        ("", "RuntimeError"),
    ],
)
def test_cause_is_named(text: str, cause: str) -> None:
    assert cause_of(RuntimeError(text)) == cause


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (ValueError("--options must be a JSON object"), True),
        (MissingPackagesError("python on host a lacks pandas"), True),
        (RuntimeError(": org.apache.spark.SparkIllegalArgumentException: Executor memory 1 must be"), True),
        (
            RuntimeError("whisper_spark.decoding.model_cache.ModelError: there is no folder /x on host a"),
            True,
        ),
        (
            RuntimeError("whisper_spark.decoding.model_cache.ModelError: there is no model at s3://m/: the"),
            True,
        ),
        (
            RuntimeError(
                "whisper_spark.decoding.model_cache.ModelError: cannot get model 'org/nam' from the hub "
                "(RepositoryNotFoundError: 404 Client Error. Repository Not Found). Executors"
            ),
            True,
        ),
        (
            RuntimeError("whisper_spark.decoding.model_cache.ModelError: cannot fetch the model at s3://m"),
            False,
        ),
        (
            RuntimeError(
                "whisper_spark.engine.transform.TransformError: transform='a:b@1' cannot be imported"
            ),
            True,
        ),
        (
            RuntimeError(
                "whisper_spark.decoding.model_cache.ModelError: speaker_model /m must hold one .onnx file"
            ),
            True,
        ),
        (
            RuntimeError(
                "whisper_spark.decoding.model_cache.ModelError: a.onnx in /m has SHA-256 1, but "
                "speaker_model_sha256 is 2: the weights"
            ),
            True,
        ),
        (RuntimeError(f"{LOST} (TID 9) (node-7 executor 3): ExecutorLostFailure (x) Reason: gone"), False),
    ],
)
def test_what_a_person_has_to_change_is_told_from_what_may_pass(error: Exception, permanent: bool) -> None:
    assert is_wrong_configuration(error) is permanent
