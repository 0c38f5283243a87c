"""Airflow plugin: the API server shows validation reports, to whoever may see the XComs of the DAG.

A report lies in object storage, where no browser can open it by its URI. So the link on the task leads to
the API server, which reads ``report.json`` with the connection that the task used and makes the page from it.
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
        """Asked for by the API server only: other components load the plugin, too, and need no web server."""
        try:
            from airflow_whisper.report.server import create_app

            app = create_app()
        except Exception:
            # The report server is built on internals of Airflow. When one moves, Airflow has to start anyway.
            log.exception(
                "validation reports cannot be shown in the web interface by this release of "
                "airflow-provider-whisper with this release of Airflow"
            )
            return []
        return [{"app": app, "url_prefix": "/whisper", "name": "Whisper"}]
