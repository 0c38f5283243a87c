"""Settings of this provider: the section ``[whisper]`` of Airflow's configuration.

:mod:`airflow_whisper.get_provider_info` declares them, so that ``airflow config list`` shows them.
"""

from __future__ import annotations

import os

WAREHOUSE_VARIABLE = "AIRFLOW_WHISPER_WAREHOUSE"
"""Environment variable of earlier releases for ``[whisper] warehouse``."""


def warehouse() -> str | None:
    """The configured folder of the embedded catalog and its tables; ``None`` if none is configured."""
    from airflow.sdk.configuration import conf

    return conf.get("whisper", "warehouse", fallback="") or os.environ.get(WAREHOUSE_VARIABLE) or None
