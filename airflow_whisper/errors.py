"""What may be wrong with how a DAG or a connection is written."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowFailException


class ConfigurationError(AirflowFailException, ValueError):
    """An argument or a connection is wrong. Airflow fails the task without a retry: nothing would change."""
