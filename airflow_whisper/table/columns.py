"""Handle transcript columns that the user has renamed or dropped in an existing table.

Iceberg identifies a column by its id. Renaming or dropping a column is deliberate, so it is not added again:
values of a renamed column are written under its new name, and those of a dropped column are omitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.table import Table


def moved_columns(table: Table, ours: pa.Schema) -> dict[str, str | None]:
    """Map former paths of renamed columns to their current paths, and those of dropped ones to ``None``.

    :param ours: schema of the transcript row. Paths have Iceberg's form, for example
        ``segments.element.words.element.word``.
    """
    current = table.schema()
    present = set(current.column_names)
    older = sorted(table.schemas().values(), key=lambda schema: -schema.schema_id)
    moved: dict[str, str | None] = {}
    for path in _paths(ours):
        if path in present:
            continue
        ids = [schema.find_field(path).field_id for schema in older if path in schema.column_names]
        if ids:
            moved[path] = current.find_column_name(ids[0])
    return moved


def describe_moved(table: Table, moved: Mapping[str, str | None]) -> str:
    """Describe the moved columns in one sentence, for the log."""
    # A nested field moves together with its column, so name only the outermost.
    outermost = {p: now for p, now in moved.items() if not any(p.startswith(f"{q}.") for q in moved)}
    changes = [f"{path} was {f'renamed to {now}' if now else 'dropped'}" for path, now in outermost.items()]
    return f"Columns of {'.'.join(table.name())} are left as they are, not added again: {'; '.join(changes)}"


def without(schema: pa.Schema, moved: Mapping[str, str | None]) -> pa.Schema:
    """Return the schema without the moved columns and nested fields."""
    import pyarrow as pa

    fields = [f.with_type(_without(f.type, f.name, moved)) for f in schema if f.name not in moved]
    return pa.schema(fields)


def _without(type_: pa.DataType, path: str, moved: Mapping[str, str | None]) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_list(type_):
        return pa.list_(_without(type_.value_type, f"{path}.element", moved))
    if pa.types.is_struct(type_):
        kept = (f for f in type_ if f"{path}.{f.name}" not in moved)
        return pa.struct([f.with_type(_without(f.type, f"{path}.{f.name}", moved)) for f in kept])
    return type_


def under_new_names(array: pa.Array, path: str, moved: Mapping[str, str | None]) -> pa.Array:
    """Return the same values, with the fields of nested structs renamed to their current names."""
    renamed = _renamed(array.type, path, moved)
    return array if renamed.equals(array.type) else array.view(renamed)


def _renamed(type_: pa.DataType, path: str, moved: Mapping[str, str | None]) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_list(type_):
        element = type_.value_field
        return pa.list_(element.with_type(_renamed(element.type, f"{path}.element", moved)))
    if pa.types.is_struct(type_):
        fields = []
        for field in type_:
            here = f"{path}.{field.name}"
            name = (moved.get(here) or here).rsplit(".", 1)[-1]
            fields.append(field.with_name(name).with_type(_renamed(field.type, here, moved)))
        return pa.struct(fields)
    return type_


def _paths(schema: pa.Schema) -> Iterator[str]:
    for field in schema:
        yield from _paths_of(field.type, field.name)


def _paths_of(type_: pa.DataType, path: str) -> Iterator[str]:
    import pyarrow as pa

    yield path
    if pa.types.is_list(type_):
        yield from _paths_of(type_.value_type, f"{path}.element")
    elif pa.types.is_struct(type_):
        for field in type_:
            yield from _paths_of(field.type, f"{path}.{field.name}")
