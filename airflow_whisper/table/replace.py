"""Replace exactly the rows of a partition that a run has changed, in one atomic commit.

Concurrency: every try loads the table, checks row by row that the rows to replace are still those that
discovery saw, and commits on the condition that the table has not changed since. If it has, the commit fails,
and the next try checks again. PyIceberg's own retry must not run: it would repeat the same commit on top of
other writers' commits, and it sees no conflict between two appends, so two first runs of one partition would
both succeed and duplicate every row.

Cost: data files without affected rows are not touched, those in which all rows are affected are dropped
without reading all columns, and only the others are rewritten. (``Table.delete`` with an ``In`` of all URIs
took twice the CPU time for 100,000 of 200,000 rows, creates two snapshots, holds whole files in memory, and
cannot drop a partition by metadata if its value is longer than the 16 characters that column statistics
keep.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from airflow_whisper.table.commit import ancestors, prepare_commit, summary_of, until_committed
from airflow_whisper.table.data_files import DataFileWriter, read_rows
from airflow_whisper.table.errors import PartitionConflictError, RegistrationError
from airflow_whisper.table.read import file_identity, partition_files, read_data_file, scan_partition
from airflow_whisper.table.row_states import BASE, NOW, RowStates, Verdict, open_row_states
from airflow_whisper.table.schema import STATE_COLUMNS, ensure_table
from whisper_spark.contract import partition_path

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot

KEY = "whisper.idempotency-key"
PARTITION = "whisper.partition"
ROWS = "whisper.rows"
ERRORS = "whisper.errors"
REMOVED = "whisper.removed"
AUDIO_SECONDS = "whisper.audio-seconds"
MANIFEST_URI = "whisper.manifest-uri"
REPORT_URI = "whisper.report-uri"
FINGERPRINT = "whisper.fingerprint"
"""These are properties in the summary of every snapshot that a run creates."""


@dataclass(frozen=True, kw_only=True)
class PartitionChange:
    """The changes that one run makes to one partition. The three streams are read once, in order.

    :param partition: the partition.
    :param fingerprint: fingerprint of the options with which the rows were made.
    :param idempotency_key: a second change with the same key has no effect.
    :param base_snapshot_id: the snapshot that discovery compared the source with; ``None``: an empty table.
    :param manifest: files to write: ``audio_uri``, ``audio_etag``, ``change`` and ``attempt`` of
        ``contract.manifest_schema``.
    :param removed: files whose rows to delete, with one column ``audio_uri``.
    :param gone: files that were gone or replaced when the job came to read them, with one column
        ``audio_uri``. Where the table has a row of such a file, it stays.
    :param rows: exactly one row per row of the manifest, as ``contract.transcript_schema``.
    :param properties: additional properties for the snapshot's summary.
    """

    partition: Mapping[str, str]
    fingerprint: str
    idempotency_key: str
    base_snapshot_id: int | None
    manifest: Iterable[pa.RecordBatch]
    rows: Iterable[pa.RecordBatch]
    removed: Iterable[pa.RecordBatch] = ()
    gone: Iterable[pa.RecordBatch] = ()
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The snapshot that published a run's rows.

    :param snapshot_id: id of the snapshot.
    :param rows: number of rows that the run wrote, including errors.
    :param errors: number of rows with ``status = 'error'``.
    :param removed: number of rows that the run deleted without replacement.
    :param audio_seconds: seconds of audio in the written rows.
    :param table_location: URI of the table's folder.
    :param again: whether the run had already been registered; this is its first snapshot then.
    """

    snapshot_id: int
    rows: int
    errors: int
    removed: int
    audio_seconds: float
    table_location: str
    again: bool


def replace_rows(catalog: Catalog, table: str, change: PartitionChange) -> Registered | None:
    """Apply a run's changes to one partition in one commit. Creates the table if it does not exist.

    :return: the commit; ``None`` if every row is already as wanted, because another run did the same work.
    :raises TableMismatchError: if the table cannot hold these rows.
    :raises PartitionConflictError: if another run has changed some of the rows since discovery.
    :raises RegistrationError: if the rows are not those of the manifest, or no commit succeeded.
    """
    loaded = ensure_table(catalog, table, change.partition)
    if (snapshot := _snapshot_of(loaded, change.idempotency_key)) is not None:
        return _registered(loaded, snapshot.snapshot_id, summary_of(snapshot), again=True)
    with open_row_states() as states:
        return _Replacement(catalog, loaded, change, states).run()


