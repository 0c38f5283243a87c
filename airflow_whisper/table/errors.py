"""Errors of the catalog and the table. Their messages say what to do."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowFailException


class CatalogError(Exception):
    """The table of transcripts cannot be used as requested. Base class of catalog and table errors."""


class CatalogConnectionError(CatalogError, AirflowFailException):
    """The catalog's Airflow connection is missing, of another type, or unusable. A retry cannot help."""


class CatalogRefusedError(CatalogError, AirflowFailException):
    """The catalog or the store of its tables refuses what the connection says. A task does not retry it.

    A trigger goes on, because catalogs refuse for a while what they accept again.
    """


class TableMismatchError(CatalogError, AirflowFailException):
    """A table of this name exists, but cannot hold transcripts of this partition. A retry cannot help."""


class PartitionConflictError(CatalogError):
    """Another run changed the same rows of the partition after this run's discovery."""


class RegistrationError(CatalogError):
    """A run could not be registered. A retry may succeed."""


class RunNotReadyError(RegistrationError, AirflowFailException):
    """Staging does not hold what is to be registered, until another task has run again.

    A retry cannot help. The message names the task to clear.
    """


def unavailable_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a catalog that cannot be reached or used at the moment."""
    from pyiceberg.exceptions import ServerError, ServiceUnavailableError, TooManyRequestsError
    from requests import ConnectionError as NoConnection
    from requests import Timeout
    from sqlalchemy.exc import OperationalError

    return (
        ServerError,
        ServiceUnavailableError,
        TooManyRequestsError,
        NoConnection,
        Timeout,
        OperationalError,
    )


def unavailable(error: BaseException) -> bool:
    """Whether a catalog cannot be reached or used at the moment, so that a retry may help."""
    return isinstance(error, unavailable_errors())
