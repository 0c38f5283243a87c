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
    """A column of a histogram: position, size, and the tooltip that browsers show."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Tick(NamedTuple):
    """A label below the columns."""

    x: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Histogram:
    """The columns with their edge labels, and the largest value, shown above its column.

    :param summary: description of the plot for screen readers.
    """

    columns: Sequence[Column]
    ticks: Sequence[Tick]
    peak_x: float
    peak: str
    summary: str


class Bar(NamedTuple):
    """A horizontal bar: name, count, width in percent of the largest bar, and meaning of the name."""

    name: str
    shown: str
    width: float
    meaning: str


def histogram(values: Sequence[float], labels: Sequence[str], edges: Sequence[str]) -> Histogram | None:
    """Return a histogram with one column for each value and the edges below.

    :param labels: the range of each column, for tooltips.
    :param edges: labels of the left edge of each column, optionally followed by that of the right end.
    :return: the histogram; ``None`` if all values are 0.
    """
    largest = max(values, default=0)
    if not largest:
        return None
    width = (WIDTH - 2 * _LEFT) / len(values)
    columns = []
    for place, (value, label) in enumerate(zip(values, labels, strict=False)):
        if value:
            height = max(1.5, value / largest * (FLOOR - _TOP))
            x = _LEFT + place * width
            # 6 % on each side leave a narrow gap between columns.
            columns.append(
                Column(
                    x + width * 0.06, FLOOR - height, width * 0.88, height, f"{label}: {value_text(value)}"
                )
            )
    peak = values.index(largest)
    return Histogram(
        columns,
        _ticks(edges, width),
        min(max(_LEFT + (peak + 0.5) * width, 24), WIDTH - 24),
        value_text(largest),
        f"{value_text(sum(values))} in {len(values)} columns, most {labels[peak]}",
    )


def _ticks(edges: Sequence[str], width: float) -> list[Tick]:
    step = max(1, -(-(len(edges) - 1) // _TICKS))
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
