"""Builds a folder of files that is either complete or absent."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path


def build_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Return a folder, and build it on the first call.

    It is created with one rename, so an existing folder is complete.

    :param build: called with an empty folder on the same file system, which it fills.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        building = Path(folder, target.name)
        building.mkdir()
        build(building)
        try:
            building.rename(target)
        except OSError:
            # If another process has created the folder meanwhile, it holds the same files.
            if not target.is_dir():
                raise
    return target
