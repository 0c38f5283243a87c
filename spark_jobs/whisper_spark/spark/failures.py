"""Finds the cause of a failed Spark job, as one line, in the long messages of Spark, Java and Python."""

from __future__ import annotations

import itertools
import re

_TASK = re.compile(r"\(TID \d+\) \((?P<host>\S+) executor (?P<executor>\S+)\)")
_JAVA = ("java.", "javax.", "org.apache.", "scala.", "py4j.", "pyspark.errors.")
_PYTHON_ERROR = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|NotFound|Forbidden|Changed): ")
_MISSING_MODULE = re.compile(r"No module named '?(?P<module>[\w.]+)")
_LOST_EXECUTOR = re.compile(r"ExecutorLostFailure \(.*?\) Reason: (?P<reason>.+)")
_FATAL = re.compile(r"Fatal Python error: (?P<text>.+)")
_JAVA_ERROR = re.compile(r"^(?:Caused by)?: (?P<kind>[\w.$]+(?:Exception|Error)): (?P<text>.+)")
_OUT_OF_MEMORY = re.compile(r"(code|status)[ :]*137|out of memory|OOM|memory limit", re.IGNORECASE)


def cause_of(error: BaseException) -> str:
    """One line with the cause of an error, and the host of the failed task if that is known."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for find in (_worker_start, _lost_executor, _python_error, _dead_worker, _java_error):
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
            return f"Python does not start{_place(text)}: {following}"
    return None


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
    return f"{kind}: {found[-1]['text']}{_place(text)}"
