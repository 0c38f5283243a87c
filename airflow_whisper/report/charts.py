"""Compute the positions and texts of plots, which the page's template draws as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH = 320
HEIGHT = 150
"""Size of a histogram, in the units of its SVG."""

FLOOR = HEIGHT - 22
"""Vertical position of the base of a histogram's columns."""

_TOP = 18
_LEFT = 4
_TICKS = 4


class Column(NamedTuple):
    """A column of a histogram: position, size, the number above it, and the tooltip that browsers show."""

    x: float
    y: float
    width: float
    height: float
    number: str
    title: str


class Tick(NamedTuple):
    """A label below the columns."""

    x: float
    anchor: str
    text: str


class Level(NamedTuple):
    """A horizontal line at a value that the columns are compared with, and its label."""

    y: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """The columns with their edge labels.

    :param summary: description of the plot for screen readers.
    """

    columns: Sequence[Column]
    ticks: Sequence[Tick]
    summary: str
    level: Level | None = None


class Bar(NamedTuple):
    """A horizontal bar: name, count, width in percent of the largest bar, and meaning of the name."""

    name: str
    shown: str
    width: float
    meaning: str


def histogram(
    values: Sequence[float],
    labels: Sequence[str],
    edges: Sequence[str],
    *,
    tick_every: int | None = None,
    level: tuple[float, str] | None = None,
) -> Histogram | None:
    """Return a histogram with one column for each value, its number above it, and the edges below.

    :param labels: the range of each column, for tooltips.
    :param edges: labels of the left edge of each column, optionally followed by that of the right end.
    :param tick_every: show the label of every such edge; ``None``: of as many as fit.
    :param level: a value to draw a line at, with its label.
    :return: the histogram; ``None`` if all values are 0.
    """
    if not max(values, default=0):
        return None
    largest = max(*values, level[0] if level else 0)
    width = (WIDTH - 2 * _LEFT) / len(values)
    columns = []
    for place, (value, label) in enumerate(zip(values, labels, strict=False)):
        if value:
            height = max(1.5, value / largest * (FLOOR - _TOP))
            # 6 % on each side leave a narrow gap between columns.
            x = _LEFT + (place + 0.06) * width
            title = f"{label}: {value_text(value)}"
            columns.append(Column(x, FLOOR - height, width * 0.88, height, short_number(value), title))
    return Histogram(
        columns,
        _ticks(edges, width, tick_every or max(1, -(-(len(edges) - 1) // _TICKS))),
        f"{value_text(sum(values))} in {len(values)} columns, most {labels[values.index(max(values))]}",
        Level(FLOOR - level[0] / largest * (FLOOR - _TOP), level[1]) if level else None,
    )


def _ticks(edges: Sequence[str], width: float, step: int) -> list[Tick]:
    ticks = []
    for place in range(0, len(edges), step):
        x = _LEFT + place * width
        ticks.append(Tick(x, "start" if x < 16 else "end" if x > WIDTH - 16 else "middle", edges[place]))
    return ticks


def bars(counts: Sequence[tuple[str, int]], meanings: Mapping[str, str] | None = None) -> list[Bar]:
    """Return one bar for each name.

    :param meanings: explanations of names.
    """
    largest = max((count for _, count in counts), default=0)
    return [
        Bar(name, value_text(count), max(0.6, 100 * count / largest), (meanings or {}).get(name, ""))
        for name, count in counts
    ]


def value_text(value: float) -> str:
    """Format a count or a rate briefly."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"


def short_number(value: float) -> str:
    """Format a number in at most four characters, to fit on a column: ``7``, ``0.25``, ``638``, ``1.6k``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.5 would be rounded to a four-digit number of the smaller unit.
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    if value >= 9.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2g}"
