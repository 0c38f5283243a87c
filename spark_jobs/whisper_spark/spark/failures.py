"""Finds the cause of a failed Spark job, as one line, in the long messages of Spark, Java and Python."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from whisper_spark.engine.packages import missing_here
from whisper_spark.spark.conf import slots

if TYPE_CHECKING:
    from pyspark import SparkContext

log = logging.getLogger(__name__)

_TASK = re.compile(r"\(TID \d+\) \((?P<host>\S+) executor (?P<executor>\S+)\)")
_JAVA = ("java.", "javax.", "org.apache.", "scala.", "py4j.", "pyspark.errors.")
_PYTHON_ERROR = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|NotFound|Forbidden|Changed): ")
_MISSING_MODULE = re.compile(r"No module named '?(?P<module>[\w.]+)")
_LOST_EXECUTOR = re.compile(r"ExecutorLostFailure \(.*?\) Reason: (?P<reason>.+)")
# Parts of causes that a person has to remove.
_PERMANENT = (
    "IllegalArgumentException: ",
    "ModelError: there is no folder",
    "ModelError: there is no model at",
    "from the hub (RepositoryNotFoundError",
    "from the hub (RevisionNotFoundError",
    "from the hub (GatedRepoError",
    "is no faster-whisper model",
    "is no speaker model",
    "must hold one .onnx file",
    "model_sha256 is",
    "TransformError: ",
    "[PYTHON_VERSION_MISMATCH]",
    "Python does not start",
)
_NO_PROGRAM = re.compile(r'Cannot run program "(?P<program>[^"]+)".*error=2')
_FATAL = re.compile(r"Fatal Python error: (?P<text>.+)")
# Errors of PySpark for a worker whose packages or Python do not suit.
_UNSUITABLE_WORKER = re.compile(r"\[(?:PACKAGE_NOT_INSTALLED|UNSUPPORTED_PACKAGE_VERSION)\] .+")
_OTHER_PYTHON = re.compile(r"\[PYTHON_VERSION_MISMATCH\] .+?(?=\.? SQLSTATE|$)", re.MULTILINE)
_JAVA_ERROR = re.compile(r"^(?:Caused by)?: (?P<kind>[\w.$]+(?:Exception|Error)): (?P<text>.+)")
_SQLSTATE = re.compile(r" SQLSTATE: \w+$")
_OUT_OF_MEMORY = re.compile(r"(code|status)[ :]*137|out of memory|OOM|memory limit", re.IGNORECASE)


class CheckFailedError(RuntimeError):
    """A check found something that would make a job fail. The message names the first such thing."""


class MissingPackagesError(RuntimeError):
    """Executors lack Python packages. The message names hosts, interpreters and the packages."""


@contextmanager
def explained_imports(context: SparkContext) -> Iterator[None]:
    """Ask the executors for all packages that they lack, when the block fails because one is missing.

    :raises MissingPackagesError: instead of an error that names only the first missing package.
    """
    try:
        yield
    except Exception as error:
        if not _lacks_package(error):
            raise
        missing = _missing_on_executors(context)
        if not missing:
            raise
        raise MissingPackagesError("; ".join(missing) + _other_interpreter(context)) from error


def _other_interpreter(context: SparkContext) -> str:
    """The other way out for those who have installed the packages, but for another interpreter."""
    if context.getConf().get("spark.pyspark.python"):
        return ""
    return (
        ". Or, if another interpreter on the executors has them, name that one in conf: spark.pyspark.python "
        "is not set"
    )


def _lacks_package(error: BaseException) -> bool:
    text = str(error)
    return bool(_MISSING_MODULE.search(text) or _UNSUITABLE_WORKER.search(text))


def _missing_on_executors(context: SparkContext) -> list[str]:
    tasks = slots(dict(context.getConf().getAll()), context.defaultParallelism)
    try:
        found = context.parallelize(range(tasks), tasks).map(lambda _: missing_here()).collect()
    except Exception as error:
        log.debug("cannot ask the executors for their packages: %s", cause_of(error))
        return []
    return sorted({line for line in found if line})


def is_wrong_configuration(error: BaseException) -> bool:
    """Whether arguments, Spark properties or the set-up of executors are wrong: a retry cannot help."""
    if isinstance(error, (ValueError, MissingPackagesError)):
        return True
    cause = cause_of(error)
    return any(part in cause for part in _PERMANENT)


def cause_of(error: BaseException) -> str:
    """One line with the cause of an error, and the host of the failed task if that is known."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for find in (_worker_start, _lost_executor, _other_python, _python_error, _dead_worker, _java_error):
        cause = find(text, lines)
        if cause:
            return cause
    return lines[0] if lines else type(error).__name__


