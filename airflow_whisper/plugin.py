"""Airflow plugin: the API server shows validation reports to users who may read the DAG's XComs.

A report is in object storage, where a browser cannot open it by its URI. The link on the task therefore
points to the API server, which reads ``report.json`` with the task's connection and renders the page from it.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)


class WhisperPlugin(AirflowPlugin):
    """Adds ``/whisper/report`` to the API server."""

    name = "whisper"

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
