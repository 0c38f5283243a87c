"""The code blocks of README and docs/, and what their comments say about how they are tested."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

# A fence, with the comment in the line above it, if there is one. Fences in lists are indented.
_BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<comment>.*?) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>[^`\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A code block. ``name`` and ``reason`` come from its comment, of which there is at most one."""

    page: Path
    line: int
    language: str
    text: str
    name: str | None
    """Of ``<!-- run by a test as: NAME -->``: a test of its own looks it up by this name."""
    reason: str | None
    """Of ``<!-- not run: REASON -->``."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page."""
    content = page.read_text()
    found = []
    for match in _BLOCK.finditer(content):
        comment = match["comment"] or ""
        line = content.count("\n", 0, match.start("indent")) + 1
        indent = match["indent"]
        text = "".join(part.removeprefix(indent) for part in match["text"].splitlines(keepends=True))
        name = (
            comment.removeprefix("run by a test as: ") if comment.startswith("run by a test as: ") else None
        )
        reason = comment.removeprefix("not run: ") if comment.startswith("not run: ") else None
        found.append(Block(page, line, match["language"], text, name, reason))
    return found


def named_block(name: str) -> Block:
    """The block with this name, of which there is exactly one."""
    (found,) = [block for page in PAGES for block in blocks(page) if block.name == name]
    return found


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block as lists of words. A quoted word may hold line breaks."""
    found: list[list[str]] = []
    pending = ""
    for line in block.text.replace("\\\n", " ").splitlines(keepends=True):
        pending += line
        try:
            words = shlex.split(pending, comments=True)
        # A quotation goes on in the next line.
        except ValueError:
            continue
        if words:
            found.append(words)
        pending = ""
    assert not pending, f"{block.place}: a quotation does not end"
    return found


def connection(name: str) -> dict[str, Any]:
    """The connection that a block with one ``airflow connections add ID --conn-json JSON`` makes."""
    ((*command, _, option, text),) = commands(named_block(name))
    assert [*command, option] == ["airflow", "connections", "add", "--conn-json"]
    value: dict[str, Any] = json.loads(text)
    return value
