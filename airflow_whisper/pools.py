"""Airflow pools: which one always exists, and how to create others."""

from __future__ import annotations

import shlex

DEFAULT_POOL = "default_pool"
"""Airflow's name of the pool that always exists."""


def creating_command(pool: str) -> str:
    """The command that creates a pool for Spark jobs, one at a time."""
    return f"airflow pools set {shlex.quote(pool)} 1 'Spark jobs'"
