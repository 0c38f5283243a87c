"""The package can be imported wherever notebooks run, Windows included."""

from __future__ import annotations

import ast
from pathlib import Path

import whisper_spark

# What Python has on Unix alone: docs.python.org/3/library/unix.html.
UNIX = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def test_nothing_is_imported_that_only_unix_has() -> None:
    found = set()
    for path in Path(whisper_spark.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {f"{path.name}: {name}" for name in names if name.partition(".")[0] in UNIX}
    assert not found
