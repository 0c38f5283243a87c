"""Plots as inline SVG and HTML, for pages that may load nothing. Colours come from the page's style."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

_WIDTH = 320
_HEIGHT = 150
_TOP = 18
_BOTTOM = 22
_LEFT = 4
_TICKS = 4

Escape = Callable[[object], str]


def columns(values: Sequence[float], labels: Sequence[str], edges: Sequence[str], escape: Escape) -> str:
    """A histogram: one column for each value, edges below, the largest value above.

    :param labels: what each column stands for, shown by browsers under the pointer.
    :param edges: texts for the left edge of each column, and perhaps one for the right end.
    :return: empty when all values are 0.
    """
    largest = max(values, default=0)
    if not largest:
        return ""
    floor = _HEIGHT - _BOTTOM
    width = (_WIDTH - 2 * _LEFT) / len(values)
    parts = [f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{floor}" y2="{floor}"/>']
    for place, (value, label) in enumerate(zip(values, labels, strict=False)):
        if not value:
            continue
        height = max(1.5, value / largest * (floor - _TOP))
        x = _LEFT + place * width
        # Narrow gaps between columns, none when there are very many.
        parts.append(
            f'<rect x="{x + width * 0.06:.1f}" y="{floor - height:.1f}" width="{width * 0.88:.1f}" '
            f'height="{height:.1f}" rx="1.5"><title>{escape(label)}: {_value(value)}</title></rect>'
        )
    peak = values.index(largest)
    x = min(max(_LEFT + (peak + 0.5) * width, 24), _WIDTH - 24)
    parts.append(f'<text class="peak" x="{x:.1f}" y="{_TOP - 6}">{_value(largest)}</text>')
    parts += _edge_labels(edges, width, escape)
    summary = f"{_value(sum(values))} in {len(values)} columns, most {escape(labels[peak])}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{summary}">{"".join(parts)}</svg>'


def _edge_labels(edges: Sequence[str], width: float, escape: Escape) -> list[str]:
    step = max(1, -(-(len(edges) - 1) // _TICKS))
    labels = []
    for place in range(0, len(edges), step):
        x = _LEFT + place * width
        anchor = "start" if x < 16 else "end" if x > _WIDTH - 16 else "middle"
        labels.append(
            f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" y="{_HEIGHT - 6}">'
            f"{escape(edges[place])}</text>"
        )
    return labels


def bars(counts: Sequence[tuple[str, int]], escape: Escape, meanings: Mapping[str, str] | None = None) -> str:
    """One horizontal bar for each name, with its count.

    :param meanings: what a name stands for, shown by browsers under the pointer.
    :return: empty without counts.
    """
    largest = max((count for _, count in counts), default=0)
    rows = []
    for name, count in counts:
        meaning = (meanings or {}).get(name, "")
        title = f' title="{escape(meaning)}"' if meaning else ""
        rows.append(
            f"<tr{title}><th scope=row>{escape(name)}</th>"
            f'<td><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{max(0.6, 100 * count / largest):.1f}" height="8"/></svg></td>'
            f"<td>{_value(count)}</td></tr>"
        )
    return f'<table class="bars"><tbody>{"".join(rows)}</tbody></table>' if rows else ""


def _value(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.3g}"
