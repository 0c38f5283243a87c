"""Arguments of operators that are Jinja templates, or come from other tasks."""

from __future__ import annotations

import ast
import datetime
import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    # Only for type checkers: a mixin has the methods of the operator that it is mixed into.
    from airflow.sdk import BaseOperator as _Base
else:
    _Base = object

T = TypeVar("T", int, float)


class TextTemplates(_Base):
    """A mixin for operators: renders text arguments as text, whatever the DAG says.

    In a DAG with ``render_template_as_native_obj=True`` Jinja reads what a template gives as Python:
    ``"2026_11_01"`` would be the number 20261101, ``"1e3"`` 1000.0, and ``"None"`` nothing at all.

    Mix it in before the operator: ``class DiscoverAudioOperator(TextTemplates, BaseOperator)``.
    """

    text_fields: ClassVar[Collection[str]] = ()
    """Those of ``template_fields`` that are text, or mappings to text."""

    def _do_render_template_fields(
        self, parent: Any, template_fields: Iterable[str], context: Any, jinja_env: Any, seen_oids: set[int]
    ) -> None:
        names = [*template_fields]
        if parent is self:
            texts = [name for name in names if name in self.text_fields]
            names = [name for name in names if name not in self.text_fields]
            chosen = self.render_template_as_native_obj
            self.render_template_as_native_obj = False
            try:
                environment = self.get_template_env()
                super()._do_render_template_fields(parent, texts, context, environment, seen_oids)
            finally:
                self.render_template_as_native_obj = chosen
        super()._do_render_template_fields(parent, names, context, jinja_env, seen_oids)


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
    """A partition value as text: another task may have returned 13 for "13", or a date."""
    return str(value) if isinstance(value, int | datetime.date) else value


def optional(value: str | None) -> str | None:
    """An argument such as the name of a connection; ``None`` when a template made nothing of it.

    Jinja writes ``None`` for a Param without a value.
    """
    return None if value in (None, "", "None") else value


def collection(value: Any) -> Any:
    """A list or a mapping that a template rendered to text: as JSON, as Python, or separated by commas.

    :return: anything else unchanged.
    """
    if not isinstance(value, str):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError):
            continue
        if found is None or isinstance(found, list | tuple | dict):
            return found or ()
    return tuple(part.strip() for part in value.split(",") if part.strip())


def number(name: str, kind: type[T], value: Any) -> T:
    """A number, or one that a template rendered to text.

    :param name: of the argument, for the message.
    :raises ValueError: for other text.
    """
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value!r}") from None
