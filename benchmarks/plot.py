"""A bar chart as SVG, written by hand: a plotting library would be the largest dependency of this project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from contenders import CONTENDERS

_WIDTH, _LABELS, _BAR, _GAP = 860, 300, 18, 6
_COLOURS = {"ours": "#0b6e4f", "article": "#b5651d", "other": "#7a869a"}
# Readable on white and on black, and told apart by people who do not see red or green.


def bars(corpora: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """Speed of contenders, one group of bars for each corpus, each with a scale of its own."""
    shapes: list[str] = []
    y = 10
    for corpus, rows in corpora.items():
        y += 22
        shapes.append(f'<text x="0" y="{y}" class="title">{escape(corpus)}: times real time</text>')
        y += 8
        longest = max(value for _, value in rows)
        for name, value in rows:
            width = max(1.0, (_WIDTH - _LABELS - 60) * value / longest)
            middle = y + _BAR - 5
            title = escape(CONTENDERS[name].title)
            shapes += [
                f'<text x="{_LABELS - 8}" y="{middle}" text-anchor="end">{title}</text>',
                f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_colour(name)}"/>',
                f'<text x="{_LABELS + width + 6:.1f}" y="{middle}">{value:.1f}</text>',
            ]
            y += _BAR + _GAP
    style = "text{font:13px system-ui,sans-serif;fill:#3b4252}.title{font-weight:600;font-size:15px}"
    dark = "@media(prefers-color-scheme:dark){text{fill:#d8dee9}}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 6}" role="img">'
    label = "<title>Speed of every contender on every corpus</title>"
    return "\n".join([head, label, f"<style>{style}{dark}</style>", *shapes, "</svg>", ""])


def _colour(name: str) -> str:
    if name.startswith("ours"):
        return _COLOURS["ours"]
    return _COLOURS["article" if name.startswith("method") else "other"]
