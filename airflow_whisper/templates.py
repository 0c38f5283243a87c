"""Operator arguments that are Jinja templates or outputs of other tasks."""

from __future__ import annotations

import ast
import datetime
import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from whisper_spark.contract import WhisperOptions

if TYPE_CHECKING:
    # For type checkers only: the mixin uses methods of the operator it is mixed into.
    from airflow.sdk import BaseOperator as _Base
else:
    _Base = object

T = TypeVar("T", int, float)


class TextTemplates(_Base):
    """Operator mixin that renders text arguments as text, even with ``render_template_as_native_obj``.

    In a DAG with ``render_template_as_native_obj=True`` Jinja evaluates rendered text as Python:
    ``"2026_11_01"`` would become the number 20261101, ``"1e3"`` 1000.0, and ``"None"`` the value ``None``.

    Mix it in before the operator: ``class DiscoverAudioOperator(TextTemplates, BaseOperator)``.
    """

    text_fields: ClassVar[Collection[str]] = ()
    """The ``template_fields`` that are text, or mappings to text."""

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
    """Whether a value is final: neither a template nor the output of a task that has not run yet."""
    if isinstance(value, str):
        return "{{" not in value and "{%" not in value
    if isinstance(value, Mapping):
        return all(is_final(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(is_final(v) for v in value)
    return not hasattr(value, "resolve")


def text(value: Any) -> Any:
    """Convert a partition value to text: another task may have returned 13 for "13", or a date."""
    return str(value) if isinstance(value, int | datetime.date) else value


def check_rendered(partition: Mapping[str, Any]) -> None:
    """Check that no template of a partition value has looked up what does not exist.

    :raises ValueError: for the text ``None``, to which Jinja renders the XCom of a task that did not run.
    """
    for key, value in partition.items():
        if value == "None":
            raise ValueError(
                f"the partition value of {key!r} is 'None': did the task that returns it run, and is its id "
                "right?"
            )


def optional(value: str | None) -> str | None:
    """An optional argument such as a connection id; ``None`` if a template rendered to an empty value.

    Jinja renders a Param without a value as the text ``None``.
    """
    return None if value in (None, "", "None") else value


def collection(value: Any) -> Any:
    """Parse a collection that a template rendered to text: JSON, a Python literal, or comma-separated.

    :return: the collection; a value that is not text is returned unchanged.
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


def whisper_options(value: Any) -> WhisperOptions:
    """Parse transcription options: :class:`WhisperOptions`, a mapping of its fields, or the same as JSON.

    :raises ValueError: for any other value, and for options that are wrong.
    """
    if isinstance(value, WhisperOptions):
        return value
    if isinstance(value, Mapping | str):
        return WhisperOptions.from_dict(options_mapping(value))
    raise ValueError(f"options must be WhisperOptions, a dict of its fields or JSON, got {value!r}")


def options_mapping(value: Mapping[str, Any] | str) -> dict[str, Any]:
    """Parse some options: a mapping, JSON, or what Jinja makes of a Param that is an object.

    The text ``None``, which Jinja makes of a Param without a value, stands for ``None``.

    :raises ValueError: for text that is no mapping.
    """
    values = dict(value) if isinstance(value, Mapping) else _parsed_options(value)
    return {name: optional(given) if isinstance(given, str) else given for name, given in values.items()}


def _parsed_options(value: str) -> dict[str, Any]:
    try:
        values = json.loads(value)
    except (ValueError, RecursionError) as error:
        values = _literal(value)
        if values is None:
            raise ValueError(
                f"options are not valid JSON: {error}, in {value[:200]!r}. In a template, "
                "`{{ params.options | tojson }}` makes JSON of a Param"
            ) from None
    if not isinstance(values, dict):
        raise ValueError(f"options must be a mapping such as {{'batch_size': 32}}, got {value[:200]!r}")
    return values


def _literal(text: str) -> Any:
    """The value of a Python literal, which is how Jinja writes dicts and lists; ``None`` for other text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def number(name: str, kind: type[T], value: Any) -> T:
    """Parse a number that a template may have rendered to text.

    :param name: name of the argument, for the error message.
    :raises ValueError: if the text is not a number.
    """
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value!r}") from None


def boolean(name: str, value: Any) -> bool:
    """Parse a boolean that a template may have rendered to text.

    :param name: name of the argument, for the error message.
    :raises ValueError: for any other value or text. An empty text counts as false.
    """
    if isinstance(value, str):
        value = {"true": True, "false": False, "none": False, "": False}.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value
