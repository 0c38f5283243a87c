"""Airflow plugin: the API server shows validation reports, to whoever may see the XComs of the DAG.

A report lies in object storage, where no browser can open it by its URI. So the link on the task leads to
the API server, which reads ``report.json`` with the connection that the task used and makes the page from it.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class WhisperPlugin(AirflowPlugin):
    """Adds ``/whisper/report`` to the API server."""

    name = "whisper"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Asked for by the API server only: other components load the plugin, too, and need no web server."""
        from airflow_whisper.report.server import create_app

        return [{"app": create_app(), "url_prefix": "/whisper", "name": "Whisper"}]
