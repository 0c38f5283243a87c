"""Register a finished run: copy its staged rows to the table and publish them exactly once."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_whisper.table.data_files import batch_rows
from airflow_whisper.table.errors import RunNotReadyError
from airflow_whisper.table.history import cost_properties
from airflow_whisper.table.replace import MANIFEST_URI, REPORT_URI, PartitionChange, Registered, replace_rows
from whisper_spark.contract import GONE_ERRORS, Run, partition_path
from whisper_spark.contract.text import visible
from whisper_spark.staging.result import RunResult, StagingError, read_result
from whisper_spark.storage.objects import ObjectNotFound, StorageError
from whisper_spark.storage.parquet import open_parquet

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog

    from whisper_spark.storage.objects import ObjectStorage

_MANIFEST_ROWS = 10_000

log = logging.getLogger(__name__)


def register_run(
    run: Run,
    storage: ObjectStorage,
    catalog: Catalog,
    *,
    report_uri: str | None = None,
    require_report: bool = True,
) -> Registered | None:
    """Publish the rows of a run in one commit. If the run is already registered, return its first commit.

    :param storage: storage of staging.
    :param report_uri: URI of the validation report; ``None``: its default URI.
    :param require_report: whether a report in which all checks passed is required.
    :return: the commit; ``None`` if there is nothing left to do, because another run did the same work.
    :raises PartitionConflictError: if another run has changed the same rows since discovery.
    :raises TableMismatchError: if the table exists but cannot hold the rows.
    :raises RunNotReadyError: if the run is not validated or not complete.
    :raises RegistrationError: if no commit succeeded.
    """
    report_uri = report_uri or run.report_uri
    result = _result(run, storage)
    if require_report:
        _check_report(run, result, storage, report_uri)
    change = PartitionChange(
        partition=run.partition,
        fingerprint=run.options.fingerprint(),
        idempotency_key=run.idempotency_key,
        base_snapshot_id=run.base_snapshot_id,
        manifest=_batches(run.manifest_uri, storage, ["audio_uri", "audio_etag", "change", "attempt"]),
        removed=_batches(run.removed_uri, storage, ["audio_uri"]) if run.counts.get("removed") else (),
        gone=_gone(run, result, storage),
        rows=_staged_rows(run, result, storage),
        properties={MANIFEST_URI: run.manifest_uri, REPORT_URI: report_uri, **_cost(run, result)},
    )
    registered = replace_rows(catalog, run.table, change)
    if registered is None:
        return _registered_before(run, storage)
    _note_registration(run, storage, registered)
    return registered


def result_of(run: Run, registered: Registered, report_uri: str | None = None) -> dict[str, Any]:
    """Return the result for downstream tasks: identifiers, counts and URIs, all small and none secret."""
    return {
        "table": run.table,
        "partition": partition_path(run.partition),
        "snapshot_id": registered.snapshot_id,
        "rows": registered.rows,
        "errors": registered.errors,
        "removed": registered.removed,
        "audio_hours": round(registered.audio_seconds / 3600, 4),
        "report_uri": report_uri or run.report_uri,
        "table_location": registered.table_location,
    }


def registration_uri(run: Run) -> str:
    """URI of the JSON that records a run's registration, which outlives the snapshot's expiry."""
    return f"{run.run_uri}/registered.json"


def _note_registration(run: Run, storage: ObjectStorage, registered: Registered) -> None:
    note = {"idempotency_key": run.idempotency_key, **dataclasses.asdict(registered)}
    try:
        storage.write_bytes(registration_uri(run), json.dumps(note).encode())
    except StorageError as error:
        # The commit has succeeded, and its snapshot's summary holds the same data until the snapshot expires.
        log.warning("Could not note the registration in %s: %s", registration_uri(run), error)


def _registered_before(run: Run, storage: ObjectStorage) -> Registered | None:
    """Return a run's earlier registration whose snapshot has expired since.

    Call it only if the table already holds every row as the run wants it: the record alone proves nothing,
    because a table may have been rolled back.
    """
    try:
        note = json.loads(storage.read_bytes(registration_uri(run)))
        if note.pop("idempotency_key") != run.idempotency_key:
            return None
        return dataclasses.replace(Registered(**note), again=True)
    except (StorageError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _result(run: Run, storage: ObjectStorage) -> RunResult | None:
    """The result of the job; ``None`` if there is none, which matters only if rows are to be written."""
    try:
        return read_result(run, storage)
    except ObjectNotFound:
        return None
    except StagingError as error:
        raise RunNotReadyError(f"{visible(error)}. Clear the transcribe task") from error


def _cost(run: Run, result: RunResult | None) -> dict[str, str]:
    """What the run took, for the estimates of later runs."""
    return cost_properties(result, run.options.model) if result else {}


def _check_report(run: Run, result: RunResult | None, storage: ObjectStorage, report_uri: str) -> None:
    try:
        report = json.loads(storage.read_bytes(report_uri))
        passed, manifest_id = report["passed"], report.get("manifest_id", run.manifest_id)
        # Reports of earlier releases do not name the rows.
        rows_id = report.get("rows_id") or (result and result.rows_id)
    except ObjectNotFound:
        raise RunNotReadyError(
            f"there is no validation report at {report_uri}: clear the validate task, or pass "
            "require_report=False to register what nobody has checked"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunNotReadyError(f"{report_uri} is not a validation report: clear the validate task") from error
    if manifest_id != run.manifest_id:
        raise RunNotReadyError(
            f"the validation report {report_uri} is about manifest {manifest_id}, not "
            f"{run.manifest_id}: clear the validate task of this run"
        )
    if passed is not True:
        raise RunNotReadyError(
            f"validation failed, so nothing is registered: see {report_uri}. Once its cause is fixed, "
            "clear the discover task and those after it"
        )
    if result is not None and rows_id != result.rows_id:
        raise RunNotReadyError(
            f"the validation report {report_uri} is about other rows than those in staging, because the "
            "transcribe task has run since: clear the validate task"
        )


@contextmanager
def _undamaged(uri: str) -> Iterator[None]:
    """:raises RunNotReadyError: if a file is damaged, or gone."""
    import pyarrow as pa

    try:
        yield
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise RunNotReadyError(
            f"{visible(uri)} is damaged: {visible(error)}. Clear the validate task, and see its report"
        ) from error
    except ObjectNotFound:
        raise RunNotReadyError(
            f"{visible(uri)} is gone, deleted by hand or by a lifecycle rule: clear the discover task, and "
            "what is still staged is taken from there"
        ) from None


def _batches(uri: str, storage: ObjectStorage, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _undamaged(uri), open_parquet(uri, storage) as file:
        for batch in file.iter_batches(batch_size=_MANIFEST_ROWS, columns=list(columns)):
            yield batch.select(columns)


def _gone(run: Run, result: RunResult | None, storage: ObjectStorage) -> Iterator[pa.RecordBatch]:
    """The files that were gone or replaced when the job came to read them, in one column ``audio_uri``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if result is not None and GONE_ERRORS & set(result.error_codes):
        codes = pa.array(sorted(GONE_ERRORS), pa.string())
        for rows in _staged_rows(run, result, storage, columns=("audio_uri", "error_code")):
            gone = pc.is_in(rows.column("error_code").cast(pa.string()), value_set=codes)
            yield rows.filter(gone).select(["audio_uri"])


def _staged_rows(
    run: Run,
    result: RunResult | None,
    storage: ObjectStorage,
    *,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    if result is None:
        raise RunNotReadyError(
            f"there is no result at {run.result_uri}: clear the transcribe task, which does only what is "
            "missing"
        )
    for staged in result.staged:
        if not staged.uri.startswith(f"{run.rows_uri}/"):
            raise RunNotReadyError(
                f"{run.result_uri} names {visible(staged.uri)}, which is no file of this run: clear the "
                "transcribe task"
            )
        with _undamaged(staged.uri), open_parquet(staged.uri, storage) as file:
            yield from file.iter_batches(batch_size=batch_rows(file.metadata), columns=columns)
