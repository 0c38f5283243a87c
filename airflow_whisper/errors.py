"""Errors in the configuration of a DAG or a connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException


class ConfigurationError(AirflowFailException, ValueError):
    """An argument or a connection is wrong. Airflow fails the task at once, because a retry cannot help."""


@contextmanager
def wrong_configuration() -> Iterator[None]:
    """Use it around checks of arguments in ``execute``: Airflow does not retry what they refuse.

    :raises ConfigurationError: for a ``ValueError`` in the block.
    """
    try:
        yield
    except AirflowFailException:
        raise
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