def _snapshot_of(table: Table, key: str) -> Snapshot | None:
    """The snapshot with this idempotency key, if it is an ancestor of the current snapshot."""
    for snapshot in ancestors(table):
        if summary_of(snapshot).get(KEY) == key:
            return snapshot
    return None


def _registered(table: Table, snapshot_id: int, summary: Mapping[str, str], *, again: bool) -> Registered:
    return Registered(
        snapshot_id=snapshot_id,
        rows=int(summary[ROWS]),
        errors=int(summary[ERRORS]),
        removed=int(summary[REMOVED]),
        audio_seconds=float(summary[AUDIO_SECONDS]),
        table_location=table.location(),
        again=again,
    )


@dataclass(frozen=True)
class _Plan:
    """The data files of the partition to drop, and the files that replace their unaffected rows."""

    files: frozenset[tuple[str, ...]]
    dropped: list[DataFile]
    rewritten: list[DataFile]
    removed: int


@dataclass
class _Counts:
    rows: int = 0
    errors: int = 0
    audio_seconds: float = 0.0


class _Replacement:
    """The state of one replacement, over all its tries to commit."""

    def __init__(self, catalog: Catalog, table: Table, change: PartitionChange, states: RowStates) -> None:
        self._catalog, self._table, self._change, self._states = catalog, table, change, states
        self._writer = DataFileWriter(table, change.partition)
        self._plan: _Plan | None = None
        self._counts = _Counts()
        self._tried: set[int] = set()
        # Parent snapshots of commits whose outcome is unknown.
        self._unsure_on: list[int | None] = []

    def run(self) -> Registered | None:
        self._states.want(self._change.manifest)
        self._states.want_removed(self._change.removed)
        self._states.leave(self._change.gone)
        try:
            # Plan first, to detect a conflict before copying everything.
            plan = self._make_plan(self._table)
            registered = self._copy_and_commit() if plan else None
        except BaseException:
            # A commit without a response may have succeeded, in which case its files belong to the table.
            if not self._unsure_on:
                self._writer.discard()
            raise
        if registered is None or registered.snapshot_id not in self._tried:
            self._writer.discard()
        return registered

    def _copy_and_commit(self) -> Registered | None:
        added = self._writer.write(self._staged_rows())
        self._states.check_all_staged()
        return until_committed(self._name, lambda: self._try_commit(added))

    def _try_commit(self, added: list[DataFile]) -> Registered | None:
        table = self._catalog.load_table(self._table.name())
        if table.metadata.table_uuid != self._table.metadata.table_uuid:
            raise RegistrationError(
                f"somebody dropped the table and created it again while {self._name} was being registered: "
                "run the task again"
            )
        if table.metadata.default_spec_id != self._table.metadata.default_spec_id:
            raise RegistrationError(
                f"somebody changed how the table is partitioned while {self._name} was being registered: run "
                "the task again"
            )
        if (snapshot := _snapshot_of(table, self._change.idempotency_key)) is not None:
            again = snapshot.snapshot_id not in self._tried
            return _registered(table, snapshot.snapshot_id, summary_of(snapshot), again=again)
        # A commit can succeed only on top of its parent. Once another snapshot is the newest, it has failed.
        self._unsure_on = [head for head in self._unsure_on if head == _head(table)]
        plan = self._make_plan(table)
        return self._commit(table, added, plan) if plan else None

    def _commit(self, table: Table, added: list[DataFile], plan: _Plan) -> Registered:
        from pyiceberg.exceptions import CommitFailedException

        summary = self._summary(plan)
        commit = prepare_commit(table, added=added + plan.rewritten, deleted=plan.dropped, summary=summary)
        self._tried.add(commit.snapshot_id)
        self._unsure_on.append(_head(table))
        try:
            commit.send()
        except CommitFailedException:
            self._unsure_on.pop()
            raise
        self._unsure_on.clear()
        return _registered(table, commit.snapshot_id, summary, again=False)

    def _summary(self, plan: _Plan) -> dict[str, str]:
        return {
            **self._change.properties,
            KEY: self._change.idempotency_key,
            PARTITION: partition_path(self._change.partition),
            FINGERPRINT: self._change.fingerprint,
            ROWS: str(self._counts.rows),
            ERRORS: str(self._counts.errors),
            REMOVED: str(plan.removed),
            AUDIO_SECONDS: repr(self._counts.audio_seconds),
        }

    def _staged_rows(self) -> Iterator[pa.RecordBatch]:
        import pyarrow.compute as pc

        for staged in self._change.rows:
            batch = self._states.without_left(staged)
            self._states.stage(batch.column("audio_uri").to_pylist())
            self._counts.rows += batch.num_rows
            self._counts.errors += pc.sum(pc.equal(batch.column("status"), "error")).as_py() or 0
            self._counts.audio_seconds += pc.sum(batch.column("duration_s")).as_py() or 0.0
            yield batch

    def _make_plan(self, table: Table) -> _Plan | None:
        """Plan the changes to the partition as it is in ``table``; ``None`` if it is already as wanted.

        :raises PartitionConflictError: if affected rows are not those that discovery saw.
        """
        tasks = self._tasks(table, None)
        files = frozenset(file_identity(task) for task in tasks)
        if self._plan is not None:
            if self._plan.files == files:
                # Only other partitions have changed.
                return self._plan
            self._writer.discard(self._plan.rewritten)
            self._plan = None
        affected = self._find(table, tasks)
        verdict = self._states.verdict(self._change.fingerprint, base_known=self._base_known(table))
        if not verdict.pending:
            return None
        if verdict.touched:
            raise PartitionConflictError(self._conflict(table, verdict))
        partial = [(number, task) for number, task, whole in affected if not whole]
        kept = (batch for number, task in partial for batch in self._kept(table, number, task))
        self._plan = _Plan(
            files=files,
            dropped=[task.file for _, task, _ in affected],
            rewritten=self._writer.write(kept),
            removed=self._states.removed_rows(),
        )
        return self._plan

    def _find(self, table: Table, tasks: list[FileScanTask]) -> list[tuple[int, FileScanTask, bool]]:
        """Fill the row states, and return the data files with affected rows and whether all rows are."""
        self._states.forget_found()
        base = {file_identity(task): task for task in self._base_tasks(table)}
        scan = scan_partition(table, self._change.partition, columns=STATE_COLUMNS)
        affected = []
        for number, task in enumerate(tasks):
            untouched = base.pop(file_identity(task), None) is not None
            rows = read_data_file(table, scan, task)
            total, wanted = self._states.find(NOW, number, rows, untouched=untouched)
            if wanted:
                affected.append((number, task, wanted == total))
        for number, task in enumerate(base.values()):
            self._states.find(BASE, number, read_data_file(table, scan, task), untouched=False)
        return affected

    def _kept(self, table: Table, number: int, task: FileScanTask) -> Iterator[pa.RecordBatch]:
        """The rows of a data file that the run does not change."""
        import pyarrow as pa
        import pyarrow.compute as pc

        affected = pa.array(self._states.found_in(number), pa.large_string())
        for batch in read_rows(table, scan_partition(table, self._change.partition), task):
            uris = batch.column("audio_uri").cast(pa.large_string())
            yield batch.filter(pc.invert(pc.is_in(uris, value_set=affected)))

    def _base_known(self, table: Table) -> bool:
        base = self._change.base_snapshot_id
        return base is None or table.snapshot_by_id(base) is not None

    def _base_tasks(self, table: Table) -> list[FileScanTask]:
        base = self._change.base_snapshot_id
        return [] if base is None or table.snapshot_by_id(base) is None else self._tasks(table, base)

    def _tasks(self, table: Table, snapshot_id: int | None) -> list[FileScanTask]:
        scan = scan_partition(table, self._change.partition, snapshot_id=snapshot_id)
        return partition_files(table, scan, self._change.partition)

    def _conflict(self, table: Table, verdict: Verdict) -> str:
        culprit = next(iter(self._newer_snapshots(table)), None)
        who = f" (snapshot {culprit.snapshot_id})" if culprit else ""
        if not self._base_known(table):
            who += ", or may have done so, because the snapshot that discovery saw has expired"
        return (
            f"another run registered {verdict.touched} of these {verdict.wanted} files in {self._name} since "
            f"they were discovered{who}, for example {verdict.examples[0]}. Nothing was written. Clear the "
            "discover task to converge again: what is transcribed already is taken from staging"
        )

    def _newer_snapshots(self, table: Table) -> Iterator[Snapshot]:
        for snapshot in ancestors(table):
            if snapshot.snapshot_id == self._change.base_snapshot_id:
                return
            if summary_of(snapshot).get(PARTITION) == partition_path(self._change.partition):
                yield snapshot

    @property
    def _name(self) -> str:
        return f"{partition_path(self._change.partition)} of {'.'.join(self._table.name())}"


def _head(table: Table) -> int | None:
    snapshot = table.current_snapshot()
    return snapshot.snapshot_id if snapshot else None
