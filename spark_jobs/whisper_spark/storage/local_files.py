"""Local files with the semantics of an object store: a file is written atomically."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat as stat_module
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from whisper_spark.storage.backend import ObjectInfo, Version

try:
    import fcntl
except ImportError:  # On Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".whisper-"
_COPY_CHUNK = 1024 * 1024

# Hidden from listings by its name. It stays: who deleted it would delete it under another writer.
_LOCK = f"{_TEMPORARY}lock.tmp"


class LocalFiles:
    """The :class:`~whisper_spark.storage.backend.Backend` for local file systems."""

    def objects(
        self, prefix: str, chunk_size: int, unreadable: Callable[[str], None]
    ) -> Iterator[ObjectInfo]:
        """See :class:`Backend`. A folder that does not exist is empty, as in an object store."""
        for path, stat in walk(_path(prefix), lambda path: unreadable(_uri(path))):
            yield _info(path, stat)

    def folders(self, prefix: str) -> list[str]:
        """See :class:`Backend`."""
        try:
            entries = os.scandir(_path(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []
        with entries:
            return [entry.name for entry in entries if _is_utf8(entry.name) and entry.is_dir()]

    def info(self, key: str) -> ObjectInfo:
        """See :class:`Backend`."""
        return _info(_path(key), stat_file(_path(key)))

    def open(self, key: str, etag: str | None) -> BinaryIO:
        """See :class:`Backend`."""
        file = open_file(_path(key))
        try:
            _info(_path(key), os.fstat(file.fileno())).check_etag(etag)
        except BaseException:
            file.close()
            raise
        return file

    def open_ranges(self, key: str) -> BinaryIO:
        """See :class:`Backend`."""
        return self.open(key, None)

    def download(self, key: str, path: Path, etag: str | None) -> None:
        """See :class:`Backend`."""
        with replacing(path) as file, self.open(key, etag) as source:
            shutil.copyfileobj(source, file, _COPY_CHUNK)

    def write(self, key: str, data: bytes | Path, if_absent: bool) -> bool:
        """See :class:`Backend`."""
        with publishing(Path(_path(key)), if_absent) as (file, outcome):
            if isinstance(data, bytes):
                file.write(data)
            else:
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file, _COPY_CHUNK)
        return outcome.written

    def open_version(self, key: str) -> tuple[BinaryIO, Version]:
        """See :class:`Backend`."""
        file = self.open(key, None)
        version = _version(file)
        file.seek(0)
        return file, version

    def replace(self, key: str, path: Path, version: Version | None) -> Version | None:
        """See :class:`Backend`."""
        target = Path(_path(key))
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            if _version_of(target) != version:
                return None
            with replacing(target) as file, path.open("rb") as source:
                shutil.copyfileobj(source, file, _COPY_CHUNK)
        return _version_of(path)

    def delete(self, keys: Iterable[str]) -> None:
        """See :class:`Backend`."""
        for key in keys:
            Path(_path(key)).unlink(missing_ok=True)


def _path(key: str) -> str:
    return key if os.name == "nt" else "/" + key


def _uri(path: str) -> str:
    return "file:///" + path.removeprefix("/")


def _info(path: str, stat: os.stat_result) -> ObjectInfo:
    # From time and size, but not the inode: on a network mount it may differ from host to host.
    etag = f"{stat.st_mtime_ns // 1000:x}-{stat.st_size:x}"
    return ObjectInfo(_uri(path), stat.st_size, etag, datetime.fromtimestamp(stat.st_mtime, UTC))


def _version(file: BinaryIO) -> dict[str, str]:
    # The content, because two writes in the same tick of the clock have one time of modification.
    digest = hashlib.sha256()
    while chunk := file.read(_COPY_CHUNK):
        digest.update(chunk)
    return {"sha256": digest.hexdigest()}


def _version_of(path: Path) -> dict[str, str] | None:
    try:
        with path.open("rb") as file:
            return _version(file)
    except FileNotFoundError:
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other writers in a folder, in all processes and on all hosts that share it.

    Does nothing where the file system has no locks.
    """
    path = folder / _LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        # Another user has created it. Only network file systems need write access to lock it.
        descriptor = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass
class Outcome:
    """Whether :func:`publishing` wrote the file. Known at the end of its block."""

    written: bool = False


def walk(folder: str, unreadable: Callable[[str], None]) -> Iterator[tuple[str, os.stat_result]]:
    """All files below a folder; follows symbolic links. A folder that does not exist is empty.

    :param unreadable: called with the path of each file or folder whose name is not UTF-8, because such a
        name cannot be stored in a table.
    :raises PermissionError: when a folder may not be listed, unless it is one of the system, such as
        ``lost+found`` and ``.Trash-0``, whose files nobody looks for.
    """
    # Folders to visit, each with its parents, in order to detect cyclic links.
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
        except PermissionError:
            if path != folder.rstrip("/") and _is_private(os.path.basename(path)):  # noqa: PTH119
                continue
            raise
        with entries:
            for entry in entries:
                if not _is_utf8(entry.name):
                    unreadable(entry.path)
                elif entry.is_dir():
                    waiting.append((entry.path, parents | {identity}))
                elif not _is_temporary(entry.name):
                    yield from _file(entry)


def _file(entry: os.DirEntry[str]) -> Iterator[tuple[str, os.stat_result]]:
    try:
        stat = entry.stat()
    except FileNotFoundError:
        # The file has been deleted, or is a broken link.
        return
    if stat_module.S_ISREG(stat.st_mode):
        yield entry.path, stat


def _is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY) and name.endswith(".tmp")


def _is_private(name: str) -> bool:
    return name.startswith(".") or name in ("lost+found", "System Volume Information")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        # Python represents bytes that are not UTF-8 as surrogates, which cannot be encoded.
        return False
    return True


def stat_file(path: str) -> os.stat_result:
    """The status of a regular file.

    :raises FileNotFoundError: also when the path is not a regular file, for example a folder.
    """
    stat = os.stat(path)  # noqa: PTH116
    if not stat_module.S_ISREG(stat.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", path)
    return stat


def open_file(path: str) -> BinaryIO:
    """Open a regular file for reading.

    :raises FileNotFoundError: also for a folder, and for a pipe, which would block.
    """
    stat_file(path)
    return Path(path).open("rb")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It replaces ``path`` when the block ends without an exception."""
    with publishing(path, if_absent=False) as (file, _):
        yield file


@contextmanager
def publishing(path: Path, if_absent: bool) -> Iterator[tuple[BinaryIO, Outcome]]:
    """A file to write to. It is moved to ``path`` when the block ends without an exception.

    :param if_absent: do not replace an existing file; ``Outcome.written`` is then false.
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
        # The file system has no hard links. Of two writers at the same instant, the later one wins.
        if path.exists():
            return False
        temporary.replace(path)
    return True
