"""The package can be imported wherever notebooks run, Windows included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import whisper_spark

# What Python has on Unix alone: docs.python.org/3/library/unix.html.
UNIX = {"crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported for certain: not where an ImportError is caught."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h) for h in node.handlers):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        else:
            yield from imports(node)


def test_nothing_is_imported_that_only_unix_has() -> None:
    found = {
        f"{path.name}: {name}"
        for path in Path(whisper_spark.__file__).parent.rglob("*.py")
        for name in imports(ast.parse(path.read_text()))
        if name.partition(".")[0] in UNIX
    }
    assert not found
