"""Stops a job whose files all fail for the same reason, before it writes a million error rows."""

from __future__ import annotations

from collections.abc import Callable, Collection

from whisper_spark.contract import TRANSIENT_ERRORS, Transcript
from whisper_spark.progress.counters import Snapshot

FIRST_FILES = 100
"""So many files that all fail with the same error, one that may pass, stop the job."""


class AllFilesFailError(RuntimeError):
    """The first files of the job all failed with the same error, and it may pass."""


class FirstFiles:
    """Holds back the first files of a task for as long as they all fail alike.

    What is held back is not staged when the job stops, so that none of its tries is used up.

    :param reports: of all tasks of the job. Asked only before the job is stopped.
    """

    def __init__(self, reports: Callable[[], Collection[Snapshot]]) -> None:
        self._reports = reports
        self._held: list[Transcript] = []
        self._holds = True

    def passed(self, transcript: Transcript) -> list[Transcript]:
        """The finished files that may be staged now.

        :raises AllFilesFailError: when every file of the job so far has failed alike.
        """
        self._held.append(transcript)
        code = self._held[0].error_code
        self._holds = self._holds and code in TRANSIENT_ERRORS and transcript.error_code == code
        if self._holds and len(self._held) < FIRST_FILES:
            return []
        if self._holds and all(common_error([task]) == code for task in self._reports() if task.files):
            raise AllFilesFailError(
                f"the first {FIRST_FILES} files all failed with {code}: {transcript.error_message}, for "
                f"example {transcript.audio_uri}. Put that right and run the job again"
            )
        self._holds = False
        return self.rest()

    def rest(self) -> list[Transcript]:
        """What is still held back, for the end of the task."""
        held, self._held = self._held, []
        return held


def check_job(tasks: Collection[Snapshot]) -> None:
    """The same for all tasks together, which may have fewer files each.

    :raises AllFilesFailError: when every file of the job so far has failed alike.
    """
    files, code = sum(task.files for task in tasks), common_error(tasks)
    if files >= FIRST_FILES and code is not None:
        raise AllFilesFailError(
            f"the first {files} files all failed with {code}. Put that right and run the job again"
        )


def common_error(tasks: Collection[Snapshot]) -> str | None:
    """The error, one that may pass, with which every finished file of some tasks has failed, if any."""
    codes = {code for task in tasks for code in task.errors}
    failed = sum(sum(task.errors.values()) for task in tasks)
    if len(codes) != 1 or failed < sum(task.files for task in tasks) or not codes <= TRANSIENT_ERRORS:
        return None
    return codes.pop()
