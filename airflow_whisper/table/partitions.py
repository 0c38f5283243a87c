"""Partition values: strings for users, and in the table of the type that its column has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from airflow_whisper.table.errors import TableMismatchError

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.partitioning import PartitionKey
    from pyiceberg.table import Table

PARTITION_TYPES = ("string", "date", "int", "long")
"""Types of a table's columns that a partition key can have."""

_BITS = {"int": 32, "long": 64}


def partition_values(table: Table, partition: Mapping[str, str]) -> dict[str, Any]:
    """The values of a partition as its columns hold them: ``str``, ``datetime.date`` or ``int``.

    :raises TableMismatchError: when there is no such column, or a value is none of the column's type.
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
    """The same partition with one spelling for each value: ``07`` in a column of numbers becomes ``7``.

    :param table: ``None``: there is none yet, and its columns will be strings.
    :raises TableMismatchError: when a value is none of its column's type.
    """
    if table is None:
        return dict(partition)
    return {key: str(value) for key, value in partition_values(table, partition).items()}


def partition_filter(table: Table, partition: Mapping[str, str]) -> BooleanExpression:
    """The expression that is true for the rows of a partition."""
    from pyiceberg.expressions import AlwaysTrue, And, EqualTo, Reference
    from pyiceberg.expressions.literals import literal

    expression: BooleanExpression = AlwaysTrue()
    for key, value in partition_values(table, partition).items():
        expression = And(expression, EqualTo(term=Reference(key), value=literal(value)))
    return expression


def partition_key(table: Table, partition: Mapping[str, str]) -> PartitionKey:
    """What a data file of a partition is described with, and where it lies."""
    from pyiceberg.partitioning import PartitionFieldValue, PartitionKey

    spec, schema = table.spec(), table.schema()
    values = partition_values(table, partition)
    fields = [
        PartitionFieldValue(field, values[schema.find_column_name(field.source_id) or ""])
        for field in spec.fields
    ]
    return PartitionKey(fields, spec, schema)
