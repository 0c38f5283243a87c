"""A temporary SQLite database, so that joins and counts over ten million files use disk instead of memory."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pyarrow as pa

# The database does not outlive the process, so a journal or a flush to disk would only cost time.
_SETTINGS = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -{cache_kib};
"""


class ScratchDatabase:
    """A SQLite database in its own temporary folder. A context manager that deletes the folder at the end.

    Only the thread that created it may use it. Without a journal a failed statement cannot be rolled back:
    close the database after a failure, or continue only if you know that the statement changed nothing.

    :param prefix: prefix of the folder's name, which tells users what the folder is.
    :param tables: SQL that creates the tables.
    :param cache_mib: maximum size of the page cache, in MiB.
    """

    def __init__(self, prefix: str, tables: str, *, cache_mib: int = 64) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=prefix)
        self.folder = Path(self._folder.name)
        """The temporary folder. Other files in it are deleted together with the database."""
        self._connection = sqlite3.connect(self.folder / "scratch.db", isolation_level=None)
        self._connection.executescript(_SETTINGS.format(cache_kib=cache_mib * 1024) + tables)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and delete its folder."""
        self._connection.close()
        self._folder.cleanup()

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run one statement. Outside :meth:`transaction` it is committed immediately."""
        return self._connection.execute(statement, parameters)

    def script(self, statements: str) -> None:
        """Run several statements in one transaction."""
        with self.transaction():
            for statement in filter(str.strip, statements.split(";")):
                self._connection.execute(statement)

    def first(self, query: str, parameters: Any = ()) -> Any:
        """Return the first row of a query as a tuple; ``None`` if there is none."""
        return self._connection.execute(query, parameters).fetchone()

    def chunks(self, query: str, parameters: Any = (), *, size: int = 10_000) -> Iterator[list[Any]]:
        """Yield the rows of a query as tuples, in lists of at most ``size``."""
        cursor = self._connection.execute(query, parameters)
        while chunk := cursor.fetchmany(size):
            yield chunk

    def run_for_each(self, statement: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run a statement once for each row of parameters, in one transaction.

        :return: number of database rows inserted, updated or deleted.
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
        """Append columns of Arrow batches to a table, with times as whole microseconds since 1970.

        :param table: has these columns in this order, followed by one for each of ``constants``.
        :return: number of rows in the batches.
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
        """Group statements into one transaction, which is much faster than committing each."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            # Commit even after an exception, because a rollback needs a journal.
            self._connection.execute("COMMIT")


def _plain(column: pa.Array) -> list[Any]:
    import pyarrow as pa

    values: list[Any] = (
        column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
    ).to_pylist()
    return values
