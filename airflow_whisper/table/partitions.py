"""Convert partition values between the users' strings and the types of the table's columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from airflow_whisper.table.errors import TableMismatchError

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.partitioning import PartitionField, PartitionKey
    from pyiceberg.table import Table

PARTITION_TYPES = ("string", "date", "int", "long")
"""Column types that a partition column may have."""

_BITS = {"int": 32, "long": 64}


def partition_values(table: Table, partition: Mapping[str, str]) -> dict[str, Any]:
    """Convert partition values to the types of their columns: ``str``, ``datetime.date`` or ``int``.

    :raises TableMismatchError: if a column does not exist, or a value does not fit its column's type.
    """
    schema = table.schema()
    values = {}
    for key, text in partition.items():
        kind = str(schema.find_type(key)) if key in schema.column_names else "missing"
        try:
            values[key] = _parse(kind, text)
        except ValueError:
            raise TableMismatchError(
                f"{text!r} is not a value for the partition column {key} of {'.'.join(table.name())}, which "
                f"is of type {kind}{_EXAMPLES.get(kind, '')}"
            ) from None
    return values


_EXAMPLES = {
    "date": ": write it as 2026-11-01",
    "int": ": write a whole number of 32 bits, such as 7",
    "long": ": write a whole number of 64 bits, such as 7",
}


def _parse(kind: str, text: str) -> Any:
    if kind == "string":
        return text
    if kind == "date" and re.fullmatch(r"\d{4}-\d\d-\d\d|\d{8}", text, re.ASCII):
        return date.fromisoformat(text)
    if kind in _BITS and re.fullmatch(r"-?\d{1,20}", text, re.ASCII):
        number = int(text)
        if -(2 ** (_BITS[kind] - 1)) <= number < 2 ** (_BITS[kind] - 1):
            return number
    raise ValueError(text)


def canonical_partition(table: Table | None, partition: Mapping[str, str]) -> dict[str, str]:
    """Return the partition as the table spells it: ``07`` in a column of numbers becomes ``7``.

    Its keys have the order of the table's partition fields, because a database may have changed that of a
    mapping which came as an XCom or in an event.

    :param table: the table; ``None`` if it does not exist yet, in which case its columns will be strings.
    :raises TableMismatchError: if a value does not fit its column's type.
    """
    if table is None:
        return dict(partition)
    values = {key: str(value) for key, value in partition_values(table, partition).items()}
    names = [table.schema().find_column_name(field.source_id) for field in table.spec().fields]
    return {name: values[name] for name in names if name in values}


def partition_filter(table: Table, partition: Mapping[str, str]) -> BooleanExpression:
    """Return the filter expression that selects the rows of a partition."""
    from pyiceberg.expressions import AlwaysTrue, And, EqualTo, Reference
    from pyiceberg.expressions.literals import literal

    expression: BooleanExpression = AlwaysTrue()
    for key, value in partition_values(table, partition).items():
        expression = And(expression, EqualTo(term=Reference(key), value=literal(value)))
    return expression


def is_void(field: PartitionField) -> bool:
    """Whether a partition field has no value any more: format version 1 keeps fields that were removed."""
    from pyiceberg.transforms import VoidTransform

    return isinstance(field.transform, VoidTransform)


def partition_key(table: Table, partition: Mapping[str, str]) -> PartitionKey:
    """Return PyIceberg's key of a partition, which determines a data file's metadata and location."""
    from pyiceberg.partitioning import PartitionFieldValue, PartitionKey

    spec, schema = table.spec(), table.schema()
    values = partition_values(table, partition)
    fields = [
        PartitionFieldValue(
            field, None if is_void(field) else values[schema.find_column_name(field.source_id) or ""]
        )
        for field in spec.fields
    ]
    return PartitionKey(fields, spec, schema)
