"""Play histories of a partition through the real operators, and check the table after each step.

The engine is a stand-in, because the text of a transcript does not matter here. Storage, Spark, catalog and
operators are real. See :class:`World`.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from history_engine import BROKEN
from pyspark.sql import SparkSession

from airflow_whisper.discovery.errors import DiscoveryError
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.operators.validate import ValidateTranscriptsOperator
from airflow_whisper.table.read import current_snapshot_id, partition_rows
from airflow_whisper.table.schema import load_table
from whisper_spark.contract import FINAL_ERRORS, GONE_ERRORS, WhisperOptions
from whisper_spark.spark.run import JobRun
from whisper_spark.spark.task import JobSpec
from whisper_spark.staging.result import StagingError
from whisper_spark.storage.credentials import PLACES
from whisper_spark.storage.objects import ObjectNotFound, ObjectStorage
from whisper_spark.storage.parquet import read_manifest

PARTITION = {"dt": "2026-11-01"}
OPTIONS = (WhisperOptions(model="base", language="en"), WhisperOptions(model="base", language="de"))
MAX_ATTEMPTS = 3
MAX_REMOVED_RATE = 0.5

Row = dict[str, Any]


# --- steps ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Put:
    """Upload or replace a file. ``text`` becomes its transcript; ``BROKEN`` becomes a final error."""

    name: str
    text: str
    source: str = "calls"


@dataclass(frozen=True)
class Remove:
    """Delete a file from the source."""

    name: str
    source: str = "calls"


@dataclass(frozen=True)
class Fail:
    """Make a file fail with a transient error from now on, without changing its etag."""

    name: str
    source: str = "calls"


@dataclass(frozen=True)
class Pass:
    """End the transient error of :class:`Fail`."""

    name: str
    source: str = "calls"


@dataclass(frozen=True)
class Options:
    """Use the other options from now on."""

    variant: int


@dataclass(frozen=True)
class Run:
    """Run the four tasks for a source, up to the task ``until``, as if Airflow was stopped after it.

    ``stop_after``: number of files after which the engine is lost, so that the job fails.
    ``pattern``: the operator's filter, which may exclude audio.
    """

    source: str = "calls"
    on_removed: Literal["keep", "delete"] = "keep"
    until: Literal["discover", "transcribe", "validate", "register"] = "register"
    stop_after: int | None = None
    pattern: str | None = None


@dataclass(frozen=True)
class Resume:
    """Retry the oldest unfinished run, from transcription on."""


@dataclass(frozen=True)
class Repeat:
    """Clear the register task of the newest finished run, so that it runs again."""


@dataclass(frozen=True)
class Race:
    """Run one source twice concurrently, with both discoveries before the first commit."""

    source: str = "calls"


@dataclass(frozen=True)
class Expire:
    """Delete all of staging, as by a lifecycle rule, or all snapshots but the newest, as by maintenance."""

    what: Literal["staging", "snapshots"]


Step = Put | Remove | Fail | Pass | Options | Run | Resume | Repeat | Race | Expire


# --- the world -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Discovered:
    """A discovered run: the URI of its manifest, and the files whose rows it may change."""

    manifest: str
    uris: frozenset[str]


class _TaskInstance:
    def xcom_push(self, key: str, value: Any) -> None:
        """Do nothing, because the tests do not read XComs."""


@dataclass
class World:
    """Two sources of one partition, a table, and all steps that can be applied to them.

    The sources are ``"calls"`` and ``"more"``. A run with any other name finds no source.

    :param session: Spark session, shared by all histories.
    :param folder: folder of this history only.
    :param table: table of this history only.
    """

    session: SparkSession
    folder: Path
    table: str
    variant: int = 0
    clock: int = 1_000_000_000
    unfinished: list[Discovered] = field(default_factory=list)
    finished: list[Discovered] = field(default_factory=list)
    again: int = 0
    """How often a file may have been transcribed unnecessarily: by lost engines, lost staging and races."""
    failed: set[str] = field(default_factory=set)
    """Files that have ever failed with a transient error."""

    def __post_init__(self) -> None:
        self._catalog = open_catalog(None)
        # The rows as last read, and what they were read from.
        self._read: tuple[frozenset[Any], dict[str, Row]] = (frozenset(), {})
        for source in ("calls", "more"):
            self.source(source).mkdir(parents=True)

    def source(self, name: str) -> Path:
        return self.folder / name / "dt=2026-11-01"

    def play(self, step: Step) -> None:
        """Apply one step, and check everything that must hold after it.

        :raises AssertionError: if a check fails.
        """
        handler = getattr(self, f"_{type(step).__name__.lower()}")
        handler(step)

    def converge(self) -> None:
        """End all failures, and check that two rounds of runs make the table match the sources."""
        for source in ("calls", "more"):
            for flag in self.source(source).glob(".*"):
                if flag.suffix == ".fails" or flag.name == ".stop-after":
                    flag.unlink()
        for source in ("calls", "more"):
            self._run(Run(source))
        before, heard, snapshot = self.rows(), self._heard(), self._snapshot()
        for source in ("calls", "more"):
            assert self._discover(Run(source)) is None, "a partition that is up to date finds work to do"
        assert (self.rows(), self._heard(), self._snapshot()) == (before, heard, snapshot)
        for source in ("calls", "more"):
            for uri, (etag, text) in self._listing(source).items():
                row = before[uri]
                gave_up = row["status"] == "error" and row["attempt"] >= MAX_ATTEMPTS
                assert row["audio_etag"] == etag, f"{uri} has the row of another upload"
                assert row["fingerprint"] == OPTIONS[self.variant].fingerprint(), f"{uri} has other options"
                assert gave_up or _outcome(row) == _wanted(text), f"{uri}: {_outcome(row)}"
        self._check_nothing_paid_twice()

    # --- steps

    def _put(self, step: Put) -> None:
        path = self.source(step.source) / step.name
        path.write_text(step.text)
        # A new upload needs a new etag, which for local files is derived from time and size.
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    def _remove(self, step: Remove) -> None:
        (self.source(step.source) / step.name).unlink(missing_ok=True)

    def _fail(self, step: Fail) -> None:
        self._flag(step).touch()
        self.failed.add(f"file://{self.source(step.source) / step.name}")

    def _pass(self, step: Pass) -> None:
        self._flag(step).unlink(missing_ok=True)

    def _flag(self, step: Fail | Pass) -> Path:
        return self.source(step.source) / f".{step.name}.fails"

    def _options(self, step: Options) -> None:
        self.variant = step.variant

    def _run(self, step: Run) -> None:
        before, listing = self.rows(), self._listing(step.source)
        stop = self.source(step.source) / ".stop-after"
        run = self._discover(step)
        done = ""
        if run is not None:
            self.unfinished.append(run)
            if step.stop_after is not None:
                stop.write_text(str(step.stop_after))
            done = self._work(run, step.until)
            stop.unlink(missing_ok=True)
        if done == "register":
            self._check_replaced(step, before, listing)
        else:
            assert self.rows() == before, "the table changed before anything was registered"

    def _work(self, run: Discovered, until: str = "register") -> str:
        """Continue a run. Return the last task that succeeded, or ``"lost"`` if another run was first."""
        if until == "discover":
            return "discover"
        try:
            self._transcribe(run)
        except (StagingError, ObjectNotFound):
            raise
        except Exception as error:
            if "DeviceLostError" not in str(error):
                raise
            self.again += 1
            return "discover"
        if until == "transcribe":
            return "transcribe"
        ValidateTranscriptsOperator(task_id="validate", manifest=run.manifest, max_error_rate=1.0).execute(
            {"ti": _TaskInstance()}
        )  # type: ignore[typeddict-item]
        if until == "validate":
            return "validate"
        try:
            self._register(run)
        except (AirflowFailException, AirflowSkipException):
            # Another run changed the same rows since discovery, or did the same work.
            self.unfinished.remove(run)
            self.again += 1
            return "lost"
        self.unfinished.remove(run)
        self.finished.append(run)
        return "register"

    def _resume(self, _: Resume) -> None:
        if not self.unfinished:
            return
        run, before = self.unfinished[0], self.rows()
        try:
            done = self._work(run)
        # Staging has expired, so the run cannot continue.
        except ObjectNotFound:
            self.unfinished.remove(run)
            return
        after = self.rows()
        if done != "register":
            assert after == before
        changed = {uri for uri in before.keys() | after.keys() if before.get(uri) != after.get(uri)}
        assert changed <= run.uris, "a run changed rows that are not in its manifest"
        for uri in changed & after.keys():
            gone = after[uri]["error_code"] in GONE_ERRORS
            assert not gone or uri not in before, f"{uri} lost its transcript"
            if after[uri]["error_code"] == "internal" and after[uri]["attempt"] < MAX_ATTEMPTS:
                self._check_fails(uri)

    def _repeat(self, _: Repeat) -> None:
        if not self.finished:
            return
        before, snapshot = self.rows(), self._snapshot()
        try:
            self._register(self.finished[-1])
        except (ObjectNotFound, AirflowFailException, AirflowSkipException):
            pass
        except Exception as error:
            # Every expected error says in its message what to do.
            if not re.search("clear|run the", str(error)):
                raise
        assert (self.rows(), self._snapshot()) == (before, snapshot), "registering again changed the table"

    def _race(self, step: Race) -> None:
        source = step.source
        before, listing = self.rows(), self._listing(source)
        runs = [run for run in (self._discover(Run(source)), self._discover(Run(source))) if run is not None]
        self.unfinished.extend(runs)
        self.again += 1
        done = [self._work(run) for run in runs]
        if done:
            self._check_replaced(Run(source), before, listing)

    def _expire(self, step: Expire) -> None:
        if step.what == "staging":
            shutil.rmtree(self.folder / "staging", ignore_errors=True)
            self.again += 1
            return
        table = load_table(self._catalog, self.table)
        if table is not None and (current := table.current_snapshot()) is not None:
            old = [s.snapshot_id for s in table.snapshots() if s.snapshot_id != current.snapshot_id]
            if old:
                table.maintenance.expire_snapshots().by_ids(old).commit()

    # --- tasks

    def _discover(self, step: Run) -> Discovered | None:
        """Run discovery. Return ``None`` if there is nothing to do or it fails as expected."""
        before, listing = self.rows(), self._listing(step.source)
        source = self.source(step.source)
        operator = DiscoverAudioOperator(
            task_id="discover",
            source=str(source),
            partition=PARTITION,
            table=self.table,
            staging=str(self.folder / "staging"),
            options=OPTIONS[self.variant],
            on_removed=step.on_removed,
            pattern=step.pattern,
        )
        gone = [uri for uri in before if uri.startswith(f"file://{source}/") and uri not in listing]
        removes = len(gone) if step.on_removed == "delete" else 0
        matches = [uri for uri in listing if step.pattern is None or fnmatch(uri, step.pattern)]
        refusal = ""
        try:
            output = operator.execute({"ti": _TaskInstance()})  # type: ignore[typeddict-item]
        except AirflowSkipException:
            return None
        except ObjectNotFound:
            assert not source.exists(), f"{source} was not found"
            return None
        except DiscoveryError as error:
            refusal = str(error)
        if "max_removed_rate=" in refusal:
            assert removes > MAX_REMOVED_RATE * len(before), refusal
        elif "does not exist" in refusal:
            assert removes, refusal
            assert not listing, refusal
        elif refusal:
            assert listing, refusal
            assert not matches, refusal
        if refusal:
            return None
        assert removes <= MAX_REMOVED_RATE * len(before), f"{removes} of {len(before)} rows would be removed"
        storage = ObjectStorage()
        return Discovered(output["manifest_uri"], _uris(output["manifest_uri"], storage))

    def _transcribe(self, run: Discovered) -> None:
        storage = ObjectStorage()
        described, metadata = read_manifest(run.manifest, storage)
        job = JobSpec(
            run=described,
            options=described.options,
            credentials={place: {} for place in PLACES},
            engine="history_engine:get_engine",
            flush_seconds=30,
            progress_seconds=30,
        )
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        try:
            JobRun(self.session, job, groups, time.monotonic()).run()
        finally:
            # As at the end of a real job. Spark compares each query with all that are cached.
            self.session.catalog.clearCache()

    def _register(self, run: Discovered) -> None:
        RegisterTranscriptsOperator(task_id="register", manifest=run.manifest).execute(
            {"ti": _TaskInstance()}  # type: ignore[typeddict-item]
        )

    # --- actual and expected state

    def rows(self) -> dict[str, Row]:
        """Return the rows of the partition by URI.

        :raises AssertionError: if a file has two rows.
        """
        files = self._table_files()
        if files != self._read[0]:
            self._read = files, self._read_rows()
        return self._read[1]

    def _read_rows(self) -> dict[str, Row]:
        columns = ["audio_uri", "audio_etag", "status", "error_code", "attempt", "text", "fingerprint", "dt"]
        rows = [
            row
            for batch in partition_rows(self._catalog, self.table, PARTITION, columns=columns)
            for row in batch.to_pylist()
        ]
        count = Counter(row["audio_uri"] for row in rows)
        assert not count or max(count.values()) == 1, f"more than one row for a file: {count}"
        return {row["audio_uri"]: row for row in rows}

    def _table_files(self) -> frozenset[tuple[Any, ...]]:
        """Return what the rows depend on: the table's current metadata, and its files on the disk."""
        table = load_table(self._catalog, self.table)
        if table is None:
            return frozenset()
        folder = Path(table.location().removeprefix("file://"))
        found = ((path, path.stat()) for path in folder.rglob("*"))
        return frozenset(
            [
                (table.metadata_location,),
                *((path, stat.st_size, stat.st_mtime_ns) for path, stat in found if path.is_file()),
            ]
        )

    def _snapshot(self) -> int | None:
        return current_snapshot_id(self._catalog, self.table)

    def _listing(self, source: str) -> dict[str, tuple[str, str]]:
        """Return etag and text of each audio file of a source."""
        storage = ObjectStorage()
        files = [path for path in self.source(source).glob("*") if not path.name.startswith(".")]
        return {f"file://{p}": (storage.info(f"file://{p}").etag or "", p.read_text()) for p in files}

    def _heard(self) -> Counter[str]:
        logs = [self.source(source) / ".heard" for source in ("calls", "more")]
        return Counter(line for log in logs if log.exists() for line in log.read_text().splitlines())

    def _check_replaced(self, step: Run, before: dict[str, Row], listing: dict[str, tuple[str, str]]) -> None:
        """Check that a registered run made the table match its source, and changed no other rows."""
        after, folder = self.rows(), f"file://{self.source(step.source)}/"
        for uri in before.keys() | after.keys():
            row, old = after.get(uri), before.get(uri)
            if not uri.startswith(folder):
                assert row == old, f"{uri} belongs to another source"
            elif uri not in listing:
                assert row == (None if step.on_removed == "delete" else old), f"{uri} is gone: {row}"
            elif step.pattern is None or fnmatch(uri, step.pattern):
                self._check_row(uri, row, old, listing[uri])
            else:
                assert row == old, f"{uri} does not match the pattern"

    def _check_row(self, uri: str, row: Row | None, old: Row | None, file: tuple[str, str]) -> None:
        etag, text = file
        assert row is not None, f"{uri} has no row"
        assert row["audio_etag"] == etag, f"{uri} has the row of another upload"
        assert row["fingerprint"] == OPTIONS[self.variant].fingerprint()
        assert 1 <= row["attempt"] <= MAX_ATTEMPTS
        same = old is not None and (old["audio_etag"], old["fingerprint"]) == (etag, row["fingerprint"])
        if same and old is not None and (old["status"] == "ok" or old["error_code"] in FINAL_ERRORS):
            assert row == old, f"{uri} was replaced without a reason"
        elif same and old is not None and old["attempt"] >= MAX_ATTEMPTS:
            assert row == old, f"{uri} was tried more often than allowed"
        elif row["error_code"] != "internal":
            assert _outcome(row) == _wanted(text), f"{uri}: {_outcome(row)}"
        else:
            self._check_fails(uri)

    def _check_fails(self, uri: str) -> None:
        path = Path(uri.removeprefix("file://"))
        assert path.with_name(f".{path.name}.fails").exists(), f"{uri} failed for no reason"

    def _check_nothing_paid_twice(self) -> None:
        rows = self.rows()
        for line, times in self._heard().items():
            uri = line.split()[0]
            tries = MAX_ATTEMPTS if rows.get(uri, {}).get("attempt", 1) > 1 or uri in self.failed else 1
            assert times <= tries + self.again, f"{line} was transcribed {times} times"


def _outcome(row: Row) -> tuple[str, str | None]:
    return (row["status"], row["text"] if row["status"] == "ok" else row["error_code"])


def _wanted(text: str) -> tuple[str, str | None]:
    return ("error", "corrupt") if text == BROKEN else ("ok", text)


def _uris(manifest_uri: str, storage: ObjectStorage) -> frozenset[str]:
    """Return the files whose rows a run may change: those in its manifest, and those it removes."""
    from whisper_spark.storage.parquet import open_parquet

    run, _ = read_manifest(manifest_uri, storage)
    uris: set[str] = set()
    for uri in [run.manifest_uri, *([run.removed_uri] if run.counts.get("removed") else [])]:
        with open_parquet(uri, storage) as file:
            uris.update(file.read(columns=["audio_uri"]).column("audio_uri").to_pylist())
    return frozenset(uris)
