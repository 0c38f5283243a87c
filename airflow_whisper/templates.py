"""Arguments of operators that are Jinja templates, or come from other tasks."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any


def is_final(value: Any) -> bool:
    """Whether a value is final, not a template nor the output of a task that has yet to run."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, Mapping):
        return all(is_final(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(is_final(v) for v in value)
    return not hasattr(value, "resolve")


def text(value: Any) -> Any:
    """A partition value as text: native rendering turns "13" into 13 and a date into a date."""
    return str(value) if isinstance(value, int | datetime.date) else value
