"""What the index knows of the files of one row, and how runs that overlap agree about them.

Object stores have no transactions over several objects: a run that was paused, or that Airflow believes dead,
may still write an old version of a file after a newer run has finished. So a run first enters itself at the
rows whose files it is going to change, then changes them, and then settles these rows. The index is stored
only if nobody has changed it since it was read, so these steps have one order for all runs. A row is settled
for good only by a run that was alone with it. Otherwise either the run does it again, or, where another run
may still be at work or was killed, the hashes of the files are recorded, and the next runs compare them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

ABSENT = ""
"""The settings of a row without files."""

Version = tuple[str | None, str | None, int | None]
"""What identifies the version of a row: its etag, fingerprint, and time in microseconds."""

_NO_VERSION: Version = (None, None, None)

# A run that was killed is taken for one that is still at work for so long, in which every further run reads
# the files that it may have written. One that takes longer finds itself removed, and does its rows again.
_LONGEST_RUN = timedelta(hours=6)


def new_run(now: datetime | None = None) -> str:
    """The id of a run that begins now."""
    return f"{now or datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}/{uuid.uuid4().hex[:8]}"


def _may_be_at_work(run: str) -> bool:
    try:
        began = datetime.strptime(run.partition("/")[0], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return False
    return datetime.now(UTC) - began < _LONGEST_RUN


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has done with the files of a row.

    :param version: of the row from which it wrote the files.
    :param settings: with which it wrote them; :data:`ABSENT`: it deleted them.
    :param hashes: of the files that are there now, by URI.
    """

    version: Version
    settings: str
    hashes: Mapping[str, str]

    @classmethod
    def deleted(cls) -> Outcome:
        """The outcome for a row that is not in the table."""
        return cls(_NO_VERSION, ABSENT, {})


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index knows of the files of one row.

    :param version: of the row from which they were written.
    :param settings: with which they were written; :data:`ABSENT`: all were deleted; ``None``: it is not known
        what the files are.
    :param files: URIs of files that may be there.
    :param hashes: of each of these files, ``None``: it was deleted. Empty if no other run may change them.
    :param runs: ids of runs that may still write or delete files.
    """

    version: Version = _NO_VERSION
    settings: str | None = None
    files: tuple[str, ...] = ()
    hashes: tuple[str | None, ...] = ()
    runs: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: tuple[Any, ...]) -> Entry:
        """The inverse of :meth:`columns`."""
        *version, settings, files, hashes, runs = columns
        lists = (tuple(json.loads(text)) for text in (files, hashes, runs))
        return cls((version[0], version[1], version[2]), settings, *lists)

    def columns(self) -> tuple[Any, ...]:
        """All fields as columns of the scratch database."""
        lists = (json.dumps(values) for values in (self.files, self.hashes, self.runs))
        return (*self.version, self.settings, *lists)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remember."""
        return self.settings == ABSENT and not self.runs

    def begun(self, files: set[str], run: str) -> Entry:
        """The entry before a run writes these files and deletes all others."""
        return Entry(files=_sorted(files.union(self.files)), runs=_sorted({*self.runs, run}))

    def settled(self, outcome: Outcome, run: str) -> Entry:
        """The entry after the run. Its settings are ``None`` if the run has to do the row again.

        That is so if another run has settled the row since this one began: which of the two was the last to
        write each file is not known.
        """
        if self.settings is not None or run not in self.runs:
            return self.begun({*outcome.hashes}, run)
        others = tuple(other for other in self.runs if other != run)
        if not others:
            return Entry(outcome.version, outcome.settings, _sorted({*outcome.hashes}))
        files = _sorted({*self.files, *outcome.hashes})
        hashes = tuple(outcome.hashes.get(file) for file in files)
        return Entry(outcome.version, outcome.settings, files, hashes, others)

    def abandoned(self, run: str) -> Entry:
        """The entry after a run that failed and will not change the files any more."""
        # Beside another run it stays entered: that run could otherwise believe that it has been alone.
        return Entry(files=self.files) if self.runs == (run,) else self

    def checked(self, hash_of: Callable[[str], str | None]) -> Entry:
        """The entry after a look at files that another run may have changed.

        :param hash_of: the hash of a file; ``None`` if it does not exist.
        """
        runs = tuple(run for run in self.runs if _may_be_at_work(run))
        if self.settings is None or self.hashes != tuple(hash_of(file) for file in self.files):
            return Entry(files=self.files, runs=runs)
        if runs:
            return Entry(self.version, self.settings, self.files, self.hashes, runs)
        there = (file for file, found in zip(self.files, self.hashes, strict=True) if found is not None)
        return Entry(self.version, self.settings, tuple(there))


def _sorted(texts: set[str]) -> tuple[str, ...]:
    return tuple(sorted(texts))
