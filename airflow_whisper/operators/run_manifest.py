"""Read the manifest that a task was given, and check that it belongs to the run folder it lies in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException

from whisper_spark.contract.text import visible

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from whisper_spark.contract import Run
    from whisper_spark.storage.objects import ObjectStorage

_AGAIN = "Clear the discover task, which writes it again"


def read_own_manifest(uri: str, storage: ObjectStorage) -> tuple[Run, pq.FileMetaData]:
    """Return the run that a manifest describes, and the manifest's Parquet metadata.

    :raises AirflowFailException: if the file does not exist, is damaged, is not a manifest, or describes
        another run.
    :raises whisper_spark.storage.objects.StorageError: if the store does not respond.
    """
    from airflow_whisper.validation.staged import manifest_problem

    run, metadata = read_any_manifest(uri, storage)
    if problem := manifest_problem(run, uri):
        raise AirflowFailException(f"the manifest is not that of its folder: {visible(problem)}. {_AGAIN}")
    return run, metadata


def read_any_manifest(uri: str, storage: ObjectStorage) -> tuple[Run, pq.FileMetaData]:
    """Like :func:`read_own_manifest`, but the manifest may describe another run; the caller must check.

    :raises AirflowFailException: if the file does not exist, is damaged, or is not a manifest.
    :raises whisper_spark.storage.objects.StorageError: if the store does not respond.
    """
    from whisper_spark.storage.objects import ObjectNotFound
    from whisper_spark.storage.parquet import read_manifest

    try:
        return read_manifest(uri, storage)
    except ObjectNotFound as error:
        raise AirflowFailException(
            f"there is no manifest: {visible(error)}. If it was deleted, by hand or by a lifecycle rule, "
            "clear the discover task, which writes a new one"
        ) from None
    except ValueError as error:
        raise AirflowFailException(f"the manifest cannot be read: {visible(error)}. {_AGAIN}") from None


def check_uri(argument: str, value: object) -> None:
    """:raises ValueError: unless the value is a storage URI or a path."""
    from whisper_spark.storage.objects import normalise_uri

    # A template that looks up a missing XCom renders to "None".
    if not isinstance(value, str) or value in ("", "None"):
        raise ValueError(
            f"{argument} is {value!r}, but must be a URI: did the task that returns it run, is its id right, "
            "and may it push XComs (do_xcom_push)?"
        )
    try:
        normalise_uri(value)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None
