"""Errors in the configuration of a DAG or a connection."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowFailException


class ConfigurationError(AirflowFailException, ValueError):
    """An argument or a connection is wrong. Airflow fails the task at once, because a retry cannot help."""
