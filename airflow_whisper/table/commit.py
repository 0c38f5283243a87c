"""Commits that hold for one snapshot or not at all."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyiceberg.table import Table


def pin(table: Table, snapshot_id: int) -> None:
    """Bind a transaction of ``table`` to the snapshot it was made on.

    PyIceberg reacts to a failed commit by refreshing the table, asking whether the commit has landed all the
    same (its answer may have been lost), and else making it again on top of what others did. This keeps the
    question, because to take a landed commit for a failed one would delete manifests that the table needs,
    and cuts off the rest.
    """
    from pyiceberg.exceptions import CommitFailedException

    refresh = table.refresh

    def refresh_and_stop() -> Table:
        fresh = refresh()
        if fresh.snapshot_by_id(snapshot_id) is None:
            raise CommitFailedException("another writer committed first")
        return fresh

    table.refresh = refresh_and_stop  # type: ignore[method-assign]
    # In memory only: a commit sends changes, and there is none here. One retry, as soon as possible.
    retry = {"commit.retry.num-retries": "1", "commit.retry.min-wait-ms": "0"}
    table.metadata = table.metadata.model_copy(update={"properties": {**table.metadata.properties, **retry}})


def passing_errors() -> tuple[type[Exception], ...]:
    """What a commit may raise that another try may not meet again."""
    from pyiceberg.exceptions import (
        CommitFailedException,
        CommitStateUnknownException,
        ServerError,
        ServiceUnavailableError,
        TooManyRequestsError,
    )
    from requests import ConnectionError as NoConnection
    from requests import Timeout

    errors: list[type[Exception]] = [
        CommitFailedException,
        CommitStateUnknownException,
        ServerError,
        ServiceUnavailableError,
        TooManyRequestsError,
        NoConnection,
        Timeout,
    ]
    with suppress(ImportError):  # only catalogs in a SQL database need it
        from sqlalchemy.exc import OperationalError

        errors.append(OperationalError)
    return tuple(errors)
