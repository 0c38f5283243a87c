"""Airflow plugin: validation reports in the API server, and notes on runs that found nothing to do.

A report is in object storage, where a browser cannot open it by its URI. The link on the task therefore
points to the API server, which reads ``report.json`` with the task's connection and renders the page from it
for users who may read the DAG's XComs.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)


class WhisperPlugin(AirflowPlugin):
    """Adds ``/whisper/report`` to the API server, and a listener to the scheduler."""

    name = "whisper"

    @property
    def listeners(self) -> list[Any]:  # type: ignore[override]
        """The listener that writes notes of DAG runs: see :mod:`airflow_whisper.listener`."""
        from airflow_whisper.listener import RunNotes

        return [RunNotes()]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The report application. A property, because only the API server reads it and needs FastAPI."""
        try:
            from airflow_whisper.report.server import create_app

            app = create_app()
        except Exception:
            # The report server uses internals of Airflow. If one of them changes, Airflow must still start.
            log.exception(
                "validation reports cannot be shown in the web interface by this release of "
                "airflow-provider-whisper with this release of Airflow"
            )
            return []
        return [{"app": app, "url_prefix": "/whisper", "name": "Whisper"}]
