"""Commits that succeed only on top of one specific snapshot, and their retries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from airflow_whisper.table.errors import RegistrationError, unavailable_errors

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table, Transaction
    from pyiceberg.table.snapshots import Snapshot

# With N concurrent writers one of them commits in each round, so N tries suffice for every writer.
COMMIT_TRIES = 100
COMMIT_SECONDS = 1800
_SHORTEST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.05, 5.0

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparedCommit:
    """A snapshot whose manifests are written, but which is not yet committed to the catalog."""

    snapshot_id: int
    transaction: Transaction

    def send(self) -> None:
        """Commit the snapshot to the catalog.

        :raises CommitFailedException: if the table has changed since; the manifests are deleted.
        """
        self.transaction.commit_transaction()


def prepare_commit(
    table: Table,
    *,
    added: Iterable[DataFile],
    deleted: Iterable[DataFile],
    summary: Mapping[str, str],
) -> PreparedCommit:
    """Prepare one snapshot that both deletes and adds data files, on top of ``table`` as it was loaded.

    With two snapshots, a time travel query on the one in between would see an incomplete partition.
    """
    from airflow_whisper.table.pinned import PinnedTable

    pinned = PinnedTable(table)
    transaction = pinned.transaction()
    update = transaction.update_snapshot(snapshot_properties=dict(summary))
    deleted = list(deleted)
    producer = update.overwrite() if deleted else update.fast_append()
    for file in added:
        producer.append_data_file(file)
    for file in deleted:
        producer.delete_data_file(file)
    producer.commit()
    pinned.expected_snapshot_id = producer.snapshot_id
    return PreparedCommit(producer.snapshot_id, transaction)


def prepare_manifest_merge(table: Table, *, summary: Mapping[str, str]) -> PreparedCommit:
    """Prepare a snapshot with the same data files as ``table``, listed in as few manifests as possible."""
    from airflow_whisper.table.pinned import PinnedTable

    merge = {"commit.manifest-merge.enabled": "true", "commit.manifest.min-count-to-merge": "2"}
    pinned = PinnedTable(table, properties=merge)
    transaction = pinned.transaction()
    # PyIceberg merges manifests in appends, so append nothing.
    producer = transaction.update_snapshot(snapshot_properties=dict(summary)).merge_append()
    producer.commit()
    pinned.expected_snapshot_id = producer.snapshot_id
    return PreparedCommit(producer.snapshot_id, transaction)


def until_committed(name: str, commit: Callable[[], T]) -> T:
    """Call ``commit`` and retry while it fails because of other writers or transient errors.

    :param name: description of the commit, for messages.
    :raises RegistrationError: if it does not succeed within the limits.
    """
    import tenacity

    errors = passing_errors()

    def log_failure(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.info("Try %d to commit %s failed, trying again: %s", state.attempt_number, name, error)

    tries = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(errors),
        stop=tenacity.stop_after_attempt(COMMIT_TRIES) | tenacity.stop_after_delay(COMMIT_SECONDS),
        wait=tenacity.wait_random_exponential(
            multiplier=2 * _SHORTEST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS, min=_SHORTEST_WAIT_SECONDS
        ),
        before_sleep=log_failure,
        reraise=True,
    )
    try:
        return tries(commit)
    except errors as error:
        count = tries.statistics["attempt_number"]
        raise RegistrationError(
            f"could not commit {name} after {count} tries, because of other writers or the catalog itself: "
            f"{error}. Run the task again; let fewer runs register at once"
        ) from error


def ancestors(table: Table) -> Iterator[Snapshot]:
    """Yield the current snapshot and its ancestors, newest first."""
    by_id = {snapshot.snapshot_id: snapshot for snapshot in table.metadata.snapshots}
    snapshot = table.current_snapshot()
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = by_id.get(parent) if parent is not None else None


def summary_of(snapshot: Snapshot) -> Mapping[str, str]:
    """Return the summary properties of a snapshot."""
    return snapshot.summary.additional_properties if snapshot.summary else {}


def passing_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a commit that may be transient."""
    from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException

    return (CommitFailedException, CommitStateUnknownException, *unavailable_errors())
