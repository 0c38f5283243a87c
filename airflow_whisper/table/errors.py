"""What may go wrong with the catalog and the table. A message says what to do."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowFailException


class CatalogError(Exception):
    """The table of transcripts cannot be used as asked. Base of what the catalog side raises."""


class CatalogConnectionError(CatalogError, AirflowFailException):
    """The Airflow connection of the catalog is missing, of another type, or unusable: no retry helps."""


class TableMismatchError(CatalogError):
    """A table of that name exists and cannot hold transcripts of this partition."""


class PartitionConflictError(CatalogError):
    """Another run changed the same rows of the partition after this run had compared it with the source."""


class RegistrationError(CatalogError):
    """What was staged is not what the manifest asks for, or the commit could not be made."""