def _place(text: str) -> str:
    """The host of the task that failed last."""
    tasks = [*_TASK.finditer(text)]
    return f" on host {tasks[-1]['host']} (executor {tasks[-1]['executor']})" if tasks else ""


def _worker_start(text: str, lines: list[str]) -> str | None:
    """The cause when the Python worker of an executor did not start."""
    for line, following in itertools.pairwise(lines):
        if line.endswith("Error from python worker:"):
            lacks = _MISSING_MODULE.search(following)
            fix = ". Install pyspark for this interpreter" if lacks and "pyspark" in lacks["module"] else ""
            return f"Python does not start{_place(text)}: {following}{fix}"
    if missing := _NO_PROGRAM.search(text):
        return (
            f"Python does not start{_place(text)}: there is no {missing['program']}. spark.pyspark.python "
            "must name an interpreter that every executor has"
        )
    return None


def _other_python(text: str, lines: list[str]) -> str | None:
    """PySpark refuses a worker whose Python has another minor version than that of the driver."""
    found = _OTHER_PYTHON.search(text)
    fix = "Set spark.pyspark.python to the same minor version on all executors"
    return f"{found[0].rstrip('.')}{_place(text)}. {fix}" if found else None


def _lost_executor(text: str, lines: list[str]) -> str | None:
    lost = _LOST_EXECUTOR.search(text)
    if lost is None:
        return None
    reason = lost["reason"].strip().rstrip(".")
    if _OUT_OF_MEMORY.search(reason):
        reason += ". Give it more memory: spark.executor.memoryOverhead"
    return f"an executor was lost{_place(text)}: {reason}"


def _python_error(text: str, lines: list[str]) -> str | None:
    """The exception of a Python worker: the last line of the traceback in the message."""
    raised = [line for line in lines if _PYTHON_ERROR.match(line) and not line.startswith(_JAVA)]
    if not raised:
        return None
    missing = _MISSING_MODULE.search(raised[-1])
    return f"{raised[-1]}{_place(text)}" if missing else raised[-1]


def _dead_worker(text: str, lines: list[str]) -> str | None:
    if "Python worker exited unexpectedly" not in text and "Connection reset" not in text:
        return None
    fatal = _FATAL.search(text)
    why = fatal["text"] if fatal else "killed, perhaps for lack of memory (spark.executor.memoryOverhead)"
    return f"a Python worker ended{_place(text)}: {why}"


def _java_error(text: str, lines: list[str]) -> str | None:
    """The root cause of a Java exception, which its stack trace names last."""
    found = [match for line in lines if (match := _JAVA_ERROR.match(line))]
    if not found:
        return None
    kind = found[-1]["kind"].rpartition(".")[2]
    following = lines[lines.index(found[-1].string) + 1 :][:1]
    # Messages of Spark may have a second line, which says what to do.
    more = [line for line in following if not line.startswith(("at ", "Caused by", "..."))]
    cause = " ".join([found[-1]["text"], *more])
    return f"{kind}: {_SQLSTATE.sub('', cause)}{_place(text)}"
