"""The result of a run, and the files of staged rows that it lists."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from whisper_spark.contract import TRANSIENT_ERRORS, Run

if TYPE_CHECKING:
    from whisper_spark.storage.objects import ObjectStorage


_ROW_FILE = re.compile(r"^(?P<origin>part|reused|kept)-.*-n(?P<rows>\d+)\.parquet$")


class StagingError(RuntimeError):
    """Staging is incomplete or inconsistent. The message names the run and says what to do."""


# --- result ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StagedFile:
    """One Parquet file of staged rows: its URI, its rows, its size in bytes."""

    uri: str
    rows: int
    bytes: int

    def check_kinds(self) -> None:
        """Check the types of the fields, which are wrong if ``result.json`` was edited by hand.

        :raises TypeError: when a field has another type.
        """
        if not (isinstance(self.uri, str) and type(self.rows) is int and type(self.bytes) is int):
            raise TypeError(f"{self} is no staged file")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The content of ``RUN/result.json``, which is written after all files that it lists.

    :param manifest_uri: manifest of the run.
    :param manifest_id: the same as :attr:`Run.manifest_id`.
    :param fingerprint: fingerprint of the options that the rows were made with.
    :param attempt_id: chosen by the caller that started the job, to identify the result of its job run.
    :param staged: the files of staged rows, which together hold exactly one row per manifest row.
    :param files: rows in the manifest.
    :param ok: rows with a transcript.
    :param errors: rows with an error.
    :param error_codes: rows per error code.
    :param retryable: transient errors with tries left, which another job run on this manifest tries again.
    :param languages: transcripts per language.
    :param audio_seconds: seconds of audio in all rows.
    :param speech_seconds: seconds of detected speech in all rows.
    :param transcribed: files that this job run transcribed.
    :param resumed: rows that earlier job runs of this manifest had staged.
    :param reused: rows taken from other runs of the same partition and options.
    :param transcribed_audio_seconds: seconds of audio that this job run transcribed.
    :param transcribe_seconds: wall time of the transcription in seconds, including loading the model.
    :param transcribe_started_at: when this time began, in ISO 8601, UTC; empty when nothing was transcribed.
    :param real_time_factor: ``transcribed_audio_seconds / transcribe_seconds``: seconds of audio per
        second of wall time for the whole cluster. ``None`` when nothing was transcribed.
    :param task_seconds: duration of all its Spark tasks together, in seconds, loading the model included.
        Only successful task attempts count.
    :param gpu_seconds: seconds in which these tasks held a GPU: ``task_seconds`` times the GPUs that Spark
        assigned to each. ``None`` if Spark assigned none.
    :param windows: windows that this job run decoded.
    :param retried_windows: of these, how many were decoded more than once.
    :param flags: files that this job run transcribed, by quality flag.
    :param stage_seconds: seconds of all threads together in each of :data:`progress.STAGES`.
    :param device_busy: share of their time, 0 to 1, in which the threads of the device had work. This field
        and the four before it count only successful tasks; it is ``None`` without any.
    :param wall_seconds: from the start of the job to this result, in seconds.
    :param spark_app_id: id of the Spark application.
    :param engine_version: value of the column in the rows; ``None`` without rows.
    :param finished_at: time in ISO 8601, UTC.
    """

    manifest_uri: str
    manifest_id: str
    fingerprint: str
    attempt_id: str
    staged: tuple[StagedFile, ...] = ()
    files: int = 0
    ok: int = 0
    errors: int = 0
    error_codes: Mapping[str, int] = field(default_factory=dict)
    retryable: int = 0
    languages: Mapping[str, int] = field(default_factory=dict)
    audio_seconds: float = 0.0
    speech_seconds: float = 0.0
    transcribed: int = 0
    resumed: int = 0
    reused: int = 0
    transcribed_audio_seconds: float = 0.0
    transcribe_seconds: float = 0.0
    transcribe_started_at: str = ""
    real_time_factor: float | None = None
    task_seconds: float = 0.0
    gpu_seconds: float | None = None
    windows: int = 0
    retried_windows: int = 0
    flags: Mapping[str, int] = field(default_factory=dict)
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    device_busy: float | None = None
    wall_seconds: float = 0.0
    spark_app_id: str | None = None
    engine_version: str | None = None
    finished_at: str = ""

    @property
    def rows_id(self) -> str:
        """Identifies the staged rows: a hash of the names of their files, which never change."""
        names = sorted(file.uri.rsplit("/", 1)[1] for file in self.staged)
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:32]

    def to_json(self) -> str:
        """All fields as one JSON object, keys sorted."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunResult:
        """The inverse of :meth:`to_json`.

        Fields of later releases are ignored.

        :raises ValueError: when the text is not a result.
        """
        try:
            values = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            values = {key: value for key, value in values.items() if key in known}
            values["staged"] = tuple(StagedFile(**file) for file in values.get("staged", ()))
            for file in values["staged"]:
                file.check_kinds()
            return cls(**values)
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"this is no result of the transcription job: {error}") from error


def read_result(run: Run, storage: ObjectStorage) -> RunResult:
    """The result of a run.

    :raises ObjectNotFound: when the job has not finished yet.
    :raises StagingError: when the result belongs to another manifest, or cannot be parsed.
    """
    try:
        result = RunResult.from_json(storage.read_bytes(run.result_uri))
    except ValueError as error:
        raise StagingError(f"{run.result_uri}: {error}. Delete it and run the transcription again") from error
    if result.manifest_id != run.manifest_id:
        raise StagingError(
            f"{run.result_uri} belongs to manifest {result.manifest_id}, not to {run.manifest_id}. "
            "Two runs share one folder in staging: give each table its own staging URI"
        )
    return result


def complete_result(run: Run, storage: ObjectStorage) -> RunResult | None:
    """The result of a run if all staged files that it lists exist, else ``None``.

    Lists the files, because a lifecycle rule or a user may have deleted some of them. Other files in the
    folder, for instance of another job on the same run, are ignored.
    """
    from whisper_spark.storage.objects import ObjectNotFound

    try:
        result = read_result(run, storage)
    except (ObjectNotFound, StagingError):
        return None
    there = set(staged_files(storage, run.rows_uri))
    return result if there.issuperset(result.staged) else None


def finished_result(run: Run, storage: ObjectStorage) -> RunResult | None:
    """The complete result of a run if nothing is left to do, else ``None``.

    A run that has transient errors with tries left is not finished.
    """
    result = complete_result(run, storage)
    return result if result is not None and not result.retryable else None


def spent_tries(result: RunResult) -> str:
    """What can be done about transient errors of a finished run, which have no tries left; empty without."""
    spent = sum(files for code, files in result.error_codes.items() if code in TRANSIENT_ERRORS)
    if not spent:
        return ""
    return (
        f". {spent:,} of them failed with errors that may pass, as often as allowed: to try them again, "
        "raise max_attempts of the discover task and clear it"
    )


def nothing_done(result: RunResult) -> RunResult:
    """The result of a job run on a finished run, which had nothing to do."""
    return dataclasses.replace(
        result,
        transcribed=0,
        resumed=result.files,
        reused=0,
        transcribed_audio_seconds=0.0,
        transcribe_seconds=0.0,
        transcribe_started_at="",
        real_time_factor=None,
        task_seconds=0.0,
        gpu_seconds=None,
        windows=0,
        retried_windows=0,
        flags={},
        stage_seconds={},
        device_busy=None,
    )


# --- files -------------------------------------------------------------------------------------------


def staged_files(storage: ObjectStorage, folder_uri: str) -> list[StagedFile]:
    """All files of staged rows below a folder, sorted by URI. Empty when the folder does not exist.

    Row counts are part of the file names, so that this takes one listing and no reads.
    """
    files = []
    for batch in storage.list(folder_uri):
        for uri, size in zip(
            batch.column("audio_uri").to_pylist(), batch.column("audio_bytes").to_pylist(), strict=True
        ):
            match = _ROW_FILE.match(uri.rsplit("/", 1)[1])
            if match and uri.rsplit("/", 2)[1] == "rows":
                files.append(StagedFile(uri, int(match["rows"]), size))
    return sorted(files, key=lambda file: file.uri)


def staged_file_uri(rows_uri: str, origin: str, name: str, rows: int) -> str:
    """A new, unique URI for a file of staged rows.

    :param origin: ``"part"`` for transcribed rows, ``"reused"`` for rows copied from another run, ``"kept"``
        for the rows of a file that remain after removing superseded ones.
    """
    return f"{rows_uri}/{origin}-{name}-{uuid.uuid4().hex[:12]}-n{rows}.parquet"
