"""Passes credentials from the process that submits the job to the executors.

They are Spark properties in a file that only the submitting user can read and that ``spark-submit`` gets as
its properties file; the driver then sends them to the executors with the tasks. They never appear in a
command line, an environment variable or a log.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

SECRET_PREFIX = "spark.whisper.secret."  # noqa: S105 - the name of a property
"""Prefix of the property names. Because it contains ``secret``, Spark redacts the values in its UI and
event log."""

PLACES = ("source", "staging", "model")
"""The storage locations that can have credentials of their own: audio, staged rows, model."""

DEFAULT_REDACTION = "(?i)secret|password|token|access[.]?key"
"""Spark's default of ``spark.redaction.regex``: the value of a property whose name matches is redacted."""


def to_properties(configs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Spark properties for obstore configurations by place. Empty configurations are left out."""
    for place in configs:
        if place not in PLACES:
            raise ValueError(f"unknown place {place!r} for credentials: use one of {', '.join(PLACES)}")
    return {
        SECRET_PREFIX + place: base64.b64encode(json.dumps(dict(config), sort_keys=True).encode()).decode()
        for place, config in configs.items()
        if config
    }


def from_property(place: str, value: str | None) -> dict[str, str]:
    """The configuration in one property; empty without one, which means ambient credentials.

    :raises ValueError: when the property is not in the form of :func:`to_properties`. The message does not
        contain the value.
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
    """A ``spark.redaction.regex`` that also covers these properties; ``None`` if the default does."""
    if not configured or configured == DEFAULT_REDACTION:
        return None
    ours = SECRET_PREFIX.replace(".", "[.]")
    # Ours goes last, because inline flags such as (?i) are allowed only at the start of an expression.
    return configured if ours in configured else f"{configured}|{ours}"
