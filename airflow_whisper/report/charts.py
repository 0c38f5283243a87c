"""Plots as positions and texts; the page's template draws them as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH = 320
HEIGHT = 150
"""Size of a histogram, in the units of its SVG."""

FLOOR = HEIGHT - 22
"""Where the columns of a histogram stand."""

_TOP = 18
_LEFT = 4
_TICKS = 4


class Column(NamedTuple):
    """A column of a histogram: place and size, and what browsers show under the pointer."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Tick(NamedTuple):
    """A text below the columns."""

    x: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Histogram:
    """Columns with their edges, and the largest value above its column.

    :param summary: the plot in words, for screen readers.
    """

    columns: Sequence[Column]
    ticks: Sequence[Tick]
    peak_x: float
    peak: str
    summary: str


class Bar(NamedTuple):
    """A horizontal bar: a name and its count, and the width in percent of the largest."""

    name: str
    shown: str
    width: float
    meaning: str


def histogram(values: Sequence[float], labels: Sequence[str], edges: Sequence[str]) -> Histogram | None:
    """One column for each value, edges below.

    :param labels: what each column stands for.
    :param edges: texts for the left edge of each column, and perhaps one for the right end.
    :return: ``None`` when all values are 0.
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
            # Narrow gaps between columns.
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
    """One bar for each name.

    :param meanings: what a name stands for.
    """
    largest = max((count for _, count in counts), default=0)
    return [
        Bar(name, value_text(count), max(0.6, 100 * count / largest), (meanings or {}).get(name, ""))
        for name, count in counts
    ]


def value_text(value: float) -> str:
    """A count or a rate, short."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"
