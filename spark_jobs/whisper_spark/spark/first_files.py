"""Stops a job whose files all fail with the same transient error, before it writes a million error rows."""

from __future__ import annotations

from collections.abc import Callable, Collection

from whisper_spark.contract import TRANSIENT_ERRORS, Transcript
from whisper_spark.progress.counters import Snapshot

FIRST_FILES = 100
"""The job stops when this many files have finished and all of them failed with the same transient error."""


class AllFilesFailError(RuntimeError):
    """The first files of the job all failed with the same transient error."""


class FirstFiles:
    """Holds back the first transcripts of a task while all of them have the same transient error.

    They are not staged when the job stops, so that the files do not lose one of their tries.

    :param reports: returns the reports of all tasks of the job. Called only when the job may have to stop.
    """

    def __init__(self, reports: Callable[[], Collection[Snapshot]]) -> None:
        self._reports = reports
        self._held: list[Transcript] = []
        self._holds = True

    def passed(self, transcript: Transcript) -> list[Transcript]:
        """Add the transcript of a finished file. Returns the transcripts that may be staged now.

        :raises AllFilesFailError: when every file of the job so far has failed with the same transient error.
        """
        self._held.append(transcript)
        code = self._held[0].error_code
        self._holds = self._holds and code in TRANSIENT_ERRORS and transcript.error_code == code
        if self._holds and len(self._held) < FIRST_FILES:
            return []
        if self._holds and all(common_error([task]) == code for task in self._reports() if task.files):
            raise AllFilesFailError(
                f"the first {FIRST_FILES} files all failed with {code}: {transcript.error_message}, for "
                f"example {transcript.audio_uri}. {_what_to_do(code)}"
            )
        self._holds = False
        return self.rest()

    def rest(self) -> list[Transcript]:
        """The transcripts that are still held back, to stage them at the end of the task."""
        held, self._held = self._held, []
        return held


def check_job(tasks: Collection[Snapshot]) -> None:
    """Check all tasks together, because each of them may have fewer than :data:`FIRST_FILES` files.

    :raises AllFilesFailError: when every file of the job so far has failed with the same transient error.
    """
    files, code = sum(task.files for task in tasks), common_error(tasks)
    if files >= FIRST_FILES and code is not None:
        raise AllFilesFailError(f"the first {files} files all failed with {code}. {_what_to_do(code)}")


def _what_to_do(code: str | None) -> str:
    if code == "changed_during_read":
        return "They were replaced after discovery: clear the discover task, which lists them as they are now"
    if code == "not_found":
        return (
            "If the source is there for the executors, the files are gone: clear the discover task, which "
            "lists what is there now"
        )
    return "Put that right and run the job again"


def common_error(tasks: Collection[Snapshot]) -> str | None:
    """The transient error that every finished file of the tasks has, or ``None``."""
    codes = {code for task in tasks for code in task.errors}
    failed = sum(sum(task.errors.values()) for task in tasks)
    if len(codes) != 1 or failed != sum(task.files for task in tasks) or not codes <= TRANSIENT_ERRORS:
        return None
    return codes.pop()
