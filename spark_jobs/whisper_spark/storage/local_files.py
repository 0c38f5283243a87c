"""Local files with the manners of an object store: whole files appear at once, or not at all."""

from __future__ import annotations

import errno
import os
import stat as stat_module
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = ".whisper-"


@dataclass
class Outcome:
    """Whether :func:`publishing` wrote the file. Known when its block has ended."""

    written: bool = False


def walk(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All files below a folder, with symbolic links followed. A folder that does not exist is empty.

    :raises PermissionError: for a folder that may not be listed.
    :raises UnicodeError: for a name that is not UTF-8, which a table cannot hold.
    """
    # Folders still to visit, each with the folders that lead to it, to notice links that go in circles.
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(folder.rstrip("/") or "/", frozenset())]
    while waiting:
        path, parents = waiting.pop()
        try:
            stat = os.stat(path)  # noqa: PTH116 - Path objects double the cost of a large listing
            identity = (stat.st_dev, stat.st_ino)
            if identity in parents:
                continue
            entries = os.scandir(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                _check_name(entry.path)
                if entry.is_dir():
                    waiting.append((entry.path, parents | {identity}))
                elif not _is_temporary(entry.name):
                    yield from _file(entry)


def _file(entry: os.DirEntry[str]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        stat = entry.stat()
    except FileNotFoundError:  # deleted meanwhile, or a link to nowhere
        return
    if stat_module.S_ISREG(stat.st_mode):
        yield entry.path, stat


def _is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY) and name.endswith(".tmp")


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UnicodeError(f"the file name {os.fsencode(path)!r} is not UTF-8: rename the file") from None


def stat_file(path: str) -> os.stat_result:
    """:raises FileNotFoundError: also when the path is a folder."""
    stat = os.stat(path)  # noqa: PTH116
    if not stat_module.S_ISREG(stat.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return stat


def open_file(path: str) -> BinaryIO:
    """The file for reading.

    :raises FileNotFoundError: also when the path is a folder or a pipe, which would block.
    """
    stat_file(path)
    return Path(path).open("rb")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` when the block ends without an error."""
    with publishing(path, if_absent=False) as (file, _):
        yield file


@contextmanager
def publishing(path: Path, if_absent: bool) -> Iterator[tuple[BinaryIO, Outcome]]:
    """A file to write to that becomes ``path`` when the block ends without an error.

    :param if_absent: a file that is there already stays, and ``Outcome.written`` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}.tmp"
    outcome = Outcome()
    try:
        with temporary.open("xb") as file:
            yield file, outcome
            file.flush()
            os.fsync(file.fileno())
        outcome.written = _link(temporary, path) if if_absent else bool(temporary.replace(path))
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links. Two writers in the same instant: the later one wins.
        if path.exists():
            return False
        temporary.replace(path)
    return True
