"""A temporary SQLite database: joins and counts over ten million files take disk space instead of memory."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pyarrow as pa

# Nothing in here outlives the process, so neither a journal nor a flush to disk is worth its time.
_SETTINGS = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{cache_kib};
"""


class ScratchDatabase:
    """A SQLite database in a temporary folder of its own. A context manager: the folder goes at the end.

    Belongs to the thread that made it. With the journal off there is no way back from a failed statement:
    after one, close the database, or go on only if the caller knows that nothing was changed.

    :param prefix: start of the folder's name, for people who look into the temporary folder.
    :param tables: SQL that creates the tables.
    :param cache_mib: most memory for pages, in MiB.
    """

    def __init__(self, prefix: str, tables: str, *, cache_mib: int = 64) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=prefix)
        self.folder = Path(self._folder.name)
        """The temporary folder: room for other files that are to go with the database."""
        self._connection = sqlite3.connect(self.folder / "scratch.db", isolation_level=None)
        self._connection.executescript(_SETTINGS.format(cache_kib=cache_mib * 1024) + tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the database and its folder."""
        self._connection.close()
        self._folder.cleanup()

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Runs one statement. Outside of :meth:`transaction` it is committed at once."""
        return self._connection.execute(statement, parameters)

    def script(self, statements: str) -> None:
        """Runs several statements in one transaction."""
        with self.transaction():
            for statement in filter(str.strip, statements.split(";")):
                self._connection.execute(statement)

    def first(self, query: str, parameters: Any = ()) -> Any:
        """The first row of a query as a tuple; ``None`` when there is none."""
        return self._connection.execute(query, parameters).fetchone()

    def chunks(self, query: str, parameters: Any = (), *, size: int = 10_000) -> Iterator[list[Any]]:
        """The rows of a query as tuples, in lists of at most ``size``."""
        cursor = self._connection.execute(query, parameters)
        while chunk := cursor.fetchmany(size):
            yield chunk

    def run_for_each(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Runs a statement once for each row of parameters, in one transaction.

        :return: how many rows of the database it inserted, updated or deleted.
        """
        before = self._connection.total_changes
        with self.transaction():
            self._connection.executemany(statement, rows)
        return self._connection.total_changes - before

    def insert(
        self,
        table: str,
        batches: Iterable[pa.RecordBatch],
        columns: Sequence[str],
        constants: Sequence[Any] = (),
    ) -> int:
        """Appends columns of Arrow batches to a table, times as whole microseconds since 1970.

        :param table: has these columns in this order, then one for each of ``constants``.
        :return: how many rows the batches had.
        """
        statement = f"INSERT INTO {table} VALUES ({', '.join('?' * (len(columns) + len(constants)))})"  # noqa: S608
        count = 0
        for batch in batches:
            values = [_plain(batch.column(name)) for name in columns]
            values += [[constant] * batch.num_rows for constant in constants]
            self.run_for_each(statement, zip(*values, strict=True))
            count += batch.num_rows
        return count

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Keeps what happens inside it together, which is much faster than statement by statement."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            # Also after an exception, because without a journal there is nothing to roll back to.
            self._connection.execute("COMMIT")


def _plain(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    values: list[Any] = (
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
    ).to_pylist()
    return values
