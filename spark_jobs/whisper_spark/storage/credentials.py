"""How credentials travel from whoever submits the job to the executors.

They are Spark properties, given to ``spark-submit`` in a file that only its user can read, and from the
driver on they are part of the tasks. They never are in an argument, an environment variable or a log.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

SECRET_PREFIX = "spark.whisper.secret."  # noqa: S105 - the name of a property
"""Start of the property names. ``secret`` in them makes Spark hide the values in its UI and event log."""

PLACES = ("source", "staging", "model")
"""What credentials can be for: the audio, the staged rows, the model."""

DEFAULT_REDACTION = "(?i)secret|password|token|access[.]?key"
"""Spark's own ``spark.redaction.regex``: a property whose name matches is shown without its value."""


def to_properties(configs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Spark properties that carry obstore configurations, by place. Empty ones (ambient) are left out."""
    for place in configs:
        if place not in PLACES:
            raise ValueError(f"unknown place {place!r} for credentials: use one of {', '.join(PLACES)}")
    return {
        SECRET_PREFIX + place: base64.b64encode(json.dumps(dict(config), sort_keys=True).encode()).decode()
        for place, config in configs.items()
        if config
    }


def from_property(place: str, value: str | None) -> dict[str, str]:
    """The configuration in one property; empty without a property: ambient credentials.

    :raises ValueError: when the property is not what :func:`to_properties` makes. Does not repeat the value.
    """
    if not value:
        return {}
    try:
        config = json.loads(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(
            f"{SECRET_PREFIX}{place} is not the base64 form of a JSON object with obstore settings"
        )
    return {str(key): str(item) for key, item in config.items()}


def redaction_regex(configured: str | None) -> str | None:
    """``spark.redaction.regex`` that also hides our properties, or ``None`` when the default will do."""
    if not configured or configured == DEFAULT_REDACTION:
        return None
    ours = SECRET_PREFIX.replace(".", "[.]")
    # (?i) and its like may stand only at the start of the whole expression.
    return configured if ours in configured else f"{configured}|{ours}"
