"""Temporary folders for credentials. Folders left behind are deleted when the same user creates the next."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "whisper-submit-"
"""Prefix of the folders' names, in the machine's temporary folder."""

_LOCK = "lock"


@contextmanager
def private_folder() -> Iterator[Path]:
    """Create a folder that only this user can read, and delete folders left by the user's killed processes.

    A process that is killed with SIGKILL cannot clean up. The kernel still releases its lock, which shows the
    next process that the folder is abandoned, even if the two run in different containers.
    """
    sweep()
    # Use another name until the folder is locked, because `sweep` deletes unlocked folders with the prefix.
    new = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}"))
    with (new / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(new.with_name(new.name.removeprefix("new-")))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Delete folders of this user whose process has ended without deleting them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # The folder is in use, or another process has deleted it.
            continue
