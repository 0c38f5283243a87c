"""Check the extra of a connection, of which Airflow makes an empty one if it is not JSON."""

from __future__ import annotations

import json
from typing import Any


def extra_problem(connection: Any) -> str | None:
    """What is wrong with the extra of a connection, without its content, which may be secret.

    :return: a sentence for an error message; ``None`` if the extra is empty or a JSON object.
    """
    extra = connection.extra
    if not extra or not str(extra).strip():
        return None
    advice = "write it as JSON, with double quotes around names and texts"
    try:
        value = json.loads(extra)
    except ValueError as error:
        where = f" ({error.msg}, character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        return f"the extra of connection {connection.conn_id!r} is not JSON{where}: {advice}"
    if not isinstance(value, dict):
        return f"the extra of connection {connection.conn_id!r} is not a JSON object: {advice}"
    return None
