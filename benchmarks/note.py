"""Blocks of ``RESULTS.md`` that scripts write, each between markers of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

NOTE = Path(__file__).resolve().parent / "RESULTS.md"


def write_block(name: str, lines: Sequence[str], note: Path = NOTE) -> None:
    """Replace what stands between the markers of a name, or put it at the end where there are none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = note.read_text(encoding="utf-8") if note.is_file() else "# Results\n"
    block = "\n".join([begin, "", *lines, "", end])
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    there = pattern.search(text)
    text = pattern.sub(lambda _: block, text) if there else f"{text.rstrip()}\n\n{block}\n"
    note.write_text(text, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
