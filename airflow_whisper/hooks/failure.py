"""Extract the cause of a failed Spark job from the hundreds of lines that spark-submit prints."""

from __future__ import annotations

import re
import signal

_JAVA = "install Java 17 or newer and set JAVA_HOME, or put java on the path"

# Misleading lines of the launch script and the JVM, and what they mean.
_KNOWN = (
    (
        re.compile(r"JAVA_HOME is not set|java: (command )?not found"),
        f"there is no Java on this machine: {_JAVA}",
    ),
    (
        re.compile(r"/bin/java: (No such file or directory|Permission denied|cannot execute)"),
        f"JAVA_HOME names a folder without a Java that can be run: {_JAVA}",
    ),
    (
        re.compile(r"UnsupportedClassVersionError|requires Java \d+"),
        f"the Java on this machine is too old: {_JAVA}",
    ),
    (re.compile(r"jdk\.incubator\.vector not found"), f"this Java lacks a module that Spark needs: {_JAVA}"),
)
_REASON = re.compile(r"^whisper: failed: (.+)$")
_JVM = re.compile(r'^Exception in thread "[^"]*" (.+)$')
_CAUSED_BY = re.compile(r"^Caused by: (.+)$")
_LAUNCHER = re.compile(r"^Error: (.+)$")
# The beginning of each line of the job (``whisper_spark.job``).
_OWN = "whisper: "
# Exit status of the job for wrong arguments, options or Spark properties (``whisper_spark.job``).
_WRONG_CONFIGURATION = 2
_PYTHON = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|NotFound|Forbidden|Changed): .+$")


class Failure:
    """Collects the lines of the output that name a cause."""

    def __init__(self) -> None:
        self._started = False
        self._known = ""
        self._reason = ""
        self._jvm = ""
        self._caused_by = ""
        self._launcher = ""
        self._python = ""

    def add(self, line: str) -> None:
        """Process one line of spark-submit's output."""
        line = line.strip()
        self._started = self._started or line.startswith(_OWN)
        for pattern, meaning in _KNOWN:
            if pattern.search(line):
                self._known = meaning
        if match := _REASON.match(line):
            self._reason = match[1]
        elif match := _JVM.match(line):
            self._jvm, self._caused_by = match[1], ""
        elif self._jvm and (match := _CAUSED_BY.match(line)):
            self._caused_by = match[1]
        elif match := _LAUNCHER.match(line):
            self._launcher = match[1]
        elif _PYTHON.match(line):
            self._python = line

    def is_permanent(self, status: int | None) -> bool:
        """Whether a person has to change something first, so that a retry cannot help.

        :param status: see :meth:`cause`.
        """
        if self._reason:
            return status == _WRONG_CONFIGURATION
        # Once the job runs, such lines may come from anywhere.
        return not self._started and bool(self._known or self._launcher)

    def cause(self, status: int | None) -> str:
        """Return the cause in one line, from the most informative line found.

        :param status: exit status of spark-submit, negative for a signal; ``None`` if unknown.
        """
        jvm = f"{self._jvm} (caused by {self._caused_by})" if self._caused_by else self._jvm
        said = self._reason or self._known or jvm or self._launcher or self._python
        return said or _ended(status)


def _ended(status: int | None) -> str:
    if status is None:
        return "spark-submit did not say why"
    # A shell reports a child that was ended by a signal as 128 plus the signal's number.
    number = -status if status < 0 else status - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"spark-submit ended with exit status {status} and did not say why"
    memory = ", as happens when the machine or the container runs out of memory" if name == "SIGKILL" else ""
    return f"spark-submit was ended by {name}{memory}"
